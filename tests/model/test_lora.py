"""LoRA files: a pair means the same from PEFT and from GGUF, and what cannot be run as a pair is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels import reference
from etude.model.checkpoint import HFFolder, config_of
from etude.model.family import ModelConfig, slot_shape
from etude.model.gguf import GGMLType, write_gguf
from etude.model.lora import LoraWeights, read_lora
from etude.model.names import LAYER_MATRICES, Place, gguf_name, hf_name
from etude.records import EtudeError
from tests.model.tiny_models import FIXTURES, f32_weights, hyperparameters, to_gguf, write_safetensors

RANK = 4
PEFT = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
ADAPTER = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}


def config_for(name: str) -> ModelConfig:
    with HFFolder.open(FIXTURES / name) as folder:
        return config_of(folder)


CONFIG = config_for("llama")


def random_pairs(config: ModelConfig, rank: int = RANK) -> dict[Place, tuple[NDArray[Any], NDArray[Any]]]:
    """One for every matrix of the layers, and for the head, tied or not."""
    rng = np.random.default_rng(7)
    places = [Place(slot, layer) for layer in range(config.n_layers) for slot in LAYER_MATRICES]
    pairs = {}
    for place in [*places, Place("output", -1)]:
        n, k = slot_shape(config, place.slot)
        a, b = rng.normal(size=(rank, k)), rng.normal(size=(n, rank))
        pairs[place] = (a.astype(np.float32), b.astype(np.float32))
    return pairs


def save_peft(folder: Path, pairs: Any, config: ModelConfig, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PEFT | changes))
    tensors: dict[str, NDArray[Any]] = {}
    for place, (a, b) in pairs.items():
        module = "base_model.model." + hf_name(config.architecture, place).removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def save_gguf(path: Path, pairs: Any, config: ModelConfig, **metadata: Any) -> Path:
    """As llama.cpp's convert_lora_to_gguf.py: rows of b of llama's q and k in GGUF's order."""
    tensors = []
    for place, (a, b) in pairs.items():
        tensors.append((gguf_name(place) + ".lora_a", a, GGMLType.F32))
        tensors.append((gguf_name(place) + ".lora_b", to_gguf(b, place, config), GGMLType.F32))
    write_gguf(path, ADAPTER | {"general.architecture": config.architecture} | metadata, tensors)
    return path


def assert_pairs(got: LoraWeights, pairs: Any, scale: float) -> None:
    assert got.scale == scale
    assert got.tensors.keys() == pairs.keys()
    for place, (a, b) in pairs.items():
        np.testing.assert_array_equal(got.tensors[place].a, a, err_msg=str(place))
        np.testing.assert_array_equal(got.tensors[place].b, b, err_msg=str(place))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_peft_and_gguf_give_the_same_pairs(name: str, tmp_path: Path) -> None:
    config = config_for(name)
    pairs = random_pairs(config)
    assert_pairs(read_lora(save_peft(tmp_path / "peft", pairs, config), config), pairs, 8 / RANK)
    path = save_gguf(tmp_path / "lora.gguf", pairs, config, **{"adapter.lora.alpha": 8.0})
    assert_pairs(read_lora(path, config), pairs, 8 / RANK)


def test_an_adapter_beside_the_model_equals_merged_weights(tmp_path: Path) -> None:
    with HFFolder.open(FIXTURES / "llama") as folder:
        weights = f32_weights(folder, CONFIG)
    ids = np.load(FIXTURES / "llama" / "expected.npz")["ids_ST"][0, :16]
    lora = read_lora(save_peft(tmp_path / "peft", random_pairs(CONFIG), CONFIG, lora_alpha=0.1), CONFIG)
    merged = weights | {
        place: weights[place] + np.float32(lora.scale) * (pair.b @ pair.a)
        for place, pair in lora.tensors.items()
    }
    beside = reference.Arithmetic(adapter=lora.tensors, adapter_scale=lora.scale)
    hyper = hyperparameters(CONFIG)
    logits = reference.decoder_logits(ids, weights, hyper, beside)
    np.testing.assert_allclose(logits, reference.decoder_logits(ids, merged, hyper), atol=1e-4)
    assert np.abs(logits - reference.decoder_logits(ids, weights, hyper)).max() > 0.01


# --- scales -----------------------------------------------------------------------------------------------


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    lora = read_lora(save_peft(tmp_path / "p", random_pairs(CONFIG), CONFIG, use_rslora=True), CONFIG)
    assert lora.scale == 8 / math.sqrt(RANK)


def test_gguf_without_alpha_has_scale_1(tmp_path: Path) -> None:
    assert read_lora(save_gguf(tmp_path / "x.gguf", random_pairs(CONFIG), CONFIG), CONFIG).scale == 1.0


