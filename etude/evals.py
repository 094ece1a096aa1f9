"""How good a model is on held-out problems, with intervals: accuracy strict and lenient, pass@k, cons@k.

Everything is computed from rollouts, so that what was measured can be looked at. Strict and lenient are parts
of the score: `combine({"strict": …, "lenient": …})`. Samples whose verifier failed are left out and counted.

    pass@k   chance that one of k samples is right, unbiased (arXiv:2107.03374, eq. 1)
    avg@k    mean correctness of k samples: the paper's "pass@1"
    cons@k   whether the most frequent answer of k samples is right
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from etude.records import EtudeError, Rollout
from etude.rewards.numbers import canonical

Z95 = 1.959964
SUBSETS = 200
"""Random subsets of the samples that cons@k is averaged over, where there are more than k."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percent: '52.0 % [42.3, 61.5]'."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Evaluation:
    """What was found. accuracies, pass_at, cons_at: by name of the part ("strict" …; "score" where
    the reward has no such parts) and by k. failures: samples without a verdict. by_problem: mean
    correctness."""

    n_problems: int
    n_samples: int
    accuracies: Mapping[str, Interval]
    pass_at: Mapping[str, Mapping[int, Interval]]
    cons_at: Mapping[str, Mapping[int, Interval]]
    mean_tokens: float
    truncated: float
    failures: int
    by_problem: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        """Flat numbers for metrics.jsonl: eval/accuracy is the first accuracy."""
        row: dict[str, float] = {}
        for at, (name, interval) in enumerate(self.accuracies.items()):
            names = [f"accuracy/{name}"] + ["accuracy"] * (at == 0)
            for key in names:
                row |= {key: interval.value, f"{key}/low": interval.low, f"{key}/high": interval.high}
            row |= {f"pass@{k}/{name}": value.value for k, value in self.pass_at[name].items() if k > 1}
            row |= {f"cons@{k}/{name}": value.value for k, value in self.cons_at[name].items()}
        row |= {"tokens": self.mean_tokens, "truncated": self.truncated, "failures": self.failures}
        return {f"{prefix}{key}": value for key, value in row.items()}

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return asdict(self)


def evaluate(
    rollouts: Sequence[Rollout], parts: Sequence[str] = (), *, threshold: float = 1.0, seed: int = 0
) -> Evaluation:
    """Evaluate samples that were judged already, any number per problem.

    parts: names of the score's parts that say whether an answer is right (strictest first); without any, its
    total. A sample is right if the part is at least `threshold`. seed: of the subsets for cons@k.
    """
    judged = [rollout for rollout in rollouts if rollout.score.failure is None]
    if not judged:
        first = rollouts[0].score.failure if rollouts else "there are no samples"
        raise EtudeError(f"nothing could be evaluated: {first}")
    ordered = sorted(judged, key=lambda rollout: (rollout.problem_id, rollout.index))
    groups = {name: list(some) for name, some in groupby(ordered, key=lambda rollout: rollout.problem_id)}
    names = tuple(parts) or ("score",)
    right = {
        name: {
            problem: [_is_right(r, name, parts, threshold) for r in some] for problem, some in groups.items()
        }
        for name in names
    }
    k_values = powers_up_to(min(map(len, groups.values())))
    parsed = {problem: [rollout.score.parsed for rollout in some] for problem, some in groups.items()}
    return Evaluation(
        n_problems=len(groups),
        n_samples=len(judged),
        accuracies={name: accuracy(list(right[name].values())) for name in names},
        pass_at={name: {k: pass_at(list(right[name].values()), k) for k in k_values} for name in names},
        cons_at={name: _cons_at_all(parsed, right[name], k_values, seed) for name in names},
        mean_tokens=sum(sum(rollout.mask) for rollout in judged) / len(judged),
        truncated=sum(rollout.finish == "length" for rollout in judged) / len(judged),
        failures=len(rollouts) - len(judged),
        by_problem={
            name: {problem: sum(some) / len(some) for problem, some in right[name].items()} for name in names
        },
    )


