"""Whether engine and learner are the same model: the mismatch of their log-probabilities, and what causes it.

Healthy, mean k3 in nats a token: 1e-7 with f32 on both sides, 1e-5 to 1e-4 with bf16, up to 1e-3 with int8
products in the engine. Above 1e-2 nothing good is learnt: the policy gradient belongs to another policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from etude.learner.batch import Sample
from etude.learner.learner import SampleOutputs
from etude.records import EtudeError
from etude.train.corrections import Mismatch, mismatch

F32 = NDArray[np.float32]


class Scorer(Protocol):
    def score(
        self, samples: Sequence[Sample], outputs: Sequence[str] = ("logprobs",), *, adapter: bool = True
    ) -> list[SampleOutputs]: ...


def check_agreement(learner: Scorer, samples: Sequence[Sample], limit: float) -> Mismatch:
    """Before the first update, over all that was sampled. EtudeError above the limit, with the likely
    cause."""
    found = [row["logprobs"] for row in learner.score(samples)]
    gaps = Gaps.of(samples, found)
    measured = mismatch(*(torch.from_numpy(values) for values in (gaps.learner, gaps.sampler, gaps.mask)))
    if measured.mean_k3 > limit:
        raise EtudeError(
            f"engine and learner disagree by {measured.mean_k3:.3g} nats a token (mean k3 over "
            f"{measured.tokens} tokens; allowed is {limit:g}), so nothing would be learnt. "
            + likely_cause(gaps)
        )
    return measured


def mismatch_row(samples: Sequence[Sample], learner: Sequence[F32]) -> dict[str, float]:
    """The raw mismatch of the tokens that were computed, for metrics.jsonl; {} if there were none.

    samples carry the column "sampler_logprobs"; those that are idle were not computed.
    """
    chosen = [i for i, sample in enumerate(samples) if not sample.idle]
    if not chosen:
        return {}
    gaps = Gaps.of([samples[i] for i in chosen], [learner[i] for i in chosen])
    measured = mismatch(*(torch.from_numpy(values) for values in (gaps.learner, gaps.sampler, gaps.mask)))
    return {
        "mismatch/tokens": float(measured.tokens),
        "mismatch/k3": measured.mean_k3,
        "mismatch/log_ratio": measured.mean_log_ratio,
        "mismatch/max_probability_change": measured.max_probability_change,
        "mismatch/mean_ratio": measured.mean_ratio,
        "mismatch/max_ratio": measured.max_ratio,
        "mismatch/effective_samples": measured.effective_samples,
    }


class Gaps(NamedTuple):
    """Of all tokens, one sample after the other. place: 0 for the first token of an answer; last: whether it
    is the one that ends it."""

    learner: F32
    sampler: F32
    mask: NDArray[np.bool_]
    place: NDArray[np.int64]
    last: NDArray[np.bool_]

    @classmethod
    def of(cls, samples: Sequence[Sample], learner: Sequence[F32]) -> Gaps:
        lengths = [len(sample.completion_ids) for sample in samples]
        return cls(
            np.concatenate(learner),
            np.concatenate(
                [np.asarray(sample.columns["sampler_logprobs"], np.float32) for sample in samples]
            ),
            np.concatenate([np.asarray(sample.mask, np.bool_) for sample in samples]),
            np.concatenate([np.arange(n) for n in lengths]),
            np.concatenate([np.arange(n) == n - 1 for n in lengths]),
        )

    def mean_gap(self, where: NDArray[np.bool_]) -> float:
        """Mean |log π_learner - log π_sampler| there, 0 where there is nothing."""
        chosen = np.abs(self.learner - self.sampler)[where & self.mask]
        return float(chosen.mean()) if len(chosen) else 0.0


def likely_cause(gaps: Gaps) -> str:
    """What such a gap usually comes from, by where in the answers it is."""
    first, last = gaps.mean_gap(gaps.place == 0), gaps.mean_gap(gaps.last)
    inside = gaps.mean_gap((gaps.place > 0) & ~gaps.last)
    overall = gaps.mean_gap(np.ones(len(gaps.mask), np.bool_))
    if last > 5 * max(first, inside):
        return (
            "Only the last tokens of the answers differ: the learner does not count the token that ends an "
            "answer as the engine does; check the end tokens of the model's tokenizer."
        )
    if overall > 1.0:
        return (
            "All tokens differ, by a nat and more: these are different models. Give both the same file, and "
            "publish the learner's weights before sampling."
        )
    if inside > 5 * first:
        return (
            "The first tokens agree and later ones do not: positions or the cache differ; check the rope "
            "settings, and use a cache of f16 or f32."
        )
    return (
        "The same everywhere, which is rounding: the engine's weights are too coarse for this model. Set "
        'sampling.weight_type = "f32" or "f16", or train a LoRA on the quantised file itself. A temperature '
        "that only one of them applies looks the same."
    )
