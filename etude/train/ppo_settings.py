"""PPO's settings, the table [ppo] of a config file; ppo.py has the formulas that the letters stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from etude.records import EtudeError

LEARNING_RATE, LORA_LEARNING_RATE = 1e-5, 1e-4
"""Of the actor, where the settings name none; GRPO's."""
CRITIC_FACTOR = 1.0
"""How much larger the critic's learning rate is, where the settings name none."""
HEAD_LEARNING_RATE = 1e-3
"""Of a critic's head that begins with zeros. At the rate of the rest it goes on saying 0 (SmolLM2-135M on
examples/ppo.toml's task, one run each: explained variance after 8 updates -0.01 at 2e-5, 0.30 at 1e-3)."""


@dataclass(frozen=True)
class PpoSettings:
    """PPO's numbers.

    gamma, lam: of GAE; lam 0.95 is RLHF's, and 1, the default, what reasoning needs: the critic's errors are
    then not summed up along a long answer (DeepSeek-R1, arXiv:2501.12948, supplement A.3).
    clip: ε. value_clip: ε_v; 0: values are not clipped.
    kl_coefficient: β; 0: no reference is computed. kl_target_nats: KL of a whole answer that β is steered to,
    over about kl_horizon_samples answers; None: β stays.
    unfinished_reward: in place of the score of an answer that was cut off; None: it keeps its own.
    standardise_scores: scores less their running mean, over their running deviation, at most score_limit
    away from 0; for reward models, whose scale means nothing.
    whiten_rewards: divide rewards of tokens by their deviation. whiten_advantages: to mean 0, deviation 1.
    minibatches, epochs: of each rollout. critic: reward model folder that the critic begins as; None: the
    model itself with a new head. critic_learning_rate None: the actor's. critic_warmup_steps: first
    steps, in which the critic alone learns.
    max_weight: bound of the weights that correct for engine and learner being different (TIS); 0: none.
    max_mismatch: nats a token by which they may differ before the first step.
    """

    gamma: float = 1.0
    lam: float = 1.0
    clip: float = 0.2
    value_clip: float = 0.2
    kl_coefficient: float = 0.02
    kl_target_nats: float | None = None
    kl_horizon_samples: int = 10_000
    unfinished_reward: float | None = -1.0
    standardise_scores: bool = False
    score_limit: float = 5.0
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    minibatches: int = 4
    epochs: int = 1
    critic: str | None = None
    critic_learning_rate: float | None = None
    critic_warmup_steps: int = 0
    max_weight: float = 2.0
    max_mismatch: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise EtudeError(f"ppo.{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("clip", "score_limit", "max_mismatch", "kl_horizon_samples", "minibatches", "epochs"):
            if not getattr(self, name) > 0:
                raise EtudeError(f"ppo.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("value_clip", "kl_coefficient", "critic_warmup_steps", "max_weight"):
            if not getattr(self, name) >= 0:
                raise EtudeError(f"ppo.{name} is {getattr(self, name)}; it must be at least 0")
        if self.kl_target_nats is not None and not self.kl_target_nats > 0:
            raise EtudeError(f"ppo.kl_target_nats is {self.kl_target_nats}; it must be above 0")
        if self.kl_target_nats is not None and self.kl_coefficient == 0:
            raise EtudeError(
                "ppo.kl_coefficient is 0: a coefficient of 0 cannot be steered to kl_target_nats"
            )


def check_effects(settings: PpoSettings, written: Mapping[str, str]) -> None:
    """EtudeError for a setting that the user wrote and that changes nothing beside the others."""

    def refuse(key: str, when: bool, why: str) -> None:
        if when and f"ppo.{key}" in written:
            raise EtudeError(f"{written[f'ppo.{key}']}: ppo.{key} has no effect: {why}")

    refuse("kl_horizon_samples", settings.kl_target_nats is None, "ppo.kl_target_nats is not set")
    refuse("score_limit", not settings.standardise_scores, "ppo.standardise_scores is off")
    once = settings.minibatches * settings.epochs == 1
    why = "with one update for each rollout nothing has moved yet; set ppo.minibatches or ppo.epochs"
    refuse("clip", once, why)
    refuse("value_clip", once, why)
