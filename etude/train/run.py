"""What every training does around its algorithm, as functions: a run folder, checkpoints, resume, the end.

    job = Job(folder, resume=False, config=settings, written={})
    with opened(job, settings.run, "grpo", learners) as run:         new, or after its last checkpoint
        for step in run.remaining():
            …
            run.finish_step(step, row, rollouts)                     files, doctor, checkpoint if one is due

A run that was killed repeats the steps since its last checkpoint. Everything that decides a step is in the
checkpoint (weights, optimizer, torch's random state, the algorithm's own small state) or follows from the
seed and the step's number, so the repeated steps are the same to the last bit.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Protocol

from etude.records import EtudeError, Rollout
from etude.runlog import RunInfo, RunReader, RunWriter
from etude.train.doctor import Finding, examine
from etude.train.settings import RunSettings
from etude.train.trackers import Tracker, check_tracker, open_tracker

STATE = "state.json"
SAVING_SHARE = 0.05
"""Share of the time that saving may take where the interval is not given."""
BYTES_PER_S = 200e6
"""How fast a disk is taken to write before the first checkpoint has shown it."""
ROLLOUT_BYTES = 24
"""Of a sampled token in a file of rollouts, compressed, with all its numbers; 13 were measured of four
numbers a token, and there are five."""


class Saved(Protocol):
    """What has a state of its own: a learner."""

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Job:
    """How a training was asked for. folder: of the run. config: its settings as they go into config.toml.
    written: dotted names of the settings that the user wrote, with where; a resumed run has none."""

    folder: Path
    config: Mapping[str, Any]
    written: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False


@dataclass(frozen=True)
class Report:
    """A step that is done. row: its numbers, as in metrics.jsonl; rollouts: what was sampled, [] for
    algorithms that sample nothing; findings: the doctor's; stopped: this is the last one, on request."""

    step: int
    total_steps: int
    row: Mapping[str, float]
    rollouts: Sequence[Rollout] = ()
    findings: Sequence[Finding] = ()
    stopped: bool = False


class Clock:
    """Seconds by phase.

    >>> clock = Clock()
    >>> clock.lap("sampling") >= 0, list(clock.row())
    (True, ['seconds/sampling', 'seconds/step'])
    """

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> float:
        """What has passed since the last lap, added to a phase."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self.seconds[phase] = self.seconds.get(phase, 0.0) + passed
        return passed

    def row(self) -> dict[str, float]:
        return {f"seconds/{phase}": value for phase, value in self.seconds.items()} | {
            "seconds/step": time.perf_counter() - self._start
        }


class Stopping:
    """Ctrl-C (or SIGTERM) once: the step is finished and the run stops; twice: at once, as usual.

    Only in the main thread can signals be heard; elsewhere `asked` stays False. Before the first step and
    after the last, Ctrl-C is as usual.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        except ValueError:  # not the main thread
            self._before.clear()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # not through sys.stderr: the handler may have interrupted a write to it
        os.write(2, b"\nstopping after this step; once more stops at once, and loses the step\n")


class SavingTime:
    """What saving may cost: it earns SAVING_SHARE of the time that passes, and each checkpoint spends what it
    took. One that is due needs to be paid for. The best is taken on credit, if nothing is owed: it is missed
    only where a better one comes within 20 times what the last took to save. At the end of a run saving has
    had SAVING_SHARE of the time, one checkpoint that was lent, and the last."""

    def __init__(self, cost_s: float) -> None:
        """cost_s: of the first checkpoint, as far as is known."""
        self._begun = self._last = time.perf_counter()
        self._cost_s = cost_s
        self._spent_s = 0.0

    @property
    def _earned_s(self) -> float:
        return (time.perf_counter() - self._begun) * SAVING_SHARE - self._spent_s

    def pays(self) -> bool:
        """For a checkpoint, and long enough after the last one."""
        since_s = time.perf_counter() - self._last
        return min(self._earned_s, since_s * SAVING_SHARE) >= self._cost_s

    def lends(self) -> bool:
        return self._earned_s >= 0

    def spend(self, seconds: float) -> None:
        """A checkpoint took that long."""
        self._last, self._cost_s = time.perf_counter(), seconds
        self._spent_s += seconds


