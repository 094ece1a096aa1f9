"""Training and held-out problems without overlap, and the order in which a run goes through them.

Both depend on a seed and nothing else: a step's problems can be asked for at any time, so that a resumed run
needs no state for them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

from etude.records import EtudeError, Message, Problem

Item = TypeVar("Item")


def split(
    problems: Sequence[Problem], held_out: int | float, *, seed: int = 0
) -> tuple[list[Problem], list[Problem]]:
    """(training, held out), each in the given order. held_out: how many, or which share if below 1.

    Problems with the same messages land on the same side, whatever their ids. Where a problem lands does not
    depend on the order, nor much on what other problems there are.
    """
    keys = {question_of(problem.messages) for problem in problems}
    wanted = round(held_out * len(keys)) if isinstance(held_out, float) and held_out < 1 else int(held_out)
    if not 0 <= wanted < len(keys):
        raise EtudeError(
            f"held_out is {held_out}; of {len(keys)} different problems, 0 to {len(keys) - 1} can be held out"
        )
    apart = set(sorted(keys, key=lambda key: _hash(seed, key))[:wanted])
    training: list[Problem] = []
    held: list[Problem] = []
    for problem in problems:
        (held if question_of(problem.messages) in apart else training).append(problem)
    return training, held


def without(problems: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    """The problems whose messages occur in none of `others`."""
    known = {question_of(problem.messages) for problem in others}
    return [problem for problem in problems if question_of(problem.messages) not in known]


def question_of(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """What two problems have in common if they ask the same."""
    return tuple((message.role, " ".join(message.content.split())) for message in messages)


class Order:
    """The way through `n` problems: every one once in each epoch, in a new order each time.

    >>> order = Order(5, seed=0)
    >>> sorted(order.at(0, 3) + order.at(1, 3)[:2])
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int, *, shuffled: bool = True) -> None:
        if n < 1:
            raise EtudeError("there is no problem to train on")
        self.n = n
        self._seed = seed
        self._shuffled = shuffled
        self._epoch: tuple[int, list[int]] = (-1, [])

    def at(self, step: int, batch: int) -> list[int]:
        """The indices of step `step` (from 0), `batch` a step; an epoch may end within it."""
        return self.span(step * batch, batch)

    def span(self, start: int, n: int) -> list[int]:
        """`n` indices from the position `start` of the endless sequence on."""
        return [self._of_epoch(at // self.n)[at % self.n] for at in range(start, start + n)]

    def epoch(self, step: int, batch: int) -> float:
        """How many times the problems have been gone through before a step."""
        return step * batch / self.n

    def _of_epoch(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            indices = list(range(self.n))
            if self._shuffled:
                random.Random(f"{self._seed}/{epoch}").shuffle(indices)
            self._epoch = (epoch, indices)
        return self._epoch[1]


def _hash(seed: int, key: object) -> bytes:
    return hashlib.sha256(f"{seed}/{key!r}".encode()).digest()
