"""DPO and its relatives: losses by hand on a batch, a reference that stays, learning, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.learner.batch import Sample
from etude.learner.learner import Denominators
from etude.learner.local import LocalLearner
from etude.records import EtudeError
from etude.train.comparisons import Comparison, Judged, Pair, comparisons_of
from etude.train.dpo import (
    DPOSettings,
    Labels,
    Pairs,
    dpo,
    gains,
    mismatched,
    reference_logprobs,
    reference_point,
)
from etude.train.epochs import LossEvalSettings
from etude.train.run import Report, Run
from tests.train.texts import (
    assert_same_weights,
    epochs_of,
    interrupted,
    learner_of,
    numbers,
    pairs,
    run_of,
    writer_of,
)

RANKED = Comparison((5, 6, 7), ((8, 2), (9, 10, 2), (11, 2)), (Pair(0, 1), Pair(0, 2)))
SINGLE = Comparison((20, 21), ((8, 12, 2), (9, 2)), (Pair(1, 0),))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def log_odds(mean: float) -> float:
    return mean - math.log1p(-math.exp(mean))


BY_HAND: dict[str, tuple[DPOSettings, Callable[..., float]]] = {
    "sigmoid": (DPOSettings(beta=0.3), lambda w, b, rw, rb, *_: -log_sigmoid(0.3 * (w - rw - b + rb))),
    "smoothed": (
        DPOSettings(beta=0.3, label_smoothing=0.2),
        lambda w, b, rw, rb, *_: (
            -0.8 * log_sigmoid(0.3 * (w - rw - b + rb)) - 0.2 * log_sigmoid(-0.3 * (w - rw - b + rb))
        ),
    ),
    "ipo": (DPOSettings("ipo", tau=0.5), lambda w, b, rw, rb, *_: (w - rw - b + rb - 1) ** 2),
    "orpo": (
        DPOSettings("orpo", weight=0.4),
        lambda w, b, rw, rb, nw, nb: -w / nw - 0.4 * log_sigmoid(log_odds(w / nw) - log_odds(b / nb)),
    ),
    "simpo": (
        DPOSettings("simpo", beta=1.5, gamma=0.7),
        lambda w, b, rw, rb, nw, nb: -log_sigmoid(1.5 * (w / nw - b / nb) - 0.7),
    ),
}


@pytest.fixture(scope="module")
def comparisons(tiny: Path) -> list[Comparison]:
    with writer_of(tiny) as prompts:
        return comparisons_of(prompts, pairs(96, twins=True))


def labelled(comparisons: list[Comparison]) -> list[Sample]:
    return [
        Sample(one.prompt_ids, ids, (True,) * len(ids), 2 * at + place, {"label": float(place == 0)})
        for at, one in enumerate(comparisons)
        for place, ids in enumerate(one.answers)
    ]


def moved(learner: LocalLearner) -> LocalLearner:
    """A policy that is no longer its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in learner.transformer.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return learner


def logprob(learner: LocalLearner, sample: Sample) -> float:
    return float(learner.score([sample])[0]["logprobs"].sum())


# ── losses ──


