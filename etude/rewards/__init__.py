"""(problem, answer) → Score: rule rewards, functions of the user's own, and their weighted sums."""

from etude.rewards.answer import Answer
from etude.rewards.load import load_reward, load_rewards
from etude.rewards.reward import (
    AnyReward,
    AsyncGroupReward,
    AsyncReward,
    GroupReward,
    Judge,
    Reward,
    combine,
    judge_of,
    score_all,
)

__all__ = [
    "Answer",
    "AnyReward",
    "AsyncGroupReward",
    "AsyncReward",
    "GroupReward",
    "Judge",
    "Reward",
    "combine",
    "judge_of",
    "load_reward",
    "load_rewards",
    "score_all",
]
