"""The runs below one folder, by plain names; what was read of them stays in memory for a while.

A request can name nothing but an entry of that folder: no path, no hidden name, no link that leads out of
it, neither as the run's folder nor as a file in it. Nothing is ever written.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from etude.records import EtudeError
from etude.runlog import Row, RunReader, find_runs
from etude.serve.errors import ApiError
from etude.serve.run_metrics import MetricsTable
from etude.serve.run_tokens import Tokenizers, file_inside

KEPT_TABLES, KEPT_STEPS = 64, 8
FILES = ("run.json", "config.toml", "metrics.jsonl", "doctor.jsonl", "rollouts", "checkpoints", "final")


class RunStore:
    """The runs of a folder. For any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.tokenizers = Tokenizers()
        self._tables: OrderedDict[str, MetricsTable] = OrderedDict()
        self._steps: OrderedDict[tuple[str, int, int], list[Row]] = OrderedDict()
        self._lock = threading.Lock()
        self.summaries: dict[str, tuple[Any, dict[str, Any]]] = {}

    def readers(self) -> list[RunReader]:
        """All runs, the newest first."""
        found = find_runs(self.root)
        return [run for run in found if run.folder.name[0] != "." and self._is_inside(run.folder)]

    def reader(self, name: str) -> RunReader:
        """The run of a name. ApiError 404."""
        plain = name and not name.startswith(".") and not any(char in name for char in "/\\\0")
        folder = self.root / name
        try:
            if plain and self._is_inside(folder):
                return RunReader(folder)
        except (EtudeError, OSError, ValueError):
            pass
        raise ApiError(404, f"there is no run {name!r}", param="name", code="run_not_found")

    def _is_inside(self, folder: Path) -> bool:
        return file_inside(folder, self.root) and all(file_inside(folder / name, folder) for name in FILES)

    def table(self, reader: RunReader) -> MetricsTable:
        """Its numbers, as they are now."""
        key = reader.folder.name
        with self._lock:
            table = self._tables.setdefault(key, MetricsTable(reader.folder))
            self._tables.move_to_end(key)
            while len(self._tables) > KEPT_TABLES:
                self._tables.popitem(last=False)
        table.refresh()
        return table

    def rollouts(self, reader: RunReader, step: int) -> list[Row]:
        """What was sampled in a step. ApiError 404 if that is not stored."""
        path = reader.folder / "rollouts" / f"{step:06d}.jsonl.gz"
        if not path.is_file() or not file_inside(path, reader.folder):
            text = f"the run {reader.folder.name!r} has no rollouts of step {step}"
            raise ApiError(404, text, param="step", code="step_not_found")
        key = (reader.folder.name, step, path.stat().st_mtime_ns)
        with self._lock:
            rows = self._steps.get(key)
        if rows is None:
            rows = reader.rollouts(step)
            with self._lock:
                self._steps[key] = rows
                while len(self._steps) > KEPT_STEPS:
                    self._steps.popitem(last=False)
        return rows


def settings_of(reader: RunReader) -> dict[str, Any]:
    """The config of a run; {} where it cannot be read."""
    try:
        return reader.config
    except EtudeError:
        return {}
