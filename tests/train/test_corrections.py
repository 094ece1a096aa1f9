"""Sampler corrections, the mismatch, and rewards that are shaped."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from etude.train import corrections

CORRECTIONS: dict[str, Callable[..., Tensor]] = {
    "uncorrected": corrections.uncorrected,
    "truncated": corrections.truncated,
    "banded": corrections.banded,
    "sequence_truncated": corrections.sequence_truncated,
    "sequence_banded": corrections.sequence_banded,
}
MASK_C = torch.tensor([True, True, False, True])
SEQUENCE_C = torch.tensor([0, 0, 0, 1])


def logs(*ratios: float) -> Tensor:
    return torch.tensor(ratios, dtype=torch.float64).log()


@pytest.mark.parametrize("name", CORRECTIONS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e4, 0), min_size=4, max_size=4))
def test_equal_logprobs_weigh_exactly_one(name: str, values: list[float]) -> None:
    logprobs_C = torch.tensor(values)
    assert CORRECTIONS[name](logprobs_C, logprobs_C.clone(), MASK_C, SEQUENCE_C).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (corrections.uncorrected, [1, 1, 0, 1]),
        (partial(corrections.truncated, maximum=2.0), [1.5, 2.0, 0, 0.4]),
        (partial(corrections.banded, minimum=0.5, maximum=2.0), [1.5, 0, 0, 0]),
        (partial(corrections.sequence_truncated, maximum=3.0), [3.0, 3.0, 0, 0.4]),
        (partial(corrections.sequence_banded, maximum=5.0), [4.5, 4.5, 0, 0.4]),
        (partial(corrections.sequence_banded, maximum=4.0), [0, 0, 0, 0.4]),
        (partial(corrections.sequence_banded, minimum=0.5, maximum=5.0), [4.5, 4.5, 0, 0]),
    ],
)
def test_by_hand(correction: Callable[..., Tensor], expected: list[float]) -> None:
    learner_C, sampler_C = logs(1.5, 3.0, 9.0, 0.4), torch.zeros(4, dtype=torch.float64)
    weights_C = correction(learner_C, sampler_C, MASK_C, SEQUENCE_C)
    torch.testing.assert_close(weights_C, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_no_gradient_and_no_overflow(name: str) -> None:
    learner_C = torch.tensor([0.0, -1e4, math.nan, 0.0], requires_grad=True)
    sampler_C = torch.tensor([-1e4, 0.0, math.nan, -1e4])
    weights_C = CORRECTIONS[name](learner_C, sampler_C, MASK_C, SEQUENCE_C)
    assert not weights_C.requires_grad
    assert bool(torch.isfinite(weights_C).all())
    assert weights_C[2] == 0


def test_band_edges_are_inside() -> None:
    weights_C = torch.tensor([0.4999, 0.5, 2.0, 2.0001])
    assert corrections.within(weights_C, 0.5, 2.0).tolist() == [0, 0.5, 2.0, 0]


def test_off_policy_sequence_mask() -> None:
    """Dropped only: punished and drifted. Sample 0 drifted by 1 nat a token, sample 1 by 0.1."""
    sampler_C = torch.tensor([0.0, 0.0, 50.0, 0.0])
    policy_C = torch.tensor([-1.5, -0.5, -9.0, -0.1])
    for advantage, expected in ((-1.0, [0, 0, 0, 1]), (0.0, [1, 1, 0, 1]), (1.0, [1, 1, 0, 1])):
        keep_C = corrections.near_policy(
            policy_C, sampler_C, torch.full((4,), advantage), MASK_C, SEQUENCE_C, delta=0.5
        )
        assert keep_C.tolist() == expected


def test_mismatch_by_hand() -> None:
    learner_C, sampler_C = logs(0.5, 0.5, 0.9, 0.25), logs(0.5, 0.25, 0.1, 0.5)
    found = corrections.mismatch(learner_C, sampler_C, MASK_C)  # ratios 1, 2, (9), 0.5
    assert found.tokens == 3
    assert found.mean_ratio == pytest.approx(3.5 / 3)
    assert found.max_ratio == pytest.approx(2)
    assert found.mean_log_ratio == pytest.approx(0, abs=1e-12)
    assert found.mean_k3 == pytest.approx((0 + (1 - math.log(2)) + (-0.5 + math.log(2))) / 3)
    assert found.max_probability_change == pytest.approx(0.25)
    assert found.effective_samples == pytest.approx(3.5**2 / 5.25 / 3)


def test_mismatch_of_equals_and_of_nothing() -> None:
    logprobs_C = torch.tensor([-0.1, -1e4, 0.0, -3.0])
    equal = corrections.mismatch(logprobs_C, logprobs_C, MASK_C)
    assert equal == corrections.Mismatch(3, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    nothing = corrections.mismatch(logprobs_C, logprobs_C - 1, torch.zeros(4, dtype=torch.bool))
    assert nothing == corrections.Mismatch(0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)


def test_mismatch_of_float32_noise_is_not_lost() -> None:
    """1e-5 nats a token is a k3 of 5e-11: below what float32 tells from 0 with e^x - x - 1."""
    sampler_C = torch.full((4,), -0.5)
    found = corrections.mismatch(sampler_C + 1e-5, sampler_C, MASK_C)
    assert found.mean_k3 == pytest.approx(5e-11, rel=0.02)


def test_unfinished_answers() -> None:
    scores_S = torch.tensor([0.7, 0.9])
    assert corrections.penalise_unfinished(scores_S, torch.tensor([True, False])).tolist() == pytest.approx(
        [0.7, -1.0]
    )


def test_dynamic_sampling_keeps_mixed_groups() -> None:
    rewards_S = torch.tensor([0.0, 1, 0, 0, 1, 1, 3])
    group_S = torch.tensor([4, 4, 2, 2, 9, 9, 1])
    assert corrections.has_signal(rewards_S, group_S).tolist() == [True, True] + [False] * 5