@pytest.mark.parametrize("max_tokens", [4096, 1], ids=["packed", "apart"])
@pytest.mark.parametrize("name", BY_HAND)
def test_pair_losses_by_hand(tiny: Path, name: str, max_tokens: int) -> None:
    """Of three pairs, two of which share a prompt and its better answer; logprobs are read one by one."""
    settings, by_hand = BY_HAND[name]
    learner = learner_of(tiny, rate=0.0, max_tokens=max_tokens)
    data = Pairs.of(settings.objective(), learner, [RANKED, SINGLE], [RANKED, SINGLE])
    judged = Judged.of([RANKED, SINGLE])
    reference = [logprob(learner, sample) for sample in judged.samples]
    moved(learner)
    policy = [logprob(learner, sample) for sample in judged.samples]
    sizes = [len(sample.completion_ids) for sample in judged.samples]
    terms = [
        by_hand(policy[w], policy[b], reference[w], reference[b], sizes[w], sizes[b])
        for w, b, _ in judged.pairs
    ]
    samples, loss = data.step(learner, [0, 1])
    totals = Denominators.of(samples)
    metrics = learner.update(samples, loss, denominators=totals, whole_groups=True)
    assert metrics["loss"] == pytest.approx(np.mean(terms), rel=1e-4)
    assert data.measured(learner)["eval/loss"] == pytest.approx(np.mean(terms), rel=1e-4)
    assert metrics["micro_batches"] == (1 if max_tokens == 4096 else 2)
    if settings.objective().reference:
        leads = [policy[w] - reference[w] - policy[b] + reference[b] for w, b, _ in judged.pairs]
        assert metrics["margin"] == pytest.approx(np.mean(leads), rel=1e-3)
        assert metrics["accuracy"] == pytest.approx(np.mean([lead > 0 for lead in leads]))


def test_kto_by_hand(tiny: Path, comparisons: list[Comparison]) -> None:
    """λ (1 - σ(±β(r - z_0))), z_0 of the step's prompts with answers to others."""
    learner = learner_of(tiny, rate=0.0)
    samples = labelled(comparisons[:3])
    objective = DPOSettings("kto", beta=0.2, undesirable_weight=1.5).objective()
    data = Labels.of(objective, learner, samples, samples)
    reference = [logprob(learner, sample) for sample in samples]
    strangers = mismatched(samples)
    strange_reference = [logprob(learner, sample) for sample in strangers]
    moved(learner)
    places = [0, 3, 4]
    gain = [logprob(learner, samples[at]) - reference[at] for at in places]
    point = max(
        0.0, float(np.mean([logprob(learner, strangers[at]) - strange_reference[at] for at in places]))
    )
    terms = []
    for at, value in zip(places, gain, strict=True):
        good = at % 2 == 0
        x = 0.2 * (value - point) * (1 if good else -1)
        terms.append((1.0 if good else 1.5) * (1 - 1 / (1 + math.exp(-x))))
    chosen, loss = data.step(learner, places)
    metrics = learner.update(chosen, loss, denominators=Denominators.of(chosen), whole_groups=True)
    assert metrics["loss"] == pytest.approx(np.mean(terms), rel=1e-4)
    assert metrics["reference_point"] == pytest.approx(point, rel=1e-3, abs=1e-4)
    assert gains(learner, data.samples)[3] == pytest.approx(gain[1], rel=1e-3, abs=1e-4)


def test_mismatched_answers_are_of_other_prompts(comparisons: list[Comparison]) -> None:
    samples = labelled(comparisons[:4])
    for sample, other in zip(samples, mismatched(samples), strict=True):
        source = next(s for s in samples if s.completion_ids == other.completion_ids)
        assert other.prompt_ids == sample.prompt_ids != source.prompt_ids
    with pytest.raises(EtudeError, match="all prompts are the same"):
        mismatched(labelled(comparisons[:1]))