def accuracy(right: Sequence[Sequence[bool]]) -> Interval:
    """Mean correctness of samples, grouped by problem. One sample each: Wilson's interval; several: clustered
    by problem, since the samples of one problem say little about the others."""
    if all(len(some) == 1 for some in right):
        return wilson(sum(some[0] for some in right), len(right))
    return clustered([sum(some) / len(some) for some in right])


def wilson(successes: int, n: int, z: float = Z95) -> Interval:
    """Wilson's score interval of a proportion; right also near 0 and 1.

    >>> print(wilson(8, 10)), print(wilson(0, 10))
    80.0 % [49.0, 94.3]
    0.0 % [0.0, 27.8]
    (None, None)
    """
    if n == 0:
        raise EtudeError("an interval of no samples")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def clustered(means: Sequence[float], z: float = Z95) -> Interval:
    """Mean of the problems' means, p_q: SE = sqrt(var(p_q) / N), with the sample variance.

    Where all problems are alike (var = 0) it is Wilson's interval of N problems instead of a point.

    >>> print(clustered([0.0, 0.5, 1.0, 0.5]))
    50.0 % [10.0, 90.0]
    """
    n = len(means)
    mean = sum(means) / n
    variance = sum((p - mean) ** 2 for p in means) / (n - 1) if n > 1 else 0.0
    if variance == 0.0:
        edges = wilson(round(mean * n), n, z)
        return Interval(mean, min(mean, edges.low), max(mean, edges.high))
    half = z * math.sqrt(variance / n)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k) = 1 - prod_{i=n-c+1..n} (1 - k/i), for c right ones of n samples.

    >>> pass_at_k(4, 2, 1), round(pass_at_k(4, 2, 2), 4), pass_at_k(4, 2, 3)
    (0.5, 0.8333, 1.0)
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise EtudeError(
            f"pass@{k} of {c} right ones among {n} samples: it needs 0 <= c <= n and 1 <= k <= n"
        )
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def pass_at(right: Sequence[Sequence[bool]], k: int) -> Interval:
    """Mean pass@k over problems, clustered by problem."""
    return clustered([pass_at_k(len(some), sum(some), k) for some in right])


def consensus(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, the first of equals; None (no answer) never wins. Equal ways of writing an
    answer are one.

    >>> consensus(["1/2", "3", None, None, None, "0.5"]), consensus([None])
    ('1/2', None)
    """
    votes = Counter(canonical(answer) for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def cons_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """How often the consensus of k of the samples is right: over all of them, or SUBSETS random subsets. An
    answer is right if any sample that gave it is."""
    verdicts: dict[str, bool] = {}
    for answer, verdict in zip(answers, right, strict=True):
        if answer is not None:
            verdicts[canonical(answer)] = verdict or verdicts.get(canonical(answer), False)

    def is_right(chosen: Sequence[str | None]) -> bool:
        winner = consensus(chosen)
        return winner is not None and verdicts[winner]

    if k == len(answers):
        return float(is_right(answers))
    draw = random.Random(f"cons/{seed}/{k}")
    picks = (sorted(draw.sample(range(len(answers)), k)) for _ in range(SUBSETS))
    return sum(is_right([answers[at] for at in pick]) for pick in picks) / SUBSETS


def powers_up_to(n: int) -> list[int]:
    """1, 2, 4 … and n itself.

    >>> powers_up_to(6), powers_up_to(1)
    ([1, 2, 4, 6], [1])
    """
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def _cons_at_all(
    parsed: Mapping[str, Sequence[str | None]],
    right: Mapping[str, Sequence[bool]],
    k_values: Sequence[int],
    seed: int,
) -> dict[int, Interval]:
    """cons@k for k of at least 3: of two samples, the majority is the first one's."""
    return {
        k: clustered([cons_at_k(parsed[problem], right[problem], k, seed=seed) for problem in parsed])
        for k in k_values
        if k > 2
    }


def _is_right(rollout: Rollout, name: str, parts: Sequence[str], threshold: float) -> bool:
    if not parts:
        return rollout.score.total >= threshold
    if name not in rollout.score.parts:
        known = ", ".join(rollout.score.parts) or "none"
        raise EtudeError(f"the score of {rollout.problem_id} has no part {name!r}; it has: {known}")
    return rollout.score.parts[name] >= threshold
