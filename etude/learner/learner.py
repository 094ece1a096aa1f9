"""Where a gradient step runs, as algorithms see it: the protocol Learner and what passes through it.

    learner.score(samples, ("logprobs",))                     numbers for each sample, no gradient
    learner.update(samples, loss, outputs=("logprobs",), denominators=Denominators.of(samples))

A loss is a function of what the forward pass computed, the micro-batch, and the denominators of the WHOLE
step. It returns its micro-batch's share of the step's loss, so that shares add up to the same loss and
gradient however the step was cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from etude.learner.batch import Batch, Sample
from etude.model.lora import LoraWeights

OUTPUTS = ("logprobs", "entropy", "reference_kl", "values", "scores")
"""logprobs (C): of the completion's tokens, of softmax(logits / temperature). entropy (C): of the same, nats.
reference_kl (C): KL(model || reference) over the whole vocabulary. values (C): the scalar head at the token
before the one chosen. scores (S): the scalar head at the last token. On C, 0 where the mask is False.
"""

Outputs = Mapping[str, Tensor]
SampleOutputs = Mapping[str, NDArray[np.float32]]
"""Outputs of one sample: over its completion tokens; "scores" has one value."""


@dataclass(frozen=True)
class Denominators:
    """Counts of the whole step, samples that are skipped included, known before any micro-batch runs.

    tokens: completion tokens that masks let in. sequences: samples. groups: different groups. max_tokens: the
    constant length of Dr. GRPO, 0 where no loss asks for it.
    """

    tokens: int
    sequences: int
    groups: int
    max_tokens: int = 0

    @classmethod
    def of(cls, samples: Sequence[Sample], max_tokens: int = 0) -> Denominators:
        """
        >>> first = Sample((1,), (2, 3), (True, False), group=0)
        >>> Denominators.of([first, Sample((1,), (4,), (True,), group=0, skip=True)])
        Denominators(tokens=2, sequences=2, groups=1, max_tokens=0)
        """
        return cls(
            tokens=sum(sum(sample.mask) for sample in samples),
            sequences=len(samples),
            groups=len({sample.group for sample in samples}),
            max_tokens=max_tokens,
        )


Loss = Callable[[Outputs, Batch, Denominators], tuple[Tensor, Mapping[str, Tensor]]]
"""-> (this micro-batch's share of the loss, metrics by name). A metric is a share too, and shares are added;
of metrics whose names end in "_max" and "_min", the largest and the smallest is kept."""


class Metrics(dict[str, float]):
    """What a step did, as floats by name. outputs: what its forward pass, before the step, computed for each
    sample; skipped samples have zeros there."""

    outputs: Sequence[SampleOutputs] = ()


class Sampler(Protocol):
    """The part of an engine that takes new weights."""

    def load_weights(self, tensors: Iterable[tuple[str, Any]], version: int) -> None: ...

    def load_adapter(self, name: str, source: LoraWeights, version: int | None = None) -> None: ...


class Learner(Protocol):
    """One model that learns. Samples that were scored and are then updated with in the same order are packed
    the same way, and the first ratio of their logprobs is exactly 1."""

    def score(
        self, samples: Sequence[Sample], outputs: Sequence[str] = ("logprobs",), *, adapter: bool = True
    ) -> list[SampleOutputs]:
        """Outputs of each sample; `adapter=False` switches a LoRA off, which leaves the reference model."""

    def update(
        self,
        samples: Sequence[Sample],
        loss: Loss,
        *,
        outputs: Sequence[str] = ("logprobs",),
        denominators: Denominators,
        whole_groups: bool = False,
    ) -> Metrics:
        """One optimizer step on the loss; whole_groups as in `pack`."""

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """What is trained, under Hugging Face names (a LoRA: PEFT's)."""

    def publish(self, engine: Sampler, version: int) -> str | None:
        """Give the weights to an engine -> the name for `Request.adapter`, None for the model itself."""

    def save(self, folder: Path) -> None:
        """Everything that decides the next step, atomically."""

    def restore(self, folder: Path) -> None:
        """Go on from `save`, bit for bit. EtudeError for files of another model or other settings."""


class Policy(Learner, Protocol):
    """A learner with a reference model to measure KL to."""

    def refresh_reference(self) -> None:
        """The reference becomes the policy as it is now."""
