"""Losses on judged answers: reward models (pairs, labels) and policies trained on them without a reward
model.

Each gives one loss per pair (P) or sample (S); divide the sum by the number of the whole step. chosen_P and
rejected_P are scores of a reward model, or log π(y | x) of a policy: the sum over the answer's tokens
(`segments.sequence_sums`) or the mean (`segments.sequence_means`), as the docstring says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from etude.train.segments import segment_sums


def bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, *, margin_P: Tensor | float = 0.0, centring: float = 0.0
) -> Tensor:
    """-log σ(r_w - r_l - m) + η (r_w + r_l)². InstructGPT (arXiv:2203.02155) eq. 1; margin m: Llama 2
    (arXiv:2307.09288) eq. 2; centring η (arXiv:2312.09244), 0.01 there: scores stay near 0, which pairs alone
    leave free."""
    return -logsigmoid(chosen_P - rejected_P - margin_P) + centring * (chosen_P + rejected_P) ** 2


def pair_weights(prompt_P: Tensor) -> Tensor:
    """1 / C(K, 2): one over the number of pairs of the same prompt. InstructGPT (arXiv:2203.02155) eq. 1.

    The weighted sum is then divided by the number of prompts, so a prompt with 9 answers weighs as much as
    one with 4.
    """
    _, index_P = torch.unique(prompt_P, return_inverse=True)
    return 1 / segment_sums(torch.ones(len(prompt_P), dtype=torch.float64), index_P)[index_P]


def pointwise(scores_S: Tensor, safe_S: Tensor) -> Tensor:
    """-y log σ(r) - (1 - y) log(1 - σ(r)), y = 1 for safe: DeepSeek-R1's safety reward model
    (arXiv:2501.12948)."""
    return binary_cross_entropy_with_logits(scores_S, safe_S.to(scores_S.dtype), reduction="none")


def dpo(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-(1 - ε) log σ(βh) - ε log σ(-βh), h = log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l); sums over tokens.

    DPO (arXiv:2305.18290) eq. 7. ε: the share of labels believed to be flipped ("conservative DPO", Mitchell
    2023).
    """
    logits_P = beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))
    return -(1 - label_smoothing) * logsigmoid(logits_P) - label_smoothing * logsigmoid(-logits_P)


def ipo(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    *,
    tau: float = 0.1,
) -> Tensor:
    """(h - 1 / (2τ))², h as in `dpo`. IPO (arXiv:2310.12036) eq. 17.

    The paper's h is of sums over tokens; with means (as TRL does, its authors agreeing) τ does not depend on
    length.
    """
    h_P = (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)
    return (h_P - 1 / (2 * tau)) ** 2


def kto_reference_point(log_ratios_S: Tensor) -> Tensor:
    """z_0 = max(0, mean of log π(y')/π_ref(y')), y' answers of other prompts; no gradient. KTO
    (arXiv:2402.01306) 3.

    Of the whole step, not of a micro-batch.
    """
    return log_ratios_S.detach().mean().clamp(min=0)


def kto(
    log_ratios_S: Tensor,
    desirable_S: Tensor,
    reference_point: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """λ_D (1 - σ(β(r - z_0))) for a desirable answer, λ_U (1 - σ(β(z_0 - r))) for another. KTO
    (arXiv:2402.01306) eq. 8.

    log_ratios_S: r = log π(y | x) / π_ref(y | x), sums over tokens; reference_point: z_0.
    """
    gain_S = beta * (log_ratios_S - reference_point)
    good_S, bad_S = torch.sigmoid(-gain_S), torch.sigmoid(gain_S)
    return torch.where(desirable_S, desirable_weight * good_S, undesirable_weight * bad_S)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0 without cancellation (Mächler, 2012); x is taken as at most -1e-7: a sure
    answer.

    >>> f"{float(log1mexp(torch.tensor(-1e-5, dtype=torch.float64))):.6f}"
    '-11.512930'
    """
    x = x.clamp(max=-1e-7)
    near = x > -math.log(2)
    near_x, far_x = torch.where(near, x, -0.5), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(near_x)), torch.log1p(-torch.exp(far_x)))


def orpo(chosen_P: Tensor, rejected_P: Tensor, *, weight: float = 0.1) -> Tensor:
    """-log p_w - λ log σ(log odds(p_w) - log odds(p_l)), odds(p) = p / (1 - p), log p the MEAN over tokens.

    ORPO (arXiv:2403.07691) eq. 6 and 7; the first term is SFT on the chosen answer. Needs no reference.
    """
    log_odds_P = (chosen_P - rejected_P) - (log1mexp(chosen_P) - log1mexp(rejected_P))
    return -chosen_P - weight * logsigmoid(log_odds_P)


def simpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """-log σ(β (log p_w - log p_l) - γ), log p the MEAN over tokens. SimPO (arXiv:2405.14734) eq. 6. No
    reference."""
    return -logsigmoid(beta * (chosen_P - rejected_P) - gamma)
