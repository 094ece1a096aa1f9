"""Problems of reasoning-gym's generators, by name; the reward `reasoning_gym` judges them with their scorers.

    reasoning_gym:chain_sum?min_terms=2&max_terms=2&size=500&seed=1

Each problem remembers its generator, settings and index, from which a scorer makes the same item again.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from etude.records import EtudeError, Message, Problem

COLUMN = "reasoning_gym"
"""The column that says which item a problem is: {"dataset", "config", "index"}."""

SIZE = 500


def gym_problems(name: str, **settings: Any) -> list[Problem]:
    """The problems of one generator. settings: `size`, `seed`, and what the generator itself takes."""
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError:
        raise EtudeError("reasoning-gym is not installed: pip install 'etude[train]'") from None
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise EtudeError(f"reasoning-gym has no generator {name!r}{hint}")
    config = {"size": SIZE, "seed": 0} | settings
    try:
        dataset = create_dataset(name, **config)
        items = [dataset[index] for index in range(config["size"])]
    except TypeError as error:
        fields = sorted(DATASETS[name][1].__dataclass_fields__)
        raise EtudeError(f"reasoning_gym:{name}: {error}; its settings are {', '.join(fields)}") from None
    except (AssertionError, ValueError) as error:
        raise EtudeError(f"reasoning_gym:{name}: {error}") from None
    return [_problem(name, config, index, item) for index, item in enumerate(items)]


def _problem(name: str, config: Mapping[str, Any], index: int, item: Mapping[str, Any]) -> Problem:
    answer = item["answer"]
    columns = {COLUMN: {"dataset": name, "config": dict(config), "index": index}}
    return Problem(
        id=f"{name}:{config['seed']}:{index}",
        messages=(Message("user", item["question"]),),
        answer=None if answer is None else str(answer),
        columns=columns,
    )
