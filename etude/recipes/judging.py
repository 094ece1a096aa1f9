"""What judges answers: the reward that is trained on, and what is called accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etude.data import TASKS
from etude.records import EtudeError, Problem
from etude.rewards import AnyReward, Judge, combine, judge_of, load_reward

PARSED = ("math", "choice", "text", "reasoning_gym")
"""Rewards that read an answer strictly and leniently."""
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
    reward: str | Mapping[str, float] | AnyReward | Judge | None, problems: Sequence[Problem]
) -> Judges:
    """reward: a name, names with weights, a function; None: what the problems bring with them, else math."""
    if reward is None:
        reward = fitting_reward(problems)
    if isinstance(reward, str):
        accuracy, _, parts = judges_for(reward)
        known = reward.partition("?")[0] in CHECKED
        return Judges(load_reward(reward), accuracy, parts, full=1.0 if known else None)
    if isinstance(reward, Mapping):
        return _weighted(reward)
    judge = judge_of(reward)
    return Judges(judge, judge)


def _weighted(weights: Mapping[str, float]) -> Judges:
    """A weighted sum. Accuracy is that of the first reward that reads answers, else the sum reaching its
    full marks."""
    if not weights:
        raise EtudeError("reward: name at least one, such as math = 1.0")
    bare = [name.partition("?")[0].rpartition(":")[2] for name in weights]
    labels = {
        name: short if bare.count(short) == 1 else name for name, short in zip(weights, bare, strict=True)
    }
    judges = {labels[name]: load_reward(name) for name in weights}
    counted = {labels[name]: weight for name, weight in weights.items() if weight}
    total = combine(judges, {labels[name]: weight for name, weight in weights.items()})
    reading = [name for name in weights if name.partition("?")[0] in PARSED]
    known = all(name.partition("?")[0] in CHECKED for name in weights)
    full = sum(weight for weight in weights.values() if weight > 0) if known else None
    if reading:
        accuracy, _, parts = judges_for(reading[0])
        return Judges(total, accuracy, parts, counted, full)
    return Judges(total, total, (), counted, full)


def judges_for(name: str) -> tuple[Judge, Judge, tuple[str, ...]]:
    """(what judges, the strict one, the parts that say what is right) for a reward by name.

    >>> judges_for("math")[2], judges_for("math?parse=lenient")[2], judges_for("format")[2]
    (('strict', 'lenient'), (), ())
    """
    bare, _, query = name.partition("?")
    if bare not in PARSED or "parse=" in query or "form=" in query:
        judge = load_reward(name)
        return judge, judge, ()
    strict, lenient = (
        load_reward(f"{bare}?parse={parse}&{query}".rstrip("&")) for parse in ("strict", "lenient")
    )
    return combine({"strict": strict, "lenient": lenient}), strict, ("strict", "lenient")


def fitting_reward(problems: Sequence[Problem]) -> str:
    """The name of the reward that problems bring with them, else math."""
    if not problems:
        raise EtudeError("there are no problems")
    columns = problems[0].columns
    if columns.get("task") in TASKS:
        return TASKS[columns["task"]].reward
    return "reasoning_gym" if "reasoning_gym" in columns else "math"
