"""What goes where, and how."""

from __future__ import annotations

import io

from etude.terminal.screen import Screen, wants_color


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screens(terminal: bool, color: bool = False) -> tuple[Screen, io.StringIO, io.StringIO]:
    out: io.StringIO = Terminal() if terminal else io.StringIO()
    err: io.StringIO = Terminal() if terminal else io.StringIO()
    return Screen(out, err, color=color), out, err


def say(screen: Screen) -> None:
    screen.thinking("let me ")
    screen.thinking("see")
    screen.answer("so")
    screen.answer(" it is")
    screen.end_answer()
    screen.note("done")
    screen.error("bad")


def test_a_pipe_gets_the_answer_alone() -> None:
    screen, out, err = screens(terminal=False)
    say(screen)
    assert out.getvalue() == "so it is\n"
    assert err.getvalue() == "let me see\n\ndone\nbad\n"


def test_a_terminal_shows_thinking_dim() -> None:
    screen, out, err = screens(terminal=True, color=True)
    say(screen)
    assert out.getvalue() == "\x1b[2mlet me \x1b[0m\x1b[2msee\x1b[0m\n\nso it is\n"
    assert err.getvalue() == "\x1b[2mdone\x1b[0m\n\x1b[31mbad\x1b[0m\n"
    screen, out, err = screens(terminal=True)
    say(screen)
    assert "\x1b" not in out.getvalue() + err.getvalue()


def test_lines_are_ended_once() -> None:
    screen, out, _ = screens(terminal=False)
    screen.answer("a\n")
    screen.end_answer()
    screen.end_answer()
    screen.answer("b")
    screen.end_answer()
    assert out.getvalue() == "a\nb\n"


def test_thinking_without_an_answer_ends_its_line() -> None:
    screen, out, err = screens(terminal=False)
    screen.thinking("hm")
    screen.end_answer()
    screen.answer("next")
    assert (out.getvalue(), err.getvalue()) == ("next", "hm\n")


def test_control_characters_are_shown_on_a_terminal_only() -> None:
    text = "a\x1b[2J\x07\x9b\x7f\r\n\tb"
    screen, out, _ = screens(terminal=True)
    screen.answer(text)
    assert out.getvalue() == "a\u241b[2J\u2407\ufffd\u2421\u240d\n\tb"
    screen, out, _ = screens(terminal=False)
    screen.answer(text)
    assert out.getvalue() == text


def test_when_colours_are_used() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    assert wants_color(None, {}, terminal) and not wants_color(None, {}, pipe)
    assert not wants_color(None, {"NO_COLOR": "1"}, terminal) and wants_color(
        None, {"NO_COLOR": ""}, terminal
    )
    assert not wants_color(None, {"TERM": "dumb"}, terminal)
    assert wants_color(True, {"NO_COLOR": "1"}, pipe) and not wants_color(False, {}, terminal)
