"""What judges answers: the reward that is trained on, and what is called accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from etude.learner.local import ComputeSettings
from etude.recipes.accuracy import PARSED, fitting_reward, judges_for
from etude.records import EtudeError, Problem
from etude.rewards import AnyReward, Judge, combine, judge_of, load_reward
from etude.train.judge import RECORD, as_reward

CHECKED = (*PARSED, "format")
"""Rewards that give a gold answer, rightly written down, full marks; of others nothing is known."""


@dataclass(frozen=True)
class Judges:
    """reward: what is trained on; counted: its parts that are summed, with their weights ({} for a single
    one); full: what a perfect answer scores, None: not known. accuracy judges held-out answers, by the parts
    `strict` and `lenient` where there are such."""

    reward: Judge
    accuracy: Judge
    parts: tuple[str, ...] = ()
    counted: Mapping[str, float] = field(default_factory=dict)
    full: float | None = None


def judges_of(
    reward: str | Mapping[str, float] | AnyReward | Judge | None,
    problems: Sequence[Problem],
    compute: ComputeSettings | None = None,
) -> Judges:
    """reward: a name (or a reward model's folder), names with weights, a function; None: what the problems
    bring with them, else math. Beside a reward model, accuracy is judged by rules where there are answers.
    compute: how a reward model's scores are."""
    if reward is None:
        reward = fitting_reward(problems)
    if isinstance(reward, str) and is_reward_model(reward):
        judge = reward_named(reward, compute)
        if all(problem.answer is None for problem in problems):
            return Judges(judge, judge)
        accuracy, _, parts = judges_for(fitting_reward(problems))
        return Judges(judge, accuracy, parts)
    if isinstance(reward, str):
        accuracy, _, parts = judges_for(reward)
        known = reward.partition("?")[0] in CHECKED
        return Judges(load_reward(reward), accuracy, parts, full=1.0 if known else None)
    if isinstance(reward, Mapping):
        return _weighted(reward, compute)
    judge = judge_of(reward)
    return Judges(judge, judge)


def _weighted(weights: Mapping[str, float], compute: ComputeSettings | None) -> Judges:
    """A weighted sum. Accuracy is that of the first reward that reads answers, else the sum reaching its
    full marks."""
    if not weights:
        raise EtudeError("reward: name at least one, such as math = 1.0")
    bare = [
        "reward_model" if is_reward_model(name) else name.partition("?")[0].rpartition(":")[2]
        for name in weights
    ]
    labels = {
        name: short if bare.count(short) == 1 else name for name, short in zip(weights, bare, strict=True)
    }
    judges = {labels[name]: reward_named(name, compute) for name in weights}
    counted = {labels[name]: weight for name, weight in weights.items() if weight}
    total = combine(judges, {labels[name]: weight for name, weight in weights.items()})
    reading = [name for name in weights if name.partition("?")[0] in PARSED]
    known = all(name.partition("?")[0] in CHECKED for name in weights)
    full = sum(weight for weight in weights.values() if weight > 0) if known else None
    if reading:
        accuracy, _, parts = judges_for(reading[0])
        return Judges(total, accuracy, parts, counted, full)
    return Judges(total, total, (), counted, full)


def is_reward_model(name: str) -> bool:
    """Whether it is a folder that `etude reward-model` wrote."""
    return (Path(name) / RECORD).is_file()


def reward_named(name: str, compute: ComputeSettings | None = None) -> Judge:
    """The reward of that name, or the reward model in that folder."""
    if is_reward_model(name):
        return judge_of(as_reward(name, compute=compute), "reward_model", timeout_s=None)
    return load_reward(name)
