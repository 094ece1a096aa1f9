"""Runs in a few lines each: state, progress, last numbers, a small curve, what the doctor said.

The list must be quick with hundreds of runs of any length, so a summary reads the end of metrics.jsonl and a
few lines spread over the rest, and is kept until a file changes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from etude.records import EtudeError
from etude.runlog import Row, RunReader
from etude.serve.run_metrics import MetricsTable, costs, shown
from etude.serve.run_models import names_of
from etude.serve.run_store import RunStore, settings_of
from etude.serve.run_tokens import plain

SEEDLESS = ("seed", "name", "folder")
"""Settings of [run] in which runs that differ by chance only may differ."""
SPARKS = ("reward/mean", "eval/accuracy", "eval/loss", "loss")
"""What the small curve is of: the first of these that a run has."""
SPARK_POINTS = 48


def summaries(store: RunStore) -> list[dict[str, Any]]:
    """All runs, the newest first."""
    return [summary(store, reader) for reader in store.readers()]


def summary(store: RunStore, reader: RunReader) -> dict[str, Any]:
    """A line of the list."""
    name = reader.folder.name
    stamp = [_stamp(reader, file) for file in ("metrics.jsonl", "doctor.jsonl", "config.toml")]
    known = store.summaries.get(name)
    if known is None or known[0] != stamp:
        known = store.summaries[name] = (stamp, _summary(reader))
    return known[1] | {"state": reader.state}


def _stamp(reader: RunReader, file: str) -> tuple[int, ...]:
    path = reader.folder / file
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _summary(reader: RunReader) -> dict[str, Any]:
    config, latest = settings_of(reader), reader.latest()
    model = config.get("model")
    numbers = {key: value for key, value in latest.items() if isinstance(value, int | float)}
    step = int(numbers.pop("step", 0))
    seconds = numbers.get("seconds/step")
    updated = datetime.fromtimestamp(reader.updated_at, UTC)
    return {
        "name": reader.folder.name,
        "verb": reader.info.algorithm,
        "steps": reader.info.total_steps,
        "step": step,
        "started_at": reader.info.created,
        "updated_at": updated.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "model": model.get("name") if isinstance(model, Mapping) else None,
        "seed": seed_of(config),
        "family": family_of(config),
        "findings": len(reader.doctor()),
        "seconds_per_step": plain(seconds),
        "last": plain(numbers),
        "spark": spark(reader.sampled(SPARK_POINTS)),
    }


def spark(rows: Sequence[Row]) -> dict[str, Any] | None:
    """A curve for a line of the list, of rows spread over the run; None without numbers.

    >>> spark([{"step": 0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    {'name': 'loss', 'values': [2.0, 1.0]}
    """
    for name in SPARKS:
        found = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        values = [value for value in found if math.isfinite(value)]
        if len(values) > 1:
            return {"name": name, "values": shown(values)}
    return None


def details(store: RunStore, reader: RunReader) -> dict[str, Any]:
    """A run, without curves and rollouts. `config` is the text of config.toml; `settings` that as JSON."""
    table: MetricsTable = store.table(reader)
    best, talkers = reader.best(), names_of(reader)
    try:
        text = reader.config_text
    except EtudeError:
        text = ""
    return summary(store, reader) | {
        "config": text,
        "settings": plain(settings_of(reader)),
        "version": reader.info.version,
        "checkpoints": [
            {
                "step": one.step,
                "best": best is not None and one.step == best.step,
                "metric": one.metric,
                "model": talkers.get(str(one.step)),
            }
            for one in reader.checkpoints()
        ],
        "final": (reader.folder / "final").is_dir(),
        "final_model": talkers.get("final"),
        "findings": plain(reader.doctor()),
        "rollout_steps": reader.rollout_steps(),
        "metric_names": table.names,
        "rows": len(table),
        "generation": table.generation,
        "costs": costs(table),
    }


def family_of(config: Mapping[str, Any]) -> str:
    """Equal for runs whose settings are equal but for the seed: their curves make a band.

    >>> family_of({"run": {"seed": 1, "steps": 5}}) == family_of({"run": {"seed": 2, "steps": 5}})
    True
    >>> family_of({"run": {"seed": 1, "steps": 5}}) == family_of({"run": {"seed": 1, "steps": 6}})
    False
    """
    run = config.get("run", {})
    if isinstance(run, Mapping):
        run = {key: value for key, value in run.items() if key not in SEEDLESS}
    text = json.dumps({**config, "run": run}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def seed_of(config: Mapping[str, Any]) -> int | None:
    """run.seed, if it is written there."""
    run = config.get("run", {})
    seed = run.get("seed") if isinstance(run, Mapping) else None
    return seed if isinstance(seed, int) else None
