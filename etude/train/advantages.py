"""From rewards to advantages: how much better a sample, or a token, was than expected.

An `Advantage` turns the rewards of the whole step into one number per sample; `token_advantages` spreads it
over the tokens. `reinforce_plus_plus` and `gae` (PPO) give each token its own. All of them need the whole
step: they run before any micro-batch is cut. Groups may differ in size; a sample whose verifier failed is
left out of all of them by the caller, and never counts as a reward of 0.

A group whose rewards are all equal gets exactly 0, and so does a group of one (its mean is its own reward).
Give rewards in float64: sums over a group are then 0 to 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from etude.train.segments import masked, segment_sums, sequence_sums

Advantage = Callable[[Tensor, Tensor], Tensor]
"""(rewards_S, group_S) → advantages_S."""

TokenAdvantage = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(rewards_S, group_S, penalty_C, mask_C, sequence_C) → advantages_C. penalty_C: β · KL of each token where
KL is part of the reward, zeros where it is part of the loss."""


class GroupStatistics(NamedTuple):
    """Of the group that each sample belongs to: mean, sample standard deviation (n - 1; 0 for n = 1), size,
    and whether all its rewards are equal."""

    mean_S: Tensor
    std_S: Tensor
    size_S: Tensor
    flat_S: Tensor


def group_statistics(rewards_S: Tensor, group_S: Tensor) -> GroupStatistics:
    """Mean, std, size and flatness of each sample's group. ValueError for rewards that are no numbers."""
    if rewards_S.shape != group_S.shape or rewards_S.ndim != 1:
        raise ValueError(
            f"rewards {tuple(rewards_S.shape)} and groups {tuple(group_S.shape)} must be one axis"
        )
    if not bool(torch.isfinite(rewards_S).all()):
        bad = int((~torch.isfinite(rewards_S)).nonzero()[0])
        raise ValueError(f"reward of sample {bad} is {float(rewards_S[bad])}: leave failed samples out")
    _, index_S = torch.unique(group_S, return_inverse=True)
    size_S = segment_sums(torch.ones_like(rewards_S), index_S)[index_S]
    mean_S = segment_sums(rewards_S, index_S)[index_S] / size_S
    squares_S = segment_sums((rewards_S - mean_S) ** 2, index_S)[index_S]
    std_S = (squares_S / (size_S - 1).clamp(min=1)).sqrt()
    groups = int(index_S.max()) + 1 if index_S.numel() else 0
    highest_G = rewards_S.new_full((groups,), -torch.inf).scatter_reduce(0, index_S, rewards_S, "amax")
    lowest_G = rewards_S.new_full((groups,), torch.inf).scatter_reduce(0, index_S, rewards_S, "amin")
    return GroupStatistics(mean_S, std_S, size_S, (highest_G == lowest_G)[index_S])


