"""A chat at work, without a terminal: answers, limits, and every command."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from etude.model.chat import ChatTemplate
from etude.model.thinking import ThinkingStream, ThinkingTags
from etude.model.tokenizer import Tokenizer
from etude.records import Request
from etude.terminal.chat import handle, talk
from etude.terminal.commands import COMMANDS, Then
from etude.terminal.conversation import Conversation
from etude.terminal.interrupts import noting_interrupts, raising_interrupts
from etude.terminal.options import parse
from etude.terminal.prompt import PlainReader
from etude.terminal.screen import Screen
from etude.terminal.session import Session
from etude.terminal.verbs import VERBS
from tests.terminal.scripted import ScriptedEngine
from tests.terminal.tiny import CHATML, FORGETFUL, OPENING, tiny_metadata

TOKENIZER = Tokenizer.from_metadata(tiny_metadata())
END = 2


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, parse_special=True)


@dataclass
class Partner:
    """Says `texts` one after the other, then counts."""

    engine: ScriptedEngine
    tokenizer: Tokenizer = TOKENIZER
    adapter: str | None = None
    adapter_scale: float = 1.0
    tags: ThinkingTags | None = field(default_factory=ThinkingTags)

    def splitter(self, prompt_ids: tuple[int, ...]) -> ThinkingStream | None:
        opened = TOKENIZER.decode(prompt_ids, special=True).endswith("<think>\n")
        return None if self.tags is None else ThinkingStream(self.tags, opened=opened)


class Table:
    """A session with what it wrote: `out` and `err`."""

    def __init__(self, *argv: str, texts: list[str] | None = None, template: str | None = CHATML) -> None:
        left = list(texts or [])
        self.engine = ScriptedEngine(lambda request: [*ids_of(left.pop(0) if left else "ok"), END], {END})
        self.out, self.err = io.StringIO(), io.StringIO()
        options = parse(VERBS["chat"], argv, {})
        partner = Partner(self.engine)
        chat = None if template is None else ChatTemplate(template)
        self.session = Session(
            loaded=partner,
            conversation=Conversation(TOKENIZER, chat, system=options["system_prompt"]),
            screen=Screen(self.out, self.err),
            options=options,
            context=options["ctx_size"] or 512,
            model="tiny",
        )

    def type(self, *lines: str) -> Table:
        for line in lines:
            handle(self.session, line)
        return self

    @property
    def requests(self) -> list[Request]:
        return self.engine.requests

    def prompt(self, number: int = -1) -> str:
        return TOKENIZER.decode(self.requests[number].prompt_ids, special=True)


# ── answers ──


def test_an_answer_is_shown_and_kept() -> None:
    table = Table(texts=["hello", "again"]).type("hi", "more")
    assert table.out.getvalue() == "hello\nagain\n"
    assert "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nmore" in table.prompt()
    assert table.session.totals.answers == 2


def test_thinking_is_shown_apart() -> None:
    table = Table(texts=["<think>\nhm, hi?\n</think>\n\nHello."]).type("hi")
    assert (table.out.getvalue(), table.err.getvalue().strip()) == ("Hello.\n", "hm, hi?")
    answer = table.session.conversation.turns[0].answer
    assert answer and (answer.text, answer.thinking) == ("Hello.", "hm, hi?")
    assert answer.n_thinking == len(ids_of("<think>\nhm, hi?\n</think>"))


def test_thinking_that_the_prompt_began() -> None:
    table = Table(texts=["hm\n</think>\n\nHello.", "x"], template=OPENING).type("hi", "more")
    assert table.out.getvalue().startswith("Hello.\n")
    assert "assistant\n<think>\nhm\n</think>\n\nHello.<|im_end|>" in table.prompt()


def test_thinking_that_the_template_forgets() -> None:
    table = Table(texts=["<think>\nhm\n</think>\n\nHello.", "x"], template=FORGETFUL).type("hi", "more")
    assert "assistant\nHello.<|im_end|>" in table.prompt() and "hm" not in table.prompt()


def test_a_reasoning_budget_closes_the_thinking() -> None:
    table = Table("--reasoning-budget", "5", texts=["<think>abcdefgh", "Hello."]).type("hi")
    assert table.err.getvalue().strip() == "abcd"
    assert table.out.getvalue() == "Hello.\n"
    assert table.prompt().endswith("<think>abcd\n</think>\n\n")
    answer = table.session.conversation.turns[0].answer
    assert answer and answer.ids == (*ids_of("<think>abcd\n</think>\n\nHello."), END)
    assert answer.n_thinking == len(ids_of("<think>abcd\n</think>\n\n"))


def test_a_budget_of_nothing_and_a_message() -> None:
    argv = ["--reasoning-budget", "0", "--reasoning-budget-message", "Enough."]
    table = Table(*argv, texts=["<think>abc", "Hello."]).type("hi")
    assert table.prompt().endswith("<think>Enough.\n</think>\n\n")
    table = Table(*argv, texts=["never asked for", "Hello."], template=OPENING)
    table.type("hi")
    assert "<think>\n" in table.prompt()


def test_a_budget_counts_towards_the_limit() -> None:
    table = Table("--reasoning-budget", "3", "-n", "30", texts=["<think>abcdefgh", "x" * 50]).type("hi")
    answer = table.session.conversation.turns[0].answer
    assert answer and len(answer.ids) == 30 and answer.finish == "length"
    assert "(-n 30 tokens reached)" in table.err.getvalue()


def test_why_an_answer_ended() -> None:
    assert "(-n 3 tokens reached)" in Table("-n", "3", texts=["abcdef"]).type("hi").err.getvalue()
    full = Table(texts=["abc"])
    full.engine._end_ids = frozenset()  # it ends without an end token, as at the end of the context
    assert "the context of 512 tokens is full" in full.type("hi").err.getvalue()
    assert Table(texts=["abc"]).type("hi").err.getvalue() == ""


def test_a_fixed_seed_moves_on() -> None:
    table = Table("-s", "42").type("hi", "/regen", "more")
    assert [request.params.seed for request in table.requests] == [42, 43, 44]
    assert Table().type("hi").requests[0].params.seed is None


def test_until_the_context_is_full() -> None:
    table = Table("-n", "-2", "--context-shift").type("hi")
    assert table.requests[0].params.max_tokens == 512 - len(table.requests[0].prompt_ids)
    assert Table("-n", "-1").type("hi").requests[0].params.max_tokens is None


# ── a full context ──


def test_a_message_without_room_is_not_sent() -> None:
    table = Table(texts=["ok"]).type("hi", "x" * 600)
    text = table.err.getvalue()
    assert "the context holds 512" in text and "larger --ctx-size or with --context-shift" in text
    assert len(table.requests) == 1 and len(table.session.conversation.turns) == 1 and table.session.failed
    table.type("short")
    assert len(table.requests) == 2


def test_context_shift_forgets_the_oldest_turns() -> None:
    table = Table("--context-shift", "-sys", "S").type("a" * 150, "b" * 150, "c" * 150)
    assert "(the oldest turn was forgotten" in table.err.getvalue()
    assert "aaa" not in table.prompt() and "bbb" in table.prompt() and "system\nS" in table.prompt()
    table.type("d" * 450)
    assert "2 turns were forgotten" in table.err.getvalue()
    table.type("e" * 600)
    assert "--context-shift" not in table.err.getvalue().splitlines()[-1]


# ── commands ──


def test_help_names_every_command() -> None:
    text = Table().type("/help").err.getvalue()
    assert all(command.usage in text and command.help in text for command in COMMANDS.values())
    wanted = "help exit regen undo clear system set read save load tokens stats"
    assert set(COMMANDS) == set(wanted.split())


def test_regen_asks_the_same_again() -> None:
    table = Table(texts=["one", "two"]).type("hi", "/regen")
    assert table.out.getvalue() == "one\ntwo\n"
    assert table.requests[0].prompt_ids == table.requests[1].prompt_ids
    assert len(table.session.conversation.turns) == 1


def test_an_answer_again_that_fails_leaves_the_first() -> None:
    table = Table(texts=["one"]).type("hi", "/set grammar x")
    table.engine.context = 5
    table.type("/regen")
    assert "the prompt is too long" in table.err.getvalue()
    assert [turn.answer and turn.answer.text for turn in table.session.conversation.turns] == ["one"]


def test_clear_and_system() -> None:
    table = Table("-sys", "S").type("hi", "/clear", "/system", "/system be brief", "hi")
    assert "system message: S" in table.err.getvalue()
    assert (
        table.prompt().startswith("<|im_start|>system\nbe brief<|im_end|>")
        and table.prompt().count("hi") == 1
    )
    table.type("/system -", "/clear", "hi")
    assert table.prompt().startswith("<|im_start|>user")


def test_set_shows_and_changes() -> None:
    table = Table().type("/set temp 0", "/set top_k 3", "/set n 7", "hi")
    params = table.requests[0].params
    assert (params.temperature, params.top_k, params.max_tokens) == (0.0, 3, 7)
    table.type("/set", "/set temp")
    assert "temp = 0.0" in table.err.getvalue() and "top_k = 3" in table.err.getvalue()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/set temp hot", "/set temp: got 'hot'"),
        ("/set tmp 1", "no setting 'tmp'; did you mean temp?"),
        ("/set threads 3", "start with --threads"),
        ("/set xtc-threshold 0.3", "no effect without --xtc-probability"),
        ("/regen", "no answer yet"),
        ("/undo", "nothing to take back"),
        ("/exit now", "takes nothing after it"),
        ("/hepl", "did you mean help?"),
        ("/read", "/read FILE"),
        ("/read /nowhere/at/all", "cannot read '/nowhere/at/all': No such file"),
        ("/load /nowhere/at/all", "cannot read '/nowhere/at/all'"),
        ("/save /nowhere/at/all", "cannot write '/nowhere/at/all'"),
    ],
)
def test_a_command_that_fails_says_why(line: str, part: str) -> None:
    table = Table().type(line)
    assert part in table.err.getvalue()
    assert not table.requests and table.session.failed
    table.type("hi")
    assert table.out.getvalue() == "ok\n"


def test_what_only_looks_like_a_command_is_a_message() -> None:
    table = Table().type("/etc/hosts is what?", " /exit")
    assert len(table.requests) == 2


def test_files_go_before_the_next_message(tmp_path: Path) -> None:
    path = tmp_path / "a b.txt"
    path.write_text("content ü\n")
    table = Table().type(f"/read {path}", "what is it?")
    assert f"user\n--- File: {path} ---\ncontent ü\n\nwhat is it?<|im_end|>" in table.prompt()
    table.type("and?")
    assert table.prompt().count("content") == 1


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    table = Table("-sys", "S", texts=["<think>hm</think>one"]).type("hi", f"/save {path}", f"/save {path}")
    assert table.err.getvalue().count("(1 turn saved)") == 2
    other = Table().type(f"/load {path}")
    assert "> hi" in other.err.getvalue() and other.out.getvalue() == "one\n"
    assert other.session.conversation.turns == table.session.conversation.turns
    other.type("more")
    table.type("more")
    assert other.requests[0].prompt_ids == table.requests[1].prompt_ids


def test_save_never_overwrites_something_else(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    table = Table().type("hi", f"/save {path}")
    assert "is no saved conversation" in table.err.getvalue() and path.read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [path]


def test_tokens_and_stats() -> None:
    table = Table(texts=["abc"]).type("hi", "/tokens", "/stats")
    n_tokens = len(table.requests[0].prompt_ids) + 4
    assert f"1 turn, {n_tokens} of 512 tokens" in table.err.getvalue()
    assert "1 answer, 4 tokens written" in table.err.getvalue() and "peak memory" in table.err.getvalue()
    Table().type("/tokens", "/stats")


# ── a base model ──


def test_a_base_model_completes() -> None:
    table = Table(template=None, texts=[" was", " a king", "!"]).type("Once", "", "Twice")
    prompts = [TOKENIZER.decode(request.prompt_ids) for request in table.requests]
    assert prompts == ["Once", "Once was", "Twice"]
    assert "has no system message" in table.type("/system S").err.getvalue()
    Table(template=None).type("", "  ")


# ── the loop ──


def run(table: Table, text: str, first: str | None = None) -> str:
    talk(table.session, PlainReader(io.StringIO(text)), first)
    return table.out.getvalue()


def test_piped_lines_are_messages() -> None:
    assert run(Table(texts=["1", "2", "3"]), "one\n\ntwo\\\nthree\n") == "1\n2\n"


def test_a_first_message_and_a_single_turn() -> None:
    assert run(Table(texts=["1", "2"]), "two\n", first="one") == "1\n2\n"
    assert run(Table("-st", texts=["1", "2"]), "two\n", first="one") == "1\n"
    assert run(Table("-st", texts=["1", "2"]), "/tokens\none\ntwo\n") == "1\n"


def test_exit_and_undo_in_a_pipe() -> None:
    table = Table(texts=["1", "2"])
    assert run(table, "one\n/undo\ntwo\n/exit\nthree\n") == "1\n2\n"
    assert "(taken back: one)" in table.err.getvalue() and len(table.session.conversation.turns) == 1


def test_blocks_between_quotes_are_one_message() -> None:
    table = Table()
    run(table, '"""\na\nb\n"""\n"""c"""\n')
    assert "user\na\nb<|im_end|>" in table.prompt(0) and "user\nc<|im_end|>" in table.prompt(1)


def test_multiline_input() -> None:
    table = Table("-mli")
    talk(table.session, PlainReader(io.StringIO("a\nb\\\nc\n/tokens\nd\n"), multiline=True))
    assert "user\na\nb<|im_end|>" in table.prompt(0) and "user\nc\n/tokens\nd<|im_end|>" in table.prompt(1)


def test_ctrl_c_is_noted_or_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noting_interrupts() as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted.is_set()
        with pytest.raises(KeyboardInterrupt), raising_interrupts():
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


class Typist:
    """Somebody at a terminal: lines, and Ctrl-C as KeyboardInterrupt or, between two lines, as a signal."""

    interactive, edits = True, False

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)

    def read(self, noted: threading.Event, default: str = "") -> str:
        if not self.keys:
            raise EOFError
        key = self.keys.pop(0)
        if key == "Ctrl-C":
            raise KeyboardInterrupt
        if key.endswith("then Ctrl-C"):
            signal.raise_signal(signal.SIGINT)
        return key.removesuffix("then Ctrl-C")


@pytest.mark.parametrize(
    ("keys", "n_left"),
    [
        (["Ctrl-C", "Ctrl-C", "never"], 1),
        (["Ctrl-C", "/tokens", "Ctrl-C", "one", "Ctrl-C", "Ctrl-C", "never"], 1),
        (["/tokensthen Ctrl-C", "Ctrl-C", "never"], 1),
        (["/tokensthen Ctrl-C", "/tokensthen Ctrl-C", "never"], 1),
        (["/exitthen Ctrl-C", "never"], 1),
        (["Ctrl-C", "one"], 0),
    ],
)
def test_ctrl_c_twice_leaves(keys: list[str], n_left: int) -> None:
    typist, table = Typist(*keys), Table()
    talk(table.session, typist)
    assert len(typist.keys) == n_left
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_stops_the_answer_and_keeps_what_was_written() -> None:
    table = Table(texts=["abcdef", "next"])
    step: Callable[[], object] = table.engine.step
    count = iter(range(100))

    def step_and_press() -> object:
        if next(count) == 2:
            signal.raise_signal(signal.SIGINT)
        return step()

    table.engine.step = step_and_press
    assert handle(table.session, "hi") is Then.REPLY
    assert table.out.getvalue() == "abc\n" and "(stopped)" in table.err.getvalue()
    answer = table.session.conversation.turns[0].answer
    assert answer and answer.finish == "abort"
    table.type("more")
    assert "assistant\nabc<|im_end|>\n<|im_start|>user\nmore" in table.prompt()
    assert table.out.getvalue() == "abc\nnext\n"
