"""An answer under way: text, thinking, limits and Ctrl-C, on an engine that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from etude.model.thinking import ThinkingStream
from etude.model.tokenizer import Tokenizer
from etude.records import SamplingParams
from etude.terminal.answer import Manner, Piece, Writing
from tests.terminal.scripted import ScriptedEngine
from tests.terminal.tiny import tiny_metadata

TOKENIZER = Tokenizer.from_metadata(tiny_metadata())
END = 2


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, parse_special=True)


def saying(text: str) -> ScriptedEngine:
    return ScriptedEngine(lambda request: [*ids_of(text), END], {END})


def written(
    engine: ScriptedEngine,
    params: SamplingParams | None = None,
    *,
    splitter: ThinkingStream | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    **settings: object,
) -> tuple[Writing, str, str]:
    """The finished writing, and all of its answer and thinking as they were shown."""
    manner = Manner(params or SamplingParams(), **settings)
    writing = Writing(engine, TOKENIZER, tuple(ids_of("hi")), manner, splitter)
    pieces = list(writing.pieces(interrupted))
    return writing, joined(pieces, "answer"), joined(pieces, "thinking")


def joined(pieces: Iterable[Piece], kind: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind)


def test_text_ids_and_end() -> None:
    writing, shown, _ = written(saying("hé, you"))
    answer = writing.answer
    assert shown == answer.text == "hé, you"
    assert answer.ids == (*ids_of("hé, you"), END)
    assert (answer.finish, answer.thinking, answer.n_thinking) == ("eos", "", 0)
    assert (writing.timings.n_prompt, writing.timings.n_written) == (2, len(answer.ids))


def test_never_half_a_character() -> None:
    engine = saying("é€")
    writing = Writing(engine, TOKENIZER, (5,), Manner(SamplingParams()))
    assert [piece.text for piece in writing.pieces()] == ["é", "€"]


def test_the_engines_seed_is_kept() -> None:
    assert written(saying("x"))[0].answer.seed == 1234
    assert written(saying("x"), SamplingParams(seed=7))[0].answer.seed == 7


def test_a_limit() -> None:
    writing, shown, _ = written(saying("abcdef"), SamplingParams(max_tokens=3))
    assert (shown, writing.answer.finish, len(writing.answer.ids)) == ("abc", "length", 3)


def test_special_tokens_are_shown_when_asked() -> None:
    assert written(saying("a"), special=True)[1] == "a<|im_end|>"


def test_a_stop_string_ends_text_and_ids() -> None:
    writing, shown, _ = written(saying("one User: two"), SamplingParams(stop=("User:",)))
    assert shown == writing.answer.text == "one "
    assert writing.answer.ids == tuple(ids_of("one "))


def test_ctrl_c_stops_between_steps() -> None:
    engine = saying("abcdef")
    polls = iter([False] * 3 + [True] * 100)
    writing, shown, _ = written(engine, interrupted=lambda: next(polls))
    assert (shown, writing.answer.finish) == ("abc", "abort")
    assert engine.aborted == [0] and engine.step() == []
    assert TOKENIZER.decode(writing.answer.ids) == "abc"
