"""`etude reward-model`: a model learns to say which of two answers is better, or whether one is good.

What is learnt from is put together here; the algorithm is train/reward_model.py, the finished reward
train/judge.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from etude.data import Labelled, Preference, load_labelled, load_preferences
from etude.learner.batch import Sample
from etude.model.family import ModelConfig
from etude.model.heads import ScalarHead
from etude.recipes.assembly import Trained, settled
from etude.recipes.texts import (
    Assembled,
    Rates,
    TextConfig,
    epochs_of,
    parted,
    reading,
    run_through,
    short_enough,
    trained_of,
    tried_text,
)
from etude.records import EtudeError, Problem
from etude.rollout import PromptWriter
from etude.train import reward_model as algorithm
from etude.train.comparisons import Comparison, Judged, comparisons_of
from etude.train.epochs import n_tokens
from etude.train.judge import (
    RewardRecord,
    judged_sample,
    save_reward_model,
    score_moments,
    without_thoughts,
)
from etude.train.reward_model import CENTRING, Pairwise, Pointwise, RewardModelSettings, scores_of
from etude.train.run import Job, Report, Run

RATES = Rates(algorithm.LEARNING_RATE, algorithm.LORA_LEARNING_RATE, algorithm.EPOCHS)
NORMALISED_ON = 2000
"""Answers of the training data that the scores' mean and deviation are taken over."""


@dataclass(frozen=True)
class RewardModelConfig(TextConfig):
    """Everything that a run is made of: a table each."""

    reward_model: RewardModelSettings = field(default_factory=RewardModelSettings)


def steps(config: RewardModelConfig, job: Job) -> Iterator[Report]:
    """Train, step by step; the finished reward model is written after the last one."""
    if config.run.final == "gguf":
        raise EtudeError("run.final is gguf; a reward model is written as a folder: write folder, or none")
    config, job = settled(config, job)
    with assembled(config, job) as made:
        yield from run_through(job, config, "reward-model", made)


def probe(config: RewardModelConfig, job: Job) -> str:
    """What a step will take, tried for a few seconds; nothing stays."""
    with assembled(config, job) as made:
        return tried_text(config, made)


@contextmanager
def assembled(config: RewardModelConfig, job: Job) -> Iterator[Assembled]:
    """Read the data, load the model, with a new head."""
    data, n_items, model = data_of(config, job)
    epochs = epochs_of(config, n_items, RATES)
    generator = torch.Generator().manual_seed(config.run.seed)
    head = ScalarHead(model.d_model).initialize(generator).to(config.model.device)
    trained = trained_of(config, epochs, RATES, head=head)
    with closing(trained.source):
        yield Assembled(
            trained,
            epochs,
            lambda learner: lambda run: algorithm.reward_model(learner, data, epochs, config.eval, run),
            lambda run: finish(run, trained, config, data),
        )


def data_of(config: RewardModelConfig, job: Job) -> tuple[Pairwise | Pointwise, int, ModelConfig]:
    """(what is learnt from and measured on, how many items, the model's shape)."""
    settings = config.reward_model
    with reading(config.model) as (prompts, model):
        if settings.kind == "pointwise":
            labels = parted(config, job.written, load_labelled, lambda one: one.messages)
            samples, held = (labelled_samples(prompts, some, settings.thoughts) for some in labels)
            kept = short_enough(samples, n_tokens, config, model, "answers")
            return Pointwise(kept, held), len(kept), model
        pairs = parted(config, job.written, load_preferences, lambda one: one.messages)
        both = (comparisons(prompts, some, settings.thoughts) for some in pairs)
        training, held_out = (short_enough(c, n_tokens_of, config, model, "comparisons") for c in both)
    if not training:
        raise EtudeError(f"{config.data.train}: in every pair the two answers are the same")
    centring = CENTRING if settings.centring is None else settings.centring
    return Pairwise(training, held_out, centring, bool(settings.margins)), len(training), model


def comparisons(prompts: PromptWriter, pairs: Sequence[Preference], thoughts: bool) -> list[Comparison]:
    """Pairs as ids; without thoughts, as a reader would see the answers."""
    if not thoughts:
        pairs = [
            replace(
                one,
                chosen=without_thoughts(prompts, one.chosen),
                rejected=without_thoughts(prompts, one.rejected),
            )
            for one in pairs
        ]
    return comparisons_of(prompts, pairs)


def n_tokens_of(comparison: Comparison) -> int:
    return comparison.n_tokens


def labelled_samples(prompts: PromptWriter, labelled: Sequence[Labelled], thoughts: bool) -> list[Sample]:
    """Answers as the reward will read them, with a column "label"."""
    return [
        replace(
            judged_sample(prompts, Problem(one.id, one.messages), one.completion, thoughts),
            group=group,
            columns={"label": float(one.label)},
        )
        for group, one in enumerate(labelled)
    ]


def finish(run: Run, trained: Trained, config: RewardModelConfig, data: Pairwise | Pointwise) -> None:
    """Model, head and the scores' normalisation into final/."""
    if run.settings.final == "none":
        return
    samples = data.samples if isinstance(data, Pointwise) else Judged.of(data.comparisons).samples
    mean, std = score_moments(scores_of(trained.learner, samples[:NORMALISED_ON]))
    name = config.model.name
    base = str(Path(name).resolve()) if Path(name).exists() else name
    record = RewardRecord(
        kind=config.reward_model.kind,
        mean=mean,
        std=std,
        thoughts=config.reward_model.thoughts,
        chat_template=config.model.chat_template,
        base=None if trained.lora is None else base,
    )
    with run.writer.final() as draft:
        save_reward_model(draft, trained.learner, trained.source, record)
