"""Advantages: sums, scales, edges; pass@k against brute force; GAE against its definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from etude.train import advantages
from etude.train.segments import segment_sums

Grouped = Callable[[Tensor, Tensor], Tensor]
CENTRED: dict[str, Grouped] = {
    "group_std": advantages.group_std,
    "group_mean": advantages.group_mean,
    "batch_std": advantages.batch_std,
    "leave_one_out": advantages.leave_one_out,
    "max_rl": advantages.max_rl,
}
ALL: dict[str, Grouped] = {**CENTRED, "batch_whitened": advantages.batch_whitened}

rewards = st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 100).map(lambda x: round(x, 6)))
groups = st.lists(st.lists(rewards, min_size=1, max_size=6), min_size=1, max_size=5)


def batch(values: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Rewards and groups, the members of all groups mixed."""
    pairs = [(reward, 7 * group) for group, row in enumerate(values) for reward in row]
    pairs = pairs[::2] + pairs[1::2]
    rewards_S = torch.tensor([reward for reward, _ in pairs], dtype=torch.float64)
    return rewards_S, torch.tensor([group for _, group in pairs])


@pytest.mark.parametrize("name", CENTRED)
@settings(max_examples=40, deadline=None)
@given(groups)
def test_each_group_sums_to_zero(name: str, values: list[list[float]]) -> None:
    rewards_S, group_S = batch(values)
    advantages_S = CENTRED[name](rewards_S, group_S)
    scale = max(1.0, float(advantages_S.abs().max()))
    assert float(segment_sums(advantages_S, group_S).abs().max()) <= 1e-9 * scale


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 1.0, 3.3]), st.integers(1, 5)), min_size=1, max_size=4)
)
def test_equal_rewards_give_exactly_zero(name: str, values: list[tuple[float, int]]) -> None:
    """Also beside a group that has a signal, and where 0.1 + 0.1 + 0.1 is not 0.3."""
    rewards_S, group_S = batch([[reward] * size for reward, size in values] + [[0.0, 1.0]])
    flat_S = group_S < 7 * len(values)
    assert torch.equal(
        ALL[name](rewards_S, group_S)[flat_S], torch.zeros(int(flat_S.sum()), dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ALL)
def test_one_sample_alone(name: str) -> None:
    assert ALL[name](torch.tensor([3.0]), torch.tensor([0])).tolist() == [0.0]


@pytest.mark.parametrize("name", ALL)
def test_failed_samples_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sample 1 is nan"):
        ALL[name](torch.tensor([1.0, math.nan]), torch.tensor([0, 0]))


def test_by_hand() -> None:
    rewards_S, group_S = batch([[1.0, 0.0, 0.0, 1.0, 1.0], [4.0, 2.0]])
    order = [0, 2, 4, 6, 1, 3, 5]  # rewards 1 0 1 2 | 0 1 4
    assert rewards_S.tolist() == [[1.0, 0.0, 0.0, 1.0, 1.0, 4.0, 2.0][i] for i in order]
    mean_S = advantages.group_mean(rewards_S, group_S)
    torch.testing.assert_close(mean_S, torch.tensor([0.4, -0.6, 0.4, -1, -0.6, 0.4, 1], dtype=torch.float64))
    std_S = advantages.group_std(rewards_S, group_S, epsilon=0.0)
    assert float(std_S[0]) == pytest.approx(0.4 / math.sqrt(0.3))
    assert float(std_S[6]) == pytest.approx(1 / math.sqrt(2))
    assert float(advantages.leave_one_out(rewards_S, group_S)[6]) == pytest.approx(4 - 2)
    assert float(advantages.max_rl(rewards_S, group_S)[0]) == pytest.approx(0.4 / 0.6)
    assert float(advantages.batch_std(rewards_S, group_S, epsilon=0.0)[6]) == pytest.approx(
        1 / float(rewards_S.std())
    )


@settings(max_examples=40, deadline=None)
@given(groups)
def test_group_std_does_not_depend_on_scale_or_order(values: list[list[float]]) -> None:
    rewards_S, group_S = batch(values)
    here_S = advantages.group_std(rewards_S, group_S, epsilon=0.0)
    moved_S = advantages.group_std(4 * rewards_S.flip(0), group_S.flip(0), epsilon=0.0)
    torch.testing.assert_close(moved_S.flip(0), here_S, rtol=1e-7, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=2, max_size=6), st.integers(2, 6))
