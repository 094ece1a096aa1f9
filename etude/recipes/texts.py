"""What trainings on given texts have in common: their tables, what is held out, the steps of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from etude.data import Order, split, without
from etude.learner.learner import Learner
from etude.learner.local import ComputeSettings
from etude.learner.lora import LoraSettings
from etude.model.checkpoint import config_of, open_source
from etude.model.family import ModelConfig
from etude.model.heads import ScalarHead
from etude.model.pull import resolve
from etude.recipes.assembly import Trained, learner_of, refuse_without_effect
from etude.recipes.probe import Probed, tried
from etude.records import EtudeError, Message, Problem
from etude.rollout import PromptWriter
from etude.train.answers import prompt_writer
from etude.train.epochs import BatchSettings, Epochs, LossEvalSettings, TextRunSettings, TextSettings
from etude.train.run import Job, Report, Run, opened
from etude.train.settings import ModelSettings, OptimizerSettings

Item = TypeVar("Item")
Record = TypeVar("Record")


@dataclass(frozen=True)
class TextConfig:
    """The tables that these trainings share. lora None: the whole model is trained."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    data: TextSettings = field(default_factory=TextSettings)
    batches: BatchSettings = field(default_factory=BatchSettings)
    eval: LossEvalSettings = field(default_factory=LossEvalSettings)
    run: TextRunSettings = field(default_factory=TextRunSettings)


@dataclass(frozen=True)
class Rates:
    """Learning rates of an algorithm, whole and with LoRA, and how often it goes through the data, where the
    settings say neither."""

    full: float
    lora: float
    epochs: float


@contextmanager
def reading(model: ModelSettings) -> Iterator[tuple[PromptWriter, ModelConfig]]:
    """How messages become ids of a model, before its weights are loaded."""
    with closing(open_source(resolve(model.name))) as source:
        yield prompt_writer(source, model.chat_template), config_of(source)


def parted(
    config: TextConfig,
    written: Mapping[str, str],
    load: Callable[[str], Sequence[Record]],
    prompt_of: Callable[[Record], Sequence[Message]],
) -> tuple[list[Record], list[Record]]:
    """(to train on, held out), with no prompt on both sides."""
    data = config.data
    if not data.train:
        raise EtudeError(
            'data.train is missing: name a file or a generator, such as --data.train "mine.jsonl"'
        )
    records = list(load(data.train))[: data.limit]
    asked = [Problem(str(at), tuple(prompt_of(one))) for at, one in enumerate(records)]
    held: list[Record] = []
    if data.held_out is not None:
        held = list(load(data.held_out))
        kept = without(asked, [Problem(str(at), tuple(prompt_of(one))) for at, one in enumerate(held)])
        if not kept:
            raise EtudeError(f"all prompts of {data.train} are also in {data.held_out}: nothing is left")
    elif data.held_out_size:
        kept, apart = split(asked, data.held_out_size, seed=config.run.seed)
        held = [records[int(one.id)] for one in apart]
    else:
        kept = asked
        why = "nothing is held out; set data.held_out or data.held_out_size"
        refuse_without_effect(written, ("eval",), why)
    return [records[int(one.id)] for one in kept], held[: config.eval.limit]


def short_enough(
    items: Sequence[Item],
    n_tokens: Callable[[Item], int],
    config: TextConfig,
    model: ModelConfig,
    what: str,
) -> list[Item]:
    """The items that are not longer than the settings and the model allow; says how many are left out."""
    limit = min(config.batches.max_tokens, model.context_length)
    kept = [item for item in items if n_tokens(item) <= limit]
    if not kept and items:
        shortest = min(map(n_tokens, items))
        raise EtudeError(
            f"batches.max_tokens is {config.batches.max_tokens} and the model's context "
            f"{model.context_length}, but the shortest of the {what} has {shortest} tokens: raise the first, "
            "or choose other data"
        )
    if len(kept) < len(items):
        left_out = len(items) - len(kept)
        print(f"{left_out} of {len(items)} {what} are longer than {limit} tokens, left out", file=sys.stderr)
    return kept


def epochs_of(config: TextConfig, n: int, rates: Rates) -> Epochs:
    """The way of a run through n items."""
    order = Order(n, config.run.seed, shuffled=config.data.shuffle)
    return Epochs.of(order.span, n, config.batches, rates.epochs)


def trained_of(
    config: TextConfig, epochs: Epochs, rates: Rates, *, head: ScalarHead | None = None
) -> Trained:
    """The learner, with the schedule of the run's steps."""
    rate = rates.full if config.lora is None else rates.lora
    optimizer = config.optimizer.adamw(rate, epochs.steps)
    return learner_of(config.model, config.compute, optimizer, config.lora, head=head)


@dataclass(frozen=True)
class Assembled:
    """Everything that a run works with. begin: a learner as training finds it → what trains it. finish:
    writes the finished model."""

    trained: Trained
    epochs: Epochs
    begin: Callable[[Learner], Callable[[Run], Iterator[Report]]]
    finish: Callable[[Run], object]


def run_through(job: Job, config: TextConfig, algorithm: str, made: Assembled) -> Iterator[Report]:
    """The run: its steps, and the finished model unless it was stopped."""
    train = made.begin(made.trained.learner)
    with opened(
        job,
        config.run.of_steps(made.epochs.steps),
        algorithm,
        {"policy": made.trained.learner},
        saves_every_step=config.lora is not None,
        checkpoint_bytes=made.trained.checkpoint_bytes,
    ) as run:
        for report in train(run):
            yield report
            if report.stopped:
                return
        made.finish(run)


def tried_text(config: TextConfig, made: Assembled) -> str:
    """What a step will take, tried for a few seconds; nothing stays."""
    learner = Probed(made.trained.learner)
    train, settings = made.begin(learner), config.run.of_steps(made.epochs.steps)
    learner.unpaid()  # what `begin` has computed is no part of a step
    return tried(settings, [learner], train).text(settings.steps, config.eval.every)
