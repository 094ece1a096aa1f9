"""Preferences without a reward model: DPO, IPO, KTO, ORPO and SimPO.

    h = log π(y_w | x) / π_ref(y_w | x) - log π(y_l | x) / π_ref(y_l | x)

    sigmoid   -(1 - ε) log σ(β h) - ε log σ(-β h)              arXiv:2305.18290, eq. 7; ε: label smoothing
    ipo       (h - 1 / (2 τ))²                                 arXiv:2310.12036, eq. 17
    kto       λ (1 - σ(± β (log π / π_ref - z_0)))             arXiv:2402.01306, eq. 8: labels, not pairs
    orpo      -log p_w - λ log σ(log odds p_w - log odds p_l)  arXiv:2403.07691, eq. 6 and 7; no reference
    simpo     -log σ(β (log p_w - log p_l) - γ)                arXiv:2405.14734, eq. 6; no reference

log π(y | x) is a sum over the answer's tokens, log p their mean. The reference is the model as training finds
it; its log-probabilities never change, so they are computed once, before the first step, and a step needs no
second model. Implicit rewards are β log π / π_ref: accuracy says how often the better answer has the higher
one, margin by how much.

KTO compares each answer with z_0, how far the policy has moved on the whole: the mean of log π / π_ref over
answers to other prompts, which every step computes for its own prompts, without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from etude.evals import accuracy
from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators, Learner, Loss, Outputs, SampleOutputs
from etude.records import EtudeError
from etude.train import preference
from etude.train.comparisons import Comparison, Judged
from etude.train.epochs import Epochs, LossEvalSettings, through
from etude.train.presets import bind
from etude.train.run import Report, Run
from etude.train.segments import sequence_means, sequence_sums

EPOCHS = 1.0
LEARNING_RATE = 5e-6
LORA_LEARNING_RATE = 5e-5
"""Where the settings name none; large models take 5e-7 to 1e-6."""


@dataclass(frozen=True)
class Objective:
    """A loss of preference.py with its numbers bound.

    loss: of (chosen_P, rejected_P), with a reference also of the reference's two. means: log p are means over
    tokens, not sums. labels: learns from labelled answers, and `loss` is `preference.kto`.
    """

    loss: Callable[..., Tensor]
    reference: bool = True
    means: bool = False
    labels: bool = False


OBJECTIVES: dict[str, Objective] = {
    "sigmoid": Objective(preference.dpo),
    "ipo": Objective(preference.ipo),
    "kto": Objective(preference.kto, labels=True),
    "orpo": Objective(preference.orpo, reference=False, means=True),
    "simpo": Objective(preference.simpo, reference=False, means=True),
}


@dataclass(frozen=True)
class DPOSettings:
    """loss: see the module. Its numbers, None for the paper's: beta (sigmoid, kto: 0.1; simpo: 2),
    label_smoothing (sigmoid), tau (ipo: 0.1), desirable_weight and undesirable_weight (kto: 1), weight (orpo:
    0.1), gamma (simpo: 1). One that the loss does not have is refused.
    """

    loss: Literal["sigmoid", "ipo", "kto", "orpo", "simpo"] = "sigmoid"
    beta: float | None = None
    label_smoothing: float | None = None
    tau: float | None = None
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    weight: float | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 0.5:
            raise EtudeError(
                f"dpo.label_smoothing is {self.label_smoothing}; it is the share of labels that are wrong, "
                "at least 0 and below 0.5"
            )
        for name in ("beta", "tau"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EtudeError(f"dpo.{name} is {value}; it must be above 0")
        self.objective()

    def objective(self) -> Objective:
        """EtudeError for a number that would have no effect."""
        chosen = OBJECTIVES[self.loss]
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "loss"}
        numbers = {name: value for name, value in given.items() if value is not None}
        return replace(chosen, loss=bind(chosen.loss, numbers, f"dpo.loss {self.loss}"))


# ── pairs: DPO, IPO, ORPO, SimPO ──


@dataclass(frozen=True)
class Pairs:
    """Pairs to learn from and to measure on, with the reference's log π(y | x) of every answer, by
    comparison."""

    objective: Objective
    comparisons: Sequence[Comparison]
    held_out: Sequence[Comparison]
    reference: Sequence[Sequence[float]]
    held_out_reference: Sequence[Sequence[float]]

    @classmethod
    def of(
        cls,
        objective: Objective,
        learner: Learner,
        comparisons: Sequence[Comparison],
        held_out: Sequence[Comparison],
    ) -> Pairs:
        """learner: as training finds it, so that it is the reference: before anything is restored."""
        if not objective.reference:
            return cls(objective, comparisons, held_out, _zeros(comparisons), _zeros(held_out))
        both = reference_logprobs(learner, comparisons), reference_logprobs(learner, held_out)
        return cls(objective, comparisons, held_out, *both)

    def step(self, learner: Learner, places: Sequence[int]) -> tuple[list[Sample], Loss]:
        """The answers to some prompts, and the loss over their pairs."""
        judged = _with_reference(
            [self.comparisons[at] for at in places], [self.reference[at] for at in places]
        )
        return judged.samples, pair_loss(judged, self.objective)

    def measured(self, learner: Learner) -> dict[str, float]:
        """Loss, and how often the better answer of a held-out pair has the higher implicit reward."""
        if not self.held_out:
            return {}
        judged = _with_reference(self.held_out, self.held_out_reference)
        rows = learner.score(judged.samples)
        logprob_S = torch.tensor([answer_logprob(row, self.objective.means) for row in rows])
        reference_S = torch.tensor([value for values in self.held_out_reference for value in values])
        chosen_P = torch.tensor([pair.chosen for pair in judged.pairs])
        rejected_P = torch.tensor([pair.rejected for pair in judged.pairs])
        loss_P, gain_S = pair_losses(self.objective, logprob_S, reference_S, chosen_P, rejected_P)
        lead_P = gain_S[chosen_P] - gain_S[rejected_P]
        by_prompt: list[list[bool]] = [[] for _ in self.held_out]
        for comparison, lead in zip(judged.comparison_P, lead_P.tolist(), strict=True):
            by_prompt[comparison].append(lead > 0)
        found = accuracy(by_prompt)
        return {
            "eval/loss": float(loss_P.mean()),
            "eval/accuracy": found.value,
            "eval/accuracy/low": found.low,
            "eval/accuracy/high": found.high,
            "eval/margin": float(lead_P.mean()),
            "eval/chosen": float(gain_S[chosen_P].mean()),
            "eval/rejected": float(gain_S[rejected_P].mean()),
        }


def pair_loss(judged: Judged, objective: Objective) -> Loss:
    """Mean over the pairs of the step.

    accuracy: share of pairs whose better answer leads; margin: by how many nats, in log π / π_ref (or in the
    mean log p, without a reference); chosen, rejected: the two sides of it.
    """
    n_pairs = len(judged.pairs)

    def loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
        reduced = sequence_means if objective.means else sequence_sums
        logprob_S = reduced(outputs["logprobs"], batch.mask_C, batch.sequence_C, batch.n_samples)
        pairs = judged.within(batch)
        loss_P, gain_S = pair_losses(
            objective, logprob_S, batch.columns["reference"], pairs.chosen_P, pairs.rejected_P
        )
        chosen_P, rejected_P = gain_S[pairs.chosen_P], gain_S[pairs.rejected_P]
        lead_P = chosen_P - rejected_P
        return loss_P.sum() / n_pairs, {
            "accuracy": ((torch.sign(lead_P) + 1) / 2).sum() / n_pairs,
            "margin": lead_P.sum() / n_pairs,
            "chosen": chosen_P.sum() / n_pairs,
            "rejected": rejected_P.sum() / n_pairs,
        }

    return loss


def pair_losses(
    objective: Objective, logprob_S: Tensor, reference_S: Tensor, chosen_P: Tensor, rejected_P: Tensor
) -> tuple[Tensor, Tensor]:
    """(loss of each pair, gain_S = log π / π_ref of each answer, without gradient)."""
    sides = [logprob_S[chosen_P], logprob_S[rejected_P]]
    if objective.reference:
        sides += [reference_S[chosen_P], reference_S[rejected_P]]
    return objective.loss(*sides), (logprob_S - reference_S).detach()


def reference_logprobs(learner: Learner, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """log π(y | x) of every answer, by comparison."""
    if not comparisons:
        return []
    rows = iter(learner.score(Judged.of(comparisons).samples))
    return [[answer_logprob(next(rows)) for _ in one.answers] for one in comparisons]


def answer_logprob(row: SampleOutputs, means: bool = False) -> float:
    """Sum or mean over an answer's tokens, all of which are in the mask."""
    total = float(row["logprobs"].sum(dtype="float64"))
    return total / len(row["logprobs"]) if means else total


