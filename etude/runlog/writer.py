"""Writes a run folder; the process that does may be killed at any moment."""

from __future__ import annotations

import gzip
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from etude.records import EtudeError
from etude.runlog.files import (
    LEFTOVER,
    LEFTOVERS,
    append_line,
    check_room,
    naming,
    new_folder,
    remove,
    take_lock,
    write_atomic,
)
from etude.runlog.reader import (
    CHECKPOINT_FILE,
    FORMAT,
    STEP_NAME,
    Checkpoint,
    RunInfo,
    RunReader,
    best_of,
    checkpoints_in,
)
from etude.runlog.rows import json_line, rows_of
from etude.runlog.toml import to_toml

_BEGINNING = {
    ".lock", "rollouts", "checkpoints", "config.toml", "metrics.jsonl", "doctor.jsonl", f"{LEFTOVER}room",
    *(f"{LEFTOVER}{name}" for name in ("config.toml", "metrics.jsonl", "doctor.jsonl", "run.json")),
}  # fmt: skip
"""What `create` makes before run.json; a folder with nothing else is one that it was killed in."""

SPARE_BYTES = 64 << 20
"""What must be free beside checkpoints and rollouts: metrics, and what others write meanwhile."""


def run_bytes(checkpoint_bytes: int, rollout_bytes: int, keep_last: int) -> int:
    """What a run takes at most: the last checkpoints, the best, and the one that is being written, whose
    place the final model has afterwards: it is smaller, having no optimizer."""
    return SPARE_BYTES + rollout_bytes + checkpoint_bytes * (keep_last + 2)


class RunWriter:
    """The one process that writes a run. Use `create` or `resume`, and close it."""

    def __init__(self, folder: Path, lock: int, *, keep_last: int) -> None:
        self.folder = folder
        self._lock = lock
        self._keep_last = keep_last

    @classmethod
    def create(
        cls,
        folder: Path,
        config: Mapping[str, Any] | str,
        info: RunInfo,
        *,
        keep_last: int = 2,
        checkpoint_bytes: int = 0,
        rollout_bytes: int = 0,
    ) -> Self:
        """Begin a run in a new or empty folder. config: settings, or their TOML text. checkpoint_bytes: the
        size of one checkpoint, rollout_bytes: of all rollouts, to see now whether everything has room.

        EtudeError if the folder cannot be written, has too little room, or holds something already.
        """
        if keep_last < 1:
            raise EtudeError(f"keep_last is {keep_last}; at least the last checkpoint must be kept")
        text = config if isinstance(config, str) else to_toml(config)
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if any(entry.name not in _BEGINNING for entry in folder.iterdir()):
                raise EtudeError(
                    f"{folder} is not empty; resume the run that is in it, or choose another name"
                )
            lock = take_lock(folder)
        try:
            with naming(folder):
                check_room(folder, run_bytes(checkpoint_bytes, rollout_bytes, keep_last))
                for name in ("rollouts", "checkpoints"):
                    (folder / name).mkdir(exist_ok=True)
                write_atomic(folder / "config.toml", text.encode())
                for name in ("metrics.jsonl", "doctor.jsonl"):
                    write_atomic(folder / name, b"")
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                info = RunInfo(info.algorithm, info.total_steps, info.created or stamp, info.version)
                # last: a folder with run.json is whole
                write_atomic(folder / "run.json", json_line({"format": FORMAT, **asdict(info)}))
            return cls(folder, lock, keep_last=keep_last)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def resume(
        cls, folder: Path, *, keep_last: int = 2, checkpoint_bytes: int = 0, rollout_bytes: int = 0
    ) -> Self:
        """Go on with a run: as it was after its last checkpoint, or before its first step. EtudeError if it
        is no run, another process writes it, or what is still to come has no room."""
        RunReader(folder)  # whether it is one
        with naming(folder):
            lock = take_lock(folder)
        writer = cls(folder, lock, keep_last=keep_last)
        try:
            with naming(folder):
                writer._go_back()
                there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                needed = run_bytes(checkpoint_bytes, rollout_bytes, keep_last) - there
                check_room(folder, max(needed, SPARE_BYTES + checkpoint_bytes))
        except BaseException:
            os.close(lock)
            raise
        return writer

    @property
    def last_checkpoint(self) -> Checkpoint | None:
        """What to restore on resume; None: begin again."""
        return max(checkpoints_in(self.folder), key=lambda checkpoint: checkpoint.step, default=None)

    def metrics(self, step: int, row: Mapping[str, Any]) -> None:
        """The numbers of a step. nan and infinities are written as strings, which any JSON reader takes."""
        append_line(self.folder / "metrics.jsonl", json_line({"step": step, **row}))

    def doctor(self, step: int, row: Mapping[str, Any]) -> None:
        """One finding of the doctor."""
        append_line(self.folder / "doctor.jsonl", json_line({"step": step, **row}))

    def rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """What was sampled in a step (`rollout_row`), the whole step at once."""
        body = b"".join(json_line(row) for row in rows)
        write_atomic(self.folder / "rollouts" / f"{step:06d}.jsonl.gz", gzip.compress(body, 3, mtime=0))

    @contextmanager
    def checkpoint(self, step: int, metric: float | None = None) -> Iterator[Path]:
        """An empty folder to save everything in that decides the next step. When the block ends it becomes
        checkpoints/STEP, whole or not at all; then those that are neither among the last nor the best go."""
        final = self.folder / "checkpoints" / f"{step:06d}"
        with new_folder(final) as draft:
            yield draft
            known = metric if metric is not None and math.isfinite(metric) else None
            (draft / CHECKPOINT_FILE).write_bytes(json_line({"step": step, "metric": known}))
        self._prune()

    @contextmanager
    def final(self) -> Iterator[Path]:
        """An empty folder for the finished model: `final/`, whole or not at all."""
        with new_folder(self.folder / "final") as draft:
            yield draft

    def close(self) -> None:
        """Let go of the run."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _prune(self) -> None:
        """Remove checkpoints that need not be kept."""
        found = sorted(checkpoints_in(self.folder), key=lambda checkpoint: checkpoint.step)
        kept = {checkpoint.step for checkpoint in found[-self._keep_last :]}
        best = best_of(found)
        if best is not None:
            kept.add(best.step)
        for checkpoint in found:
            if checkpoint.step not in kept:
                remove(checkpoint.folder)

    def _go_back(self) -> None:
        """To the state after the last checkpoint. Killed in between, it is simply done again."""
        for place in (self.folder, self.folder / "checkpoints", self.folder / "rollouts"):
            place.mkdir(exist_ok=True)
            for entry in place.iterdir():
                if entry.name.startswith(LEFTOVERS):
                    remove(entry)
        last = self.last_checkpoint
        step = last.step if last else -1
        for entry in (self.folder / "checkpoints").iterdir():
            if not (entry / CHECKPOINT_FILE).is_file():
                remove(entry)
        for entry in (self.folder / "rollouts").iterdir():
            match = STEP_NAME.fullmatch(entry.name)
            if match and int(match[1]) > step:
                entry.unlink()
        for name in ("metrics.jsonl", "doctor.jsonl"):
            path = self.folder / name
            old = path.read_bytes() if path.exists() else b""
            new = b"".join(line + b"\n" for line, row in rows_of(old) if row["step"] <= step)
            if new != old or not path.exists():
                write_atomic(path, new)
