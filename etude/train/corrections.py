"""What to do about samples that are not quite the policy's own, too long, or without a signal.

The engine that sampled and the learner that trains compute the same token's probability with different
rounding (the mismatch), and after the first update the policy is no longer the one that sampled (staleness).
A `Correction` weighs each token's loss by π_learner / π_sampler, limited in one of four ways; it never takes
part in the PPO clip, whose ratio is between two passes of the learner. Weights carry no gradient.
The raw mismatch is measured before any of that, every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.train.advantages import group_statistics
from etude.train.kl import excess
from etude.train.losses import LOG_RATIO_LIMIT
from etude.train.segments import masked, sequence_means, sequence_sums

Correction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(learner_logprobs_C, sampler_logprobs_C, mask_C, sequence_C) → weights_C, without gradient, 0 where masked
out."""


def token_weights(learner_C: Tensor, sampler_C: Tensor, mask_C: Tensor) -> Tensor:
    """w_t = π_learner(o_t) / π_sampler(o_t); 0 where masked out. The exponent is limited to ±20."""
    gap_C = masked(learner_C - sampler_C, mask_C).detach()
    return masked(gap_C.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp(), mask_C)


def sequence_weights(learner_C: Tensor, sampler_C: Tensor, mask_C: Tensor, sequence_C: Tensor) -> Tensor:
    """w_i = Π_t w_t, at every token of sample i; 0 where masked out. The exponent is limited to ±20."""
    gap_S = sequence_sums((learner_C - sampler_C).detach(), mask_C, sequence_C)
    return masked(gap_S.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()[sequence_C], mask_C)


def uncorrected(learner_C: Tensor, sampler_C: Tensor, mask_C: Tensor, sequence_C: Tensor) -> Tensor:
    """1 for every token: the sampler is taken for the policy."""
    return mask_C.to(learner_C.dtype)


def truncated(
    learner_C: Tensor, sampler_C: Tensor, mask_C: Tensor, sequence_C: Tensor, *, maximum: float = 2.0
) -> Tensor:
    """TIS: min(w_t, C). Yao et al., "Your efficient RL framework secretly brings you off-policy RL
    training", 2025; C = 2 for a model of 0.5B, 8 for 32B there."""
    return token_weights(learner_C, sampler_C, mask_C).clamp(max=maximum)


def banded(
    learner_C: Tensor,
    sampler_C: Tensor,
    mask_C: Tensor,
    sequence_C: Tensor,
    *,
    minimum: float = 0.5,
    maximum: float = 2.0,
) -> Tensor:
    """IcePop, token MIS: w_t · 1[minimum ≤ w_t ≤ maximum]: a token that the two disagree on is dropped.

    Ring-1T (arXiv:2510.18855).
    """
    return within(token_weights(learner_C, sampler_C, mask_C), minimum, maximum)


def sequence_truncated(
    learner_C: Tensor, sampler_C: Tensor, mask_C: Tensor, sequence_C: Tensor, *, maximum: float = 2.0
) -> Tensor:
    """Sequence TIS: min(w_i, C) with w_i = Π_t w_t: unbiased but for the cut; collapses on long answers."""
    return sequence_weights(learner_C, sampler_C, mask_C, sequence_C).clamp(max=maximum)


def sequence_banded(
    learner_C: Tensor,
    sampler_C: Tensor,
    mask_C: Tensor,
    sequence_C: Tensor,
    *,
    minimum: float = 0.0,
    maximum: float = 3.0,
) -> Tensor:
    """Sequence MIS: w_i · 1[minimum ≤ w_i ≤ maximum]: a whole answer is dropped.

    Liu, Li et al., "When speed kills stability: demystifying RL collapse from the training-inference
    mismatch", 2025.
    """
    return within(sequence_weights(learner_C, sampler_C, mask_C, sequence_C), minimum, maximum)


def within(weights_C: Tensor, minimum: float, maximum: float) -> Tensor:
    """The weights from minimum to maximum, both included, and 0 for the others."""
    return masked(weights_C, (weights_C >= minimum) & (weights_C <= maximum))


