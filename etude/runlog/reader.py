"""Reads a run folder as it stands, also while it is written; never changes anything."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etude.records import EtudeError
from etude.runlog.rows import Row, rows_of
from etude.runlog.tail import Tail, last_lines, spread_lines

FORMAT = "etude run 1"
CHECKPOINT_FILE = "checkpoint.json"
LATEST_BYTES = 1 << 17
"""Of metrics.jsonl that `latest` reads: about a hundred steps."""
LINE_BYTES = 1 << 12

STEP_NAME = re.compile(r"([0-9]{6,})(?:\.jsonl\.gz)?")
State = Literal["running", "finished", "stopped"]


@dataclass(frozen=True)
class RunInfo:
    """What stands in run.json. algorithm: the verb that made the run; total_steps: how many it plans."""

    algorithm: str
    total_steps: int | None = None
    created: str = ""
    version: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. metric: what the best is chosen by, higher is better; None takes no part."""

    step: int
    folder: Path
    metric: float | None = None


class RunReader:
    """A run as it stands, also while it is written; never changes anything."""

    def __init__(self, folder: Path) -> None:
        """EtudeError if it is no run folder."""
        self.folder = Path(folder)
        path = self.folder / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            written = record.pop("format")
            if written != FORMAT:
                raise EtudeError(f"{folder} has the layout {written!r}; this version reads {FORMAT!r}")
            self.info = RunInfo(**record)
        except FileNotFoundError:
            raise EtudeError(f"{folder} is no run: it has no run.json") from None
        except EtudeError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EtudeError(f"{path} cannot be read: {error}") from error
        self._tail = Tail(self.folder / "metrics.jsonl")

    @property
    def config(self) -> dict[str, Any]:
        """The settings. EtudeError if they cannot be read."""
        try:
            return tomllib.loads(self.config_text)
        except ValueError as error:
            raise EtudeError(f"{self.folder / 'config.toml'} cannot be read: {error}") from error

    @property
    def config_text(self) -> str:
        """config.toml as it stands there. EtudeError if it cannot be read."""
        path = self.folder / "config.toml"
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EtudeError(f"{path} cannot be read: {error}") from error

    @property
    def state(self) -> State:
        """ "running" while a process holds it; "finished" with a final model; else "stopped"."""
        try:
            descriptor = os.open(self.folder / ".lock", os.O_RDONLY)
        except OSError:
            held = False
        else:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                held = False
            except OSError:
                held = True
            finally:
                os.close(descriptor)
        if held:
            return "running"
        return "finished" if (self.folder / "final").is_dir() else "stopped"

    def metrics(self) -> list[Row]:
        """All steps."""
        return [row for _, row in rows_of(read_bytes(self.folder / "metrics.jsonl"))]

    def new_metrics(self) -> list[Row]:
        """The steps that were written since the last call. After a resume it begins anew."""
        _, lines = self._tail.read()
        return [row for _, row in rows_of(lines)]

    def latest(self) -> Row:
        """Every number of the last steps as it was last, without reading the whole file; {} before a step."""
        found: Row = {}
        for _, row in rows_of(last_lines(self.folder / "metrics.jsonl", LATEST_BYTES)):
            found |= row
        return found

    def sampled(self, n: int) -> list[Row]:
        """About n steps spread over the run, without reading the whole file; all of a short run."""
        return [row for _, row in rows_of(spread_lines(self.folder / "metrics.jsonl", n, LINE_BYTES))]

    @property
    def updated_at(self) -> float:
        """When a step was last written, in seconds since 1970."""
        for name in ("metrics.jsonl", "run.json"):
            if (self.folder / name).exists():
                return (self.folder / name).stat().st_mtime
        return 0.0

    def doctor(self) -> list[Row]:
        """What the doctor said."""
        return [row for _, row in rows_of(read_bytes(self.folder / "doctor.jsonl"))]

    def rollout_steps(self) -> list[int]:
        """The steps of which rollouts are stored."""
        return sorted(steps_in(self.folder / "rollouts"))

    def rollouts(self, step: int) -> list[Row]:
        """What was sampled in a step, as `rollout_row` wrote it. EtudeError if that step is not stored."""
        path = self.folder / "rollouts" / f"{step:06d}.jsonl.gz"
        try:
            data = gzip.decompress(path.read_bytes())
        except FileNotFoundError:
            raise EtudeError(f"{self.folder} has no rollouts of step {step}") from None
        except (OSError, EOFError) as error:
            raise EtudeError(f"{path} cannot be read: {error}") from error
        return [row for _, row in rows_of(data)]

    def checkpoints(self) -> list[Checkpoint]:
        """Those that are whole, by step."""
        return sorted(checkpoints_in(self.folder), key=lambda checkpoint: checkpoint.step)

    def best(self) -> Checkpoint | None:
        """The one with the highest metric, the first of equals."""
        return best_of(self.checkpoints())


def find_runs(folder: Path) -> list[RunReader]:
    """The runs below a folder, the newest first; what is no run is passed over."""
    runs = []
    for path in sorted(folder.glob("*/run.json")):
        try:
            runs.append(RunReader(path.parent))
        except EtudeError:
            continue
    return sorted(runs, key=lambda run: run.info.created, reverse=True)


def best_of(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The highest metric; the first of equals."""
    rated = [checkpoint for checkpoint in checkpoints if checkpoint.metric is not None]
    return max(rated, key=lambda checkpoint: (checkpoint.metric or 0.0, -checkpoint.step), default=None)


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Those that are whole."""
    found = []
    for step in steps_in(folder / "checkpoints"):
        path = folder / "checkpoints" / f"{step:06d}"
        try:
            record = json.loads((path / CHECKPOINT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append(Checkpoint(step, path, record["metric"]))
    return found


def steps_in(folder: Path) -> Iterator[int]:
    if folder.is_dir():
        for entry in folder.iterdir():
            if match := STEP_NAME.fullmatch(entry.name):
                yield int(match[1])


def read_bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
