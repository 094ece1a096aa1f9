"""Lines of JSON: what stands in a run's files, from and to Python's values."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from etude.records import EtudeError, Problem, Rollout, Score

Row = dict[str, Any]


def rollout_row(rollout: Rollout, problem: Problem | None = None, **per_token: Sequence[float]) -> Row:
    """A rollout as it is stored: text, ids, mask, logprobs, score; and other per-token numbers by name
    (`ratios`, `advantages`), each as long as token_ids. Floats keep float32's nine digits."""
    row: Row = {
        "problem_id": rollout.problem_id,
        "index": rollout.index,
        "prompt": [[m.role, m.content] for m in problem.messages] if problem else None,
        "answer": problem.answer if problem else None,
        "text": rollout.text,
        "finish": rollout.finish,
        "weights_version": rollout.weights_version,
        "prompt_length": rollout.prompt_length,
        "score": asdict(rollout.score),
        "token_ids": list(rollout.token_ids),
        "mask": [int(sampled) for sampled in rollout.mask],
        "logprobs": _rounded(rollout.logprobs),
    }
    for name, values in per_token.items():
        if len(values) != len(rollout.token_ids):
            raise EtudeError(f"{name} has {len(values)} numbers for {len(rollout.token_ids)} tokens")
        row[name] = _rounded(values)
    return row


def rollout_of(row: Mapping[str, Any]) -> Rollout:
    """The rollout of a stored row; the inverse of `rollout_row` (logprobs are float32)."""
    return Rollout(
        problem_id=row["problem_id"],
        index=row["index"],
        token_ids=tuple(row["token_ids"]),
        mask=tuple(map(bool, row["mask"])),
        logprobs=tuple(array("f", row["logprobs"])),
        prompt_length=row["prompt_length"],
        finish=row["finish"],
        weights_version=row["weights_version"],
        score=Score(**row["score"]),
        text=row["text"],
    )


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line of JSON, numpy's numbers as numbers, nan as "NaN"."""
    return (json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | None):  # bool too
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    number = float(value)
    if math.isfinite(number):
        return int(number) if hasattr(value, "__index__") else number
    return "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"


def rows_of(data: bytes) -> Iterator[tuple[bytes, Row]]:
    """(line, row) of each whole line; one that was cut, or whose writing tore, is left out."""
    for line in data.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield line, {key: _number(value) for key, value in row.items()}


def _number(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _rounded(values: Iterable[float]) -> list[float]:
    """Nine digits: a float32 comes back as it was."""
    return [float(f"{value:.9g}") for value in values]
