"""Preference pairs with labels that are exact: one answer is right, the other is not.

Right and wrong answers are written in the same styles, drawn independently, so that length says nothing about
which is better; the accuracy of a reward model on them is a real number.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from etude.data.examples import Preference
from etude.records import EtudeError, Problem

STYLES = (
    "{}",
    "{}.",
    "It is {}.",
    "The answer is {}.",
    "I think that the answer is {}.",
    "Let me think about it. The answer is {}.",
)
FAULTS = ("wrong", "wrong", "wrong", "other", "evasive")
EVASIONS = ("not easy to say", "a good question", "hard to tell", "something else")


def corrupted_pairs(problems: Sequence[Problem], *, seed: int = 0) -> list[Preference]:
    """One pair for each problem with a gold answer. columns["fault"]: what is the matter with `rejected`:
    "wrong" (a near miss), "other" (the answer of another problem) or "evasive"."""
    known = [problem for problem in problems if problem.answer is not None]
    if len({problem.answer for problem in known}) < 2:
        raise EtudeError("pairs need problems with at least two different gold answers")
    draw = random.Random(f"pairs/{seed}")
    pairs = []
    for problem in known:
        fault = draw.choice(FAULTS)
        answer = problem.answer or ""
        chosen = draw.choice(STYLES).format(answer)
        rejected = draw.choice(STYLES).format(_wrong(answer, fault, known, draw))
        pairs.append(Preference(problem.id, problem.messages, chosen, rejected, columns={"fault": fault}))
    return pairs


def _wrong(answer: str, fault: str, problems: Sequence[Problem], draw: random.Random) -> str:
    """An answer that is not `answer`."""
    if fault == "evasive":
        return draw.choice(EVASIONS)
    if fault == "wrong" and answer.lstrip("-").isdecimal():
        return str(int(answer) + draw.choice((-10, -2, -1, 1, 2, 10)))
    while True:
        other = draw.choice(problems).answer
        if other is not None and other != answer:
            return other
