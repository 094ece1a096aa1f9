"""The scorers of reasoning-gym, for problems that `reasoning_gym:NAME` made.

They run in a worker process: some evaluate what the model wrote as Python expressions, some take for ever.
What a scorer raises about a model's junk is the model's fault, not the scorer's, as long as it can judge the
problem's own answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from etude.records import EtudeError, Problem, Score
from etude.rewards.answer import is_opened
from etude.rewards.extract import Form, Parse, boxed, cued, last_number, lenient_region, strict_answer
from etude.rewards.reward import Reward
from etude.rewards.worker import WorkerFailure, WorkerPool, worker_pool

COLUMN = "reasoning_gym"
"""The column that says which item a problem is: {"dataset", "config", "index"}."""

SCORER = "etude.rewards.gym_call:score"
MAX_CHARACTERS = 4000
_CODE = re.compile(
    r"__|\b(?:import|lambda|exec|eval|open|compile|globals|getattr|setattr|breakpoint|input)\b"
)


def gym_reward(
    parse: Parse = "strict", form: Form = "any", timeout_s: float = 5.0, pool: WorkerPool | None = None
) -> Reward:
    """The problem's own scorer, 0 to 1, on the extracted answer. parse, form, timeout_s: as for `math`."""
    if parse == "lenient" and form != "any":
        raise EtudeError(
            f"reasoning_gym: form={form!r} has no effect with parse='lenient', which looks everywhere"
        )

    def reasoning_gym(problem: Problem, answer: str) -> Score:
        item = problem.columns.get(COLUMN)
        if not isinstance(item, Mapping):
            raise EtudeError(
                f"problem {problem.id}: the reward `reasoning_gym` judges problems of reasoning_gym:NAME only"
            )
        opened = is_opened(answer)
        if parse == "strict":
            given = strict_answer(answer, form, opened=opened)
        else:
            given = lenient(lenient_region(answer, opened=opened), problem.answer)
        if given is None:
            return Score(0.0, verdict="no answer")
        return score(item, given, pool or worker_pool(SCORER, timeout_s))

    return reasoning_gym


def lenient(region: str, gold: str | None) -> str | None:
    """The answer wherever one can be found: the last number where gold is a number."""
    found = boxed(region) or cued(region)
    if found is None and gold is not None and last_number(gold) == gold:
        found = last_number(region)
    return found or region.strip() or None


def score(item: Mapping[str, Any], given: str, pool: WorkerPool) -> Score:
    """What the scorer says of an extracted answer."""
    if len(given) > MAX_CHARACTERS:
        return Score(0.0, parsed=given[:MAX_CHARACTERS], verdict="too long")
    if _CODE.search(given):
        return Score(0.0, parsed=given, verdict="refused: some scorers would run it as Python")
    try:
        total, verdict = pool.call(item["dataset"], dict(item["config"]), item["index"], given)
    except WorkerFailure as error:
        return Score(0.0, parsed=given, failure=f"reasoning_gym: {error}")
    return Score(float(total), parsed=given, verdict=verdict)
