"""Our training maths against verl 0.9.1: values and gradients within 1e-6, and where it deviates (see
docs)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.train import advantages, corrections, kl, losses
from etude.train.losses import Aggregation, Clip, Ratio, policy_loss
from tests.train.padded import Padded, assert_close, matrix, peer, with_gradient

CASES = ("near", "far", "interrupted", "extreme")
MODES: dict[str, Aggregation] = {
    "token-mean": losses.token_mean,
    "seq-mean-token-sum": losses.sequence_sum,
    "seq-mean-token-mean": losses.sequence_mean,
    "seq-mean-token-sum-norm": losses.constant_mean,
}
KINDS: dict[str, tuple[Ratio, Clip]] = {
    "ppo": (losses.token_log_ratio, partial(losses.clipped, low=0.2, high=0.2)),
    "higher": (losses.token_log_ratio, partial(losses.clipped, low=0.2, high=0.28)),
    "dual": (losses.token_log_ratio, partial(losses.dual_clipped, low=0.2, high=0.2, bound=3.0)),
    "gspo": (losses.sequence_log_ratio, partial(losses.clipped, low=0.03, high=0.04)),
    "cispo": (losses.token_log_ratio, partial(losses.weight_clipped, maximum=5.0)),
}


def case(name: str) -> tuple[Padded, dict[str, Any]]:
    stored = peer("verl")["cases"][name]
    return Padded(stored["inputs"]), stored["outputs"]


def loss_of(b: Padded, ratio: Ratio, clip: Clip, aggregate: Aggregation) -> Callable[[Tensor], Tensor]:
    def loss(logprobs_C: Tensor) -> Tensor:
        loss_C = policy_loss(
            logprobs_C, b.flat("old"), b.advantages_C, b.mask_C, b.sequence_C, ratio=ratio, clip=clip
        )
        return aggregate(loss_C, b.mask_C, b.sequence_C, b.totals)

    return loss


def test_which_peer() -> None:
    assert (peer("verl")["peer"], peer("verl")["version"]) == ("verl", "0.9.1")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_policy_losses(name: str, kind: str, mode: str) -> None:
    b, theirs = case(name)
    value, gradient = with_gradient(loss_of(b, *KINDS[kind], MODES[mode]), b.flat("logprobs"))
    stored = theirs["losses"][f"{kind} {mode}"]
    if (name, kind) == ("extreme", "gspo"):  # verl limits the log-ratio of a sequence to 10, we to 20
        assert not torch.isclose(value, matrix(stored["value"]), rtol=0.1)
        return
    assert_close(value, matrix(stored["value"]))
    assert_close(gradient, matrix(stored["gradient"]).flatten())


@pytest.mark.parametrize("name", CASES)
def test_policy_loss_with_sampler_weights(name: str) -> None:
    b, theirs = case(name)
    weights_C = corrections.truncated(b.flat("old"), b.flat("sampler"), b.mask_C, b.sequence_C, maximum=2.0)
    dual = partial(losses.dual_clipped, low=0.2, high=0.2, bound=3.0)  # verl's vanilla loss always clips at 3

    def loss(logprobs_C: Tensor) -> Tensor:
        loss_C = policy_loss(
            logprobs_C, b.flat("old"), b.advantages_C, b.mask_C, b.sequence_C,
            ratio=losses.token_log_ratio, clip=dual, weights_C=weights_C,
        )  # fmt: skip
        return losses.token_mean(loss_C, b.mask_C, b.sequence_C, b.totals)

    value, gradient = with_gradient(loss, b.flat("logprobs"))
    assert_close(value, matrix(theirs["losses"]["ppo with weights"]["value"]))
    assert_close(gradient, matrix(theirs["losses"]["ppo with weights"]["gradient"]).flatten())


@pytest.mark.parametrize("name", CASES)
def test_value_loss(name: str) -> None:
    b, theirs = case(name)

    def loss(values_C: Tensor) -> Tensor:
        loss_C = losses.clipped_value_loss(values_C, b.flat("old_values"), b.flat("returns"), clip=0.2)
        return losses.token_mean(loss_C, b.mask_C, b.sequence_C, b.totals)

    value, gradient = with_gradient(loss, b.flat("values"))
    assert_close(value, matrix(theirs["losses"]["value"]["value"]))
    assert_close(gradient, matrix(theirs["losses"]["value"]["gradient"]).flatten())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_aggregations(name: str, mode: str) -> None:
    b, theirs = case(name)
    value, gradient = with_gradient(
        lambda x: MODES[mode](x, b.mask_C, b.sequence_C, b.totals), b.flat("values")
    )
    assert_close(value, matrix(theirs["losses"][f"aggregate {mode}"]["value"]))
    assert_close(gradient, matrix(theirs["losses"][f"aggregate {mode}"]["gradient"]).flatten())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl(name: str, kind: str) -> None:
    b, theirs = case(name)
    estimator = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}[kind]
    zeros_C = torch.zeros_like(b.flat("logprobs"))
    value, gradient = with_gradient(lambda x: estimator(x, b.flat("reference"), zeros_C), b.flat("logprobs"))
    stored = theirs["kl"][kind]
    beyond_C = (b.flat("reference") - b.flat("logprobs") > 2.6) & (kind == "k3")  # verl stops at a k3 of 10
    assert_close(value[~beyond_C], matrix(stored["value"]).flatten()[~beyond_C])
    assert_close(gradient[~beyond_C], matrix(stored["gradient"]).flatten()[~beyond_C])


def test_k3_that_verl_cuts_off() -> None:
    """Where the policy has all but lost a token of the reference, verl's k3 is 10, without a gradient."""
    b, theirs = case("extreme")
    assert float(b.flat("reference")[0] - b.flat("logprobs")[0]) > 9000
    assert theirs["kl"]["k3"]["value"][0][0] == 10
    assert theirs["kl"]["k3"]["gradient"][0][0] == 0


