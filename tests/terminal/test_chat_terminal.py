"""`etude chat` at a pseudo-terminal, as somebody types into it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.terminal.pseudo_terminal import PseudoTerminal

WORDS = ("-n", "8", "--regex", "[a-z]{8}", "-s", "1")
ENDLESS = ("--ignore-eos", "--context-shift")


def chat(model: Path, state: Path, *argv: str, **environ: str) -> PseudoTerminal:
    clean = {
        name: text for name, text in os.environ.items() if not name.startswith(("LLAMA_ARG_", "NO_COLOR"))
    }
    env = {**clean, "XDG_STATE_HOME": str(state), **environ}
    return PseudoTerminal([sys.executable, "-m", "etude", "chat", str(model), *argv], env)


def test_a_talk(tiny: Path, tmp_path: Path) -> None:
    with chat(tiny, tmp_path, *WORDS) as terminal:
        terminal.wait_for(r"tiny\.gguf: llama")
        terminal.wait_for("/help lists the commands")
        terminal.wait_for_editor()
        terminal.type("hi\r")
        assert terminal.wait_for(r"\n[a-z]{1,8}\n")
        terminal.wait_for(r"\[ prompt \d+ tokens, .* t/s \| answer \d tokens")
        terminal.wait_for_editor()
        terminal.type("/tokens\r")
        terminal.wait_for(r"1 turn, \d+ of 512 tokens")
        terminal.wait_for_editor()
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(tiny: Path, tmp_path: Path) -> None:
    with chat(tiny, tmp_path, *ENDLESS) as terminal:
        terminal.wait_for_editor()
        terminal.type("hi\r")
        terminal.wait_for(r"hi\n[^\n]*[^\s]")
        terminal.type("\x03")
        terminal.wait_for(r"\(stopped\)")
        terminal.wait_for_editor()
        terminal.type("/set n 3\r")
        terminal.wait_for("predict = 3")
        terminal.wait_for_editor()
        terminal.type("again\r")
        terminal.wait_for(r"\(-n 3 tokens reached\)")
        terminal.wait_for_editor()
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C once more leaves")
        terminal.wait_for_editor()
        terminal.type("\x03")
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.shown and "^C" not in terminal.shown


def test_ctrl_c_clears_a_line_and_is_forgotten(tiny: Path, tmp_path: Path) -> None:
    with chat(tiny, tmp_path, *WORDS) as terminal:
        terminal.wait_for_editor()
        terminal.type("never sent\x03")
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C once more leaves")
        terminal.wait_for_editor()
        terminal.type("/tokens\r")
        terminal.wait_for("0 turns")
        terminal.wait_for_editor()
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C once more leaves")
        terminal.wait_for_editor()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0


def questions(path: Path) -> list[str]:
    return [turn["question"] for turn in json.loads(path.read_text())["turns"]]


def test_several_lines(tiny: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    with chat(tiny, tmp_path, *WORDS) as terminal:
        terminal.wait_for_editor()
        for keys in (
            "one\\\rtwo\r",
            "three\x1b\rfour\r",
            '"""\rfive\r\rsix\r"""\r',
            "\x1b[200~seven\neight\x1b[201~\r",
        ):
            terminal.wait_for_editor()
            terminal.type(keys)
            terminal.wait_for(r"t/s \|")
        terminal.wait_for_editor()
        terminal.type(f"/save {saved}\r")
        terminal.wait_for("4 turns saved")
        terminal.wait_for_editor()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert questions(saved) == ["one\ntwo", "three\nfour", "five\n\nsix", "seven\neight"]


def test_multiline_input(tiny: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    with chat(tiny, tmp_path, *WORDS, "-mli") as terminal:
        terminal.wait_for_editor()
        for keys in ("one\rtwo\\\r", "three\rfour\x1b\r"):
            terminal.wait_for_editor()
            terminal.type(keys)
            terminal.wait_for(r"t/s \|")
        terminal.wait_for_editor()
        terminal.type(f"/save {saved}\r")
        terminal.wait_for("2 turns saved")
        terminal.wait_for_editor()
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
    assert questions(saved) == ["one\ntwo", "three\nfour"]


def test_undo_gives_the_question_back(tiny: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    with chat(tiny, tmp_path, *WORDS) as terminal:
        terminal.wait_for_editor()
        terminal.type("first\r")
        terminal.wait_for(r"t/s \|")
        terminal.wait_for_editor()
        terminal.type("/undo\r")
        terminal.wait_for("> first")
        terminal.type(" again\r")
        terminal.wait_for(r"t/s \|")
        terminal.wait_for_editor()
        terminal.type(f"/save {saved}\r")
        terminal.wait_for("1 turn saved")
        terminal.wait_for_editor()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
    assert questions(saved) == ["first again"]


def test_history_is_kept_for_its_owner(tiny: Path, tmp_path: Path) -> None:
    for keys in ("/tokens\r", "\x1b[A\r"):
        with chat(tiny, tmp_path, *WORDS) as terminal:
            terminal.wait_for_editor()
            terminal.type(keys)
            terminal.wait_for("0 turns")
            terminal.wait_for_editor()
            terminal.type("\x04")
            assert terminal.wait_for_end() == 0
    history = tmp_path / "etude" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600


def test_simple_io_and_no_color(tiny: Path, tmp_path: Path) -> None:
    with chat(tiny, tmp_path, *WORDS, "--simple-io", NO_COLOR="1") as terminal:
        terminal.wait_for("> ")
        terminal.type("hi\n")
        terminal.wait_for(r"t/s \|")
        terminal.wait_for("> ")
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C once more leaves")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        assert "\x1b" not in terminal.raw


def test_a_first_message_and_a_single_turn(tiny: Path, tmp_path: Path) -> None:
    with chat(tiny, tmp_path, *WORDS, "-p", "hello\\nyou", "-st") as terminal:
        terminal.wait_for("> hello\nyou\n[a-z]+\n")
        assert terminal.wait_for_end() == 0


def test_what_a_model_writes_does_not_steer_the_terminal(tiny: Path, tmp_path: Path) -> None:
    with chat(tiny, tmp_path, "-n", "3", "--regex", "\\x1b\\[J", "--no-show-timings") as terminal:
        terminal.wait_for_editor()
        terminal.type("hi\r")
        terminal.wait_for("\u241b\\[J")
        terminal.wait_for_editor()
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
