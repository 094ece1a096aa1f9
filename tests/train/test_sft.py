"""Supervised fine-tuning: the mean over answer tokens, packing that changes nothing, learning, resuming."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from etude.data import Order
from etude.learner.batch import Sample
from etude.learner.learner import Denominators
from etude.learner.local import LocalLearner
from etude.model.segments import Layout
from etude.records import EtudeError, Message
from etude.runlog import RunReader
from etude.train.answers import conversation_samples
from etude.train.epochs import BatchSettings, Epochs, LossEvalSettings, TextSettings
from etude.train.run import Report, Run
from etude.train.sft import held_out_loss, sft, sft_loss
from tests.train.texts import (
    WORDS,
    assert_same_weights,
    epochs_of,
    interrupted,
    learner_of,
    numbers,
    run_of,
    writer_of,
)


@pytest.fixture(scope="module")
def samples(tiny: Path) -> list[Sample]:
    """Conversations of two turns: what comes after a word is the word backwards."""
    with writer_of(tiny) as prompts:
        made = []
        for at, word in enumerate(WORDS):
            messages = [
                Message("user", word),
                Message("assistant", word[::-1]),
                Message("user", "again"),
                Message("assistant", word),
            ]
            made += conversation_samples(prompts, messages, (False, True) * 2, group=at, name=str(at))
        return made


def test_the_loss_is_the_mean_over_answer_tokens_only(tiny: Path, samples: list[Sample]) -> None:
    """By hand: logits of each conversation alone, cross-entropy of the tokens in the mask."""
    learner = learner_of(tiny, rate=0.0)
    total, tokens = 0.0, 0
    for sample in samples:
        ids = torch.tensor(sample.prompt_ids + sample.completion_ids)
        with torch.no_grad():
            hidden_TD = learner.transformer(Layout.roots([ids]))
            logprobs_TV = learner.transformer.logits(hidden_TD).log_softmax(-1)
        first = len(sample.prompt_ids)
        for at in np.flatnonzero(sample.mask):
            total -= float(logprobs_TV[first + at - 1, ids[first + at]])
            tokens += 1
    assert 0 < tokens < sum(len(sample.completion_ids) for sample in samples)
    metrics = learner.update(samples, sft_loss, denominators=Denominators.of(samples))
    assert metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["tokens"] == tokens
    found = held_out_loss(learner, samples)
    assert found["eval/loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert found["eval/perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_what_is_not_learned_changes_nothing_but_the_context(tiny: Path, samples: list[Sample]) -> None:
    """The gradient of the first answer alone does not feel the tokens behind it."""
    gradients = []
    for ids in (samples[0].completion_ids, (*samples[0].completion_ids[:-3], 9, 9, 9)):
        first_only = tuple(at < 6 and inside for at, inside in enumerate(samples[0].mask))
        learner = learner_of(tiny, rate=0.0)
        sample = replace(samples[0], completion_ids=ids, mask=first_only)
        learner.update([sample], sft_loss, denominators=Denominators.of([sample]))
        gradients.append(
            [value.grad.clone() for value in learner.transformer.parameters() if value.grad is not None]
        )
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_packing_does_not_contaminate(tiny: Path, samples: list[Sample]) -> None:
    """One pack of all conversations, and each in a micro-batch of its own: the same gradient."""
    found = []
    for max_tokens in (4096, 1):
        learner = learner_of(tiny, rate=0.0, max_tokens=max_tokens)
        metrics = learner.update(samples, sft_loss, denominators=Denominators.of(samples))
        assert metrics["micro_batches"] == (1 if max_tokens == 4096 else len(samples))
        found.append(
            [value.grad.clone() for value in learner.transformer.parameters() if value.grad is not None]
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_it_learns_and_says_so(tiny: Path, samples: list[Sample], tmp_path: Path) -> None:
    learner = learner_of(tiny)
    with run_of(tmp_path / "run", learner, 40, every=40) as run:
        epochs = epochs_of(len(samples), 5, 40)
        reports = list(sft(learner, samples, samples[:4], epochs, LossEvalSettings(every=20), run))
    assert [report.step for report in reports] == list(range(41))
    losses = {report.step: report.row["eval/loss"] for report in reports if "eval/loss" in report.row}
    assert (
        list(losses) == [0, 20, 40] and losses[40] < losses[20] < losses[0] and losses[40] < 0.5 * losses[0]
    )
    assert reports[-1].row["epoch"] == pytest.approx(40 * 5 / len(samples))
    stored = RunReader(tmp_path / "run")
    assert [row["step"] for row in stored.metrics()] == list(range(41))
    assert stored.metrics()[40]["eval/loss"] == losses[40]
    assert stored.best() is not None and stored.best().step == 40


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_is_the_same_to_the_last_bit(
    tiny: Path, samples: list[Sample], tmp_path: Path, lora: bool
) -> None:
    def make() -> LocalLearner:
        return learner_of(tiny, lora=lora)

    def train(learner: LocalLearner, run: Run) -> Iterator[Report]:
        return sft(
            learner, samples, samples[:3], epochs_of(len(samples), 3, 7), LossEvalSettings(every=2), run
        )

    whole = make()
    with run_of(tmp_path / "whole", whole, 7) as run:
        expected = [numbers(report) for report in train(whole, run)]
    # stopped while step 4 is reported: it is recorded and saved, steps 5 to 7 are left
    reports, again = interrupted(tmp_path / "again", make, train, 7, 4)
    assert [report.step for report in reports] == [5, 6, 7]
    assert [numbers(report) for report in reports] == expected[5:]
    assert_same_weights(whole, again)
    assert [r["step"] for r in RunReader(tmp_path / "again").metrics()] == list(range(8))


# ── the steps through the data ──


def test_epochs_see_everything_once_each() -> None:
    epochs = Epochs.of(Order(10, 3).span, 10, BatchSettings(size=4), 2.0)
    assert epochs.steps == 5
    seen = [at for step in range(1, 6) for at in epochs.at(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    assert [epochs.progress(step) for step in (1, 5)] == [0.4, 2.0]
    assert Epochs.of(Order(10, 3).span, 10, BatchSettings(size=4, epochs=0.5), 2.0).steps == 2
    assert Epochs.of(Order(10, 3).span, 10, BatchSettings(size=4, steps=9), 2.0).steps == 9


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(EtudeError, match="epochs has no effect beside"):
        BatchSettings(epochs=1, steps=3)
    with pytest.raises(EtudeError, match="size is 0"):
        BatchSettings(size=0)
    with pytest.raises(EtudeError, match="held_out_size has no effect"):
        TextSettings(held_out="x", held_out_size=3)