def test_a_policy_that_has_not_moved_prefers_nothing(tiny: Path, comparisons: list[Comparison]) -> None:
    learner = learner_of(tiny)
    data = Pairs.of(DPOSettings().objective(), learner, comparisons[:8], comparisons[:8])
    found = data.measured(learner)
    assert found["eval/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert found["eval/margin"] == pytest.approx(0.0, abs=1e-3)


def test_a_reference_is_computed_only_where_it_is_used(tiny: Path, comparisons: list[Comparison]) -> None:
    class Counting(LocalLearner):
        scored = 0

        def score(self, samples: Any, outputs: Any = ("logprobs",), *, adapter: bool = True) -> Any:
            self.scored += len(samples)
            return super().score(samples, outputs, adapter=adapter)

    learner = Counting(learner_of(tiny).transformer)
    Pairs.of(DPOSettings("simpo").objective(), learner, comparisons[:4], [])
    assert learner.scored == 0
    Pairs.of(DPOSettings("ipo").objective(), learner, comparisons[:4], [])
    assert learner.scored == 8
    assert len(reference_logprobs(learner, comparisons[:4])) == 4


# ── learning ──


@pytest.mark.parametrize("settings", [one for one, _ in BY_HAND.values()], ids=list(BY_HAND))
def test_it_learns_to_prefer(
    tiny: Path, comparisons: list[Comparison], tmp_path: Path, settings: DPOSettings
) -> None:
    # losses with a target overshoot it where a step is large
    learner = learner_of(tiny, 3e-4 if settings.objective().reference else 1e-3)
    data = Pairs.of(settings.objective(), learner, comparisons[:64], comparisons[64:])
    with run_of(tmp_path / "run", learner, 24, every=24) as run:
        reports = list(dpo(learner, data, epochs_of(64, 16, 24), LossEvalSettings(every=0), run))
    first, last = reports[0].row, reports[-1].row
    assert last["eval/loss"] < first["eval/loss"] and last["eval/margin"] > first["eval/margin"]
    assert last["eval/accuracy/low"] > 0.5 and last["accuracy"] > 0.6


def test_kto_learns(tiny: Path, comparisons: list[Comparison], tmp_path: Path) -> None:
    learner = learner_of(tiny)
    samples = labelled(comparisons)
    data = Labels.of(DPOSettings("kto").objective(), learner, samples[:128], samples[128:])
    with run_of(tmp_path / "run", learner, 24, every=24) as run:
        reports = list(dpo(learner, data, epochs_of(128, 32, 24), LossEvalSettings(every=0), run))
    assert reports[-1].row["eval/loss"] < reports[0].row["eval/loss"] == pytest.approx(0.5, abs=1e-3)
    assert reports[-1].row["eval/accuracy/low"] > 0.5
    assert reference_point(learner, data.mismatched) >= 0


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_a_resumed_run_is_the_same_to_the_last_bit(
    tiny: Path, comparisons: list[Comparison], tmp_path: Path, loss: Any, lora: bool
) -> None:
    """The reference is computed again before the checkpoint is restored, and is the same."""
    objective = DPOSettings(loss).objective()

    def data_of(learner: LocalLearner) -> Pairs | Labels:
        if loss == "kto":
            samples = labelled(comparisons[:6])
            return Labels.of(objective, learner, samples, samples[:4])
        return Pairs.of(objective, learner, comparisons[:12], comparisons[12:15])

    prepared: list[Pairs | Labels] = []

    def make() -> LocalLearner:
        learner = learner_of(tiny, lora=lora)
        prepared.append(data_of(learner))
        return learner

    def train(learner: LocalLearner, run: Run) -> Iterator[Report]:
        return dpo(learner, prepared[-1], epochs_of(12, 4, 6), LossEvalSettings(every=2), run)

    whole = make()
    with run_of(tmp_path / "whole", whole, 6) as run:
        expected = [numbers(report) for report in train(whole, run)]
    reports, again = interrupted(tmp_path / "again", make, train, 6, 3)
    assert [numbers(report) for report in reports] == expected[4:]
    assert_same_weights(whole, again)


# ── settings ──


def test_numbers_without_effect_are_refused() -> None:
    with pytest.raises(EtudeError, match=r"dpo\.loss ipo: beta would have no effect"):
        DPOSettings("ipo", beta=0.1)
    with pytest.raises(EtudeError, match="label_smoothing would have no effect"):
        DPOSettings("simpo", label_smoothing=0.1)
    with pytest.raises(EtudeError, match=r"label_smoothing is 0\.7"):
        DPOSettings(label_smoothing=0.7)
    with pytest.raises(EtudeError, match="beta is 0"):
        DPOSettings(beta=0.0)
