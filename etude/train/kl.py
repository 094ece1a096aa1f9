"""How far the policy is from its reference: estimators from the sampled token, the exact sum, and the
controller.

All estimate KL(π ‖ π_ref) from tokens drawn from π (Schulman, "Approximating KL divergence", 2020). As
values, k1 and k3 are unbiased; as losses they are not: the gradient of k1 has mean 0, that of k2 is the
gradient of KL(π ‖ π_ref), that of k3 the gradient of KL(π_ref ‖ π). `unbiased` has the right value and the
right gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LIMIT = 20.0
SERIES_BELOW = 0.01

KlEstimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logprobs_C, reference_C, log_ratio_C) → kl_C. log_ratio_C: log π - log π_old of each token; only
`unbiased` reads it."""


def excess(x: Tensor) -> Tensor:
    """e^x - 1 - x ≥ 0, to full precision near 0, without overflow above.

    e^x - 1 - x cancels for small x (in float32 it is off by 10 % at 1e-3), and expm1(x) - x a thousand
    times later; below 0.01 this is the series x²/2 (1 + x/3 (1 + x/4 (1 + x/5))). Above 20 it stays
    constant, with gradient 0; below, x → -∞, it is the line -1 - x.

    >>> f"{float(excess(torch.tensor(1e-4))):.4e}"
    '5.0002e-09'
    """
    small = x.abs() < SERIES_BELOW
    near = torch.where(small, x, torch.zeros_like(x))
    far = torch.where(small, torch.full_like(x, SERIES_BELOW), x).clamp(max=LIMIT)
    series = near * near / 2 * (1 + near / 3 * (1 + near / 4 * (1 + near / 5)))
    return torch.where(small, series, torch.expm1(far) - far)


def k1(logprobs_C: Tensor, reference_C: Tensor, log_ratio_C: Tensor) -> Tensor:
    """log π - log π_ref. Unbiased, of either sign. The KL in the reward of PPO (InstructGPT,
    arXiv:2203.02155, eq. 2)."""
    return logprobs_C - reference_C


def k2(logprobs_C: Tensor, reference_C: Tensor, log_ratio_C: Tensor) -> Tensor:
    """½ (log π - log π_ref)². A biased value with the KL's own gradient on-policy."""
    return 0.5 * (logprobs_C - reference_C) ** 2


def k3(logprobs_C: Tensor, reference_C: Tensor, log_ratio_C: Tensor) -> Tensor:
    """π_ref/π - log(π_ref/π) - 1 ≥ 0. GRPO: DeepSeekMath (arXiv:2402.03300) eq. 4, DeepSeek-R1
    (arXiv:2501.12948) eq. 2."""
    return excess(reference_C - logprobs_C)


def unbiased(logprobs_C: Tensor, reference_C: Tensor, log_ratio_C: Tensor) -> Tensor:
    """π/π_old · (π_ref/π - log(π_ref/π) - 1). DeepSeek-V3.2 (arXiv:2512.02556), "unbiased KL estimate".

    Differentiated through the ratio as well: the gradient is π/π_old · log(π/π_ref) ∇ log π, that of the KL
    for tokens drawn from π_old. The ratio is the token's own, also where the policy loss takes a sequence's.
    """
    return log_ratio_C.clamp(-LIMIT, LIMIT).exp() * excess(reference_C - logprobs_C)


def full(log_distribution_CV: Tensor, reference_log_distribution_CV: Tensor) -> Tensor:
    """Σ_v π(v) (log π(v) - log π_ref(v)) over the vocabulary: the KL itself, without sampling noise.

    Both are log-softmax; a token of probability 0 under π adds 0.
    """
    possible_CV = log_distribution_CV > -torch.inf
    log_CV = torch.where(possible_CV, log_distribution_CV, torch.zeros_like(log_distribution_CV))
    reference_CV = torch.where(possible_CV, reference_log_distribution_CV, torch.zeros_like(log_CV))
    terms_CV = log_CV.exp() * (log_CV - reference_CV)
    return torch.where(possible_CV, terms_CV, torch.zeros_like(terms_CV)).sum(dim=-1)


@dataclass(frozen=True)
class AdaptiveKl:
    """The coefficient β of the KL in the reward, steered to a target. lm-human-preferences
    (arXiv:1909.08593) 2.2.

    target_nats: KL of a whole answer, summed over its tokens. horizon_samples: how many it takes to move.
    """

    beta: float = 0.15
    target_nats: float = 6.0
    horizon_samples: int = 10_000


def adapted(state: AdaptiveKl, kl_nats: float, samples: int) -> AdaptiveKl:
    """After a step of `samples` answers with mean KL `kl_nats`: e = clip(KL/target - 1, ±0.2), β ← β (1 + e
    n/horizon).

    >>> round(adapted(AdaptiveKl(beta=0.1, horizon_samples=100), kl_nats=60.0, samples=50).beta, 4)
    0.11
    """
    error = min(max(kl_nats / state.target_nats - 1, -0.2), 0.2)
    return replace(state, beta=state.beta * (1 + error * samples / state.horizon_samples))
