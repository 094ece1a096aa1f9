"""What must be true of a problem set before a model is trained on it.

The gold answer scores 1 and an empty answer 0: otherwise the reward, the parser or the data is wrong, and
hours of training would show it as a flat curve. Beside it the best constant answer: what a model gets that
learns nothing but the most frequent answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etude.data.split import question_of
from etude.records import EtudeError, Problem, Score

Reward = Callable[[Problem, str], Score]

WAYS = (
    "GOLD",
    r"\boxed{GOLD}",
    "<answer>GOLD</answer>",
    "<think>\nThe answer is known.\n</think>\n<answer>GOLD</answer>",
    "The answer is GOLD.",
)
"""How a gold answer is written down: whichever way scores best shows what the reward can give."""

SHOWN = 3
CANDIDATES = 5


@dataclass(frozen=True)
class Check:
    """What was found. gold_right: gold answers that score `full`; bad: those that do not, as (id, reason).

    unknown: problems without a gold answer. repeated: problems that ask the same as one before.
    """

    n: int
    full: float
    gold_right: int
    empty_right: int
    unknown: int
    failures: int
    repeated: int
    bad: tuple[tuple[str, str], ...] = ()

    @property
    def is_sound(self) -> bool:
        return not self.bad

    def text(self) -> str:
        """One line, and a few of the problems at fault."""
        known = self.n - self.unknown
        parts = [
            f"{self.n} problems",
            f"gold answer scores {self.full:g}: {self.gold_right} of {known}",
            f"empty answer scores 0: {self.empty_right} of {self.n}",
        ]
        for count, name in (
            (self.unknown, "without a gold answer"),
            (self.failures, "verifier failed"),
            (self.repeated, "asked before"),
        ):
            parts += [f"{name}: {count}"] if count else []
        lines = [f"  {name}: {reason}" for name, reason in self.bad[:SHOWN]]
        more = [f"  … and {len(self.bad) - SHOWN} more"] if len(self.bad) > SHOWN else []
        return "\n".join(["; ".join(parts), *lines, *more])

    def require(self) -> None:
        """EtudeError, with the text, unless every problem is sound."""
        if not self.is_sound:
            raise EtudeError(f"the reward does not fit the problems.\n{self.text()}")


def check_problems(
    problems: Sequence[Problem], reward: Reward, *, full: float = 1.0, ways: Sequence[str] = WAYS
) -> Check:
    """Judge the gold and the empty answer of each problem. full: what a gold answer should score; with
    several parts, the sum of their weights."""
    right = empty = failures = 0
    bad: list[tuple[str, str]] = []
    for problem in problems:
        nothing = reward(problem, "")
        reason = nothing.failure or (
            "" if nothing.total <= 0 else f"an empty answer scores {nothing.total:g}"
        )
        empty += not reason
        if problem.answer is not None:
            way, best = _best(problem, reward, full, ways)
            ways = [way, *(other for other in ways if other != way)]  # the next is likely the same
            if best.failure is None and best.total >= full - 1e-9:
                right += 1
            else:
                why = best.failure or f"scores {best.total:g}" + f" ({best.verdict})" * bool(best.verdict)
                reason = f"the gold answer {problem.answer[:60]!r} {why}"
            failures += best.failure is not None or nothing.failure is not None
        if reason:
            bad.append((problem.id, reason))
    unknown = sum(problem.answer is None for problem in problems)
    repeated = len(problems) - len({question_of(problem.messages) for problem in problems})
    return Check(len(problems), full, right, empty, unknown, failures, repeated, tuple(bad))


def _best(problem: Problem, reward: Reward, full: float, ways: Sequence[str]) -> tuple[str, Score]:
    """The way of writing the gold answer that scores best, and its score."""
    found: list[tuple[str, Score]] = []
    for way in ways:
        score = reward(problem, way.replace("GOLD", problem.answer or ""))
        found.append((way, score))
        if score.failure is None and score.total >= full - 1e-9:
            break
    return max(found, key=lambda pair: (pair[1].failure is None, pair[1].total))


def best_constant(problems: Sequence[Problem], reward: Reward) -> tuple[str, float]:
    """(answer, mean score) of the best answer that is always the same, among the most frequent gold answers.

    Gold answers that are written differently count as different: the candidates are judged by the reward.
    """
    counts = Counter(problem.answer for problem in problems if problem.answer is not None)
    found = ("", 0.0)
    for answer, _ in counts.most_common(CANDIDATES):
        mean = sum(reward(problem, answer).total for problem in problems) / len(problems)
        if mean > found[1]:
            found = (answer, mean)
    return found
