"""`etude sft`, and the same from Python: a model learns to give the answers of conversations and texts.

    from etude.recipes.sft import sft

    run = sft("smollm2-135m", "train.jsonl", lora=LoraSettings())

What is learnt from is put together here; the algorithm is train/sft.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import takewhile

from etude.data import Example, load_examples
from etude.learner.batch import Sample
from etude.model.family import ModelConfig
from etude.recipes.assembly import refuse_without_effect, save_final, settled
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
from etude.records import Message
from etude.rollout import PromptWriter
from etude.train import sft as algorithm
from etude.train.answers import conversation_samples
from etude.train.epochs import n_tokens
from etude.train.run import Job, Report

RATES = Rates(algorithm.LEARNING_RATE, algorithm.LORA_LEARNING_RATE, algorithm.EPOCHS)


@dataclass(frozen=True)
class SftConfig(TextConfig):
    """Everything that a run is made of: a table each."""


def steps(config: SftConfig, job: Job) -> Iterator[Report]:
    """Train, step by step; the final model is written after the last one."""
    config, job = settled(config, job)
    with assembled(config, job) as made:
        yield from run_through(job, config, "sft", made)


def probe(config: SftConfig, job: Job) -> str:
    """What a step will take, tried for a few seconds; nothing stays."""
    with assembled(config, job) as made:
        return tried_text(config, made)


@contextmanager
def assembled(config: SftConfig, job: Job) -> Iterator[Assembled]:
    """Read the data, load the model."""
    refuse_without_effect(job.written, ("optimizer.head_learning_rate",), "SFT has no scalar head")
    training, held_out = parted(config, job.written, load_examples, prompt_of)
    with reading(config.model) as (prompts, model):
        samples = samples_of(prompts, training, config, model)
        held = samples_of(prompts, held_out, config, model)
    epochs = epochs_of(config, len(samples), RATES)
    trained = trained_of(config, epochs, RATES)
    with closing(trained.source):
        yield Assembled(
            trained,
            epochs,
            lambda learner: lambda run: algorithm.sft(learner, samples, held, epochs, config.eval, run),
            lambda run: save_final(run, trained, config.model.name),
        )


def samples_of(
    prompts: PromptWriter, examples: Sequence[Example], config: TextConfig, model: ModelConfig
) -> list[Sample]:
    samples = [
        sample
        for group, one in enumerate(examples)
        for sample in conversation_samples(prompts, one.messages, one.learned, group=group, name=one.id)
    ]
    return short_enough(samples, n_tokens, config, model, "samples")


def prompt_of(example: Example) -> list[Message]:
    """What comes before the first answer that is learned; a text is its own prompt."""
    before = takewhile(lambda pair: not pair[1], zip(example.messages, example.learned, strict=True))
    return [message for message, _ in before] or list(example.messages)
