"""A stored rollout as a page shows it: tokens with their texts, and the numbers of each.

A run folder holds ids, not texts of single tokens: those come from the tokenizer of the model that the run's
config names, if it is on this machine. Without it a page shows the whole text, and the numbers by id.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.model.gguf import GGUFFile
from etude.model.pull import resolve
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError
from etude.runlog import RunReader

KEPT = 4  # tokenizers
NOT_PER_TOKEN = ("token_ids", "mask", "tokens", "prompt")
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
SORTS = ("reward", "index", "length", "problem")


class Tokenizers:
    """The tokenizers of models, by what configs call them; the last few stay. For any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Tokenizer | EtudeError] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, reader: RunReader) -> Tokenizer:
        """That of a run's model. EtudeError where the model is not on this machine."""
        model = reader.config.get("model", {})
        name = model.get("name") if isinstance(model, Mapping) else model
        if not isinstance(name, str):
            raise EtudeError("the run's config does not say which model it is of")
        with self._lock:
            if name not in self._kept:
                self._kept[name] = _opened(name)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            found = self._kept[name]
        if isinstance(found, EtudeError):
            raise found
        return found


def _opened(name: str) -> Tokenizer | EtudeError:
    try:
        path = resolve(name)
        if path.is_dir():
            return Tokenizer.from_folder(path)
        with GGUFFile.open(path) as file:
            return Tokenizer.from_metadata(dict(file.metadata))
    except EtudeError as error:
        return error


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text: a character that several tokens make stands with the last of them.
    Together they are the text, control tokens included."""
    stream = tokenizer.stream(special=True)
    texts = [stream.push(token_id) for token_id in ids]
    if texts:
        texts[-1] += stream.flush()
    return texts


def rollout_page(
    rows: Sequence[Mapping[str, Any]],
    *,
    sort: str = "reward",
    descending: bool = True,
    problem: str | None = None,
    offset: int = 0,
    limit: int = 50,
) -> dict[str, Any]:
    """Some of a step's rollouts in an order, and all its groups."""
    chosen = [row for row in rows if problem is None or row.get("problem_id") == problem]
    chosen.sort(key=lambda row: _sort_key(row, sort), reverse=descending)
    return {
        "total": len(chosen),
        "offset": offset,
        "rollouts": [plain(row) for row in chosen[offset : offset + limit]],
        "columns": per_token(rows[0]) if rows else [],
        "groups": groups_of(rows),
    }


def _sort_key(row: Mapping[str, Any], sort: str) -> tuple[Any, ...]:
    place = (str(row.get("problem_id", "")), int(row.get("index", 0)))
    if sort == "reward":
        return (_total(row), *place)
    if sort == "length":
        return (sum(row.get("mask", ())), *place)
    return place if sort == "problem" else (place[1], place[0])


def _total(row: Mapping[str, Any]) -> float:
    total = row.get("score", {}).get("total")
    return float(total) if isinstance(total, int | float) and math.isfinite(total) else -math.inf


def per_token(row: Mapping[str, Any]) -> list[str]:
    """The names of the numbers that every token has: logprobs, advantages …"""
    n = len(row.get("token_ids", ()))
    return [
        name
        for name, value in row.items()
        if isinstance(value, list) and len(value) == n and name not in NOT_PER_TOKEN
    ]


def groups_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The problems of a step, in their order, with what their answers got."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get("problem_id", "")), []).append(row)
    found = []
    for problem, members in groups.items():
        totals = [total for total in map(_total, members) if math.isfinite(total)]
        found.append(
            {
                "problem_id": problem,
                "n": len(members),
                "answer": members[0].get("answer"),
                "reward_mean": sum(totals) / len(totals) if totals else None,
                "reward_best": max(totals, default=None),
                "reward_worst": min(totals, default=None),
            }
        )
    return found


def plain(value: Any) -> Any:
    """JSON without nan and infinities; in lists of numbers a run folder has them as strings.

    >>> plain({"a": [1.5, "NaN", float("inf")], "text": "NaN"})
    {'a': [1.5, None, None], 'text': 'NaN'}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        numbers = all(isinstance(item, int | float) or item in NOT_FINITE for item in value)
        return [None if numbers and item in NOT_FINITE else plain(item) for item in value]
    return value


def with_texts(page: dict[str, Any], tokenizers: Tokenizers, reader: RunReader) -> dict[str, Any]:
    """The page with the texts of all `tokens`, or None and why there are none; `control`: places of those
    that are protocol."""
    try:
        tokenizer = tokenizers.of(reader)
    except EtudeError as error:
        for row in page["rollouts"]:
            row["tokens"] = None
        return page | {"tokens_missing": str(error)}
    for row in page["rollouts"]:
        row["tokens"] = token_texts(tokenizer, row["token_ids"])
        row["control"] = [at for at, one in enumerate(row["token_ids"]) if tokenizer.is_control(one)]
    return page | {"tokens_missing": None}


def file_inside(path: Path, folder: Path) -> bool:
    """Whether a path, links followed, lies in a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name that no file can have
        return False