def test_patterns_of_rank_and_alpha(tmp_path: Path) -> None:
    """Places with their own rank and alpha keep alpha / r, whatever the common scale is."""
    wide = {place: pair for place, pair in random_pairs(CONFIG, 8).items() if place.slot == "attn_v"}
    pairs = random_pairs(CONFIG) | wide
    patterns = {
        "rank_pattern": {"v_proj": 8},
        "alpha_pattern": {"v_proj": 24, "^model.layers.1.mlp.up_proj": 4, "proj_that_is_not_there": 1},
    }
    lora = read_lora(save_peft(tmp_path / "p", pairs, CONFIG, **patterns), CONFIG)
    own = {Place("attn_v", 0): 24 / 8, Place("attn_v", 1): 24 / 8, Place("ffn_up", 1): 4 / RANK}
    for place, (_, b) in pairs.items():
        np.testing.assert_allclose(
            lora.scale * lora.tensors[place].b, b * own.get(place, 8 / RANK), rtol=1e-6, err_msg=str(place)
        )
    with pytest.raises(EtudeError, match=r"says rank 16 for model\.layers\.0\.self_attn\.v_proj"):
        read_lora(save_peft(tmp_path / "p", pairs, CONFIG, rank_pattern={"v_proj": 16}), CONFIG)
    with pytest.raises(EtudeError, match="not the name of a module"):
        read_lora(save_peft(tmp_path / "p", pairs, CONFIG, alpha_pattern={"(a+)+": 16}), CONFIG)


def test_ranks_of_a_gguf_file_differ(tmp_path: Path) -> None:
    wide = {place: pair for place, pair in random_pairs(CONFIG, 16).items() if place.layer == 1}
    pairs = random_pairs(CONFIG) | wide
    path = save_gguf(tmp_path / "x.gguf", pairs, CONFIG, **{"adapter.lora.alpha": 8.0})
    lora = read_lora(path, CONFIG)
    for place, (a, b) in pairs.items():
        np.testing.assert_allclose(lora.scale * lora.tensors[place].b, b * (8 / len(a)), rtol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora is True; allowed is False"),
        ({"bias": "lora_only"}, "bias is 'lora_only'; allowed is none"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; allowed is LORA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "alora"),
        ({"r": 0}, "r is 0"),
        ({"r": "four"}, "r is 'four'"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"r": 5}, "says rank 5"),
        ({"rank_pattern": [1]}, "a JSON object"),
    ],
)
def test_peft_settings_that_mean_something_else(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EtudeError, match=message):
        read_lora(save_peft(tmp_path / "p", random_pairs(CONFIG), CONFIG, **changes), CONFIG)


PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = np.ones((4, 32), np.float32), np.ones((64, 4), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no low-rank pairs"),
        ({f"{PREFIX}.lora_A.weight": A}, "is not a pair"),
        ({f"{PREFIX}.lora_A.weight": A, f"{PREFIX}.lora_B.weight": B[:, :3]}, "is not a pair"),
        ({f"{PREFIX}.lora_A.weight": A[:, :31]}, "another model"),
        ({f"{PREFIX}.lora_A.weight": A[:0]}, "another model"),
        ({f"{PREFIX}.lora_A.weight": A[0]}, "another model"),
        ({f"{PREFIX}.lora_B.weight": B.T.copy()}, "another model"),
        ({PREFIX.replace("layers.0", "layers.9") + ".lora_A.weight": A}, "another model"),
        ({f"{PREFIX}.lora_A.weight": A * np.inf, f"{PREFIX}.lora_B.weight": B}, "not finite"),
        ({f"{PREFIX}.lora_A.weight": A, f"{PREFIX}.lora_A.default.weight": A}, "same half"),
        ({f"{PREFIX}.lora_magnitude_vector": A[0]}, "not half of a low-rank pair"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": A}, "not half of a low-rank pair"),
        ({"base_model.model.model.embed_tokens.lora_A.weight": A}, "adapters on embeddings"),
        ({"base_model.model.model.norm.lora_A.weight": A}, "adapters on embeddings and norms"),
        ({"base_model.model.encoder.layer.lora_A.weight": A}, "not part of a llama model"),
    ],
)
def test_peft_tensors_that_do_not_fit(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    folder = save_peft(tmp_path / "p", {}, CONFIG)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(EtudeError, match=message):
        read_lora(folder, CONFIG)


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    folder = save_peft(tmp_path / "p", {}, CONFIG)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(EtudeError, match="pickled"):
        read_lora(folder, CONFIG)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(EtudeError, match=r"adapter_config\.json: cannot be read"):
        read_lora(folder, CONFIG)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"general.type": "model"}, {}, r"general\.type is 'model'; allowed is one of adapter"),
        ({"adapter.type": "cvec"}, {}, r"adapter\.type"),
        ({"general.architecture": "qwen2"}, {}, r"general\.architecture is 'qwen2'; allowed is one of llama"),
        ({"adapter.lora.alpha": float("nan")}, {}, r"adapter\.lora\.alpha"),
        ({"adapter.alora.invocation_tokens": np.array([1, 2], np.uint32)}, {}, "activated LoRA"),
        ({}, {}, "no low-rank pairs"),
        ({}, {"blk.0.attn_norm.weight": A[0]}, "not half of a low-rank pair"),
        ({}, {"blk.0.attn_q.weight.lora_c": A}, "not half of a low-rank pair"),
        ({}, {"token_embd.weight.lora_a": A}, "adapters on embeddings"),
        ({}, {"blk.0.attn_q.weight.lora_a": A.T.copy()}, "another model"),
        ({}, {"blk.7.attn_q.weight.lora_a": A}, "another model"),
        ({}, {"blk.0.attn_q.weight.lora_b": B}, "is not a pair"),
        ({}, {"blk.0.attn_qkv.weight.lora_a": A}, "supported architectures"),
    ],
)
def test_gguf_adapters_that_do_not_fit(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    write_gguf(
        tmp_path / "x.gguf", ADAPTER | metadata, [(name, t, GGMLType.F32) for name, t in tensors.items()]
    )
    with pytest.raises(EtudeError, match=message):
        read_lora(tmp_path / "x.gguf", CONFIG)
