"""Problem → Rollout: environments, and the collector that samples and judges groups of completions."""

from etude.rollout.collect import collect, seed_of
from etude.rollout.envs import Env, Episode, SingleTurn, multi_turn, single_turn
from etude.rollout.prompts import Prompt, PromptWriter, check_prompts

__all__ = [
    "Env",
    "Episode",
    "Prompt",
    "PromptWriter",
    "SingleTurn",
    "check_prompts",
    "collect",
    "multi_turn",
    "seed_of",
    "single_turn",
]
