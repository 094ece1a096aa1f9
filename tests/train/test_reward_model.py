"""Reward models: the loss by hand, prompts that weigh the same, learning exact labels, the saved reward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from etude.learner.batch import Sample
from etude.learner.learner import Denominators
from etude.learner.local import LocalLearner
from etude.model.segments import Layout
from etude.model.transformer import load_transformer
from etude.records import EtudeError, Problem
from etude.rewards import judge_of, score_all
from etude.train.comparisons import Comparison, Judged, Pair, comparisons_of
from etude.train.epochs import LossEvalSettings
from etude.train.judge import (
    RewardRecord,
    as_reward,
    load_reward_model,
    save_reward_model,
    score_moments,
    without_thoughts,
)
from etude.train.reward_model import (
    Pairwise,
    Pointwise,
    RewardModelSettings,
    label_loss,
    length_correlation,
    pair_loss,
    reward_model,
    scores_of,
)
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

RANKED = Comparison((5, 6, 7), ((8, 2), (9, 10, 2), (11, 2)), (Pair(0, 1, 0.5), Pair(0, 2, 1.0), Pair(1, 2)))
SINGLE = Comparison((20, 21), ((8, 12, 2), (9, 2)), (Pair(1, 0, 2.0),))


@pytest.fixture(scope="module")
def comparisons(tiny: Path) -> list[Comparison]:
    with writer_of(tiny) as prompts:
        return comparisons_of(prompts, pairs(96))


def labelled(comparisons: list[Comparison]) -> list[Sample]:
    samples = Judged.of(comparisons).samples
    return [
        Sample(s.prompt_ids, s.completion_ids, s.mask, at, {"label": float(at % 2 == 0)})
        for at, s in enumerate(samples)
    ]


# ── the loss ──


@pytest.mark.parametrize("max_tokens", [4096, 1], ids=["packed", "apart"])
def test_the_loss_by_hand(tiny: Path, max_tokens: int) -> None:
    """1/N Σ_prompts 1/C(K, 2) Σ_pairs [-log σ(r_w - r_l - m) + η (r_w + r_l)²], scores read one by one."""
    learner = learner_of(tiny, rate=0.0, head=True, max_tokens=max_tokens)
    judged = Judged.of([RANKED, SINGLE])
    scores = [scores_of(learner, [sample])[0] for sample in judged.samples]

    def term(chosen: int, rejected: int, margin: float) -> float:
        lead = scores[chosen] - scores[rejected] - margin
        return math.log1p(math.exp(-lead)) + 0.1 * (scores[chosen] + scores[rejected]) ** 2

    first = (term(0, 1, 0.5) + term(0, 2, 1.0) + term(1, 2, 0.0)) / 3
    expected = (first + term(4, 3, 2.0)) / 2
    metrics = learner.update(
        judged.samples,
        pair_loss(judged, centring=0.1, margins=True),
        outputs=("scores",),
        denominators=Denominators.of(judged.samples),
        whole_groups=True,
    )
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["micro_batches"] == (1 if max_tokens == 4096 else 2)
    rights = [float(scores[a] > scores[b]) for a, b, _ in judged.pairs]
    assert metrics["accuracy"] == pytest.approx((sum(rights[:3]) / 3 + rights[3]) / 2)


def test_a_score_is_of_the_last_token(tiny: Path) -> None:
    """Head times the hidden state of the end token, of each answer alone."""
    learner = learner_of(tiny, head=True)
    samples = Judged.of([RANKED]).samples
    from_group = scores_of(learner, samples)
    assert learner.head is not None
    for sample, score in zip(samples, from_group, strict=True):
        ids = torch.tensor(sample.prompt_ids + sample.completion_ids)
        with torch.no_grad():
            hidden_TD = learner.transformer(Layout.roots([ids]))
            expected = float(learner.head(hidden_TD[-1:]))
        assert score == pytest.approx(expected, rel=1e-5)


def test_labels_by_hand(tiny: Path, comparisons: list[Comparison]) -> None:
    learner = learner_of(tiny, rate=0.0, head=True)
    samples = labelled(comparisons[:3])
    scores = scores_of(learner, samples)
    signs = [1 if at % 2 == 0 else -1 for at in range(len(samples))]
    expected = np.mean([math.log1p(math.exp(-sign * r)) for sign, r in zip(signs, scores, strict=True)])
    totals = Denominators.of(samples)
    metrics = learner.update(samples, label_loss, outputs=("scores",), denominators=totals)
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)


# ── preferences as ids ──


def test_answers_of_one_prompt_stay_together_and_are_computed_once(tiny: Path) -> None:
    with writer_of(tiny) as prompts:
        question = pairs(1)[0]
        triple = [question, type(question)("b", question.messages, question.chosen, "other!", 0.5)]
        same = type(question)("c", question.messages, question.chosen, question.chosen + "")
        (found,) = comparisons_of(prompts, [*triple, same])
    assert len(found.answers) == 3 and found.pairs == (Pair(0, 1), Pair(0, 2, 0.5))
    assert all(ids[-1] == 2 for ids in found.answers)
    judged = Judged.of([SINGLE, found])
    assert [sample.group for sample in judged.samples] == [0, 0, 1, 1, 1]
    assert judged.pairs[1:] == [Pair(2, 3), Pair(2, 4, 0.5)] and judged.comparison_P == [0, 1, 1]


def test_length_correlation_is_within_prompts() -> None:
    assert length_correlation([3.0, 1.0, 7.0, 5.0], [1, 2, 30, 40], [0, 0, 1, 1]) == pytest.approx(
        -0.77, abs=0.01
    )
    assert length_correlation([1.0, 1.0], [3, 4], [0, 0]) == 0.0
    assert length_correlation([1.0, 2.0], [3, 4], [0, 1]) == 0.0


# ── learning ──


def test_it_learns_exact_labels_of_held_out_pairs(
    tiny: Path, comparisons: list[Comparison], tmp_path: Path
) -> None:
    learner = learner_of(tiny, 1e-2, head=True)
    data = Pairwise(comparisons[:64], comparisons[64:])
    with run_of(tmp_path / "run", learner, 30, every=30) as run:
        reports = list(reward_model(learner, data, epochs_of(64, 16, 30), LossEvalSettings(every=0), run))
    first, last = reports[0].row, reports[-1].row
    assert last["eval/accuracy"] == 1.0 and last["eval/accuracy/low"] > 0.7
    assert last["eval/loss"] < 0.1 < first["eval/loss"] and last["eval/margin"] > 2
    assert last["loss"] < reports[1].row["loss"]
    assert 0.3 < first["eval/longer_is_better"] < 0.7 and abs(last["eval/length_correlation"]) < 0.5


def test_it_learns_labels(tiny: Path, comparisons: list[Comparison], tmp_path: Path) -> None:
    learner = learner_of(tiny, 1e-2, head=True)
    samples = labelled(comparisons)
    data = Pointwise(samples[:128], samples[128:])
    with run_of(tmp_path / "run", learner, 30, every=30) as run:
        reports = list(reward_model(learner, data, epochs_of(128, 32, 30), LossEvalSettings(every=0), run))
    assert reports[-1].row["eval/accuracy"] == 1.0 and reports[-1].row["eval/loss"] < 0.2
    assert reports[-1].row["eval/positive_labels"] == 0.5


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_is_the_same_to_the_last_bit(
    tiny: Path, comparisons: list[Comparison], tmp_path: Path, lora: bool
) -> None:
    def make() -> LocalLearner:
        return learner_of(tiny, head=True, lora=lora)

    def train(learner: LocalLearner, run: Run) -> Iterator[Report]:
        data = Pairwise(comparisons[:9], comparisons[9:12])
        return reward_model(learner, data, epochs_of(9, 4, 6), LossEvalSettings(every=2), run)

    whole = make()
    with run_of(tmp_path / "whole", whole, 6) as run:
        expected = [numbers(report) for report in train(whole, run)]
    reports, again = interrupted(tmp_path / "again", make, train, 6, 3)
    assert [numbers(report) for report in reports] == expected[4:]
    assert_same_weights(whole, again)


# ── as a reward ──


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_saved_model_is_a_reward(
    tiny: Path, comparisons: list[Comparison], tmp_path: Path, lora: bool
) -> None:
    learner = learner_of(tiny, 1e-2, head=True, lora=lora)
    data = Pairwise(comparisons[:64], [])
    with run_of(tmp_path / "run", learner, 30, every=30) as run:
        list(reward_model(learner, data, epochs_of(64, 16, 30), LossEvalSettings(), run))
    trained_on = scores_of(learner, Judged.of(data.comparisons).samples)
    mean, std = score_moments(trained_on)
    record = RewardRecord(mean=mean, std=std, base=str(tiny) if lora else None)
    _, source = load_transformer(tiny)
    with source:
        save_reward_model(tmp_path / "final", learner, source, record, dtype="f32")
    judge = judge_of(as_reward(tmp_path / "final"), "model", timeout_s=None)
    assert judge.per_group
    unseen = pairs(110)[96:]
    work = [(Problem(p.id, p.messages), [p.chosen, p.rejected]) for p in unseen]
    found = score_all(judge, work)
    assert all(good.total > bad.total for good, bad in found)
    with writer_of(tiny) as prompts:
        raw = scores_of(learner, Judged.of(comparisons_of(prompts, unseen)).samples)
    # (its products are in bf16, those of the test's learner in f32)
    assert [s.parts["raw"] for pair in found for s in pair] == pytest.approx(raw, abs=0.1 * std)
    assert found[0][0].total == pytest.approx((found[0][0].parts["raw"] - mean) / std)
    loaded = load_reward_model(tmp_path / "final")
    assert learner.head is not None and torch.equal(loaded.head.weight, learner.head.weight)
    assert loaded.record == record
    loaded.source.close()


def test_a_folder_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match=r"no reward\.json"):
        as_reward(tmp_path)
    (tmp_path / "reward.json").write_text('{"format": 99}')
    with pytest.raises(EtudeError, match="another version"):
        as_reward(tmp_path)


def test_thoughts_can_be_left_out(tiny: Path) -> None:
    with writer_of(tiny) as prompts:
        assert without_thoughts(prompts, "<think>\nhm\n</think>\n\nFour.") == "Four."
        assert without_thoughts(prompts, "hm</think>Four.", opened=True) == "Four."
        assert without_thoughts(prompts, "Four.") == "Four."
        assert without_thoughts(prompts, "<think>endless") == ""


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(EtudeError, match="no effect on a pointwise model"):
        RewardModelSettings(kind="pointwise", centring=0.1)
    with pytest.raises(EtudeError, match="centring is -1"):
        RewardModelSettings(centring=-1)