def near_policy(
    logprobs_C: Tensor,
    sampler_C: Tensor,
    advantages_C: Tensor,
    mask_C: Tensor,
    sequence_C: Tensor,
    *,
    delta: float = 0.5,
) -> Tensor:
    """Off-policy sequence masking, weights 1 or 0: 0 where A < 0 and mean_t log(π_sampler / π) > δ nats.

    DeepSeek-V3.2 (arXiv:2512.02556), section 3.1. A bad answer that the policy has already left behind
    teaches it nothing and pushes it anywhere; good ones are kept however old. logprobs_C: of the policy now.
    """
    drift_S = sequence_means((sampler_C - logprobs_C).detach(), mask_C, sequence_C)
    keep_C = (advantages_C >= 0) | (drift_S[sequence_C] <= delta)
    return (keep_C & mask_C).to(logprobs_C.dtype)


@dataclass(frozen=True)
class Mismatch:
    """Sampler against learner over the masked-in tokens of a step, before any correction.

    mean_k3: estimates KL(π_sampler ‖ π_learner) in nats a token. mean_log_ratio: of log w, minus the k1
    estimate. max_probability_change: of one token. mean_ratio: of w; 1 in expectation. effective_samples:
    share of the tokens, (Σ w)² / (n Σ w²). No token at all: 0 tokens, no mismatch.
    """

    tokens: int
    mean_k3: float
    mean_log_ratio: float
    max_probability_change: float
    mean_ratio: float
    max_ratio: float
    effective_samples: float


def mismatch(learner_C: Tensor, sampler_C: Tensor, mask_C: Tensor) -> Mismatch:
    """Of the learner's logprobs before the first update and the sampler's, in double precision.

    w = π_learner / π_sampler; k3 = w - 1 - log w. A log-ratio counts as ±20 at most in everything but its
    mean.
    """
    learner_N, sampler_N = learner_C[mask_C].detach().double(), sampler_C[mask_C].detach().double()
    if not len(learner_N):
        return Mismatch(0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    gap_N = learner_N - sampler_N
    weight_N = gap_N.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return Mismatch(
        tokens=len(learner_N),
        mean_k3=float(excess(gap_N).mean()),
        mean_log_ratio=float(gap_N.mean()),
        max_probability_change=float((learner_N.exp() - sampler_N.exp()).abs().max()),
        mean_ratio=float(weight_N.mean()),
        max_ratio=float(weight_N.max()),
        effective_samples=float(weight_N.sum() ** 2 / (weight_N**2).sum() / len(weight_N)),
    )


def overlong_penalty(lengths_S: Tensor, *, max_tokens: int, buffer_tokens: int) -> Tensor:
    """0 up to max - buffer tokens, falling to -1 at max, -1 beyond: added to the reward.

    (L_max - L_buffer - |o|) / L_buffer within the buffer. DAPO (arXiv:2503.14476) eq. 13; 20,480 and 4,096
    there.

    >>> overlong_penalty(torch.tensor([6, 8, 9, 10, 11]), max_tokens=10, buffer_tokens=2).tolist()
    [0.0, 0.0, -0.5, -1.0, -1.0]
    """
    return ((max_tokens - buffer_tokens - lengths_S).double() / buffer_tokens).clamp(-1.0, 0.0)


def penalise_unfinished(scores_S: Tensor, finished_S: Tensor, *, penalty: float = -1.0) -> Tensor:
    """The penalty in place of the score for an answer that never ended. lm-human-preferences
    (arXiv:1909.08593)."""
    return torch.where(finished_S, scores_S, torch.full_like(scores_S, penalty))


def has_signal(rewards_S: Tensor, group_S: Tensor) -> Tensor:
    """True for samples of a group whose rewards differ: with rewards 0 and 1, 0 < number right < G.

    DAPO's dynamic sampling (arXiv:2503.14476) eq. 11 draws other prompts in place of the rest.
    """
    return ~group_statistics(rewards_S, group_S).flat_S
