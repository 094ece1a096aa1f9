"""Policy and value losses per token, and how they become one number.

A policy loss is put together from three choices: a `Ratio` (of what to what), a `Clip` (how far it may pull)
and an `Aggregation` (what is averaged over what). With one update per rollout the ratio is exactly 1 and all
of them have the same gradient up to a scale; they differ once data is off-policy.

Log-ratios are limited to ±20 (a factor of 5e8), with gradient 0 beyond: e^x would overflow, and nothing is
learnt from such a token. Masked-out tokens may hold anything; they add 0 to a loss and to its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from etude.train.segments import masked, sequence_means

LOG_RATIO_LIMIT = 20.0

Ratio = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(logprobs_C, old_logprobs_C, mask_C, sequence_C) → log_ratio_C."""

Clip = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log_ratio_C, advantages_C, logprobs_C) → loss_C. Only CISPO reads the logprobs themselves."""


class StepTotals(Protocol):
    """Totals of the whole step, known before any micro-batch runs, so that neither micro-batches nor packing
    nor workers can change a gradient: masked-in tokens, samples (also those without a token), longest answer
    allowed."""

    @property
    def tokens(self) -> float: ...

    @property
    def sequences(self) -> float: ...

    @property
    def max_tokens(self) -> float: ...


Aggregation = Callable[[Tensor, Tensor, Tensor, StepTotals], Tensor]
"""(loss_C, mask_C, sequence_C, totals) → this micro-batch's share of the loss: shares add up to it."""


def token_log_ratio(logprobs_C: Tensor, old_logprobs_C: Tensor, mask_C: Tensor, sequence_C: Tensor) -> Tensor:
    """log ρ_t = log π(o_t) - log π_old(o_t). PPO (arXiv:1707.06347) eq. 6, DeepSeekMath (arXiv:2402.03300)
    eq. 3."""
    return masked(logprobs_C - old_logprobs_C, mask_C).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence_log_ratio(
    logprobs_C: Tensor, old_logprobs_C: Tensor, mask_C: Tensor, sequence_C: Tensor
) -> Tensor:
    """log s_i = 1/|o_i| Σ_t log ρ_t, the same for all tokens of a sample. GSPO (arXiv:2507.18071) eq. 7.

    The gradient runs through all tokens of the sample. Where these share one advantage, value and gradient
    are those of GSPO-token (which verl computes) too.
    """
    means_S = sequence_means(logprobs_C - old_logprobs_C, mask_C, sequence_C)
    return masked(means_S[sequence_C], mask_C).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def unclipped(log_ratio_C: Tensor, advantages_C: Tensor, logprobs_C: Tensor) -> Tensor:
    """-ρ A: importance sampling alone; with ρ = 1 the gradient is REINFORCE's, -A ∇ log π."""
    return -log_ratio_C.exp() * advantages_C


def clipped(
    log_ratio_C: Tensor, advantages_C: Tensor, logprobs_C: Tensor, *, low: float, high: float
) -> Tensor:
    """-min(ρ A, clip(ρ, 1 - low, 1 + high) A). PPO (arXiv:1707.06347) eq. 7; low < high is DAPO's clip-higher
    (arXiv:2503.14476) eq. 10. Pessimistic: for A < 0 a growing ρ is not bounded (see `dual_clipped`)."""
    ratio_C = log_ratio_C.exp()
    return -torch.minimum(ratio_C * advantages_C, ratio_C.clamp(1 - low, 1 + high) * advantages_C)


def dual_clipped(
    log_ratio_C: Tensor, advantages_C: Tensor, logprobs_C: Tensor, *, low: float, high: float, bound: float
) -> Tensor:
    """`clipped`, and for A < 0 never more than -bound · A: -max(min(ρ A, clip(ρ) A), bound · A).

    Dual-clip PPO (arXiv:1912.09729), bound > 1 (3 there, 4 in INTELLECT-2). With R1's high = 10, only this
    bounds a token that became much likelier although it was punished.
    """
    if bound <= 1:
        raise ValueError(f"the bound of a dual clip must be above 1, got {bound}")
    loss_C = clipped(log_ratio_C, advantages_C, logprobs_C, low=low, high=high)
    return torch.where(advantages_C < 0, torch.minimum(loss_C, -bound * advantages_C), loss_C)


