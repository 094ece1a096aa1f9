"""Accuracy, pass@k and cons@k: against brute force, known intervals, and their traps."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.evals import (
    Interval,
    accuracy,
    clustered,
    cons_at_k,
    consensus,
    evaluate,
    pass_at_k,
    wilson,
)
from etude.records import EtudeError, Rollout, Score


def sample(problem: str, index: int, *, right: bool, parsed: str | None = "4", **changes: object) -> Rollout:
    score = Score(float(right), {"strict": float(right), "lenient": 1.0}, parsed)
    fields = {"score": score, "finish": "eos", **changes}
    return Rollout(
        problem, index, (1, 2, 3), (False, True, True), (0.0, -1.0, -1.0), 1, weights_version=0, **fields
    )


# ── pass@k ──


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_pass_at_k_of_many_samples() -> None:
    n, c, k = 10_000, 3, 5_000
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))
    for wrong in ((4, 5, 1), (4, 2, 5), (4, 2, 0), (4, -1, 1)):
        with pytest.raises(EtudeError, match="it needs"):
            pass_at_k(*wrong)


# ── cons@k ──


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["4", "5", "5"], "5"), (["4", "5"], "4"), (["5", "4", "4", "5"], "5"), ([None, None, "3"], "3"),
        ([None], None), ([], None), (["0.5", "1/2", "3", "3"], "1/2"), (["Blue", "blue ", "red"], "blue"),
    ],
)  # fmt: skip
def test_consensus(answers: list[str | None], winner: str | None) -> None:
    assert consensus(answers) == winner


def test_cons_at_k_over_subsets() -> None:
    answers, right = ["4", "5", "4", None], [True, False, True, False]
    assert cons_at_k(answers, right, 4) == 1.0 and cons_at_k(answers, right, 1) == pytest.approx(0.5, abs=0.1)
    exact = np.mean([
        consensus([answers[at] for at in pick]) == "4" for pick in itertools.combinations(range(4), 3)
    ])  # fmt: skip
    assert cons_at_k(answers, right, 3) == pytest.approx(exact, abs=0.1)
    assert cons_at_k(answers, right, 3) == cons_at_k(answers, right, 3)
    assert cons_at_k([None, None, None], [False] * 3, 3) == 0.0
    assert cons_at_k(["4", "4"], [True, False], 2) == 1.0  # found leniently once, strictly once


# ── intervals ──


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_the_literature(successes: int, n: int, low: float, high: float) -> None:
    """The last row: Newcombe 1998, table I."""
    interval = wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


def test_intervals_cover_the_truth() -> None:
    draw = np.random.default_rng(0)
    means = draw.beta(2, 3, size=(400, 60))
    covered = [
        abs(interval.value - 0.4) <= interval.high - interval.value
        for interval in map(clustered, means.tolist())
    ]
    assert np.mean(covered) > 0.9
    covered = [wilson(int(c), 60).low <= 0.4 <= wilson(int(c), 60).high for c in draw.binomial(60, 0.4, 400)]
    assert np.mean(covered) > 0.9


def test_samples_of_one_problem_are_no_new_problems() -> None:
    one = [[True], [False], [True], [False], [True]]
    many = [some * 100 for some in one]
    assert accuracy(many).value == accuracy(one).value == 0.6
    assert accuracy(many).high - accuracy(many).low > 0.7
    assert accuracy(one) == wilson(3, 5)
    assert clustered([1.0] * 10) == wilson(10, 10) and clustered([0.5]).low < 0.5 < clustered([0.5]).high
    assert Interval(0.5, 0.4, 0.6).overlaps(Interval(0.7, 0.6, 0.8))
    assert not Interval(0.5, 0.4, 0.6).overlaps(Interval(0.7, 0.61, 0.8))


# ── a whole evaluation ──


def rollouts(right: Sequence[Sequence[bool]], **changes: object) -> list[Rollout]:
    return [
        sample(f"p{at}", index, right=is_right, parsed="4" if is_right else f"{index}?", **changes)
        for at, some in enumerate(right)
        for index, is_right in enumerate(some)
    ]


def test_an_evaluation() -> None:
    found = evaluate(rollouts([[True, True, False, True], [False] * 4, [True] * 4]), ("strict", "lenient"))
    assert (found.n_problems, found.n_samples, found.failures) == (3, 12, 0)
    assert found.accuracies["strict"].value == pytest.approx(7 / 12)
    assert found.accuracies["lenient"].value == 1.0
    assert list(found.pass_at["strict"]) == [1, 2, 4] and found.pass_at["strict"][4].value == pytest.approx(
        2 / 3
    )
    assert found.pass_at["strict"][1].value == pytest.approx(7 / 12)
    assert list(found.cons_at["strict"]) == [4] and found.cons_at["strict"][4].value == pytest.approx(2 / 3)
    assert found.by_problem["strict"] == {"p0": 0.75, "p1": 0.0, "p2": 1.0}
    assert (found.mean_tokens, found.truncated) == (2.0, 0.0)
    metrics = found.metrics()
    assert metrics["eval/accuracy"] == metrics["eval/accuracy/strict"] == pytest.approx(7 / 12)
    assert metrics["eval/accuracy/lenient"] == 1.0 and "eval/pass@4/strict" in metrics
    json.dumps(found.as_json())


def test_greedy_evaluation_has_wilsons_interval() -> None:
    found = evaluate(rollouts([[True], [False], [True]], finish="length"))
    assert found.accuracies == {"score": wilson(2, 3)} and found.cons_at == {"score": {}}
    assert found.truncated == 1.0


def test_order_does_not_matter_and_problems_may_have_different_numbers() -> None:
    some = rollouts([[True, False, True], [False, False]])
    assert evaluate(some[::-1], ("strict",)) == evaluate(some, ("strict",))
    assert list(evaluate(some).pass_at["score"]) == [1, 2]


def test_failures_are_left_out_and_counted() -> None:
    broken = [sample("p9", 0, right=False, score=Score(0.0, failure="it broke"))]
    found = evaluate(rollouts([[True], [True]]) + broken)
    assert (found.failures, found.n_samples, found.accuracies["score"].value) == (1, 2, 1.0)
    with pytest.raises(EtudeError, match="nothing could be evaluated: it broke"):
        evaluate(broken)
    with pytest.raises(EtudeError, match="there are no samples"):
        evaluate([])
    with pytest.raises(EtudeError, match="p0 has no part 'format'; it has: strict, lenient"):
        evaluate(rollouts([[True]]), ("format",))


def test_partial_credit_counts_from_the_threshold() -> None:
    half = [sample("p", 0, right=False, score=Score(0.5))]
    assert evaluate(half).accuracies["score"].value == 0.0
    assert evaluate(half, threshold=0.5).accuracies["score"].value == 1.0
