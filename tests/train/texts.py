"""Tiny models that know bytes, conversations and pairs, and runs of a few steps, for trainings on texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from etude.data import Order, Preference
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings
from etude.model.heads import ScalarHead
from etude.model.transformer import load_transformer
from etude.records import Message
from etude.rollout import PromptWriter
from etude.train.answers import prompt_writer
from etude.train.epochs import BatchSettings, Epochs, TextRunSettings
from etude.train.run import Job, Report, Run, opened

WORDS = ("river", "stone", "cloud", "lamp", "seven", "green", "north", "bread", "silver", "winter")


def learner_of(
    path: Path, rate: float = 3e-3, *, head: bool = False, lora: bool = False, max_tokens: int = 1024
) -> LocalLearner:
    transformer, source = load_transformer(path)
    source.close()
    scalar = ScalarHead(transformer.config.d_model).initialize(torch.Generator().manual_seed(3))
    return LocalLearner(
        transformer,
        AdamWSettings(learning_rate=rate),
        compute=ComputeSettings(dtype="f32", max_tokens=max_tokens),
        lora=LoraSettings(rank=4) if lora else None,
        head=scalar if head else None,
    )


@contextmanager
def writer_of(path: Path, template: str | None = None) -> Iterator[PromptWriter]:
    _, source = load_transformer(path)
    with source:
        yield prompt_writer(source, template)


def pairs(n: int, seed: int = 0, *, twins: bool = False) -> list[Preference]:
    """The better answer ends with a full stop, the worse one with an exclamation mark. twins: that is all by
    which they differ; else neither their letters nor their lengths say anything."""
    draw = random.Random(seed)
    made = []
    for at in range(n):
        question = (Message("user", f"{draw.choice(WORDS)} {at}?"),)
        good, bad = ("".join(draw.choices("abcdefgh", k=draw.randint(2, 8))) for _ in range(2))
        made.append(Preference(f"p{at}", question, f"{good}.", f"{good if twins else bad}!"))
    return made


def epochs_of(n: int, size: int, steps: int, seed: int = 0) -> Epochs:
    return Epochs.of(Order(n, seed).span, n, BatchSettings(steps=steps, size=size), 1.0)


@contextmanager
def run_of(
    folder: Path, learner: Any, steps: int, *, resume: bool = False, every: int | None = 1
) -> Iterator[Run]:
    settings = TextRunSettings(checkpoint_every=every).of_steps(steps)
    with opened(Job(folder, {}, resume=resume), settings, "test", {"policy": learner}) as run:
        yield run


def interrupted(
    folder: Path, make: Callable[[], Any], train: Callable[[Any, Run], Iterator[Report]], steps: int, at: int
) -> tuple[list[Report], Any]:
    """A run that is dropped after step `at`, and goes on with everything made anew; its later reports."""
    learner = make()
    with run_of(folder, learner, steps) as run:
        for report in train(learner, run):
            if report.step == at:
                break
    learner = make()
    with run_of(folder, learner, steps, resume=True) as run:
        return list(train(learner, run)), learner


def numbers(report: Report) -> dict[str, float]:
    """What does not depend on the clock or the machine."""
    return {k: v for k, v in report.row.items() if not k.startswith("seconds/") and k != "memory_bytes"}


def assert_same_weights(first: LocalLearner, second: LocalLearner) -> None:
    for (name, a), (_, b) in zip(first.weights(), second.weights(), strict=True):
        assert torch.equal(a, b), name
    if first.head is not None and second.head is not None:
        assert torch.equal(first.head.weight, second.head.weight)
        assert torch.equal(first.head.bias, second.head.bias)
