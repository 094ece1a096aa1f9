"""Thoughts apart from the answer: whole, streamed in any pieces, and when the prompt opened the block."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.model.thinking import KNOWN_TAGS, Split, ThinkingStream, ThinkingTags, split_thinking

CASES = [
    ("<think>a</think>b", Split("a", "b")),
    ("<think>\n a \n</think>\n\nb \n", Split("a", "b \n")),
    (" \n<think>a</think>b", Split("a", "b")),
    ("<think></think>b", Split("", "b")),
    ("<think>\n\n</think>\n\nb", Split("", "b")),
    ("<think>a", Split("a", "")),
    ("<think>a </thin", Split("a </thin", "")),
    ("<think>a\n", Split("a", "")),
    ("b", Split(None, "b")),
    ("", Split(None, "")),
    (" b", Split(None, " b")),
    ("<thin", Split(None, "<thin")),
    ("<thing>a</think>", Split(None, "<thing>a</think>")),
    ("b <think>a</think>", Split(None, "b <think>a</think>")),
    ("<think>a</think>b<think>c</think>", Split("a", "b<think>c</think>")),
    ("<think>a<think>b</think>c</think>d", Split("a<think>b", "c</think>d")),
    ("<think>x < y </ z</think>b", Split("x < y </ z", "b")),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_split(text: str, expected: Split) -> None:
    assert split_thinking(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a</think>b", Split("a", "b")),
        ("\na\n</think>\n\nb", Split("a", "b")),
        ("a", Split("a", "")),
        ("", Split("", "")),
        ("</think>b", Split("", "b")),
    ],
)
def test_split_where_the_prompt_opened_the_block(text: str, expected: Split) -> None:
    assert split_thinking(text, opened=True) == expected


def test_other_tags() -> None:
    tags = ThinkingTags("[THINK]", "[/THINK]")
    assert tags in KNOWN_TAGS
    assert split_thinking("[THINK]a</think>[/THINK]b", tags) == Split("a</think>", "b")


def streamed(pieces: list[str], opened: bool) -> tuple[str, str, bool]:
    stream = ThinkingStream(opened=opened)
    parts = [*map(stream.push, pieces), stream.flush()]
    return "".join(p.thinking or "" for p in parts), "".join(p.answer for p in parts), stream.has_thought


pieces = st.sampled_from(["<think>", "</think>", "<", "/", "th", "ink>", "</", "a", " ", "\n", "b"])


@settings(max_examples=500, deadline=None)
@given(texts=st.lists(pieces, max_size=14), opened=st.booleans(), data=st.data())
def test_any_cutting_gives_the_same(texts: list[str], opened: bool, data: st.DataObject) -> None:
    text = "".join(texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = split_thinking(text, opened=opened)
    assert streamed(cut, opened) == (whole.thinking or "", whole.answer, whole.thinking is not None)
    assert streamed(list(text), opened) == streamed([text], opened)


def test_what_is_certain_comes_at_once() -> None:
    stream = ThinkingStream()
    assert stream.push("<thi") == Split(None, "")
    assert stream.push("nk>\nIs it") == Split("Is it", "") and stream.thinking
    assert stream.push(" so?") == Split(" so?", "")
    assert stream.push("\n") == Split(None, "")  # may be the last line
    assert stream.push("Yes <") == Split("\nYes", "")  # may be the tag
    assert stream.push("/think>\n") == Split(None, "") and not stream.thinking
    assert stream.push("\nIt") == Split(None, "It")
    assert stream.push(" is.") == Split(None, " is.")
    assert stream.flush() == Split(None, "")


def test_an_answer_without_thoughts_is_not_held_back() -> None:
    stream = ThinkingStream()
    assert stream.push("It") == Split(None, "It") and not stream.has_thought