def test_pass_at_k_is_the_sum_over_subsets(values: list[float], k: int) -> None:
    n, k = len(values), min(k, len(values))
    expected = [0.0] * n
    for subset in itertools.combinations(range(n), k):
        for i in subset:
            without = max(values[j] for j in subset if j != i)
            expected[i] += n / math.comb(n, k) * (max(values[j] for j in subset) - without)
    rewards_S = torch.tensor(values, dtype=torch.float64)
    ours_S = advantages.pass_at_k(rewards_S, torch.zeros(n, dtype=torch.int64), k=k)
    torch.testing.assert_close(ours_S, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("k", [2, 3])
def test_pass_at_k_has_the_gradient_of_the_best_of_k(k: int) -> None:
    """In expectation over all draws of n = 3 from three outcomes: ∇ E[max of k], exactly."""
    values = torch.tensor([0.0, 1.0, 0.4], dtype=torch.float64)
    theta = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64, requires_grad=True)

    def expected_best(draws: int) -> Tensor:
        p = theta.softmax(0)
        best = torch.zeros((), dtype=torch.float64)
        for outcome in itertools.product(range(3), repeat=draws):
            best = best + torch.stack([p[o] for o in outcome]).prod() * values[list(outcome)].max()
        return best

    (exact,) = torch.autograd.grad(expected_best(k), theta)
    estimate = torch.zeros(3, dtype=torch.float64)
    probabilities = theta.detach().softmax(0)
    for outcome in itertools.product(range(3), repeat=3):
        drawn = list(outcome)
        weights = advantages.pass_at_k(values[drawn], torch.zeros(3, dtype=torch.int64), k=k)
        score = torch.eye(3, dtype=torch.float64)[drawn] - probabilities  # ∇ log softmax
        estimate += probabilities[drawn].prod() * (weights[:, None] * score).mean(dim=0)
    torch.testing.assert_close(estimate, exact)


@pytest.mark.parametrize(("k", "text"), [(1, "leave_one_out"), (3, "has 2 samples")])
def test_pass_at_k_that_cannot_be(k: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        advantages.pass_at_k(torch.tensor([0.0, 1.0]), torch.tensor([4, 4]), k=k)


def test_max_rl_refuses_negative_rewards() -> None:
    with pytest.raises(ValueError, match="negative"):
        advantages.max_rl(torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]))


def test_gdpo_tells_combinations_apart_that_sums_do_not() -> None:
    """Right but unformatted and formatted but wrong: one sum; GDPO weighs the rarer one higher."""
    parts_SK = torch.tensor([[1, 0], [0, 1], [0, 1], [0, 0]], dtype=torch.float64)
    group_S = torch.zeros(4, dtype=torch.int64)
    summed_S = advantages.group_std(parts_SK.sum(dim=1), group_S)
    decoupled_S = advantages.gdpo(parts_SK, group_S, torch.ones(2))
    assert summed_S[0] == summed_S[1]
    assert decoupled_S[0] > decoupled_S[1] + 0.1
    assert float(decoupled_S.sum()) == pytest.approx(0, abs=1e-12)