def group_std(rewards_S: Tensor, group_S: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """GRPO: A_i = (r_i - mean(r)) / (std(r) + ε) within the group.

    DeepSeekMath (arXiv:2402.03300) section 4.1.2, DeepSeek-R1 (arXiv:2501.12948) eq. 3. Neither names ε nor
    says which std: ours is the sample's (n - 1), as in verl and TRL. verl's ε is 1e-6, TRL's 1e-4.

    >>> group_std(torch.tensor([0.0, 2.0, 5.0, 5.0]), torch.tensor([7, 7, 8, 8]), epsilon=0.0).tolist()
    [-0.7071067690849304, 0.7071067690849304, 0.0, 0.0]
    """
    group = group_statistics(rewards_S, group_S)
    return masked((rewards_S - group.mean_S) / (group.std_S + epsilon), ~group.flat_S)


def group_mean(rewards_S: Tensor, group_S: Tensor) -> Tensor:
    """Dr. GRPO: A_i = r_i - mean(r) within the group. Understanding R1-Zero-like training
    (arXiv:2503.20783), section 3: without the std, questions that are nearly always or nearly never solved
    do not weigh more."""
    group = group_statistics(rewards_S, group_S)
    return masked(rewards_S - group.mean_S, ~group.flat_S)


def batch_std(rewards_S: Tensor, group_S: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Lite PPO: A_i = (r_i - mean of the group) / (std of the rewards of the whole batch + ε).

    Tricks or traps (arXiv:2508.08221): group-level mean with batch-level standard deviation.
    """
    if len(rewards_S) < 2:
        return torch.zeros_like(rewards_S)
    return group_mean(rewards_S, group_S) / (rewards_S.std() + epsilon)


def batch_whitened(rewards_S: Tensor, group_S: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """REINFORCE++-baseline: A' = r_i - mean of the group, then A = (A' - mean(A')) / (std(A') + ε) over the
    batch.

    REINFORCE++ (arXiv:2501.03262). Mean and std are over samples, so that a long sample counts as
    much as a short one.
    """
    return masked(
        normalised(group_mean(rewards_S, group_S), epsilon=epsilon),
        ~group_statistics(rewards_S, group_S).flat_S,  # the batch mean is 0 only up to rounding
    )


def normalised(values_S: Tensor, *, epsilon: float) -> Tensor:
    """(x - mean) / (sample std + ε) over the whole axis; 0 where there is nothing to compare with."""
    if len(values_S) < 2:
        return torch.zeros_like(values_S)
    return (values_S - values_S.mean()) / (values_S.std() + epsilon)


def leave_one_out(rewards_S: Tensor, group_S: Tensor) -> Tensor:
    """RLOO: A_i = r_i - mean of the others = n / (n - 1) · (r_i - mean(r)).

    Back to basics (arXiv:2402.14740), "REINFORCE leave-one-out". The baseline does not depend on sample i,
    so the gradient stays unbiased (a group mean that contains r_i shrinks it by (n - 1) / n).
    """
    group = group_statistics(rewards_S, group_S)
    scale_S = group.size_S / (group.size_S - 1).clamp(min=1)
    return masked(scale_S * (rewards_S - group.mean_S), ~group.flat_S)


def pass_at_k(rewards_S: Tensor, group_S: Tensor, *, k: int) -> Tensor:
    """Unbiased gradient of E[max of k samples]; with rewards 0 and 1 that is pass@k.

    A_i = n / C(n, k) · Σ over subsets I of size k with i ∈ I of (max r_I - max r_{I without i}).
    PKPO (arXiv:2505.15201), the estimator with leave-one-out baseline ("loo minus one"), times n: like all
    advantages here it is made for a loss that is a mean over the n samples. Sorted ascending, only the
    smaller samples j < i matter: A_(i) = n / C(n, k) · Σ_j (r_(i) - r_(j)) · C(j, k - 2). Never negative: a
    sample that is not the best of any subset is neither praised nor blamed. For k = n only the best has one,
    n times its lead over the second. ValueError where a group has fewer than k samples, or k < 2.

    >>> pass_at_k(torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64), k=2).tolist()
    [0.0, 2.0, 0.0, 0.0]
    """
    if k < 2:
        raise ValueError(f"pass@k needs k of 2 or more, got {k}: for k = 1 use leave_one_out")
    group_statistics(rewards_S, group_S)  # checks
    advantages_S = torch.zeros_like(rewards_S)
    for group in torch.unique(group_S).tolist():
        members_N = (group_S == group).nonzero().flatten()
        n = len(members_N)
        if n < k:
            raise ValueError(f"group {group} has {n} samples: pass@k with k = {k} needs at least {k}")
        sorted_N, order_N = rewards_S[members_N].sort()
        weight_N = sorted_N.new_tensor([n * comb(j, k - 2) / comb(n, k) for j in range(n)])
        lead_NN = (sorted_N[:, None] - sorted_N[None, :]).tril(diagonal=-1)
        advantages_S[members_N[order_N]] = lead_NN @ weight_N
    return advantages_S


def max_rl(rewards_S: Tensor, group_S: Tensor) -> Tensor:
    """MaxRL: A_i = (r_i - mean(r)) / mean(r) within the group; 0 where no sample has a reward.

    Maximum likelihood reinforcement learning (arXiv:2602.02710): the gradient approaches that of
    log p(right) = E[∇ log π | right], so a question with pass rate p weighs 1 / p. ValueError for rewards
    below 0.
    """
    if bool((rewards_S < 0).any()):
        raise ValueError(
            f"MaxRL divides by the mean reward: rewards must not be negative, got {rewards_S.min()}"
        )
    group = group_statistics(rewards_S, group_S)
    return masked((rewards_S - group.mean_S) / group.mean_S, ~group.flat_S)


def gdpo(parts_SK: Tensor, group_S: Tensor, weights_K: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """GDPO: A_k = (r_k - mean) / (std + ε) within the group for each part k, A = Σ_k w_k A_k, normalised
    over the batch.

    GDPO (arXiv:2601.05242): summing first lets different combinations of parts (right but unformatted,
    formatted but wrong) collapse into one advantage.
    """
    columns = [group_std(parts_SK[:, part], group_S, epsilon=epsilon) for part in range(parts_SK.shape[1])]
    total_S = torch.stack(columns, dim=1) @ weights_K.to(parts_SK.dtype)
    flat = [group_statistics(parts_SK[:, part], group_S).flat_S for part in range(parts_SK.shape[1])]
    return masked(normalised(total_S, epsilon=epsilon), ~torch.stack(flat).all(dim=0))


def token_advantages(
    rewards_S: Tensor,
    group_S: Tensor,
    penalty_C: Tensor,
    mask_C: Tensor,
    sequence_C: Tensor,
    *,
    advantage: Advantage,
) -> Tensor:
    """Every token of sample i gets A_i; where KL is part of the reward, of r_i - Σ_t β KL_t (as in RLOO)."""
    total_S = rewards_S - sequence_sums(penalty_C, mask_C, sequence_C, len(rewards_S)).to(rewards_S.dtype)
    return masked(advantage(total_S, group_S)[sequence_C], mask_C)


def reinforce_plus_plus(
    rewards_S: Tensor,
    group_S: Tensor,
    penalty_C: Tensor,
    mask_C: Tensor,
    sequence_C: Tensor,
    *,
    gamma: float = 1.0,
) -> Tensor:
    """REINFORCE++: A_t = r_i - β Σ_{j ≥ t} KL_j, then (A - mean) / std over all tokens of the batch.

    arXiv:2501.03262. Knows no groups (`group_S` is part of the signature all share): n = 1 will do.
    """
    rewards_C = terminal_rewards(rewards_S, mask_C, sequence_C) - masked(penalty_C, mask_C)
    return whiten(returns_to_go(rewards_C, mask_C, sequence_C, gamma=gamma), mask_C)


def terminal_rewards(rewards_S: Tensor, mask_C: Tensor, sequence_C: Tensor) -> Tensor:
    """r_t = 1[t = T] R(x, y): the reward of a sample at its last masked-in token, 0 elsewhere.

    >>> mask_C, sequence_C = torch.tensor([True, True, False, True]), torch.tensor([0, 0, 0, 1])
    >>> terminal_rewards(torch.tensor([5.0, 7.0]), mask_C, sequence_C).tolist()
    [0.0, 5.0, 0.0, 7.0]
    """
    tokens = len(sequence_C)
    index_C = torch.where(mask_C, torch.arange(tokens, device=mask_C.device), -1)
    none_S = torch.full((len(rewards_S),), -1, device=mask_C.device)
    last_S = none_S.scatter_reduce(0, sequence_C, index_C, "amax")
    rewards_C = rewards_S.new_zeros(tokens)
    rewards_C[last_S[last_S >= 0]] = rewards_S[last_S >= 0]
    return rewards_C


def gae(
    rewards_C: Tensor,
    values_C: Tensor,
    mask_C: Tensor,
    sequence_C: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap_S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, (advantages_C, returns_C). arXiv:1506.02438, eq. 16.

    δ_t = r_t + γ V(s_{t+1}) - V(s_t);  A_t = δ_t + γ λ A_{t+1};  target R_t = A_t + V(s_t).

    values_C: V(s_t), the critic's value at the token before the action t. V after the last token is 0 (the
    episode is over) or bootstrap_S[i], the critic's value there, for a sample that was only cut off; RLHF
    takes 0 for both. Tokens that are masked out (the environment's) are no steps: they are passed over, and
    both results are 0 there. Sums are in double precision. ValueError for a reward at a masked-out token,
    which would be lost.
    """
    if bool((masked(rewards_C, ~mask_C) != 0).any()):
        raise ValueError("a reward lies on a token that is masked out: give it to the sampled token before")
    rewards, values, mask, sequence = (x.tolist() for x in (rewards_C, values_C, mask_C, sequence_C))
    after_last = [] if bootstrap_S is None else bootstrap_S.tolist()
    advantages, returns = [0.0] * len(rewards), [0.0] * len(rewards)
    next_value = next_advantage = 0.0
    for t in reversed(range(len(rewards))):
        if t + 1 == len(rewards) or sequence[t] != sequence[t + 1]:
            next_value = after_last[sequence[t]] if after_last else 0.0
            next_advantage = 0.0
        if mask[t]:
            delta = rewards[t] + gamma * next_value - values[t]
            advantages[t] = delta + gamma * lam * next_advantage
            returns[t] = advantages[t] + values[t]
            next_value, next_advantage = values[t], advantages[t]
    return values_C.new_tensor(advantages), values_C.new_tensor(returns)


def returns_to_go(rewards_C: Tensor, mask_C: Tensor, sequence_C: Tensor, *, gamma: float = 1.0) -> Tensor:
    """R_t = Σ_{l ≥ 0} γ^l r_{t+l} within each sample: GAE without a critic, at λ = 1."""
    return gae(rewards_C, torch.zeros_like(rewards_C), mask_C, sequence_C, gamma=gamma, lam=1.0)[0]


def whiten(values_C: Tensor, mask_C: Tensor, *, keep_mean: bool = False, epsilon: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + ε) over the masked-in tokens; `keep_mean` adds the mean again. 0
    elsewhere.

    As lm-human-preferences does it (arXiv:1909.08593): population variance, advantages without their mean,
    rewards with it. Needs at least one token; a single one has variance 0 and becomes 0 (or its mean).
    """
    chosen_N = values_C[mask_C]
    if not len(chosen_N):
        return torch.zeros_like(values_C)
    mean = chosen_N.mean()
    whitened_C = (values_C - mean) * torch.rsqrt(((chosen_N - mean) ** 2).mean() + epsilon)
    return masked(whitened_C + mean if keep_mean else whitened_C, mask_C)