def memory_bytes() -> int:
    """Most memory that this process has had at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_folder(settings: RunSettings, verb: str) -> Path:
    """Where a new run goes: FOLDER/NAME, or FOLDER/VERB-NUMBER with the first number that is free."""
    folder = Path(settings.folder)
    if settings.name is not None:
        return folder / settings.name
    number = 1
    while (folder / f"{verb}-{number:03d}").exists():
        number += 1
    return folder / f"{verb}-{number:03d}"


class Run:
    """A run that is under way: its folder, the step it begins with, and when to save."""

    def __init__(
        self,
        writer: RunWriter,
        settings: RunSettings,
        learners: Mapping[str, Saved],
        *,
        saves_every_step: bool,
        checkpoint_bytes: int,
    ) -> None:
        self.writer = writer
        self.settings = settings
        self.state: dict[str, Any] = {}
        self.step = 0
        self.history: list[Mapping[str, Any]] = []
        self.tracker: Tracker | None = None
        self._learners = dict(learners)
        self._every = settings.checkpoint_every or (1 if saves_every_step else None)
        self._saving = SavingTime(checkpoint_bytes / BYTES_PER_S)
        self._best = -float("inf")

    @property
    def folder(self) -> Path:
        return self.writer.folder

    def restore(self) -> bool:
        """Go on from the last checkpoint; False if there is none, and the run begins anew."""
        last = self.writer.last_checkpoint
        if last is None:
            return False
        for name, learner in self._learners.items():
            learner.restore(last.folder / name)
        self.state = json.loads((last.folder / STATE).read_text(encoding="utf-8"))
        self.step = last.step
        reader = RunReader(self.folder)
        self.history = list(reader.metrics())
        best = reader.best()
        if best is not None and best.metric is not None:
            self._best = best.metric
        return True

    def stores_rollouts(self, step: int) -> bool:
        every = self.settings.rollouts_every
        return every > 0 and (step % every == 0 or step == 1)

    def saves(self, step: int, metric: float | None) -> bool:
        """Whether a checkpoint is due: at the interval, at the end, and when the held-out metric is best; a
        regular one is the best one too if it falls on such a step."""
        if step == self.settings.steps:
            return True
        if self._every is not None and step % self._every == 0:
            return True
        if metric is not None and metric > self._best and self._saving.lends():
            return True
        return self._every is None and self._saving.pays()

    def save(self, step: int, metric: float | None = None) -> float:
        """Write a checkpoint; returns the seconds that it took."""
        start = time.perf_counter()
        with self.writer.checkpoint(step, metric) as folder:
            for name, learner in self._learners.items():
                learner.save(folder / name)
            (folder / STATE).write_text(json.dumps(self.state), encoding="utf-8")
        seconds = time.perf_counter() - start
        self._saving.spend(seconds)
        if metric is not None:
            self._best = max(self._best, metric)
        return seconds

    def record(
        self, step: int, row: Mapping[str, Any], rollouts: Sequence[Rollout] = ()
    ) -> Sequence[Finding]:
        """The numbers of a step to the disk; what the doctor finds new in them. rollouts: for examples."""
        self.writer.metrics(step, row)
        if self.tracker is not None:
            self.tracker.log(step, row)
        self.history.append({"step": step, **row})
        findings = examine(self.history, rollouts)
        for finding in findings:
            self.writer.doctor(step, finding.row())
        return findings

    def finish(
        self,
        step: int,
        row: Mapping[str, float],
        rollouts: Sequence[Rollout] = (),
        *,
        metric: float | None = None,
        stopped: bool = False,
    ) -> Report:
        """A step is done: its numbers are written, and a checkpoint if one is due or this is the last step on
        request. metric: of what is held out, if that was measured."""
        findings = self.record(step, row, rollouts)
        if self.saves(step, metric) or stopped:
            self.save(step, metric)
        return Report(step, self.settings.steps, row, rollouts, findings=findings, stopped=stopped)


@contextmanager
def opened(
    job: Job,
    settings: RunSettings,
    algorithm: str,
    learners: Mapping[str, Saved],
    *,
    saves_every_step: bool = False,
    checkpoint_bytes: int = 0,
    sampled_tokens: int = 0,
) -> Iterator[Run]:
    """A new run, or one as it was after its last checkpoint. learners: by the names of their folders in a
    checkpoint. saves_every_step: where the interval is not given. checkpoint_bytes: about the size of one.
    sampled_tokens: of a step, at most.

    EtudeError before anything is trained: the folder is taken, cannot be written or has no room; and while it
    is trained, if the disk fails: with how to go on.
    """
    check_tracker(settings.tracker)
    stored = -(-settings.steps // settings.rollouts_every) if settings.rollouts_every else 0
    sizes = {"checkpoint_bytes": checkpoint_bytes, "rollout_bytes": stored * sampled_tokens * ROLLOUT_BYTES}
    if job.resume:
        writer = RunWriter.resume(job.folder, keep_last=settings.keep_last, **sizes)
    else:
        info = RunInfo(algorithm, settings.steps)
        writer = RunWriter.create(job.folder, job.config, info, keep_last=settings.keep_last, **sizes)
    with writer:
        run = Run(
            writer, settings, learners, saves_every_step=saves_every_step, checkpoint_bytes=checkpoint_bytes
        )
        if job.resume:
            run.restore()
            if run.step >= settings.steps and (job.folder / "final").is_dir():
                raise EtudeError(f"{job.folder} is finished: all {settings.steps} steps are done")
        run.tracker = open_tracker(settings.tracker, job.folder, job.config, run.step + 1 if run.step else 0)
        try:
            yield run
        except EtudeError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise EtudeError(
                f"{error}\n{job.folder} is whole up to its last checkpoint; when that is mended, go on: "
                f"etude {algorithm} --resume {job.folder}"
            ) from error
        finally:
            if run.tracker is not None:
                run.tracker.close()


class Trial(Run):
    """A run of which nothing stays."""

    def saves(self, step: int, metric: float | None) -> bool:
        return False


@contextmanager
def trial(settings: RunSettings) -> Iterator[Run]:
    """A run to see what its steps take, in a folder that goes with it."""
    with TemporaryDirectory(prefix="etude-") as folder:
        info = RunInfo("trial", settings.steps)
        with RunWriter.create(Path(folder) / "trial", {}, info) as writer:
            yield Trial(writer, settings, {}, saves_every_step=False, checkpoint_bytes=0)