lengths = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(lengths, st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_gae_is_the_discounted_sum_of_its_deltas(
    sizes: list[int], gamma: float, lam: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    tokens = sum(sizes)
    rewards_C, values_C = (torch.randn(tokens, generator=rng, dtype=torch.float64) for _ in range(2))
    bootstrap_S = torch.randn(len(sizes), generator=rng, dtype=torch.float64)
    sequence_C = torch.tensor([s for s, size in enumerate(sizes) for _ in range(size)])
    ours_C, returns_C = advantages.gae(
        rewards_C, values_C, torch.ones(tokens, dtype=torch.bool), sequence_C,
        gamma=gamma, lam=lam, bootstrap_S=bootstrap_S,
    )  # fmt: skip
    start = 0
    for s, size in enumerate(sizes):
        end = start + size
        v = [*values_C[start:end].tolist(), float(bootstrap_S[s])]
        delta = [float(rewards_C[start + t]) + gamma * v[t + 1] - v[t] for t in range(size)]
        for t in range(size):
            expected = sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, size))
            assert float(ours_C[start + t]) == pytest.approx(expected, abs=1e-9)
        start = end
    torch.testing.assert_close(returns_C, ours_C + values_C)


def test_gae_passes_over_what_the_environment_said() -> None:
    """The same as without those tokens, whatever values they hold."""
    mask_C = torch.tensor([False, True, False, False, True, True, True, False])
    sequence_C = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    values_C = torch.where(mask_C, torch.arange(8.0), 99.0)
    rewards_C = torch.where(mask_C, 1.0, 0.0)
    ours = advantages.gae(rewards_C, values_C, mask_C, sequence_C, gamma=0.9, lam=0.8)
    short = [x[mask_C] for x in (rewards_C, values_C, mask_C, sequence_C)]
    for whole, cut in zip(ours, advantages.gae(*short, gamma=0.9, lam=0.8), strict=True):
        assert torch.equal(whole[mask_C], cut)
        assert torch.equal(whole[~mask_C], torch.zeros(4))


def test_gae_refuses_a_reward_that_would_be_lost() -> None:
    with pytest.raises(ValueError, match="masked out"):
        advantages.gae(torch.ones(2), torch.ones(2), torch.tensor([True, False]), torch.zeros(2))


@pytest.mark.parametrize("keep_mean", [False, True])
def test_whiten(keep_mean: bool) -> None:
    values_C = torch.tensor([1.0, 5.0, math.nan, 3.0, 7.0], dtype=torch.float64)
    mask_C = torch.tensor([True, True, False, True, True])
    white_C = advantages.whiten(values_C, mask_C, keep_mean=keep_mean)
    assert float(white_C[mask_C].mean()) == pytest.approx(4.0 if keep_mean else 0.0)
    assert float(white_C[mask_C].var(unbiased=False)) == pytest.approx(1.0)
    assert white_C[2] == 0


def test_whiten_of_little() -> None:
    nothing = advantages.whiten(torch.tensor([3.0, 4.0]), torch.tensor([False, False]))
    assert nothing.tolist() == [0.0, 0.0]
    assert advantages.whiten(torch.tensor([3.0]), torch.tensor([True])).tolist() == [0.0]
    assert advantages.whiten(torch.tensor([3.0]), torch.tensor([True]), keep_mean=True).tolist() == [3.0]


def test_terminal_rewards_of_a_sample_without_tokens() -> None:
    mask_C, sequence_C = torch.tensor([False, True]), torch.tensor([0, 1])
    ours_C = advantages.terminal_rewards(torch.tensor([5.0, 6.0, 7.0]), mask_C, sequence_C)
    assert ours_C.tolist() == [0.0, 6.0]


def test_kl_in_the_reward() -> None:
    """Per sample for grouped advantages, from each token on for REINFORCE++."""
    rewards_S, group_S = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0, 0])
    penalty_C = torch.tensor([0.1, 0.2, 0.3, 9.0], dtype=torch.float64)
    mask_C, sequence_C = torch.tensor([True, True, True, False]), torch.tensor([0, 0, 1, 1])
    grouped_C = advantages.token_advantages(
        rewards_S, group_S, penalty_C, mask_C, sequence_C, advantage=advantages.leave_one_out
    )
    torch.testing.assert_close(grouped_C, torch.tensor([1.0, 1.0, -1.0, 0.0], dtype=torch.float64))
    token_C = advantages.reinforce_plus_plus(rewards_S, group_S, penalty_C, mask_C, sequence_C)
    returns_C = torch.tensor([0.7, 0.8, -0.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(token_C, advantages.whiten(returns_C, mask_C))
