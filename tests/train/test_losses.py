"""Policy losses: clip edges, extreme logprobs, finite differences, aggregation by hand, micro-batches."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from etude.train import losses
from etude.train.losses import Aggregation, Clip, Ratio, policy_loss
from tests.train.padded import Totals

CLIPS: dict[str, Clip] = {
    "unclipped": losses.unclipped,
    "clipped": partial(losses.clipped, low=0.2, high=0.28),
    "dual": partial(losses.dual_clipped, low=0.2, high=0.28, bound=3.0),
    "cispo": partial(losses.weight_clipped, maximum=5.0),
}
RATIOS: dict[str, Ratio] = {"token": losses.token_log_ratio, "sequence": losses.sequence_log_ratio}
AGGREGATIONS: dict[str, Aggregation] = {
    "token_mean": losses.token_mean,
    "sequence_mean": losses.sequence_mean,
    "sequence_sum": losses.sequence_sum,
    "constant_mean": losses.constant_mean,
}


def one(clip: Clip, ratio: float, advantage: float) -> tuple[float, float]:
    """Loss and gradient by the logprob of one token with this ratio."""
    logprob = torch.tensor([-1.0 + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0], dtype=torch.float64)
    mask, sequence = torch.tensor([True]), torch.tensor([0])
    advantages_C = torch.tensor([advantage], dtype=torch.float64)
    loss_C = policy_loss(logprob, old, advantages_C, mask, sequence, ratio=losses.token_log_ratio, clip=clip)
    (gradient,) = torch.autograd.grad(loss_C.sum(), logprob)
    return float(loss_C.detach()), float(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.27, 2.0, -2.54, -2.54),  # inside
        (1.29, 2.0, -2.56, 0.0),  # above, praised: stopped at 1.28
        (0.5, 2.0, -1.0, -1.0),  # below, praised: pulls back
        (1.5, -2.0, 3.0, 3.0),  # above, punished: pulls back
        (0.79, -2.0, 1.6, 0.0),  # below, punished: stopped at 0.8
        (50.0, -2.0, 100.0, 100.0),  # nothing bounds it: see dual
    ],
)
def test_clip_edges(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert one(CLIPS["clipped"], ratio, advantage) == pytest.approx((loss, gradient))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [(2.9, -2.0, 5.8, 5.8), (3.1, -2.0, 6.0, 0.0), (50.0, -2.0, 6.0, 0.0), (50.0, 2.0, -2.56, 0.0)],
)
def test_dual_clip_edges(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert one(CLIPS["dual"], ratio, advantage) == pytest.approx((loss, gradient))


def test_a_dual_clip_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="above 1"):
        losses.dual_clipped(torch.zeros(1), torch.ones(1), torch.zeros(1), low=0.2, high=0.2, bound=1.0)


@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.1), (4.9, 4.9), (7.0, 5.0)])
def test_cispo_keeps_the_gradient_of_clipped_tokens(ratio: float, weight: float) -> None:
    loss, gradient = one(CLIPS["cispo"], ratio, 2.0)
    assert gradient == pytest.approx(-2 * weight)
    assert loss == pytest.approx(-2 * weight * (-1 + math.log(ratio)))


@pytest.mark.parametrize("clip", CLIPS)
def test_on_policy_all_clips_have_the_gradient_of_reinforce(clip: str) -> None:
    assert one(CLIPS[clip], 1.0, 0.7)[1] == pytest.approx(-0.7)


def test_clip_flags() -> None:
    log_ratio_C = torch.tensor([0.5, 0.9, 1.1, 1.5, 0.5, 1.5]).log()
    advantages_C = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0, -1.0])
    low_C, high_C = losses.clip_flags(log_ratio_C, advantages_C, low=0.2, high=0.2)
    assert low_C.tolist() == [True, False, False, False, False, False]
    assert high_C.tolist() == [False, False, False, True, False, False]


def random_batch(sizes: list[int], seed: int, spread: float = 0.3) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    tokens = sum(sizes)
    logprobs_C = -torch.rand(tokens, generator=rng, dtype=torch.float64) * 3
    old_C = logprobs_C + spread * torch.randn(tokens, generator=rng, dtype=torch.float64)
    sequence_C = torch.tensor([s for s, size in enumerate(sizes) for _ in range(size)], dtype=torch.int64)
    advantages_C = torch.randn(len(sizes), generator=rng, dtype=torch.float64)[sequence_C]
    mask_C = torch.rand(tokens, generator=rng) > 0.2
    return logprobs_C, old_C, advantages_C, mask_C, sequence_C


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_by_finite_differences(ratio: str, clip: str, aggregation: str) -> None:
    logprobs_C, old_C, advantages_C, mask_C, sequence_C = random_batch([3, 1, 5, 2], seed=3)
    totals = Totals(int(mask_C.sum()), 4, 8)
    frozen_C = RATIOS[ratio](logprobs_C, old_C, mask_C, sequence_C)

    def loss(x: Tensor) -> Tensor:
        if clip == "cispo":  # its weight is held fixed in the gradient: hold it fixed in the differences too
            loss_C = losses.weight_clipped(frozen_C, advantages_C, x, maximum=5.0)
        else:
            loss_C = policy_loss(
                x, old_C, advantages_C, mask_C, sequence_C, ratio=RATIOS[ratio], clip=CLIPS[clip]
            )
        return AGGREGATIONS[aggregation](loss_C, mask_C, sequence_C, totals)

    assert torch.autograd.gradcheck(loss, logprobs_C.requires_grad_(), eps=1e-7, atol=1e-6)


extreme = st.sampled_from([-1e4, -100.0, -20.0, -1e-8, 0.0])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("clip", CLIPS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(extreme, extreme, st.booleans(), st.floats(-5, 5)), min_size=1, max_size=6))
def test_extreme_logprobs_stay_finite(
    ratio: str, clip: str, rows: list[tuple[float, float, bool, float]]
) -> None:
    new_C, old_C, mask_C, advantages_C = (torch.tensor(column) for column in zip(*rows, strict=True))
    sequence_C = torch.arange(len(rows)) // 2
    new_C = new_C.float().requires_grad_()
    loss_C = policy_loss(
        new_C, old_C.float(), advantages_C.float(), mask_C, sequence_C, ratio=RATIOS[ratio], clip=CLIPS[clip]
    )
    (gradient_C,) = torch.autograd.grad(loss_C.sum(), new_C)
    assert bool(torch.isfinite(loss_C).all()) and bool(torch.isfinite(gradient_C).all())
    assert not gradient_C[~mask_C].any()


def test_masked_out_tokens_may_hold_anything() -> None:
    logprobs_C, old_C, advantages_C, _, sequence_C = random_batch([2, 3], seed=1)
    mask_C = torch.tensor([True, False, True, True, False])
    spoilt = [x.masked_fill(~mask_C, math.nan) for x in (logprobs_C, old_C, advantages_C)]
    totals = Totals(3, 2, 4)
    for ratio in RATIOS.values():
        for clip in CLIPS.values():
            for aggregate in AGGREGATIONS.values():
                values = []
                for new_C, before_C, gain_C in ((logprobs_C, old_C, advantages_C), spoilt):
                    leaf = new_C.clone().requires_grad_()
                    loss_C = policy_loss(leaf, before_C, gain_C, mask_C, sequence_C, ratio=ratio, clip=clip)
                    value = aggregate(loss_C, mask_C, sequence_C, totals)
                    values.append((value, torch.autograd.grad(value, leaf)[0]))
                assert torch.equal(values[0][0], values[1][0])
                assert torch.equal(values[0][1], values[1][1])


def test_aggregations_by_hand() -> None:
    """Three samples: losses 1 2 | 6 (9 masked out) | nothing."""
    loss_C = torch.tensor([1.0, 2.0, 6.0, 9.0, 5.0])
    mask_C = torch.tensor([True, True, True, False, False])
    sequence_C = torch.tensor([0, 0, 1, 1, 2])
    totals = Totals(tokens=3, sequences=3, max_tokens=4)
    by_hand = {
        "token_mean": (1 + 2 + 6) / 3,
        "sequence_mean": (1.5 + 6 + 0) / 3,
        "sequence_sum": (3 + 6 + 0) / 3,
        "constant_mean": (3 + 6 + 0) / 3 / 4,
    }
    for name, expected in by_hand.items():
        assert float(AGGREGATIONS[name](loss_C, mask_C, sequence_C, totals)) == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.integers(0, 1000), st.data())
def test_micro_batches_add_up(aggregation: str, sizes: list[int], seed: int, data: st.DataObject) -> None:
    loss_C, _, _, mask_C, sequence_C = random_batch(sizes, seed)
    totals = Totals(int(mask_C.sum()), len(sizes), 9)
    aggregate = AGGREGATIONS[aggregation]
    cut = data.draw(st.integers(1, len(sizes) - 1))
    first_C = sequence_C < cut
    shares = [
        aggregate(loss_C[part_C], mask_C[part_C], sequence_C[part_C] - start, totals)
        for part_C, start in ((first_C, 0), (~first_C, cut))
    ]
    torch.testing.assert_close(shares[0] + shares[1], aggregate(loss_C, mask_C, sequence_C, totals))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_at_all(aggregation: str) -> None:
    """An empty batch and an empty mask are a loss of 0 with a gradient of 0."""
    for tokens in (0, 3):
        loss_C = torch.ones(tokens, requires_grad=True)
        mask_C, sequence_C = torch.zeros(tokens, dtype=torch.bool), torch.zeros(tokens, dtype=torch.int64)
        value = AGGREGATIONS[aggregation](loss_C, mask_C, sequence_C, Totals(0, 0, 4))
        value.backward()
        assert float(value.detach()) == 0
        assert loss_C.grad is not None and not loss_C.grad.any()


def test_a_constant_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        losses.constant_mean(torch.ones(1), torch.tensor([True]), torch.tensor([0]), Totals(1, 1, 0))


def test_sequence_ratio_is_the_geometric_mean() -> None:
    old_C = torch.zeros(4, dtype=torch.float64)
    new_C = torch.tensor([0.1, 0.3, 7.0, -0.5], dtype=torch.float64)
    mask_C, sequence_C = torch.tensor([True, True, False, True]), torch.tensor([0, 0, 0, 1])
    ours_C = losses.sequence_log_ratio(new_C, old_C, mask_C, sequence_C)
    torch.testing.assert_close(ours_C, torch.tensor([0.2, 0.2, 0.0, -0.5], dtype=torch.float64))


def test_one_token_sequences_have_equal_ratios_of_both_kinds() -> None:
    logprobs_C, old_C, _, _, sequence_C = random_batch([1, 1, 1], seed=5)
    mask_C = torch.ones(3, dtype=torch.bool)
    assert torch.equal(
        losses.token_log_ratio(logprobs_C, old_C, mask_C, sequence_C),
        losses.sequence_log_ratio(logprobs_C, old_C, mask_C, sequence_C),
    )


def test_the_first_ratio_is_exactly_one() -> None:
    logprobs_C, _, _, mask_C, sequence_C = random_batch([4, 3], seed=2)
    for ratio in RATIOS.values():
        log_ratio_C = ratio(logprobs_C.float(), logprobs_C.float(), mask_C, sequence_C)
        assert torch.equal(log_ratio_C.exp(), torch.ones(7))


@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [
        (0.1, 0.5 * 0.9**2, -0.9),  # within the clip
        (0.5, 0.5 * 0.8**2, 0.0),  # moved 0.5 towards the return: only the clipped 0.2 counts
        (-0.5, 0.5 * 1.5**2, -1.5),  # moved away: the larger loss pulls back
    ],
)
def test_value_clip(value: float, loss: float, gradient: float) -> None:
    values_C = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    loss_C = losses.clipped_value_loss(values_C, torch.zeros(1), torch.ones(1), clip=0.2)
    loss_C.sum().backward()
    assert float(loss_C.detach()) == pytest.approx(loss)
    assert values_C.grad is not None and float(values_C.grad) == pytest.approx(gradient)
    assert float(losses.value_loss(values_C.detach(), torch.ones(1))) == pytest.approx(0.5 * (value - 1) ** 2)


def test_sft() -> None:
    logprobs_C = torch.tensor([-1.0, -3.0, -9.0])
    loss = losses.token_mean(
        losses.negative_log_likelihood(logprobs_C),
        torch.tensor([True, True, False]),
        torch.zeros(3),
        Totals(2, 1),
    )
    assert float(loss) == 2.0
