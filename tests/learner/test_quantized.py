"""A base in its file's blocks: the dequantised model's numbers, and a LoRA that trains beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from etude.engine.engine import Engine
from etude.learner.learner import Denominators
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings
from etude.learner.quantized import QuantizedLinear, load_frozen
from etude.model.checkpoint import HFFolder, config_of
from etude.model.family import ModelConfig
from etude.model.gguf import GGMLType, write_gguf
from etude.model.hf_tensors import gguf_tensor, hf_tensors
from etude.model.transformer import Layout, load_transformer
from etude.records import EtudeError
from tests.kernels.quant_blocks import plausible
from tests.learner.tiny import policy_loss, samples_of
from tests.model.tiny_models import FIXTURES, gguf_metadata

NAMES = ["llama", "llama_biases", "qwen2_tied", "gemma3"]


KINDS = [GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q5_1, GGMLType.IQ4_NL, GGMLType.BF16]


def write_quantized(path: Path, name: str, kind: GGMLType) -> ModelConfig:
    """A fixture's norms and biases with matrices of random blocks."""
    rng = np.random.default_rng(0)

    def tensors() -> Iterator[tuple[str, NDArray[Any], GGMLType]]:
        for hf_name, values in hf_tensors(folder, config):
            stored = gguf_tensor(hf_name, values, config)
            assert stored is not None
            if values.ndim == 2:
                yield stored[0], plausible(rng, kind, *values.shape), kind
            else:
                yield *stored, GGMLType.F32

    with HFFolder.open(FIXTURES / name) as folder:
        config = config_of(folder)
        write_gguf(path, gguf_metadata(config), tensors())
    return config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_hidden_states_and_logits_are_those_of_the_dequantised_model(
    tmp_path: Path, name: str, kind: GGMLType
) -> None:
    """Bit for bit in f32: the products are the same products of the same numbers."""
    path = tmp_path / "model.gguf"
    write_quantized(path, name, kind)
    frozen, source = load_frozen(path)
    source.close()
    whole, source = load_transformer(path)
    source.close()
    layout = Layout.roots([[5, 6, 7, 8, 9], [1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(frozen(layout), whole(layout))
    samples = samples_of()
    compute = ComputeSettings(dtype="f32")
    pairs = zip(
        LocalLearner(frozen, compute=compute).score(samples, ("logprobs", "entropy")),
        LocalLearner(whole, compute=compute).score(samples, ("logprobs", "entropy")),
        strict=True,
    )
    for found, expected in pairs:
        assert np.array_equal(found["logprobs"], expected["logprobs"])
        assert np.array_equal(found["entropy"], expected["entropy"])


def test_gradients_of_a_lora_are_those_beside_the_dequantised_base(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_quantized(path, "qwen2_tied", GGMLType.Q4_0)
    samples = samples_of()
    after = []
    for load in (load_frozen, load_transformer):
        transformer, source = load(path)
        source.close()
        compute = ComputeSettings(dtype="f32", checkpoint=load is load_frozen)
        settings = AdamWSettings(learning_rate=0.01)
        learner = LocalLearner(transformer, settings, compute=compute, lora=LoraSettings(rank=4))
        for _ in range(3):
            learner.update(samples, policy_loss, denominators=Denominators.of(samples))
        after.append(dict(learner.weights()))
    for name, value in after[0].items():
        torch.testing.assert_close(value, after[1][name], rtol=0, atol=1e-5)


def test_only_blocks_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    config = write_quantized(path, "llama", GGMLType.Q4_0)
    transformer, source = load_frozen(path)
    source.close()
    learner = LocalLearner(transformer, AdamWSettings(), lora=LoraSettings(rank=4))
    samples = samples_of()
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    held = [module for module in transformer.modules() if isinstance(module, QuantizedLinear)]
    assert len(held) == 7 * config.n_layers + 2
    assert all(module.weight is None and module.blocks.dtype == torch.uint8 for module in held)
    assert all(p.dim() == 1 for n, p in transformer.named_parameters() if ".adapter." not in n)


def test_the_engine_samples_from_the_same_numbers(tmp_path: Path) -> None:
    """Folder in bf16 or GGUF: engine and learner read the same bytes (f32 products here and there)."""
    learner = LocalLearner(load_frozen(FIXTURES / "llama")[0], compute=ComputeSettings(dtype="f32"))
    samples = [replace(s, mask=(True,) * len(s.mask)) for s in samples_of()]
    exact = {"cache_type_k": "f32", "cache_type_v": "f32"}
    with Engine.load(FIXTURES / "llama", context=256, cache_tokens=512, **exact) as engine:
        for sample, found in zip(samples, learner.score(samples), strict=True):
            scored = engine.score(sample.prompt_ids + sample.completion_ids)[len(sample.prompt_ids) :]
            np.testing.assert_allclose(found["logprobs"], scored, atol=1e-5)


def test_a_frozen_base_is_not_trained() -> None:
    transformer, source = load_frozen(FIXTURES / "llama")
    source.close()
    with pytest.raises(EtudeError, match="train a LoRA"):
        LocalLearner(transformer, AdamWSettings())


def test_types_that_nothing_reads_quickly(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with HFFolder.open(FIXTURES / "llama") as folder:
        config = config_of(folder)
        stored = [gguf_tensor(name, values, config) for name, values in hf_tensors(folder, config)]
    f64 = [
        (name, values.astype(np.float64).view(np.uint8), GGMLType.F64)
        if name == "output.weight"
        else (name, values, GGMLType.F32)
        for name, values in (pair for pair in stored if pair is not None)
    ]
    write_gguf(path, gguf_metadata(config), f64)
    with pytest.raises(EtudeError, match=r"output\.weight is F64; a frozen base can be BF16"):
        load_frozen(path)


def test_the_device_is_an_argument() -> None:
    transformer, source = load_frozen(FIXTURES / "llama", device="meta")
    source.close()
    assert {p.device.type for p in transformer.parameters()} == {"meta"}
    blocks = [m.blocks for m in transformer.modules() if isinstance(m, QuantizedLinear)]
    assert {tensor.device.type for tensor in blocks} == {"meta"}


@pytest.mark.parametrize("is_small", [False, True])
def test_matrices_of_large_models_share_the_memory_in_which_they_are_dequantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    """A matrix that is made for one product does not take memory of its own; a small model's is made once."""
    config = write_quantized(tmp_path / "model.gguf", "llama", GGMLType.Q8_0)
    monkeypatch.setattr("etude.learner.quantized.KEPT_BYTES", 512 << 20 if is_small else 0)
    transformer, source = load_frozen(tmp_path / "model.gguf")
    source.close()

    def places() -> list[int]:
        return [
            projection.matrix(torch.float32, torch.device("cpu")).data_ptr()
            for layer in transformer.layers
            for projection in (layer.gate_up, layer.down, layer.qkv)
        ]

    first, second = places(), places()
    assert first == second and len(set(first)) == (3 * config.n_layers if is_small else 1)
