"""Limits of an answer that look at its lines."""

from __future__ import annotations

import pytest

from etude.serve.generation import Delta
from etude.serve.native_choice import LineLimits, NativeChoice


def take(limits: LineLimits, pieces: list[str], ms: float = 0.0) -> NativeChoice:
    """All pieces, in one delta; each is a token."""
    choice, n = NativeChoice(limits), len(pieces)
    delta = Delta(0, "".join(pieces), pieces, list(range(n)), [0.0] * n, [0.0] * n)
    assert choice.take(delta, ms) == range(len(choice.token_ids))
    return choice


@pytest.mark.parametrize(
    ("pieces", "n_indent", "text", "n_tokens"),
    [
        (["  a", "\n", "  b", "\n", " c"], 2, "  a\n  b\n ", 5),
        (["a", "\n", "b", "c"], 1, "a\n", 4),
        (["a", "\n", "\t\tb", "c"], 2, "a\n\t\tbc", 4),
        (["a", "\n", "b", "c"], 0, "a\nbc", 4),
    ],
)
def test_a_line_that_is_indented_less_ends_the_answer(
    pieces: list[str], n_indent: int, text: str, n_tokens: int
) -> None:
    """As in llama.cpp, by the token after the one that shows it, if that is not the line's end."""
    choice = take(LineLimits(n_indent), pieces)
    assert choice.text == text and len(choice.token_ids) == n_tokens
    assert choice.is_cut == (text != "".join(pieces))


def test_a_line_that_ends_too_late_is_the_last() -> None:
    assert not take(LineLimits(t_max_predict_ms=50), ["a", "\n", "b"], 40).is_cut
    late = take(LineLimits(t_max_predict_ms=50), ["a", "\n", "b"], 60)
    assert late.is_cut and late.text == "a\n" and late.token_ids == [0, 1]
    assert not take(LineLimits(t_max_predict_ms=50), ["a", "b"], 60).is_cut


def test_what_comes_after_the_cut_does_not_count() -> None:
    choice = take(LineLimits(1), ["a", "\n", "b", "b"])
    assert choice.take(Delta(0, "c", ["c"], [9], [0.0], [0.0]), 0) == range(4, 4)
    assert choice.token_ids == [0, 1, 2, 3] and choice.text == "a\n"


def test_text_that_the_end_sets_free_belongs_to_the_last_token() -> None:
    choice = NativeChoice()
    choice.take(Delta(0, "abc", ["a", ""], [1, 2], [0.0] * 2, [0.0] * 2), 0)
    assert choice.pieces == ["a", "bc"] and not choice.loose
    choice.take(Delta(0, "d"), 0)
    assert choice.loose == "d" and choice.text == "abcd"
