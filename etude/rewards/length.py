"""Rewards for the length of an answer: near a target, or not beyond a limit.

Tokens are counted where sampling counted them (`Answer.n_tokens`); words and characters in the text itself.
"""

from __future__ import annotations

from typing import Literal

from etude.records import EtudeError, Problem, Score
from etude.rewards.answer import Answer
from etude.rewards.reward import Reward

Unit = Literal["tokens", "words", "characters"]
UNITS = ("tokens", "words", "characters")


def length_reward(target: int, unit: Unit = "tokens") -> Reward:
    """1 at `target`, falling linearly to 0 at nothing and at twice the target:
    max(0, 1 - |n - target| / target)."""
    _check("length", unit, target=target)

    def length(problem: Problem, answer: str) -> Score:
        n = measured(answer, unit)
        return Score(max(0.0, 1.0 - abs(n - target) / target), parsed=str(n), verdict=f"{n} {unit}")

    return length


def overlong_reward(max_length: int, cache: int, unit: Unit = "tokens") -> Reward:
    """DAPO's soft punishment of overlong answers (arXiv:2503.14476, eq. 13), to be added to an accuracy:

    0 for n <= max_length - cache; (max_length - cache - n) / cache up to max_length; -1 beyond.
    """
    _check("overlong", unit, max_length=max_length, cache=cache)
    if cache > max_length:
        raise EtudeError(f"overlong: cache={cache} is more than max_length={max_length}")

    def overlong(problem: Problem, answer: str) -> Score:
        n = measured(answer, unit)
        return Score(min(0.0, max(-1.0, (max_length - cache - n) / cache)), verdict=f"{n} {unit}")

    return overlong


def measured(answer: str, unit: Unit) -> int:
    """How long an answer is. EtudeError if tokens are wanted of a bare text.

    >>> measured("two words", "words"), measured(Answer("two words", n_tokens=3), "tokens")
    (2, 3)
    """
    if unit == "characters":
        return len(answer)
    if unit == "words":
        return len(answer.split())
    if not isinstance(answer, Answer) or answer.n_tokens is None:
        raise EtudeError("a length in tokens is only known of sampled answers; use unit=words or characters")
    return answer.n_tokens


def _check(name: str, unit: str, **lengths: int) -> None:
    if unit not in UNITS:
        raise EtudeError(f"{name}: got unit={unit!r}, allowed are {', '.join(UNITS)}")
    for key, value in lengths.items():
        if not isinstance(value, int) or value < 1:
            raise EtudeError(f"{name}: got {key}={value!r}, allowed is a whole number above 0")
