"""Our training maths against TRL 1.16: values and gradients within 1e-6, and where it deviates (see docs)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.train import advantages, corrections, kl, losses, preference
from etude.train.losses import Aggregation, Clip, Ratio, policy_loss
from etude.train.segments import sequence_means, sequence_sums
from tests.train.padded import Padded, Totals, assert_close, matrix, peer, with_gradient

CASES = ("near", "far")
PPO = partial(losses.clipped, low=0.2, high=0.2)
HIGHER = partial(losses.clipped, low=0.2, high=0.28)


def delta_below_the_clip(log_ratio_C: Tensor, advantages_C: Tensor, logprobs_C: Tensor) -> Tensor:
    """What TRL's delta of 1.5 does with epsilon_high = 3: it stops praised tokens at 1.5, and punished ones,
    which it is there for, only at 4."""
    praised_C = losses.clipped(log_ratio_C, advantages_C, logprobs_C, low=0.9, high=0.5)
    punished_C = losses.dual_clipped(log_ratio_C, advantages_C, logprobs_C, low=0.9, high=3.0, bound=4.0)
    return torch.where(advantages_C > 0, praised_C, punished_C)


KINDS: dict[str, tuple[Ratio, Clip, Aggregation]] = {
    "grpo": (losses.token_log_ratio, PPO, losses.sequence_mean),
    "bnpo": (losses.token_log_ratio, PPO, losses.token_mean),
    "dr_grpo": (losses.token_log_ratio, PPO, losses.constant_mean),
    "dapo": (losses.token_log_ratio, HIGHER, losses.token_mean),
    "luspo": (losses.token_log_ratio, PPO, losses.sequence_sum),
    "cispo": (losses.token_log_ratio, partial(losses.weight_clipped, maximum=1.5), losses.token_mean),
    "gspo": (
        losses.sequence_log_ratio,
        partial(losses.clipped, low=0.03, high=0.04),
        losses.sequence_mean,
    ),
    "delta": (
        losses.token_log_ratio,
        partial(losses.dual_clipped, low=0.2, high=0.2, bound=1.5),
        losses.sequence_mean,
    ),
    "delta below": (losses.token_log_ratio, delta_below_the_clip, losses.sequence_mean),
}


def case(name: str) -> tuple[Padded, dict[str, Any]]:
    stored = peer("trl")["cases"][name]
    return Padded(stored["inputs"]), stored["outputs"]


def totals(b: Padded) -> Totals:
    return Totals(b.totals.tokens, b.rows, peer("trl")["max_tokens"])


def per_token(
    b: Padded, logprobs_C: Tensor, ratio: Ratio, clip: Clip, weights_C: Tensor | None = None
) -> Tensor:
    return policy_loss(
        logprobs_C, b.flat("old"), b.advantages_C, b.mask_C, b.sequence_C,
        ratio=ratio, clip=clip, weights_C=weights_C,
    )  # fmt: skip


def assert_same(ours: tuple[Tensor, Tensor], stored: dict[str, Any], tolerance: float = 1e-6) -> None:
    assert_close(ours[0], matrix(stored["value"]), tolerance)
    assert_close(ours[1], matrix(stored["gradient"]).flatten(), tolerance)


def test_which_peer() -> None:
    assert (peer("trl")["peer"], peer("trl")["version"]) == ("trl", "1.16.0")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_policy_losses(name: str, kind: str) -> None:
    b, theirs = case(name)
    ratio, clip, aggregate = KINDS[kind]
    ours = with_gradient(
        lambda x: aggregate(per_token(b, x, ratio, clip), b.mask_C, b.sequence_C, totals(b)),
        b.flat("logprobs"),
    )
    assert_same(ours, theirs["losses"][kind])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["k3", "unbiased"])
def test_kl_in_the_loss(name: str, kind: str) -> None:
    b, theirs = case(name)
    estimator = {"k3": kl.k3, "unbiased": kl.unbiased}[kind]

    def loss(logprobs_C: Tensor) -> Tensor:
        log_ratio_C = losses.token_log_ratio(logprobs_C, b.flat("old"), b.mask_C, b.sequence_C)
        kl_C = estimator(logprobs_C, b.flat("reference"), log_ratio_C)
        loss_C = per_token(b, logprobs_C, losses.token_log_ratio, PPO) + 0.1 * kl_C
        return losses.sequence_mean(loss_C, b.mask_C, b.sequence_C, totals(b))

    assert_same(with_gradient(loss, b.flat("logprobs")), theirs["losses"][kind])


@pytest.mark.parametrize("name", CASES)
def test_off_policy_sequence_mask(name: str) -> None:
    b, theirs = case(name)
    keep_C = corrections.near_policy(
        b.flat("logprobs"), b.flat("sampler"), b.advantages_C, b.mask_C, b.sequence_C, delta=0.05
    )
    ours = with_gradient(
        lambda x: losses.sequence_mean(
            per_token(b, x, losses.token_log_ratio, PPO, keep_C), b.mask_C, b.sequence_C, totals(b)
        ),
        b.flat("logprobs"),
    )
    assert_same(ours, theirs["losses"]["off-policy mask"])


@pytest.mark.parametrize("name", CASES)
def test_advantages(name: str) -> None:
    b, theirs = case(name)
    rewards_S, group_S, parts_SK = b.rowwise("rewards"), b.rowwise("group"), matrix(b.inputs["parts_BK"])
    penalty_C = 0.1 * kl.k1(b.flat("old"), b.flat("reference"), torch.zeros_like(b.flat("old")))
    with_kl_C = advantages.token_advantages(
        rewards_S, group_S, penalty_C, b.mask_C, b.sequence_C, advantage=advantages.leave_one_out
    )
    ours = {
        "group": advantages.group_std(rewards_S, group_S, epsilon=1e-4),
        "batch": advantages.batch_std(rewards_S, group_S, epsilon=1e-4),
        "none": advantages.group_mean(rewards_S, group_S),
        "gdpo": advantages.gdpo(parts_SK, group_S, torch.tensor([1.0, 0.5]), epsilon=1e-4),
        "rloo": advantages.leave_one_out(rewards_S, group_S),
        "rloo kl": with_kl_C.view(b.rows, b.columns)[:, 0],
    }
    for estimator, advantages_S in ours.items():
        assert_close(advantages_S, matrix(theirs["advantages"][estimator]))


@pytest.mark.parametrize("name", CASES)
def test_corrections(name: str) -> None:
    b, theirs = case(name)
    call = (b.flat("old"), b.flat("sampler"), b.mask_C, b.sequence_C)
    ours = {
        "token_truncate": corrections.truncated(*call, maximum=2.0),
        "token_mask": corrections.banded(*call, minimum=0.5, maximum=2.0),
        "sequence_truncate": corrections.sequence_truncated(*call, maximum=2.0),
        "sequence_mask": corrections.sequence_banded(*call, minimum=0.5, maximum=2.0),
    }
    for mode, weights_C in ours.items():
        assert_close(weights_C, b.masked(theirs["corrections"][mode]))


def pairs() -> tuple[Padded, dict[str, Any]]:
    stored = peer("trl")["pairs"]
    return Padded(stored["inputs"]), stored["outputs"]


def test_reward_model() -> None:
    p, theirs = pairs()
    margin_P = matrix(p.inputs["margin_P"])
    plain = with_gradient(lambda x: preference.bradley_terry(x[:4], x[4:]).mean(), p.rowwise("scores"))
    assert_same(plain, theirs["bradley-terry"])
    full = with_gradient(
        lambda x: preference.bradley_terry(x[:4], x[4:], margin_P=margin_P, centring=0.01).mean(),
        p.rowwise("scores"),
    )
    assert_same(full, theirs["bradley-terry margin centred"])


def test_dpo() -> None:
    p, theirs = pairs()
    reference_S = sequence_sums(p.flat("reference"), p.mask_C, p.sequence_C)

    def loss_P(logprobs_C: Tensor, smoothing: float) -> Tensor:
        sums_S = sequence_sums(logprobs_C, p.mask_C, p.sequence_C)
        return preference.dpo(
            sums_S[:4], sums_S[4:], reference_S[:4], reference_S[4:], beta=0.1, label_smoothing=smoothing
        )

    assert_same(with_gradient(lambda x: loss_P(x, 0.0).mean(), p.flat("logprobs")), theirs["dpo"])
    values_P, gradient_C = with_gradient(lambda x: loss_P(x, 0.1), p.flat("logprobs"))
    gradient_BT = gradient_C.view(p.rows, p.columns)
    for pair, stored in enumerate(theirs["dpo smoothed"]):
        assert_close(values_P[pair], matrix(stored["value"]))
        assert_close(gradient_BT[[pair, pair + 4]], matrix(stored["gradient"]))


def test_ipo_of_means() -> None:
    """TRL divides by the length, ours takes what it is given."""
    p, theirs = pairs()
    reference_S = sequence_means(p.flat("reference"), p.mask_C, p.sequence_C)

    def loss(logprobs_C: Tensor) -> Tensor:
        means_S = sequence_means(logprobs_C, p.mask_C, p.sequence_C)
        return preference.ipo(means_S[:4], means_S[4:], reference_S[:4], reference_S[4:], tau=0.1).mean()

    assert_same(with_gradient(loss, p.flat("logprobs")), theirs["ipo"])


def test_kto() -> None:
    p, theirs = pairs()
    reference_S = sequence_sums(p.flat("reference"), p.mask_C, p.sequence_C)

    def loss(logprobs_C: Tensor) -> Tensor:
        log_ratios_S = sequence_sums(logprobs_C, p.mask_C, p.sequence_C) - reference_S
        return preference.kto(
            log_ratios_S,
            p.rowwise("desirable"),
            preference.kto_reference_point(log_ratios_S),
            beta=0.1,
            undesirable_weight=1.3,
        ).mean()

    assert_same(with_gradient(loss, p.flat("logprobs")), theirs["kto"])


def test_orpo_and_simpo() -> None:
    p, theirs = pairs()

    def odds(logprobs_C: Tensor) -> Tensor:
        means_S = sequence_means(logprobs_C, p.mask_C, p.sequence_C)
        return -(preference.orpo(means_S[:4], means_S[4:], weight=0.1) + means_S[:4])  # TRL: to be subtracted

    def simpo(logprobs_C: Tensor) -> Tensor:
        means_S = sequence_means(logprobs_C, p.mask_C, p.sequence_C)
        return preference.simpo(means_S[:4], means_S[4:], beta=2.0, gamma=0.5)

    assert_same(with_gradient(odds, p.flat("logprobs")), theirs["orpo odds"])
    assert_same(with_gradient(simpo, p.flat("logprobs")), theirs["simpo"])
