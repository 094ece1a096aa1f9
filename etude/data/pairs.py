"""Preference pairs with labels that are exact: one answer is right and clean, the other is not.

Both are written in the same styles, drawn independently, and what makes answers longer is as frequent as what
makes them shorter, so that length says nothing about which is better; the accuracy of a reward model on them
is a real number.
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
UNCLEAN = ("truncated", "repeated", "padded")
"""Faults of answers that may be right: cut before the end, said again, talking on."""
EVASIONS = ("not easy to say", "a good question", "hard to tell", "something else")


PADDING = ("I hope it helps.", "Ask me more!", "Numbers are a nice thing.")


def corrupted_pairs(
    problems: Sequence[Problem], *, seed: int = 0, faults: Sequence[str] = FAULTS
) -> list[Preference]:
    """One pair for each problem with a gold answer. columns["fault"]: what is the matter with `rejected`:
    "wrong" (a near miss), "other" (the answer of another problem), "evasive", or one of UNCLEAN. faults: what
    is drawn from."""
    known = [problem for problem in problems if problem.answer is not None]
    if len({problem.answer for problem in known}) < 2:
        raise EtudeError("pairs need problems with at least two different gold answers")
    draw = random.Random(f"pairs/{seed}")
    pairs = []
    for problem in known:
        fault = draw.choice(faults)
        answer = problem.answer or ""
        chosen = draw.choice(STYLES).format(answer)
        if fault in UNCLEAN:
            rejected = _unclean(answer, fault, draw)
        else:
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


def _unclean(answer: str, fault: str, draw: random.Random) -> str:
    """A right answer that is not left at that, or not come to."""
    if fault == "truncated":
        return draw.choice(STYLES[2:5]).partition("{}")[0].rstrip()
    sentence = draw.choice(STYLES[1:3]).format(answer)
    return f"{sentence} {sentence}" if fault == "repeated" else f"{sentence} {draw.choice(PADDING)}"
