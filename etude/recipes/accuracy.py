"""What counts as a right answer to a set of problems. Without torch: `etude eval` needs it too."""

from __future__ import annotations

from collections.abc import Sequence

from etude.data import TASKS
from etude.records import EtudeError, Problem
from etude.rewards import Judge, combine, load_reward

PARSED = ("math", "choice", "text", "reasoning_gym")
"""Rewards that read an answer strictly and leniently."""


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
