"""Supervised fine-tuning: make given answers likely.

    L = -Σ_i Σ_t log π(y_it | x_i, y_i,<t) / Σ_i |y_i|        t over the tokens of answers only

The tokens of prompts, and of what others say between two answers, are read and not learned. Every answer
token of a step weighs the same, however the step is cut into micro-batches (`losses.token_mean`). Sequences
are packed one behind the other without padding, and none sees another: see learner/batch.py.

    samples = [s for example in read_examples("train.jsonl") for s in conversation_samples(prompts, …)]
    for report in sft(learner, samples, held_out, epochs, evals, run): …
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators, Learner, Outputs
from etude.records import EtudeError
from etude.train.epochs import Epochs, LossEvalSettings, through
from etude.train.losses import negative_log_likelihood, token_mean
from etude.train.run import Report, Run

EPOCHS = 2.0
LEARNING_RATE = 5e-5
LORA_LEARNING_RATE = 2e-4
"""Where the settings name none. R1's cold start goes from 5e-5 to 5e-6 (arXiv:2501.12948, B.4.2)."""


def sft(
    learner: Learner,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    epochs: Epochs,
    evals: LossEvalSettings,
    run: Run,
) -> Iterator[Report]:
    """Train, a report a step. held_out: of which the loss is measured; may be empty."""

    def update(places: Sequence[int]) -> Mapping[str, float]:
        batch = [samples[at] for at in places]
        return learner.update(batch, sft_loss, denominators=Denominators.of(batch))

    def measured() -> Mapping[str, float]:
        return held_out_loss(learner, held_out) if held_out else {}

    return through(epochs, run, update, measured, evals, rating=lambda row: -row["eval/loss"])


def sft_loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Mean negative log-likelihood of the step's answer tokens, in nats."""
    loss_C = negative_log_likelihood(outputs["logprobs"])
    return token_mean(loss_C, batch.mask_C, batch.sequence_C, totals), {}


def held_out_loss(learner: Learner, samples: Sequence[Sample]) -> dict[str, float]:
    """eval/loss: mean of the same over all held-out answer tokens; eval/perplexity: e to the power of it."""
    tokens = sum(sum(sample.mask) for sample in samples)
    if not tokens:
        raise EtudeError("what is held out has no answer tokens")
    total = sum(float(row["logprobs"].sum(dtype="float64")) for row in learner.score(samples))
    return {"eval/loss": -total / tokens, "eval/perplexity": math.exp(min(-total / tokens, 700.0))}
