"""LoRA in the learner: it starts as its base, off it is its base, and the engine computes the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from etude.learner.learner import Denominators
from etude.learner.local import ADAPTER
from etude.learner.lora import LoraSettings, lora_weights
from etude.learner.optimizer import AdamWSettings
from etude.model.names import LAYER_MATRICES
from etude.records import EtudeError
from tests.engine.tiny import open_tiny
from tests.learner.tiny import STILL, learner_of, policy_loss, randomised, samples_of

LORA = LoraSettings(rank=4, alpha=8)
F32_CACHE = {"cache_type_k": "f32", "cache_type_v": "f32"}
FAST = AdamWSettings(learning_rate=0.02)


def logprobs(rows: list) -> np.ndarray:
    return np.concatenate([row["logprobs"] for row in rows])


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
def test_it_starts_as_its_base(name: str) -> None:
    samples = samples_of()
    base = logprobs(learner_of(name, None).score(samples))
    learner = learner_of(name, FAST, lora=LORA)
    assert np.array_equal(logprobs(learner.score(samples)), base)
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    assert np.array_equal(logprobs(learner.score(samples, adapter=False)), base)
    assert not np.array_equal(logprobs(learner.score(samples)), base)


def test_only_pairs_are_trained() -> None:
    learner = learner_of(optimizer=FAST, lora=LORA)
    base = {n: p.detach().clone() for n, p in learner.transformer.weights()}
    samples = samples_of()
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    assert all(torch.equal(p, base[n]) for n, p in learner.transformer.weights())
    names = [name for name, _ in learner.weights()]
    layers = learner.transformer.config.n_layers
    assert len(names) == 2 * len(LAYER_MATRICES) * layers
    assert names[0] == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3"])
def test_the_engine_computes_the_same(name: str) -> None:
    """Weights from the trainer's memory into an engine of the same base, unmerged."""
    learner = randomised(learner_of(name, STILL, lora=LORA))
    samples = [replace(s, mask=(True,) * len(s.mask)) for s in samples_of()]
    with open_tiny(name, **F32_CACHE) as engine:
        adapter = learner.publish(engine, version=1)
        assert adapter == ADAPTER
        for sample, found in zip(samples, learner.score(samples), strict=True):
            ids = sample.prompt_ids + sample.completion_ids
            scored = engine.score(ids, adapter=adapter)[len(sample.prompt_ids) :]
            np.testing.assert_allclose(found["logprobs"], scored, atol=1e-5)
            plain = engine.score(ids)[len(sample.prompt_ids) :]
            assert np.abs(found["logprobs"] - np.array(plain, np.float32)).max() > 1e-3


def test_full_weights_reach_the_engine() -> None:
    learner = learner_of(optimizer=AdamWSettings(learning_rate=0.01))
    samples = [replace(s, mask=(True,) * len(s.mask)) for s in samples_of()]
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    with open_tiny(weight_type="f32", **F32_CACHE) as engine:
        assert learner.publish(engine, version=7) is None
        assert engine.weights_version == 7
        for sample, found in zip(samples, learner.score(samples), strict=True):
            scored = engine.score(sample.prompt_ids + sample.completion_ids)[len(sample.prompt_ids) :]
            np.testing.assert_allclose(found["logprobs"], scored, atol=1e-5)


def test_chosen_matrices_and_scale() -> None:
    settings = LoraSettings(rank=2, alpha=3, slots=("attn_q", "ffn_down"))
    weights = lora_weights(learner_of(lora=settings).transformer)
    assert {slot for slot, _ in weights.tensors} == {"attn_q", "ffn_down"}
    assert weights.scale == 1.5
    a, b = weights.tensors["ffn_down", 0]
    assert (a.shape, b.shape) == ((2, 64), (32, 2))
    assert 0 < np.abs(a).max() <= 1 / 8 and not b.any()


def test_the_seed_decides_the_start() -> None:
    first, again, other = (
        dict(learner_of(lora=LoraSettings(rank=2, seed=seed)).weights()) for seed in (1, 1, 2)
    )
    name = next(iter(first))
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rank=0), "rank is 0"),
        (dict(alpha=0.0), "alpha is 0.0"),
        (dict(slots=("attn_q", "token_embd")), "allowed are attn_q, attn_k"),
        (dict(slots=()), "allowed are"),
    ],
)
def test_settings_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        LoraSettings(**arguments)


def test_a_rank_beyond_the_matrix() -> None:
    with pytest.raises(EtudeError, match="rank is 40"):
        learner_of(lora=LoraSettings(rank=40))
