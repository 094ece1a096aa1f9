"""Adapters: written = read, in both formats; merged = beside the base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from etude.engine.engine import Engine
from etude.model.checkpoint import HFFolder, config_of
from etude.model.family import ModelConfig, slot_shape
from etude.model.hf_tensors import hf_tensors
from etude.model.lora import LoraWeights, LowRank, read_lora
from etude.model.lora_write import merged, save_gguf_adapter, save_peft_folder
from etude.model.names import LAYER_MATRICES
from etude.model.save import save_gguf
from etude.records import EtudeError
from tests.model.tiny_models import FIXTURES


def adapter_for(config: ModelConfig, ranks: tuple[int, ...] = (4, 4), scale: float = 1.75) -> LoraWeights:
    """Pairs on all matrices; layer i has rank ranks[i]."""
    rng = np.random.default_rng(11)
    tensors: dict[tuple[str, int], LowRank] = {}
    for layer in range(config.n_layers):
        for slot in LAYER_MATRICES:
            n, k = slot_shape(config, slot)
            rank = ranks[layer % len(ranks)]
            a, b = rng.normal(size=(rank, k)) * 0.2, rng.normal(size=(n, rank)) * 0.2
            tensors[slot, layer] = LowRank(a.astype(np.float32), b.astype(np.float32))
    return LoraWeights(scale, tensors)


def config_for(name: str) -> ModelConfig:
    with HFFolder.open(FIXTURES / name) as folder:
        return config_of(folder)


def assert_same_products(ours: LoraWeights, theirs: LoraWeights) -> None:
    assert ours.tensors.keys() == theirs.tensors.keys()
    for key, (a, b) in ours.tensors.items():
        other = theirs.tensors[key]
        np.testing.assert_array_equal(a, other.a)
        np.testing.assert_allclose(ours.scale * b, theirs.scale * other.b, rtol=1e-6)


@pytest.mark.parametrize("ranks", [(4, 4), (4, 2)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_written_is_read(name: str, ranks: tuple[int, ...], tmp_path: Path) -> None:
    config = config_for(name)
    lora = adapter_for(config, ranks)
    save_peft_folder(tmp_path / "peft", config, lora, base="a/b")
    save_gguf_adapter(tmp_path / "adapter.gguf", config, lora)
    assert_same_products(read_lora(tmp_path / "peft", config), lora)
    assert_same_products(read_lora(tmp_path / "adapter.gguf", config), lora)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.gguf", "peft"]
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "a/b"
    assert (settings["r"], settings["lora_alpha"]) == (4, 7)
    assert set(settings["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["llama_biases", "qwen2_tied", "gemma3_rope_linear"])
def test_merged_is_beside_the_base(name: str, tmp_path: Path) -> None:
    """The engine gives the same log-probabilities with the adapter and with the merged file."""
    config = config_for(name)
    lora = adapter_for(config)
    with HFFolder.open(FIXTURES / name) as source:
        save_gguf(tmp_path / "merged.gguf", source, merged(hf_tensors(source, config), config, lora), "f32")
    ids = tuple(range(5, 60))
    exact = {"weight_type": "f32", "cache_type_k": "f32", "cache_type_v": "f32", "context": 64}
    with Engine.load(FIXTURES / name, **exact) as engine:
        engine.load_adapter("a", lora)
        beside, without = engine.score(ids, adapter="a")[1:], engine.score(ids)[1:]
    with Engine.load(tmp_path / "merged.gguf", **exact) as engine:
        inside = engine.score(ids)[1:]
    np.testing.assert_allclose(np.array(beside, float), np.array(inside, float), atol=1e-4)
    assert np.abs(np.array(without, float) - np.array(inside, float)).max() > 0.1


def test_pairs_without_a_place_are_refused(tmp_path: Path) -> None:
    config = config_for("llama_tied")
    lora = adapter_for(config)
    n, k = slot_shape(config, "output")
    head = LowRank(np.ones((2, k), np.float32), np.ones((n, 2), np.float32))
    with HFFolder.open(FIXTURES / "llama_tied") as source:
        with pytest.raises(EtudeError, match="shares with its embedding"):
            tied = LoraWeights(1.0, {**lora.tensors, ("output", -1): head})
            list(merged(hf_tensors(source, config), config, tied))
        with pytest.raises(EtudeError, match="does not have"):
            lost = LoraWeights(1.0, {("attn_q", 7): lora.tensors["attn_q", 0]})
            list(merged(hf_tensors(source, config), config, lost))
    partial = LoraWeights(1.0, {("attn_q", 0): lora.tensors["attn_q", 0]})
    with pytest.raises(EtudeError, match="save it as GGUF"):
        save_peft_folder(tmp_path / "peft", config, partial)
    save_gguf_adapter(tmp_path / "a.gguf", config, partial)
    assert_same_products(read_lora(tmp_path / "a.gguf", config), partial)
    with pytest.raises(EtudeError, match="no pairs"):
        save_gguf_adapter(tmp_path / "b.gguf", config, LoraWeights(1.0, {}))
    with pytest.raises(EtudeError, match="scale is 0"):
        save_gguf_adapter(tmp_path / "b.gguf", config, LoraWeights(0.0, lora.tensors))
