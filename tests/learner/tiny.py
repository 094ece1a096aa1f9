"""Tiny models, samples and losses for the learner's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators, Outputs
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings
from etude.model.heads import ScalarHead
from etude.model.transformer import Transformer, load_transformer
from tests.model.tiny_models import FIXTURES

STILL = AdamWSettings(learning_rate=0.0, max_grad_norm=None)
"""Gradients without a change."""
WIDTH = 32


def transformer_of(name: str = "llama", **options: Any) -> Transformer:
    """One of the fixtures' models, its file closed."""
    transformer, source = load_transformer(FIXTURES / name, **options)
    source.close()
    return transformer


def learner_of(
    name: str = "llama",
    optimizer: AdamWSettings | None = STILL,
    *,
    max_tokens: int = 4096,
    dtype: str = "f32",
    checkpoint: bool = False,
    lora: LoraSettings | None = None,
    head: bool = False,
    temperature: float = 1.0,
) -> LocalLearner:
    compute = ComputeSettings(dtype=dtype, max_tokens=max_tokens, checkpoint=checkpoint)
    scalar = ScalarHead(WIDTH).initialize(torch.Generator().manual_seed(5)) if head else None
    return LocalLearner(
        transformer_of(name), optimizer, compute=compute, lora=lora, head=scalar, temperature=temperature
    )


def samples_of(groups: int = 3, size: int = 4, seed: int = 0, shared: bool = True) -> list[Sample]:
    """Groups with a prompt each, completions of several lengths, some tokens masked out, an advantage each.

    shared=False: the same samples, each in a group of its own, so that nothing is shared.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for group in range(groups):
        prompt = tuple(rng.integers(0, 128, 5 + 3 * group).tolist())
        for index in range(size):
            n = int(rng.integers(1, 9))
            samples.append(
                Sample(
                    prompt_ids=prompt,
                    completion_ids=tuple(rng.integers(0, 128, n).tolist()),
                    mask=tuple((rng.random(n) < 0.8).tolist()),
                    group=group if shared else len(samples),
                    columns={"advantages": float(rng.normal()), "weights": rng.normal(size=n)},
                )
            )
            assert index < size
    return samples


def policy_loss(
    outputs: Outputs, batch: Batch, denominators: Denominators
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """-Σ A w log p / tokens, and what the micro-batch adds to two metrics."""
    advantages_C = batch.columns["advantages"][batch.sequence_C] * batch.columns["weights"]
    loss = -(advantages_C * outputs["logprobs"] * batch.mask_C).sum() / denominators.tokens
    return loss, {
        "logprob": (outputs["logprobs"] * batch.mask_C).sum() / denominators.tokens,
        "lowest_min": outputs["logprobs"].min(),
    }


def every_loss(
    outputs: Outputs, batch: Batch, denominators: Denominators
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Something of every output that was asked for."""
    loss, metrics = policy_loss(outputs, batch, denominators)
    for name in ("entropy", "values", "reference_kl"):
        if name in outputs:
            loss = loss + (outputs[name] * batch.columns["weights"]).sum() / denominators.tokens
    if "scores" in outputs:
        loss = loss + (outputs["scores"] * batch.columns["advantages"]).sum() / denominators.sequences
    return loss, metrics


def gradients(learner: LocalLearner) -> dict[str, Tensor]:
    """Of the last update."""
    named = {**dict(learner.transformer.named_parameters())}
    named |= {} if learner.head is None else {f"head.{n}": p for n, p in learner.head.named_parameters()}
    return {name: value.grad.clone() for name, value in named.items() if value.grad is not None}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of the largest gradient there is, element by element."""
    assert found.keys() == expected.keys()
    size = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        error = float((found[name] - value).abs().max())
        assert error <= tolerance * size, f"{name}: {error} of {size}"


def randomised(learner: LocalLearner, seed: int = 1, size: float = 0.05) -> LocalLearner:
    """A LoRA's B away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in learner.transformer.named_parameters():
            if name.endswith(".adapter.b"):
                parameter.normal_(0, size, generator=generator)
    return learner


def reordered(samples: Sequence[Sample], seed: int) -> list[Sample]:
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[index] for index in order]


def skipped(sample: Sample) -> Sample:
    return replace(sample, skip=True)
