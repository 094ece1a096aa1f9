"""Reward models: a scalar head on the last token, learnt from pairs, or from labels.

    L = 1/N Σ_prompts 1/C(K, 2) Σ_pairs [ -log σ(r_w - r_l - m) + η (r_w + r_l)² ]      Bradley-Terry
    L = 1/N Σ_answers [ -y log σ(r) - (1 - y) log(1 - σ(r)) ]                          pointwise

The first is InstructGPT's (arXiv:2203.02155, eq. 1) with the margin m of Llama 2 (arXiv:2307.09288, eq. 2)
and a centring η (arXiv:2312.09244); it is DeepSeek-R1's model of helpfulness. The second is R1's model of
safety (arXiv:2501.12948). r is a linear function of the hidden state at the token that ends the answer.

A model that has learnt length instead of quality looks well by accuracy, so the correlation of score and
length within prompts is shown beside it, and the accuracy of "the longer answer is better".

The finished model is a reward for PPO and GRPO: see judge.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.evals import accuracy
from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators, Learner, Loss, Outputs
from etude.records import EtudeError
from etude.train.comparisons import Comparison, Judged
from etude.train.epochs import Epochs, LossEvalSettings, through
from etude.train.preference import bradley_terry, pair_weights, pointwise
from etude.train.run import Report, Run

EPOCHS = 1.0
LEARNING_RATE = 2e-5
LORA_LEARNING_RATE = 2e-4
"""Where the settings name none. A second epoch overfits (InstructGPT, C.2); large models take 6e-6."""
CENTRING = 0.01


@dataclass(frozen=True)
class RewardModelSettings:
    """kind: "pairs" (Bradley-Terry) or "pointwise" (labels, as of safety).

    centring η and margins (whether the data's margins are used) belong to pairs; None: 0.01, and no.
    thoughts: whether what a reasoning model thinks is judged too; R1 judges safety with thoughts, and
    helpfulness without.
    """

    kind: Literal["pairs", "pointwise"] = "pairs"
    centring: float | None = None
    margins: bool | None = None
    thoughts: bool = True

    def __post_init__(self) -> None:
        if self.kind == "pointwise" and (self.centring is not None or self.margins is not None):
            raise EtudeError(
                "reward_model.centring and reward_model.margins have no effect on a pointwise model: "
                "leave them out"
            )
        if self.centring is not None and not self.centring >= 0:
            raise EtudeError(f"reward_model.centring is {self.centring}; it must be at least 0")


def pair_loss(judged: Judged, *, centring: float = CENTRING, margins: bool = False) -> Loss:
    """Bradley-Terry over the pairs of a step; every prompt weighs the same, however many pairs it has."""

    def loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
        pairs = judged.within(batch)
        chosen_P, rejected_P = outputs["scores"][pairs.chosen_P], outputs["scores"][pairs.rejected_P]
        margin_P = pairs.margin_P if margins else 0.0
        loss_P = bradley_terry(chosen_P, rejected_P, margin_P=margin_P, centring=centring)
        weight_P = pair_weights(pairs.prompt_P).to(loss_P.dtype) / totals.groups
        lead_P = (chosen_P - rejected_P).detach()
        return (weight_P * loss_P).sum(), {
            "accuracy": (weight_P * right(lead_P)).sum(),
            "margin": (weight_P * lead_P).sum(),
            "score": (weight_P * (chosen_P + rejected_P).detach() / 2).sum(),
        }

    return loss


def label_loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Pointwise: cross-entropy of the labels, a column of the samples."""
    scores_S, label_S = outputs["scores"], batch.columns["label"] > 0.5
    lead_S = torch.where(label_S, scores_S, -scores_S).detach()
    return pointwise(scores_S, label_S).sum() / totals.sequences, {
        "accuracy": right(lead_S).sum() / totals.sequences,
        "margin": lead_S.sum() / totals.sequences,
        "score": scores_S.detach().sum() / totals.sequences,
    }


def right(lead_N: Tensor) -> Tensor:
    """1 for a lead above 0, 0 below; a tie is half right."""
    return (torch.sign(lead_N) + 1) / 2


@dataclass(frozen=True)
class Pairwise:
    """Pairs to learn from, and to measure on."""

    comparisons: Sequence[Comparison]
    held_out: Sequence[Comparison]
    centring: float = CENTRING
    margins: bool = False

    def step(self, places: Sequence[int]) -> tuple[list[Sample], Loss]:
        """The answers to some prompts, and the loss over their pairs."""
        judged = Judged.of([self.comparisons[at] for at in places])
        return judged.samples, pair_loss(judged, centring=self.centring, margins=self.margins)

    def measured(self, learner: Learner) -> dict[str, float]:
        """How often a held-out pair is ordered rightly, with a 95 % interval clustered by prompt; beside it,
        how often the longer answer is the better one."""
        if not self.held_out:
            return {}
        judged = Judged.of(self.held_out)
        scores = scores_of(learner, judged.samples)
        lengths = [len(sample.completion_ids) for sample in judged.samples]
        leads = np.array([scores[chosen] - scores[rejected] for chosen, rejected, _ in judged.pairs])
        longer = [lengths[chosen] - lengths[rejected] for chosen, rejected, _ in judged.pairs]
        by_prompt: list[list[bool]] = [[] for _ in self.held_out]
        for comparison, lead in zip(judged.comparison_P, leads, strict=True):
            by_prompt[comparison].append(bool(lead > 0))
        found = accuracy(by_prompt)
        groups = [sample.group for sample in judged.samples]
        return {
            "eval/accuracy": found.value,
            "eval/accuracy/low": found.low,
            "eval/accuracy/high": found.high,
            "eval/margin": float(leads.mean()),
            "eval/loss": float(np.logaddexp(0.0, -leads).mean()),
            "eval/longer_is_better": float((np.sign(longer) + 1).mean() / 2),
            "eval/length_correlation": length_correlation(scores, lengths, groups),
        }


@dataclass(frozen=True)
class Pointwise:
    """Answers with labels, a column of the samples, to learn from and to measure on."""

    samples: Sequence[Sample]
    held_out: Sequence[Sample]

    def step(self, places: Sequence[int]) -> tuple[list[Sample], Loss]:
        return [self.samples[at] for at in places], label_loss

    def measured(self, learner: Learner) -> dict[str, float]:
        """How often the score of a held-out answer has the sign of its label."""
        if not self.held_out:
            return {}
        scores = scores_of(learner, self.held_out)
        labels = np.array([float(np.asarray(sample.columns["label"])) for sample in self.held_out])
        leads = np.where(labels > 0.5, scores, np.negative(scores))
        found = accuracy([[bool(lead > 0)] for lead in leads])
        lengths = [len(sample.completion_ids) for sample in self.held_out]
        return {
            "eval/accuracy": found.value,
            "eval/accuracy/low": found.low,
            "eval/accuracy/high": found.high,
            "eval/margin": float(leads.mean()),
            "eval/loss": float(np.logaddexp(0.0, -leads).mean()),
            "eval/positive_labels": float(labels.mean()),
            "eval/length_correlation": length_correlation(scores, lengths, [0] * len(lengths)),
        }


def reward_model(
    learner: Learner, data: Pairwise | Pointwise, epochs: Epochs, evals: LossEvalSettings, run: Run
) -> Iterator[Report]:
    """Train, a report a step."""

    def update(places: Sequence[int]) -> Mapping[str, float]:
        samples, loss = data.step(places)
        totals = Denominators.of(samples)
        return learner.update(samples, loss, outputs=("scores",), denominators=totals, whole_groups=True)

    def measured() -> Mapping[str, float]:
        return data.measured(learner)

    return through(epochs, run, update, measured, evals, rating=lambda row: row["eval/accuracy"])


def scores_of(learner: Learner, samples: Sequence[Sample]) -> list[float]:
    return [float(row["scores"][0]) for row in learner.score(samples, ("scores",))]


def length_correlation(scores: Sequence[float], lengths: Sequence[float], groups: Sequence[int]) -> float:
    """Pearson's correlation of score and length, both without the mean of their group (prompt); 0 where one
    of them does not vary. Near 1, the model has learnt length.

    >>> length_correlation([1.0, 2.0, 7.0, 8.0], [10, 20, 5, 15], [0, 0, 1, 1])
    1.0
    """
    within = [_without_group_means(np.asarray(values, np.float64), groups) for values in (scores, lengths)]
    scale = float(np.sqrt((within[0] ** 2).sum() * (within[1] ** 2).sum()))
    return float((within[0] * within[1]).sum()) / scale if scale > 0 else 0.0


def _without_group_means(values_S: NDArray[np.float64], groups: Sequence[int]) -> NDArray[np.float64]:
    _, group_S = np.unique(np.asarray(groups), return_inverse=True)
    return values_S - (np.bincount(group_S, values_S) / np.bincount(group_S))[group_S]
