"""The one call of a reasoning-gym scorer, inside a worker process (worker.py)."""

from __future__ import annotations

import functools
import json
from typing import Any


def score(dataset: str, config: dict[str, Any], index: int, given: str) -> tuple[float, str]:
    """(score, verdict) of an answer to item `index`. Raises if its own answer cannot be judged."""
    made = _dataset(dataset, json.dumps(config, sort_keys=True))
    item = made[index]
    try:
        return float(made.score_answer(given, item)), ""
    except Exception as error:  # a scorer that raises about junk
        if item["answer"] is not None:
            made.score_answer(item["answer"], item)
        return 0.0, f"unreadable ({type(error).__name__})"


@functools.lru_cache(maxsize=8)
def _dataset(name: str, config: str) -> Any:
    """The generator: the same name, config and index give the same item."""
    from reasoning_gym import create_dataset

    return create_dataset(name, **json.loads(config))


def warm_up() -> None:
    """What a worker does before its first limit begins."""
    score("chain_sum", {"size": 1, "seed": 0}, 0, "1")