def bessel(values_C: Tensor, mask_C: Tensor) -> float:
    """verl whitens by the sample variance (n - 1); ours, as in the papers' code, is the population's."""
    chosen_N = values_C[mask_C]
    ratio = (chosen_N.var(unbiased=False) + 1e-8) / (chosen_N.var() + 1e-8)
    return float(ratio.sqrt())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.8, 0.9), (1.0, 1.0)])
def test_gae(name: str, gamma: float, lam: float) -> None:
    b, theirs = case(name)
    stored = theirs["advantages"][f"gae {gamma} {lam}"]
    advantages_C, returns_C = advantages.gae(
        b.flat("token_rewards"), b.flat("values"), b.mask_C, b.sequence_C, gamma=gamma, lam=lam
    )
    assert_close(returns_C, b.masked(stored["returns"]))
    whitened_C = advantages.whiten(advantages_C, b.mask_C) * bessel(advantages_C, b.mask_C)
    assert_close(whitened_C, b.masked(stored["whitened"]))


@pytest.mark.parametrize("name", CASES)
def test_whitening(name: str) -> None:
    b, theirs = case(name)
    values_C, mask_C = b.flat("values"), b.mask_C
    factor, mean = bessel(values_C, mask_C), values_C[mask_C].mean()
    assert_close(advantages.whiten(values_C, mask_C) * factor, b.masked(theirs["advantages"]["whiten"]))
    kept_C = advantages.whiten(values_C, mask_C, keep_mean=True)
    with_mean_C = torch.where(mask_C, (kept_C - mean) * factor + mean, 0.0)
    assert_close(with_mean_C, b.masked(theirs["advantages"]["whiten keep mean"]))


@pytest.mark.parametrize("name", CASES)
def test_group_advantages(name: str) -> None:
    b, theirs = case(name)
    rewards_S, group_S = b.rowwise("rewards"), b.rowwise("group")
    ours = {
        "grpo": advantages.group_std(rewards_S, group_S, epsilon=1e-6),
        "grpo vectorized": advantages.group_std(rewards_S, group_S, epsilon=1e-6),
        "grpo mean": advantages.group_mean(rewards_S, group_S),
        "rloo": advantages.leave_one_out(rewards_S, group_S),
        "rloo vectorized": advantages.leave_one_out(rewards_S, group_S),
        "passk": advantages.pass_at_k(rewards_S, group_S, k=4) / 4,
    }
    for estimator, advantages_S in ours.items():
        assert_close(b.spread(advantages_S), b.masked(theirs["advantages"][estimator]))


@pytest.mark.parametrize("name", CASES)
def test_advantages_that_verl_whitens_over_tokens(name: str) -> None:
    """REINFORCE++-baseline and GDPO: the same up to the last step, which is over samples in ours."""
    b, theirs = case(name)
    group_S, parts_SK = b.rowwise("group"), matrix(b.inputs["parts_BK"])
    normalised = [advantages.group_std(parts_SK[:, k], group_S, epsilon=1e-6) for k in range(2)]
    before = {
        "reinforce++ baseline": b.spread(advantages.group_mean(b.rowwise("rewards"), group_S)),
        "gdpo": b.spread(normalised[0] + 0.5 * normalised[1]),
    }
    for estimator, values_C in before.items():
        whitened_C = advantages.whiten(values_C, b.mask_C) * bessel(values_C, b.mask_C)
        assert_close(whitened_C, b.masked(theirs["advantages"][estimator]), 1e-5)  # GDPO's parts are float32


@pytest.mark.parametrize("name", CASES)
def test_reinforce_plus_plus(name: str) -> None:
    b, theirs = case(name)
    returns_C = advantages.returns_to_go(b.flat("token_rewards"), b.mask_C, b.sequence_C)
    whitened_C = advantages.whiten(returns_C, b.mask_C) * bessel(returns_C, b.mask_C)
    assert_close(whitened_C, b.masked(theirs["advantages"]["reinforce++"]))


@pytest.mark.parametrize("name", CASES)
def test_corrections(name: str) -> None:
    b, theirs = case(name)
    call = (b.flat("old"), b.flat("sampler"), b.mask_C, b.sequence_C)
    ours = {
        "tis": corrections.truncated(*call, maximum=2.0),
        "icepop": corrections.banded(*call, minimum=0.5, maximum=2.0),
        "sequence-tis": corrections.sequence_truncated(*call, maximum=2.0),
    }
    for mode, weights_C in ours.items():
        assert_close(weights_C, b.masked(theirs["corrections"][mode]))


@pytest.mark.parametrize("name", ["near", "far", "interrupted"])
def test_mismatch(name: str) -> None:
    b, theirs = case(name)
    found = corrections.mismatch(b.flat("old"), b.flat("sampler"), b.mask_C)
    stored = theirs["corrections"]
    assert found.mean_k3 == pytest.approx(stored["k3"], rel=1e-6)
    assert -found.mean_log_ratio == pytest.approx(stored["kl"], rel=1e-6)
    assert found.mean_ratio == pytest.approx(stored["mean ratio"], rel=1e-6)
    assert found.effective_samples == pytest.approx(stored["effective samples"], rel=1e-6)


def test_adaptive_controller() -> None:
    state = kl.AdaptiveKl(beta=0.15, target_nats=6.0, horizon_samples=10_000)
    for measured, beta in zip((0.0, 3.0, 6.0, 6.5, 30.0, 5.9), peer("verl")["controller"], strict=True):
        state = kl.adapted(state, measured, 64)
        assert state.beta == pytest.approx(beta, rel=1e-12)
