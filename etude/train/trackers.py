"""A run's numbers copied to where one is used to look: TensorBoard, trackio or wandb.

    run.tracker = "tensorboard"        RUN/tensorboard;  tensorboard --logdir runs
    run.tracker = "trackio"            its own database; trackio show --project etude
    run.tracker = "wandb"              RUN/wandb, offline unless WANDB_MODE says otherwise; wandb sync

Rows of metrics.jsonl go there as they are written; nothing is read back, and the run folder stays complete
without them. A resumed run goes on in the same place, and each step is there once. The packages are no
dependencies: what is missing is said before training.
"""

from __future__ import annotations

import math
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from etude.records import EtudeError

PROJECT = "etude"


class Tracker(Protocol):
    """What rows are copied to."""

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """The numbers of a step."""

    def close(self) -> None:
        """Everything is written."""


class TensorBoard:
    """Scalars as event files, by the writer that comes with torch. On resume it marks what follows the last
    checkpoint as void: TensorBoard then shows the repeated steps once."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=first_step or None)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run of trackio's project "etude" with the name of the folder, in its local database. It cannot take
    back a row: repeated steps that it has are left out (they are the same)."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
        self._trackio = import_module("trackio")
        with redirect_stdout(sys.stderr):  # it greets; the output is for the run's folder
            self._run = self._trackio.init(
                PROJECT,
                folder.name,
                config=dict(config),
                resume="allow" if first_step else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        # one more than the last step that has arrived; trackio has no public way to ask
        self._first = self._run._next_step if first_step else 0

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        if step >= self._first:
            self._run.log(numbers(row), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


class Wandb:
    """A run of wandb's project "etude" (or WANDB_PROJECT), written to the folder. Its id stays with the run;
    a server ignores steps that it has had."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
        wandb = import_module("wandb")
        place = folder / "wandb"
        place.mkdir(exist_ok=True)
        id_file = place / "run-id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        self._run.log(numbers(row), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: Mapping[str, tuple[Callable[[Path, Mapping[str, Any], int], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "trackio": (Trackio, "trackio"),
    "wandb": (Wandb, "wandb"),
}
"""Name → how it is opened, and its package."""


def check_tracker(name: str | None) -> None:
    """EtudeError if its package is not installed."""
    if name is not None and find_spec(TRACKERS[name][1]) is None:
        package = TRACKERS[name][1]
        raise EtudeError(
            f'run.tracker is "{name}", but {package} is not installed: pip install {package}, or leave '
            "run.tracker out (metrics.jsonl in the run folder has every number)"
        )


def open_tracker(
    name: str | None, folder: Path, config: Mapping[str, Any], first_step: int
) -> Tracker | None:
    """None for None. first_step: that the run begins with; 0: it is new."""
    return None if name is None else TRACKERS[name][0](folder, config, first_step)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn: the finite numbers, without the step.

    >>> numbers({"step": 3, "reward/mean": 0.5, "kl": float("nan"), "note": "x"})
    {'reward/mean': 0.5}
    """
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