def weight_clipped(
    log_ratio_C: Tensor, advantages_C: Tensor, logprobs_C: Tensor, *, maximum: float, minimum: float = 0.0
) -> Tensor:
    """CISPO: -sg(clip(ρ, minimum, maximum)) A log π. MiniMax-M1 (arXiv:2506.13585) eq. 4 and 5.

    The weight is clipped, not the gradient: every token keeps pulling. `minimum` and `maximum` bound the
    weight itself (1 - ε and 1 + ε in the paper, which leaves the lower one off; ScaleRL, arXiv:2510.13786:
    5).
    """
    return -log_ratio_C.exp().clamp(minimum, maximum).detach() * advantages_C * logprobs_C


def policy_loss(
    logprobs_C: Tensor,
    old_logprobs_C: Tensor,
    advantages_C: Tensor,
    mask_C: Tensor,
    sequence_C: Tensor,
    *,
    ratio: Ratio,
    clip: Clip,
    weights_C: Tensor | None = None,
) -> Tensor:
    """The loss of each token, weights_C (see corrections.py) times the clipped surrogate; 0 where masked out.

    On-policy with one update, pass `logprobs_C.detach()` as the old ones: the ratio is then exactly 1.
    """
    log_ratio_C = ratio(logprobs_C, old_logprobs_C, mask_C, sequence_C)
    loss_C = clip(log_ratio_C, masked(advantages_C, mask_C), masked(logprobs_C, mask_C))
    return loss_C if weights_C is None else masked(weights_C, mask_C) * loss_C


def clip_flags(
    log_ratio_C: Tensor, advantages_C: Tensor, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Where `clipped` stops the gradient, as two masks: below (A < 0 and ρ < 1 - low), above (A > 0 and ρ >
    1 + high)."""
    ratio_C = log_ratio_C.detach().exp()
    return (advantages_C < 0) & (ratio_C < 1 - low), (advantages_C > 0) & (ratio_C > 1 + high)


def value_loss(values_C: Tensor, returns_C: Tensor) -> Tensor:
    """½ (V - R)². PPO (arXiv:1707.06347) eq. 9, L^VF."""
    return 0.5 * (values_C - returns_C) ** 2


def clipped_value_loss(values_C: Tensor, old_values_C: Tensor, returns_C: Tensor, *, clip: float) -> Tensor:
    """½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²). lm-human-preferences (arXiv:1909.08593), its
    code: a value that has already moved by ε towards the return pulls no further in this rollout."""
    near_C = torch.minimum(torch.maximum(values_C, old_values_C - clip), old_values_C + clip)
    return torch.maximum(value_loss(values_C, returns_C), value_loss(near_C, returns_C))


def negative_log_likelihood(logprobs_C: Tensor) -> Tensor:
    """-log π(y_t | x, y_<t): the cross-entropy of supervised fine-tuning, per token; aggregate with
    `token_mean`."""
    return -logprobs_C


def token_mean(loss_C: Tensor, mask_C: Tensor, sequence_C: Tensor, totals: StepTotals) -> Tensor:
    """Σ_i Σ_t loss / Σ_i |o_i|: every token weighs the same. DAPO (arXiv:2503.14476) eq. 12; also that of
    SFT."""
    return masked(loss_C, mask_C).sum() / max(totals.tokens, 1)


def sequence_mean(loss_C: Tensor, mask_C: Tensor, sequence_C: Tensor, totals: StepTotals) -> Tensor:
    """1/N Σ_i 1/|o_i| Σ_t loss: every sample weighs the same. GRPO: DeepSeekMath (arXiv:2402.03300) eq. 3.

    A sample without a token adds 0 and still counts in N.
    """
    return sequence_means(loss_C, mask_C, sequence_C).sum() / max(totals.sequences, 1)


def sequence_sum(loss_C: Tensor, mask_C: Tensor, sequence_C: Tensor, totals: StepTotals) -> Tensor:
    """1/N Σ_i Σ_t loss: the gradient of the whole answer's log π, as REINFORCE and RLOO (arXiv:2402.14740)
    have it."""
    return masked(loss_C, mask_C).sum() / max(totals.sequences, 1)


def constant_mean(loss_C: Tensor, mask_C: Tensor, sequence_C: Tensor, totals: StepTotals) -> Tensor:
    """1/(N L_max) Σ_i Σ_t loss: `sequence_sum` over a constant. Dr. GRPO (arXiv:2503.20783), section 3: no
    division by the answer's own length, hence no bias to long wrong answers."""
    if totals.max_tokens <= 0:
        raise ValueError(f"the constant length must be positive, got {totals.max_tokens}")
    return sequence_sum(loss_C, mask_C, sequence_C, totals) / totals.max_tokens
