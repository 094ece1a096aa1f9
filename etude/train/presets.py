"""GRPO and its successors as records: which functions are put together, and with which numbers.

The tables are the one place where a name becomes a function; a config is read through `bind`, which refuses a
number that the chosen function does not take. Below it, functions are passed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar, cast

from etude.records import EtudeError
from etude.train import advantages, corrections, kl, losses
from etude.train.advantages import TokenAdvantage, reinforce_plus_plus, token_advantages
from etude.train.corrections import Correction
from etude.train.kl import KlEstimator
from etude.train.losses import Aggregation, Clip, Ratio

F = TypeVar("F", bound=Callable[..., Any])
Named = TypeVar("Named")

ADVANTAGES: dict[str, Callable[..., Any]] = {  # per sample, of its reward; see `advantage_named`
    "group-std": advantages.group_std,
    "group-mean": advantages.group_mean,
    "batch-std": advantages.batch_std,
    "batch-whitened": advantages.batch_whitened,
    "leave-one-out": advantages.leave_one_out,
    "pass-at-k": advantages.pass_at_k,
    "max-rl": advantages.max_rl,
}
TOKEN_ADVANTAGES: dict[str, Callable[..., Any]] = {"reinforce++": reinforce_plus_plus}
PART_ADVANTAGES: dict[str, Callable[..., Any]] = {"gdpo": advantages.gdpo}  # of the parts of the reward
RATIOS: dict[str, Ratio] = {"token": losses.token_log_ratio, "sequence": losses.sequence_log_ratio}
CLIPS: dict[str, Callable[..., Any]] = {
    "clip": losses.clipped,
    "dual": losses.dual_clipped,
    "cispo": losses.weight_clipped,
    "none": losses.unclipped,
}
AGGREGATIONS: dict[str, Aggregation] = {
    "token-mean": losses.token_mean,
    "sequence-mean": losses.sequence_mean,
    "sequence-sum": losses.sequence_sum,
    "constant": losses.constant_mean,
}
KL_ESTIMATORS: dict[str, KlEstimator] = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3, "unbiased": kl.unbiased}
CORRECTIONS: dict[str, Callable[..., Any]] = {
    "none": corrections.uncorrected,
    "tis": corrections.truncated,
    "icepop": corrections.banded,
    "sequence-tis": corrections.sequence_truncated,
    "sequence-mis": corrections.sequence_banded,
}


def named(table: Mapping[str, Named], name: str, what: str) -> Named:
    """The entry of a table; EtudeError names the nearest one."""
    if name in table:
        return table[name]
    nearest = get_close_matches(name, table, n=1, cutoff=0.0)
    raise EtudeError(f"{what} {name!r} is unknown: use {nearest[0]!r}, or one of {', '.join(table)}")


def bind(function: F, numbers: Mapping[str, float], what: str) -> F:
    """The function with its keyword-only numbers set; EtudeError for one it does not take, or lacks.

    >>> clip = bind(losses.clipped, {"low": 0.2, "high": 0.28}, "clip")
    """
    known = {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    if without_effect := sorted(numbers.keys() - known.keys()):
        allowed = ", ".join(known) or "none"
        raise EtudeError(
            f"{what}: {', '.join(without_effect)} would have no effect with {function.__name__}: remove it "
            f"(numbers that it takes: {allowed})"
        )
    required = {n for n, p in known.items() if p.default is p.empty}
    if missing := sorted(required - numbers.keys()):
        raise EtudeError(f"{what}: {function.__name__} needs a value for {', '.join(missing)}")
    return cast(F, partial(function, **numbers)) if numbers else function


def advantage_named(name: str, numbers: Mapping[str, float]) -> TokenAdvantage:
    """An advantage per token by its name in ADVANTAGES or TOKEN_ADVANTAGES, with its numbers."""
    function = named(ADVANTAGES | TOKEN_ADVANTAGES, name, "advantage")
    bound = bind(function, numbers, "advantage")
    return bound if name in TOKEN_ADVANTAGES else partial(token_advantages, advantage=bound)


@dataclass(frozen=True)
class Preset:
    """One way to do GRPO. Learning rate, batch and lengths are the run's own.

    kl_coefficient: β; 0: no reference is computed. kl_in_reward: else it is in the loss.
    skip_flat_groups: a group whose advantages are all 0 costs no forward and no backward (with β > 0 in the
    loss it would still feel the KL: the papers keep it). dynamic_sampling: draw further prompts in place of
    flat groups. overlong_buffer: share of the longest answer over which the reward falls by 1 (0: none).
    mask_truncated_after: share of the run after which answers that were cut off leave the loss (1: never,
    which is what every preset does: see "Answers that were cut off" in docs/algorithms.md).
    minibatches: updates per rollout. reference_refresh: share of the run between copies of the policy into
    the reference (0: never).
    """

    name: str
    paper: str
    advantage: TokenAdvantage
    ratio: Ratio
    clip: Clip
    aggregation: Aggregation
    correction: Correction
    kl: KlEstimator = kl.k3
    kl_coefficient: float = 0.0
    kl_in_reward: bool = False
    skip_flat_groups: bool = True
    dynamic_sampling: bool = False
    overlong_buffer: float = 0.0
    mask_truncated_after: float = 1.0
    samples_per_prompt: int = 8
    minibatches: int = 1
    reference_refresh: float = 0.0


TIS = partial(corrections.truncated, maximum=2.0)
GROUP_STD = partial(token_advantages, advantage=partial(advantages.group_std, epsilon=1e-6))
GROUP_MEAN = partial(token_advantages, advantage=advantages.group_mean)

R1_PAPER = Preset(
    name="r1-paper",
    paper="DeepSeek-R1, arXiv:2501.12948",
    advantage=GROUP_STD,
    ratio=losses.token_log_ratio,
    clip=partial(losses.clipped, low=10.0, high=10.0),
    aggregation=losses.sequence_mean,
    correction=corrections.uncorrected,
    kl=kl.k3,
    kl_coefficient=0.001,
    skip_flat_groups=False,
    samples_per_prompt=16,
    minibatches=16,
    reference_refresh=0.038,  # every 400 of 10,400 steps
)
SMALL = Preset(
    name="small",
    paper="what works on small models: see docs/algorithms.md",
    advantage=GROUP_MEAN,
    ratio=losses.token_log_ratio,
    clip=partial(losses.clipped, low=0.2, high=0.28),
    aggregation=losses.token_mean,
    correction=TIS,
)
DAPO = Preset(
    name="dapo",
    paper="DAPO, arXiv:2503.14476",
    advantage=GROUP_STD,
    ratio=losses.token_log_ratio,
    clip=partial(losses.clipped, low=0.2, high=0.28),
    aggregation=losses.token_mean,
    correction=TIS,
    dynamic_sampling=True,
    overlong_buffer=0.2,
    samples_per_prompt=16,
    minibatches=16,
)
DR_GRPO = Preset(
    name="dr-grpo",
    paper="Understanding R1-Zero-like training, arXiv:2503.20783",
    advantage=GROUP_MEAN,
    ratio=losses.token_log_ratio,
    clip=partial(losses.clipped, low=0.2, high=0.2),
    aggregation=losses.constant_mean,
    correction=TIS,
)
GSPO = Preset(
    name="gspo",
    paper="Group sequence policy optimization, arXiv:2507.18071",
    advantage=GROUP_STD,
    ratio=losses.sequence_log_ratio,
    clip=partial(losses.clipped, low=3e-4, high=4e-4),
    aggregation=losses.sequence_mean,
    correction=TIS,
    minibatches=4,
)
CISPO = Preset(
    name="cispo",
    paper="MiniMax-M1, arXiv:2506.13585; the bound of ScaleRL, arXiv:2510.13786",
    advantage=GROUP_STD,
    ratio=losses.token_log_ratio,
    clip=partial(losses.weight_clipped, maximum=5.0),
    aggregation=losses.token_mean,
    correction=TIS,
)
RLOO = Preset(
    name="rloo",
    paper="Back to basics, arXiv:2402.14740",
    advantage=partial(token_advantages, advantage=advantages.leave_one_out),
    ratio=losses.token_log_ratio,
    clip=losses.unclipped,
    aggregation=losses.sequence_sum,
    correction=TIS,
    kl=kl.k1,
    kl_coefficient=0.03,
    kl_in_reward=True,
    samples_per_prompt=4,
)
REINFORCE_PLUS_PLUS = Preset(
    name="reinforce++",
    paper="REINFORCE++, arXiv:2501.03262",
    advantage=partial(reinforce_plus_plus, gamma=1.0),
    ratio=losses.token_log_ratio,
    clip=partial(losses.clipped, low=0.2, high=0.2),
    aggregation=losses.token_mean,
    correction=TIS,
    kl=kl.k1,
    kl_coefficient=0.01,
    kl_in_reward=True,
    skip_flat_groups=False,
    samples_per_prompt=4,
)
LITE_PPO = Preset(
    name="lite-ppo",
    paper="Tricks or traps, arXiv:2508.08221",
    advantage=partial(token_advantages, advantage=partial(advantages.batch_std, epsilon=1e-6)),
    ratio=losses.token_log_ratio,
    clip=partial(losses.clipped, low=0.2, high=0.2),
    aggregation=losses.token_mean,
    correction=TIS,
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (R1_PAPER, SMALL, DAPO, DR_GRPO, GSPO, CISPO, RLOO, REINFORCE_PLUS_PLUS, LITE_PPO)
}
DEFAULT = SMALL.name


def preset_named(name: str) -> Preset:
    """A preset by its name; EtudeError names the nearest."""
    return named(PRESETS, name, "preset")
