"""`etude dpo`: a model learns from preferences or labels, without a reward model.

What is learnt from is put together here; the algorithms are in train/dpo.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from etude.data import load_labelled, load_preferences
from etude.learner.batch import Sample
from etude.learner.learner import Learner
from etude.recipes.assembly import refuse_without_effect, save_final, settled
from etude.recipes.reward_model import comparisons, labelled_samples, n_tokens_of
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
from etude.records import EtudeError
from etude.train import dpo as algorithm
from etude.train.comparisons import Comparison
from etude.train.dpo import DPOSettings, Labels, Pairs
from etude.train.epochs import n_tokens
from etude.train.run import Job, Report, Run

RATES = Rates(algorithm.LEARNING_RATE, algorithm.LORA_LEARNING_RATE, algorithm.EPOCHS)


@dataclass(frozen=True)
class DpoConfig(TextConfig):
    """Everything that a run is made of: a table each."""

    dpo: DPOSettings = field(default_factory=DPOSettings)


def steps(config: DpoConfig, job: Job) -> Iterator[Report]:
    """Train, step by step; the final model is written after the last one."""
    config, job = settled(config, job)
    with assembled(config, job) as made:
        yield from run_through(job, config, "dpo", made)


def probe(config: DpoConfig, job: Job) -> str:
    """What a step will take, tried for a few seconds; nothing stays."""
    with assembled(config, job) as made:
        return tried_text(config, made)


@contextmanager
def assembled(config: DpoConfig, job: Job) -> Iterator[Assembled]:
    """Read the data, load the model."""
    refuse_without_effect(job.written, ("optimizer.head_learning_rate",), "DPO has no scalar head")
    objective = config.dpo.objective()
    pairs: tuple[list[Comparison], list[Comparison]] = ([], [])
    labels: tuple[list[Sample], list[Sample]] = ([], [])
    if objective.labels:
        labels = labelled_of(config, job)
    else:
        pairs = pairs_of(config, job)
    epochs = epochs_of(config, len(labels[0] or pairs[0]), RATES)
    trained = trained_of(config, epochs, RATES)

    def begin(learner: Learner) -> Callable[[Run], Iterator[Report]]:
        # the reference is the model before anything of a run is restored
        data = (
            Labels.of(objective, learner, *labels)
            if objective.labels
            else Pairs.of(objective, learner, *pairs)
        )
        return lambda run: algorithm.dpo(learner, data, epochs, config.eval, run)

    with closing(trained.source):
        yield Assembled(trained, epochs, begin, lambda run: save_final(run, trained, config.model.name))


def pairs_of(config: DpoConfig, job: Job) -> tuple[list[Comparison], list[Comparison]]:
    """(to train on, held out)."""
    both = parted(config, job.written, load_preferences, lambda one: one.messages)
    with reading(config.model) as (prompts, model):
        training, held_out = (
            short_enough(comparisons(prompts, some, True), n_tokens_of, config, model, "comparisons")
            for some in both
        )
    if not training:
        raise EtudeError(f"{config.data.train}: in every pair the two answers are the same")
    return training, held_out


def labelled_of(config: DpoConfig, job: Job) -> tuple[list[Sample], list[Sample]]:
    """(to train on, held out), for KTO; from pairs too."""
    both = parted(config, job.written, load_labelled, lambda one: one.messages)
    with reading(config.model) as (prompts, model):
        training, held_out = (
            short_enough(labelled_samples(prompts, some, True), n_tokens, config, model, "answers")
            for some in both
        )
    return training, held_out
