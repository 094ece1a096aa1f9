"""GRPO's settings: a preset and what is changed in it, read into the functions that grpo.py is given.

preset = "dapo"
advantage = "pass-at-k?k=4"            a name of presets.ADVANTAGES and the like, numbers as in a URL
clip = "dual?low=0.2&high=0.28&bound=3"
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from torch import Tensor

from etude.records import EtudeError
from etude.train import presets
from etude.train.advantages import reinforce_plus_plus
from etude.train.presets import Preset, advantage_named, bind, named, preset_named

PartsAdvantage = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(parts_SK, group_S, weights_K) → advantages_S."""

FULL_KL = "full"
"""KL over the whole vocabulary instead of an estimate from the sampled token."""

LEARNING_RATE = 1e-5
LORA_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class GrpoSettings:
    """A preset, and what is to be different; None: as in the preset (presets.Preset says what each means).

    epochs: how often each rollout is gone through. max_draws: with dynamic sampling, how often prompts are
    drawn in place of groups without signal. max_mismatch: nats a token by which engine and learner may differ
    before the first step.
    """

    preset: str = presets.DEFAULT
    advantage: str | None = None
    ratio: str | None = None
    clip: str | None = None
    aggregation: str | None = None
    correction: str | None = None
    kl: str | None = None
    kl_coefficient: float | None = None
    kl_in_reward: bool | None = None
    skip_flat_groups: bool | None = None
    dynamic_sampling: bool | None = None
    max_draws: int = 4
    overlong_buffer: float | None = None
    mask_truncated_after: float | None = None
    minibatches: int | None = None
    epochs: int = 1
    reference_refresh: float | None = None
    max_mismatch: float = 1e-2

    def __post_init__(self) -> None:
        for name, least in (("minibatches", 1), ("epochs", 1), ("max_draws", 1), ("kl_coefficient", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise EtudeError(f"grpo.{name} is {value}; it must be at least {least}")
        for name in ("overlong_buffer", "mask_truncated_after", "reference_refresh"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise EtudeError(f"grpo.{name} is {value}; it is a share, from 0 to 1")
        if not self.max_mismatch > 0:
            raise EtudeError(f"grpo.max_mismatch is {self.max_mismatch}; it must be above 0")


@dataclass(frozen=True)
class Objective:
    """What grpo.train maximises, as functions. preset: the choices; parts_advantage: GDPO, of the reward's
    parts, in place of the preset's advantage; full_kl: in place of its estimator."""

    preset: Preset
    parts_advantage: PartsAdvantage | None = None
    full_kl: bool = False
    epochs: int = 1
    max_draws: int = 1
    max_mismatch: float = 1e-2

    @property
    def updates(self) -> int:
        """Optimizer steps for each rollout; with a single one π_old is π, and its ratio is 1."""
        return self.preset.minibatches * self.epochs

    @property
    def kl_in_loss(self) -> bool:
        return self.preset.kl_coefficient > 0 and not self.preset.kl_in_reward

    @property
    def kl_in_reward(self) -> bool:
        return self.preset.kl_coefficient > 0 and self.preset.kl_in_reward

    @property
    def reference_output(self) -> str:
        """What is computed of the reference."""
        return "reference_kl" if self.full_kl else "logprobs"

    def refresh_every(self, total_steps: int) -> int:
        """Steps between copies of the policy into the reference; 0: never."""
        share = self.preset.reference_refresh
        return max(1, round(share * total_steps)) if share and self.preset.kl_coefficient > 0 else 0


def objective_of(settings: GrpoSettings) -> Objective:
    """The functions that the settings name. EtudeError for names that do not exist and numbers without
    effect."""
    base = preset_named(settings.preset)
    changes: dict[str, Any] = {
        name: getattr(settings, name)
        for name in (
            "kl_coefficient", "kl_in_reward", "skip_flat_groups", "dynamic_sampling", "overlong_buffer",
            "mask_truncated_after", "minibatches", "reference_refresh",
        )
        if getattr(settings, name) is not None
    }  # fmt: skip
    parts_advantage: PartsAdvantage | None = None
    if settings.advantage is not None:
        name, numbers = name_and_numbers(settings.advantage, "grpo.advantage")
        if name in presets.PART_ADVANTAGES:
            parts_advantage = bind(presets.PART_ADVANTAGES[name], numbers, "grpo.advantage")
        else:
            changes["advantage"] = advantage_named(name, numbers)
    for key, table in (
        ("ratio", presets.RATIOS), ("clip", presets.CLIPS), ("aggregation", presets.AGGREGATIONS),
        ("correction", presets.CORRECTIONS), ("kl", presets.KL_ESTIMATORS),
    ):  # fmt: skip
        text = getattr(settings, key)
        if text is not None and not (key == "kl" and text == FULL_KL):
            changes[key] = function_named(table, text, f"grpo.{key}")
    return Objective(
        preset=replace(base, **changes),
        parts_advantage=parts_advantage,
        full_kl=settings.kl == FULL_KL,
        epochs=settings.epochs,
        max_draws=settings.max_draws,
        max_mismatch=settings.max_mismatch,
    )


def function_named(table: Mapping[str, Callable[..., Any]], text: str, what: str) -> Callable[..., Any]:
    """The function that a text names, with its numbers set."""
    name, numbers = name_and_numbers(text, what)
    return bind(named(table, name, what), numbers, what)


def name_and_numbers(text: str, what: str) -> tuple[str, dict[str, float]]:
    """
    >>> name_and_numbers("dual?low=0.2&high=0.28&bound=3", "clip")
    ('dual', {'low': 0.2, 'high': 0.28, 'bound': 3})
    """
    name, _, query = text.partition("?")
    try:
        pairs = parse_qsl(query, strict_parsing=True) if query else []
        return name, {key: int(value) if value.isdecimal() else float(value) for key, value in pairs}
    except ValueError:
        raise EtudeError(f"{what}: cannot read {text!r}; numbers look like {name}?key=1&other=0.5") from None


def check_effects(objective: Objective, written: Mapping[str, str], samples_per_prompt: int) -> None:
    """EtudeError for a setting that the user wrote and that changes nothing beside the others."""
    preset = objective.preset
    gdpo = objective.parts_advantage is not None

    def refuse(keys: Collection[str], when: bool, why: str) -> None:
        for key in keys:
            if when and f"grpo.{key}" in written:
                raise EtudeError(f"{written[f'grpo.{key}']}: grpo.{key} has no effect: {why}")

    once = "with one update for each rollout the ratio is exactly 1; set grpo.minibatches or grpo.epochs"
    refuse(("ratio", "clip"), objective.updates == 1, once)
    no_kl = "grpo.kl_coefficient is 0"
    refuse(("kl", "kl_in_reward", "reference_refresh"), preset.kl_coefficient == 0, no_kl)
    refuse(("skip_flat_groups",), objective.kl_in_reward, "with the KL in the reward no group is flat")
    refuse(("max_draws",), not preset.dynamic_sampling, "grpo.dynamic_sampling is off")
    if gdpo and (objective.kl_in_reward or preset.overlong_buffer):
        raise EtudeError(
            "grpo.advantage gdpo compares the parts of the reward one by one: it takes neither a KL in the "
            "reward nor overlong_buffer; set grpo.kl_in_reward = false and grpo.overlong_buffer = 0"
        )
    if samples_per_prompt < 2 and (gdpo or not _knows_no_groups(preset)):
        raise EtudeError(
            f"sampling.samples_per_prompt is {samples_per_prompt}: this advantage compares the answers to a "
            "prompt with each other and needs at least 2 (reinforce++ compares across prompts)"
        )


def _knows_no_groups(preset: Preset) -> bool:
    return isinstance(preset.advantage, partial) and preset.advantage.func is reinforce_plus_plus