def _with_reference(comparisons: Sequence[Comparison], reference: Sequence[Sequence[float]]) -> Judged:
    return Judged.of(comparisons, {"reference": [value for values in reference for value in values]})


def _zeros(comparisons: Sequence[Comparison]) -> list[list[float]]:
    return [[0.0] * len(one.answers) for one in comparisons]


# ── labels: KTO ──


@dataclass(frozen=True)
class Labels:
    """Answers with labels, columns "label" and "reference" of the samples; mismatched: for each of `samples`,
    its prompt with an answer to another one."""

    objective: Objective
    samples: Sequence[Sample]
    held_out: Sequence[Sample]
    mismatched: Sequence[Sample]

    @classmethod
    def of(
        cls, objective: Objective, learner: Learner, samples: Sequence[Sample], held_out: Sequence[Sample]
    ) -> Labels:
        """samples: with a column "label" each. learner: as training finds it."""
        strangers = mismatched(samples)
        return cls(objective, *(_referenced(learner, some) for some in (samples, held_out, strangers)))

    def step(self, learner: Learner, places: Sequence[int]) -> tuple[list[Sample], Loss]:
        """Some answers, and their loss against z_0 of their prompts."""
        point = reference_point(learner, [self.mismatched[at] for at in places])
        return [self.samples[at] for at in places], label_loss(self.objective, point, len(places))

    def measured(self, learner: Learner) -> dict[str, float]:
        """How often the policy has moved towards a held-out good answer, and away from a bad one, both beside
        z_0."""
        if not self.held_out:
            return {}
        point = reference_point(learner, self.mismatched[: len(self.held_out)])
        gain_S = torch.tensor(gains(learner, self.held_out))
        label_S = torch.tensor([label_of(sample) for sample in self.held_out])
        loss_S = self.objective.loss(gain_S, label_S, point)
        lead_S = torch.where(label_S, gain_S - point, point - gain_S)
        found = accuracy([[lead > 0] for lead in lead_S.tolist()])
        return {
            "eval/loss": float(loss_S.mean()),
            "eval/accuracy": found.value,
            "eval/accuracy/low": found.low,
            "eval/accuracy/high": found.high,
            "eval/margin": float(lead_S.mean()),
            "eval/reference_point": point,
        }


