"""Training on given texts: the settings that such verbs have in common, and the steps through the data.

    [data]     TextSettings        [batches]  BatchSettings
    [eval]     LossEvalSettings    [run]      TextRunSettings

They say less than those of settings.py, because nothing is sampled: a setting without effect is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etude.learner.batch import Sample
from etude.records import EtudeError
from etude.train.run import Clock, Report, Run, Stopping, memory_bytes
from etude.train.settings import RunSettings


@dataclass(frozen=True)
class TextSettings:
    """What is learnt from. train: a file, a folder, owner/name, or a generator (docs/data.md).

    held_out: what is measured on, likewise; or held_out_size: so many different prompts of `train` are set
    apart. limit: only the first of train.
    """

    train: str = ""
    held_out: str | None = None
    held_out_size: int = 0
    limit: int | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.held_out is not None and self.held_out_size:
            raise EtudeError("data.held_out_size has no effect beside data.held_out: leave one of them out")
        if self.held_out_size < 0 or (self.limit is not None and self.limit < 1):
            raise EtudeError("data.held_out_size must be at least 0, and data.limit at least 1")


@dataclass(frozen=True)
class BatchSettings:
    """How much at a time. epochs: times through the data (None: 2 for SFT, else 1), or steps: so many.

    size: conversations, or prompts with all their answers, of a step. max_tokens: of a sequence; longer ones
    are left out and counted, because an answer that is cut teaches to stop in the middle.
    """

    epochs: float | None = None
    steps: int | None = None
    size: int = 32
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise EtudeError("batches.epochs has no effect beside batches.steps: leave one of them out")
        for name in ("epochs", "steps", "size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EtudeError(f"batches.{name} is {value}; it must be above 0")


@dataclass(frozen=True)
class LossEvalSettings:
    """Held-out numbers at step 0, every so many steps, and at the end. every 0: only at 0 and the end. limit:
    only the first of what is held out."""

    every: int = 50
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.every < 0 or (self.limit is not None and self.limit < 1):
            raise EtudeError("eval.every must be at least 0, and eval.limit at least 1")

    def is_due(self, step: int, total_steps: int) -> bool:
        return step in (0, total_steps) or (self.every > 0 and step % self.every == 0)


@dataclass(frozen=True)
class TextRunSettings:
    """Where a run is written; as `RunSettings`, whose number of steps follows from the batches here."""

    seed: int = 0
    folder: str = "runs"
    name: str | None = None
    checkpoint_every: int | None = None
    keep_last: int = 2
    final: Literal["folder", "gguf", "none"] = "folder"
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = None

    def of_steps(self, steps: int) -> RunSettings:
        return RunSettings(
            steps=steps,
            seed=self.seed,
            folder=self.folder,
            name=self.name,
            checkpoint_every=self.checkpoint_every,
            keep_last=self.keep_last,
            rollouts_every=0,
            final=self.final,
            tracker=self.tracker,
        )


@dataclass(frozen=True)
class Epochs:
    """Which items each step takes; they follow from the step's number, so that resuming needs no state.

    order(start, n): n places from a position of an endless sequence on (`data.Order.span`). per_epoch: how
    many items there are. items: of all steps together; the last step has what is left over.
    """

    order: Callable[[int, int], list[int]]
    per_epoch: int
    items: int
    size: int

    @classmethod
    def of(
        cls, order: Callable[[int, int], list[int]], n: int, batches: BatchSettings, epochs: float
    ) -> Epochs:
        """n: how many items there are. epochs: where the settings leave it to the algorithm."""
        if batches.steps is not None:
            return cls(order, n, batches.steps * batches.size, batches.size)
        times = epochs if batches.epochs is None else batches.epochs
        return cls(order, n, max(1, round(times * n)), batches.size)

    @property
    def steps(self) -> int:
        return math.ceil(self.items / self.size)

    def at(self, step: int) -> list[int]:
        """Places of the items of a step, from 1."""
        start = (step - 1) * self.size
        return self.order(start, min(self.size, self.items - start))

    def progress(self, step: int) -> float:
        """Times through the data after a step."""
        return min(step * self.size, self.items) / self.per_epoch


def through(
    epochs: Epochs,
    run: Run,
    update: Callable[[Sequence[int]], Mapping[str, float]],
    measured: Callable[[], Mapping[str, float]],
    evals: LossEvalSettings,
    rating: Callable[[Mapping[str, float]], float],
) -> Iterator[Report]:
    """The steps that a run has left, a report of each, and of step 0, before training, if anything is held
    out.

    update: one optimizer step on the items at some places. measured: numbers of what is held out, {} if
    nothing is; rating: what the best checkpoint is chosen by, of these. After Ctrl-C the step is finished,
    saved, and the last to be reported.
    """
    total = epochs.steps
    if run.step == 0 and (row := measured()):
        yield Report(0, total, row, findings=run.record(0, row))
    with Stopping() as stopping:
        for step in range(run.step + 1, total + 1):
            clock = Clock()
            row = {**update(epochs.at(step)), "epoch": epochs.progress(step)}
            clock.lap("update")
            metric = None
            if evals.is_due(step, total) and (found := measured()):
                row |= found
                metric = rating(found)
                clock.lap("eval")
            row |= clock.row() | {"memory_bytes": float(memory_bytes())}
            report = run.finish(step, row, metric=metric, stopped=stopping.asked)
            yield report
            if report.stopped:
                return


def n_tokens(sample: Sample) -> int:
    return len(sample.prompt_ids) + len(sample.completion_ids)
