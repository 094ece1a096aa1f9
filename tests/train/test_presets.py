"""Every preset computes a loss with a gradient; names and numbers are read strictly."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etude.records import EtudeError
from etude.train import presets
from etude.train.losses import policy_loss
from tests.train.padded import Totals

NAMES = "r1-paper small dapo dr-grpo gspo cispo rloo reinforce++ lite-ppo"


def test_the_names() -> None:
    assert set(presets.PRESETS) == set(NAMES.split())
    assert presets.DEFAULT == "small"
    assert len(dataclasses.fields(presets.Preset)) <= 20


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_runs(name: str) -> None:
    """Rewards in, loss and gradient out; on-policy it makes better answers likelier."""
    preset = presets.preset_named(name)
    logprobs_C = torch.tensor([-1.0, -2.0, -0.5, -1.5, -1.0, -3.0], dtype=torch.float64, requires_grad=True)
    sequence_C, mask_C = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([True, True, True, False, True, True])
    rewards_S, group_S = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    old_C = logprobs_C.detach()
    penalty_C = preset.kl_coefficient * preset.kl(old_C, old_C - 0.01, torch.zeros(6))
    penalty_C = penalty_C if preset.kl_in_reward else torch.zeros_like(penalty_C)
    advantages_C = preset.advantage(rewards_S, group_S, penalty_C, mask_C, sequence_C)
    assert advantages_C.shape == mask_C.shape and not advantages_C[~mask_C].any()
    weights_C = preset.correction(old_C, old_C, mask_C, sequence_C)
    loss_C = policy_loss(
        logprobs_C, old_C, advantages_C, mask_C, sequence_C,
        ratio=preset.ratio, clip=preset.clip, weights_C=weights_C,
    )  # fmt: skip
    preset.aggregation(loss_C, mask_C, sequence_C, Totals(5, 4, 4)).backward()
    assert logprobs_C.grad is not None
    assert float(logprobs_C.grad[0]) < 0 < float(logprobs_C.grad[2])
    assert logprobs_C.grad[3] == 0


def test_flat_groups_may_be_skipped_only_where_nothing_is_lost() -> None:
    for preset in presets.PRESETS.values():
        if preset.kl_coefficient > 0 and not preset.kl_in_reward:
            assert not preset.skip_flat_groups, preset.name


def test_names_become_functions_with_numbers() -> None:
    rewards_S, group_S = torch.tensor([0.0, 1.0, 0.0]), torch.zeros(3, dtype=torch.int64)
    advantage = presets.advantage_named("pass-at-k", {"k": 2})
    mask_C, sequence_C = torch.ones(3, dtype=torch.bool), torch.arange(3)
    assert advantage(rewards_S, group_S, torch.zeros(3), mask_C, sequence_C).tolist() == [0, 2, 0]
    clip = presets.bind(
        presets.named(presets.CLIPS, "dual", "clip"), {"low": 0.2, "high": 0.3, "bound": 3}, "clip"
    )
    assert clip(torch.zeros(1), torch.ones(1), torch.zeros(1)).tolist() == [-1]
    whitened = presets.advantage_named("reinforce++", {"gamma": 0.9})
    assert whitened(rewards_S, group_S, torch.zeros(3), mask_C, sequence_C).shape == (3,)


@pytest.mark.parametrize(
    "table", ["ADVANTAGES", "CLIPS", "RATIOS", "AGGREGATIONS", "KL_ESTIMATORS", "CORRECTIONS"]
)
def test_an_unknown_name_is_told_the_nearest(table: str) -> None:
    entries = getattr(presets, table)
    first = next(iter(entries))
    with pytest.raises(EtudeError, match=f"use '{first}'"):
        presets.named(entries, first + "x", "setting")


def test_unknown_preset() -> None:
    with pytest.raises(EtudeError, match="use 'dr-grpo', or one of r1-paper, small"):
        presets.preset_named("dr_grpo")


def test_a_number_without_effect_is_an_error() -> None:
    with pytest.raises(EtudeError, match=r"k would have no effect with group_mean.*takes: none"):
        presets.advantage_named("group-mean", {"k": 4})
    with pytest.raises(EtudeError, match="bound would have no effect with clipped"):
        presets.bind(presets.CLIPS["clip"], {"low": 0.1, "high": 0.1, "bound": 3}, "clip")


def test_a_missing_number_is_an_error() -> None:
    with pytest.raises(EtudeError, match="clipped needs a value for high"):
        presets.bind(presets.CLIPS["clip"], {"low": 0.2}, "clip")
