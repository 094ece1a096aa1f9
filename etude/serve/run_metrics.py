"""The numbers of a run as columns, read once and then as they are written.

A table takes what was added to metrics.jsonl since it was last asked, so a page that looks every second costs
a line a second; the first look at 10,000 steps reads 15 MB. A long run is binned for the screen: the mean of
so many steps in a row, of those where the number exists.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.runlog.rows import rows_of
from etude.runlog.tail import Tail

F64 = NDArray[np.float64]
MAX_COLUMNS = 4096
NAN = math.nan
UPDATE_PARTS = ("forward", "backward", "optimizer")
"""What seconds/update is made of."""


class MetricsTable:
    """The columns of one metrics.jsonl. For any thread.

    generation: grows when the run was resumed, and its file began anew.
    """

    def __init__(self, folder: Path) -> None:
        self.generation = 0
        self._tail = Tail(folder / "metrics.jsonl")
        self._steps = array("q")
        self._columns: dict[str, array[float]] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Take what was written meanwhile."""
        with self._lock:
            anew, lines = self._tail.read()
            if anew:
                self.generation += 1
                self._steps, self._columns = array("q"), {}
            for _, row in rows_of(lines):
                if isinstance(row.get("step"), int):
                    self._add(row)

    def _add(self, row: Mapping[str, Any]) -> None:
        n = len(self._steps)
        self._steps.append(row["step"])
        for name, value in row.items():
            if name == "step" or not isinstance(value, int | float):
                continue
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) == MAX_COLUMNS:
                    continue
                column = self._columns[name] = array("d")
            if len(column) < n:  # steps without this number
                column.extend([NAN] * (n - len(column)))
            column.append(value if value == value else math.inf)  # nan stands for absent

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def last_step(self) -> int:
        """0 before the first."""
        return self._steps[-1] if self._steps else 0

    @property
    def names(self) -> list[str]:
        """Of all numbers, in the order in which they first appeared."""
        return list(self._columns)

    def chosen(self, wanted: Sequence[str]) -> list[str]:
        """The names that are there and wanted: in full, or their beginning with a * behind it; []: all.

        >>> table = MetricsTable(Path("nowhere"))
        >>> table._add({"step": 1, "loss": 0.5, "reward/mean": 1, "reward/std": 0})
        >>> table.chosen(["reward/*"]), table.chosen(["loss", "kl"]), len(table.chosen([]))
        (['reward/mean', 'reward/std'], ['loss'], 3)
        """
        names = self.names
        if not wanted:
            return names
        exact = {name for name in wanted if not name.endswith("*")}
        stems = tuple(name[:-1] for name in wanted if name.endswith("*"))
        return [name for name in names if name in exact or (stems and name.startswith(stems))]

    def columns(
        self,
        wanted: Sequence[str] = (),
        *,
        after: int | None = None,
        before: int | None = None,
        max_points: int = 2000,
    ) -> dict[str, list[Any]]:
        """{"step": …, NAME: …}; None where a number is absent or not finite. after, before: only steps
        between. Of more steps than max_points, bins: means, NAME:min and NAME:max; a bin's step is its last.
        """
        with self._lock:
            steps = np.array(self._steps, np.int64)
            names = self.chosen(wanted)
            table = {name: _padded(self._columns[name], len(steps)) for name in names}
        if after is not None or before is not None:
            rows = (steps > (-1 if after is None else after)) & (before is None or steps < before)
            steps = steps[rows]
            table = {name: values[rows] for name, values in table.items()}
        n = len(steps)
        size = max(1, math.ceil(n / max_points))
        starts = np.arange(0, n, size)
        ends = np.minimum(starts + size, n) - 1
        found: dict[str, list[Any]] = {"step": steps[ends].tolist()}
        for name, values in table.items():
            if size == 1:
                found[name] = shown(values)
                continue
            means, low, high = binned(values, starts)
            found |= {name: shown(means), f"{name}:min": shown(low), f"{name}:max": shown(high)}
        return found

    def rows(self, begin: int) -> tuple[int, list[dict[str, Any]]]:
        """(how many there are, those from a place on), as metrics.jsonl has them, with None for what is not
        finite."""
        with self._lock:
            n = len(self._steps)
            rows: list[dict[str, Any]] = [{"step": self._steps[i]} for i in range(begin, n)]
            for name, column in self._columns.items():
                for row, value in zip(rows, column[begin:], strict=False):
                    if not math.isnan(value):
                        row[name] = value if math.isfinite(value) else None
        return n, rows

    def place(self, step: int) -> int:
        """Where the rows after a step begin."""
        with self._lock:
            return sum(known <= step for known in self._steps)

    def total(self, name: str) -> F64:
        """The finite values of a number."""
        with self._lock:
            values = np.array(self._columns.get(name, ()), np.float64)
        return values[np.isfinite(values)]


def _padded(column: array[float], n: int) -> F64:
    values = np.full(n, NAN)
    values[: len(column)] = column
    return values


def binned(values: F64, starts: NDArray[np.int64]) -> tuple[F64, F64, F64]:
    """Mean, lowest and highest of the finite values of each bin; nan for a bin without any.

    >>> [part.tolist() for part in binned(np.array([1.0, 3.0, np.nan, 5.0, np.nan]), np.array([0, 2, 4]))]
    [[2.0, 5.0, nan], [1.0, 5.0, nan], [3.0, 5.0, nan]]
    """
    finite = np.isfinite(values)
    counts = np.add.reduceat(finite.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    empty = counts == 0
    low[empty], high[empty] = NAN, NAN
    return np.divide(sums, counts, out=np.full(len(starts), NAN), where=~empty), low, high


def shown(values: Iterable[float]) -> list[float | None]:
    """Six digits, which is more than a screen has; None for what is not finite.

    >>> shown(np.array([1 / 3, np.inf]))
    [0.333333, None]
    """
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def costs(table: MetricsTable) -> dict[str, Any]:
    """Where the time of a run went, phase by phase, and how much memory it had.

    The phases of a step follow each other; `parts` are those of the update. An evaluation has a phase of its
    own, in the steps that have one.
    """
    names = [name.removeprefix("seconds/") for name in table.names if name.startswith("seconds/")]
    parts = [name for name in names if name in UPDATE_PARTS and "update" in names]
    phases = [name for name in names if name not in parts and name != "step"]
    whole = sum(float(table.total(f"seconds/{name}").sum()) for name in phases)
    memory = table.total("memory_bytes")
    return {
        "phases": [_phase(table, name, whole) for name in phases],
        "parts": [_phase(table, name, whole) for name in parts],
        "step": _phase(table, "step", whole) if "step" in names else None,
        "memory_bytes": {"peak": memory.max(), "last": memory[-1]} if len(memory) else None,
    }


def _phase(table: MetricsTable, name: str, whole_s: float) -> dict[str, Any]:
    seconds = table.total(f"seconds/{name}")
    total_s = float(seconds.sum())
    return {
        "name": name,
        "total_s": round(total_s, 3),
        "mean_s": round(total_s / max(1, len(seconds)), 4),
        "last_s": round(float(seconds[-1]), 4) if len(seconds) else None,
        "share": round(total_s / whole_s, 4) if whole_s > 0 else None,
        "steps": len(seconds),
    }