def label_loss(objective: Objective, point: float, n_samples: int) -> Loss:
    """Mean over the answers of the step. margin: how far a good answer's log π / π_ref lies above z_0, and a
    bad one's below."""

    def loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
        logprob_S = sequence_sums(outputs["logprobs"], batch.mask_C, batch.sequence_C, batch.n_samples)
        gain_S, label_S = logprob_S - batch.columns["reference"], batch.columns["label"] > 0.5
        lead_S = torch.where(label_S, gain_S - point, point - gain_S).detach()
        return objective.loss(gain_S, label_S, point).sum() / n_samples, {
            "accuracy": ((torch.sign(lead_S) + 1) / 2).sum() / n_samples,
            "margin": lead_S.sum() / n_samples,
            "reference_point": torch.tensor(point * batch.n_samples / n_samples),
        }

    return loss


def mismatched(samples: Sequence[Sample]) -> list[Sample]:
    """For each sample its prompt, with the next answer that was given to another prompt."""
    n = len(samples)
    found = []
    for at, sample in enumerate(samples):
        other = next(
            (
                samples[(at + by) % n]
                for by in range(1, n)
                if samples[(at + by) % n].prompt_ids != sample.prompt_ids
            ),
            None,
        )
        if other is None:
            raise EtudeError("KTO compares answers to different prompts, and all prompts are the same")
        found.append(replace(sample, completion_ids=other.completion_ids, mask=other.mask))
    return found


def reference_point(learner: Learner, samples: Sequence[Sample]) -> float:
    """z_0 of the policy as it is now."""
    return float(preference.kto_reference_point(torch.tensor(gains(learner, samples))))


def gains(learner: Learner, samples: Sequence[Sample]) -> list[float]:
    """log π / π_ref of each sample, which has a column "reference"."""
    return [
        answer_logprob(row) - float(np.asarray(sample.columns["reference"]))
        for row, sample in zip(learner.score(samples), samples, strict=True)
    ]


def label_of(sample: Sample) -> bool:
    return bool(np.asarray(sample.columns["label"]) > 0.5)


def _referenced(learner: Learner, samples: Sequence[Sample]) -> list[Sample]:
    rows = learner.score(samples) if samples else []
    return [
        replace(sample, columns={**sample.columns, "reference": answer_logprob(row)})
        for sample, row in zip(samples, rows, strict=True)
    ]


# ── training ──


def dpo(
    learner: Learner, data: Pairs | Labels, epochs: Epochs, evals: LossEvalSettings, run: Run
) -> Iterator[Report]:
    """Train, a report a step."""

    def update(places: Sequence[int]) -> Mapping[str, float]:
        samples, loss = data.step(learner, places)
        return learner.update(samples, loss, denominators=Denominators.of(samples), whole_groups=True)

    def measured() -> Mapping[str, float]:
        return data.measured(learner)

    return through(epochs, run, update, measured, evals, rating=lambda row: -row["eval/loss"])
