"""Families: logits equal transformers' for every tiny model, settings are read as the peers read them, and no
metadata, however hostile, gets past the limits."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.kernels import reference
from etude.model.checkpoint import HFFolder, config_of, open_source
from etude.model.family import (
    FAMILIES,
    ModelConfig,
    config_from_gguf,
    config_from_hf,
    layer_slots,
    slot_shape,
    with_rope,
)
from etude.model.gguf import GGUFFile
from etude.model.names import Place, gguf_name, hf_name, pair_row_order, place_of_gguf, place_of_hf
from etude.model.rope import RopeOverrides
from etude.records import EtudeError
from tests.model.tiny_models import (
    FIXTURES,
    NAMES,
    f32_weights,
    gguf_metadata,
    hyperparameters,
    pairs_from_halves,
    write_twin,
)

HF_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    places = [Place("token_embd", -1), Place("output_norm", -1)]
    places += [] if config.tied_embeddings else [Place("output", -1)]
    places += [Place(slot, layer) for layer in range(config.n_layers) for slot in layer_slots(config)]
    return {gguf_name(place): slot_shape(config, place.slot) for place in places}


def gguf_of(architecture: str, n_layers: int = 3) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Metadata and shapes of a small GGUF model of an architecture."""
    model_type = "gemma3_text" if architecture == "gemma3" else architecture
    sizes = {"model_type": model_type, "num_hidden_layers": n_layers, "head_dim": 16}
    config = config_from_hf(HF_CONFIG | sizes)
    return gguf_metadata(config), shapes_of(config)


# --- logits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name: str) -> None:
    expected = np.load(FIXTURES / name / "expected.npz")
    with HFFolder.open(FIXTURES / name) as folder:
        config = config_of(folder)
        weights, hyper = f32_weights(folder, config), hyperparameters(config)
    first_TV, second_TV = (reference.decoder_logits(ids, weights, hyper) for ids in expected["ids_ST"])
    np.testing.assert_allclose(first_TV, expected["logits_TV"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(second_TV[-1], expected["last_logits_SV"][1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "llama_biases", "qwen2", "qwen3_tied", "gemma3"])
def test_a_gguf_file_gives_the_same_model_as_its_folder(name: str, tmp_path: Any) -> None:
    """Rows and biases of q and k permuted back, norms with their 1, tied heads, windows, local base."""
    ids = np.load(FIXTURES / name / "expected.npz")["ids_ST"][0]
    with HFFolder.open(FIXTURES / name) as folder:
        config = config_of(folder)
        write_twin(tmp_path / "twin.gguf", folder, config)
        weights = f32_weights(folder, config)
    with GGUFFile.open(tmp_path / "twin.gguf") as file:
        twin = config_of(file)
        twin_weights = f32_weights(file, twin)
    # GGUF stores f32 numbers, and gemma3's query_pre_attn_scalar not at all (the fixture's is not head_dim).
    arguments = twin.native_arguments() | {"attention_scale": config.attention.scale}
    for key, value in config.native_arguments().items():
        if isinstance(value, str):
            assert arguments[key] == value
        else:
            np.testing.assert_allclose(arguments[key], value, rtol=1e-6, err_msg=key)
    assert twin_weights.keys() == weights.keys()
    for place, values in weights.items():
        np.testing.assert_array_equal(twin_weights[place], values, err_msg=str(place))
    np.testing.assert_allclose(
        reference.decoder_logits(ids, twin_weights, reference.Hyperparameters(**arguments)),
        reference.decoder_logits(ids, weights, hyperparameters(config)),
        atol=1e-5,
    )


# --- GGUF settings ----------------------------------------------------------------------------------------


def test_gemma3_windows_rope_bases_and_scales_from_gguf() -> None:
    metadata, shapes = gguf_of("gemma3", 12)
    del metadata["gemma3.attention.sliding_window_pattern"], metadata["gemma3.rope.freq_base_swa"]
    config = config_from_gguf(metadata | {"gemma3.rope.freq_base": 1e6}, shapes)
    assert config.attention.windows == (4096,) * 5 + (0,) + (4096,) * 5 + (0,)
    assert config.rope_of_layer == (1, 1, 1, 1, 1, 0) * 2
    assert [table.base for table in config.rope_tables] == [1e6, 1e4]
    assert config.embedding_scale == math.sqrt(32)
    assert config.attention.scale == 1 / 4
    assert config.activation == "gelu_tanh"


def test_gemma3_scales_only_global_layers() -> None:
    metadata, shapes = gguf_of("gemma3", 6)
    scaling = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    tables = config_from_gguf(metadata | scaling, shapes).rope_tables
    assert [table.freq_scale for table in tables] == [1 / 8, 1.0]


def test_gemma3_27b_scales_attention_by_width_and_heads() -> None:
    """llama.cpp: 62 layers is the 27B, whose query_pre_attn_scalar is d_model / n_heads, not head_dim."""
    metadata, shapes = gguf_of("gemma3", 62)
    assert config_from_gguf(metadata, shapes).attention.scale == 1 / math.sqrt(32 / 4)


def test_gemma3_pattern_as_a_number() -> None:
    metadata, shapes = gguf_of("gemma3", 6)
    config = config_from_gguf(metadata | {"gemma3.attention.sliding_window_pattern": 3}, shapes)
    assert [window > 0 for window in config.attention.windows] == [True, True, False] * 2
    assert not any(
        config_from_gguf(metadata | {"gemma3.attention.sliding_window": 0}, shapes).attention.windows
    )


def test_llama_ignores_a_sliding_window_as_llama_cpp_does() -> None:
    metadata, shapes = gguf_of("llama")
    config = config_from_gguf(metadata | {"llama.attention.sliding_window": 4096}, shapes)
    assert config.attention.windows == (0, 0, 0)


def test_defaults_of_gguf_metadata() -> None:
    metadata, shapes = gguf_of("llama")
    for key in ("head_count_kv", "key_length", "value_length"):
        metadata.pop(f"llama.attention.{key}")
    del metadata["llama.rope.freq_base"], metadata["llama.rope.dimension_count"]
    shapes |= {name: (32, 32) for name in shapes if "attn_k.w" in name or "attn_v.w" in name}
    shapes |= {name: (32, 32) for name in shapes if "attn_q.w" in name or "attn_output.w" in name}
    config = config_from_gguf(metadata, shapes)
    assert (config.attention.n_kv_heads, config.attention.head_dim) == (4, 8)
    assert config.rope_tables[0].base == 10000.0


def test_heads_per_layer_may_be_a_list_of_equal_numbers() -> None:
    metadata, shapes = gguf_of("llama")
    same = metadata | {"llama.attention.head_count_kv": np.array([2, 2, 2], np.int32)}
    assert config_from_gguf(same, shapes).attention.n_kv_heads == 2
    with pytest.raises(EtudeError, match="every layer"):
        config_from_gguf(metadata | {"llama.attention.head_count_kv": [2, 1, 2]}, shapes)


def test_unsupported_architecture_is_named_with_the_supported_ones() -> None:
    with pytest.raises(
        EtudeError, match=r"'mamba' is not supported; supported are llama, qwen2, qwen3, gemma3"
    ):
        config_from_gguf({"general.architecture": "mamba"}, {})
    with pytest.raises(EtudeError, match=r"'phi3' is not supported; supported are llama, mistral, qwen2"):
        config_from_hf({"model_type": "phi3"})


BAD_GGUF: dict[str, list[Any]] = {
    "block_count": [0, -1, 10**9, 2**70, "3", 3.5, True, None, [], [1, 2]],
    "context_length": [0, -1, 2**40, None],
    "embedding_length": [0, 2**33, None, float("nan")],
    "feed_forward_length": [0, 2**40, [64, 32, 64], None],
    "attention.head_count": [0, -4, 3, 2**20, None],
    "attention.head_count_kv": [0, 3, 8],
    "attention.key_length": [0, 15, 1, 2**16],
    "attention.value_length": [8, 0],
    "attention.layer_norm_rms_epsilon": [0.0, -1e-5, float("nan"), float("inf"), 2.0, "1e-5", None],
    "rope.dimension_count": [8, 0],
    "rope.freq_base": [0.0, 1.0, -1.0, float("inf"), float("nan"), "1e6"],
    "rope.scaling.type": ["longrope", 3],
    "rope.scaling.factor": [-1.0, float("nan"), 1e-9, 1e30],
    "rope.scaling.original_context_length": [0, -1],
    "expert_count": [8],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BAD_GGUF.items() for value in values]
)
def test_bad_metadata_is_named(key: str, value: Any) -> None:
    metadata, shapes = gguf_of("llama")
    with pytest.raises(EtudeError, match=rf"llama\.{key}|tensor|heads|embedding|a key"):
        config_from_gguf(metadata | {f"llama.{key}": value}, shapes)


def test_missing_and_misshapen_tensors_are_named() -> None:
    metadata, shapes = gguf_of("qwen3")
    with pytest.raises(EtudeError, match=r"blk\.1\.attn_k_norm\.weight is missing"):
        config_from_gguf(metadata, {k: v for k, v in shapes.items() if k != "blk.1.attn_k_norm.weight"})
    with pytest.raises(
        EtudeError, match=r"ffn_down\.weight has shape \(32, 63\); the settings say \(32, 64\)"
    ):
        config_from_gguf(metadata, shapes | {"blk.2.ffn_down.weight": (32, 63)})
    with pytest.raises(EtudeError, match=r"token_embd\.weight has shape"):
        config_from_gguf(metadata, {})
    with pytest.raises(EtudeError, match="200 tokens but an embedding of 128 rows"):
        config_from_gguf(metadata | {"tokenizer.ggml.tokens": ["x"] * 200}, shapes)


JSON_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-2, 40), max_size=4),
    st.dictionaries(
        st.sampled_from(["rope_type", "factor", "full_attention"]), st.integers(-1, 9), max_size=2
    ),
    st.sampled_from([0, 1, 2, 3, 4, 8, 16]),
)
GGUF_JUNK = st.one_of(JSON_JUNK, st.just(np.zeros(3, np.float32)), st.just(["a", "b"]))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_metadata_gives_a_sound_config_or_an_error(data: st.DataObject) -> None:
    architecture = data.draw(st.sampled_from(sorted(FAMILIES)))
    metadata, shapes = gguf_of(architecture)
    keys = sorted(metadata) + [f"{architecture}.{key}" for key in BAD_GGUF]
    metadata |= data.draw(st.dictionaries(st.sampled_from(keys), GGUF_JUNK, min_size=1, max_size=4))
    factors = data.draw(st.sampled_from([None, np.ones(8, np.float32), np.zeros(8, np.float32)]))
    try:
        config = config_from_gguf(metadata, shapes, factors)
    except EtudeError:
        return
    arguments = config.native_arguments()
    assert 1 <= config.n_layers <= 512 and arguments["inv_freqs"].shape[1] * 2 == config.attention.head_dim
    assert np.isfinite(arguments["inv_freqs"]).all() and np.isfinite(arguments["rope_scales"]).all()
    assert len(arguments["windows"]) == len(arguments["rope_of_layer"]) == config.n_layers
    assert config.attention.n_heads % config.attention.n_kv_heads == 0


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_config_json_gives_a_sound_config_or_an_error(data: st.DataObject) -> None:
    config_json = json.loads((FIXTURES / data.draw(st.sampled_from(NAMES)) / "config.json").read_text())
    keys = [*config_json, "rope_scaling", "rope_parameters", "head_dim", "query_pre_attn_scalar"]
    config_json |= data.draw(st.dictionaries(st.sampled_from(keys), JSON_JUNK, min_size=1, max_size=3))
    try:
        arguments = config_from_hf(config_json).native_arguments()
    except EtudeError:
        return
    assert np.isfinite(arguments["inv_freqs"]).all() and np.isfinite(arguments["attention_scale"])


# --- config.json ------------------------------------------------------------------------------------------


def test_mistral_window_of_a_folder_follows_transformers() -> None:
    mistral = HF_CONFIG | {"model_type": "mistral"}
    assert config_from_hf(mistral).attention.windows == (4096,) * 3
    assert config_from_hf(mistral | {"sliding_window": None}).attention.windows == (0,) * 3


def test_qwen_windows_need_their_switch() -> None:
    qwen = HF_CONFIG | {"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}
    assert config_from_hf(qwen).attention.windows == (0, 0, 0)
    assert config_from_hf(qwen | {"use_sliding_window": True}).attention.windows == (0, 8, 8)
    types = ["sliding_attention", "full_attention", "full_attention"]
    assert config_from_hf(qwen | {"layer_types": types}).attention.windows == (8, 0, 0)


def test_multimodal_gemma3_is_its_language_model() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    scaling = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    config = config_from_hf({"model_type": "gemma3", "text_config": text | scaling})
    assert (config.n_vocab, config.attention.n_heads, config.attention.n_kv_heads) == (262208, 8, 4)
    assert config.tied_embeddings and config.attention.windows[:6] == (1024,) * 5 + (0,)
    assert [(t.base, t.freq_scale) for t in config.rope_tables] == [(1e6, 1 / 8), (1e4, 1.0)]


def test_rope_parameters_by_layer_type() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    gemma = HF_CONFIG | {"model_type": "gemma3_text", "head_dim": 16, "rope_parameters": nested}
    tables = config_from_hf(gemma).rope_tables
    assert [(t.base, t.freq_scale) for t in tables] == [(5e5, 1 / 4), (2e4, 1.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "unquantised"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; allowed is one of gelu_pytorch_tanh, silu, swish"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "type is 'dynamic'; allowed is one of default, linear, llama3, yarn",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"rope_scaling": "linear"}, "a JSON object"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "evenly"),
        ({"head_dim": 7}, "even"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "causal"),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention"]}, "layer_types"),
        ({"model_type": "gemma3_text", "layer_types": ["chunked"] * 3}, "layer_types"),
    ],
)
def test_unsupported_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        config_from_hf(HF_CONFIG | change)


# --- overrides and names ----------------------------------------------------------------------------------


def test_overrides_leave_gemma3_local_layers() -> None:
    metadata, shapes = gguf_of("gemma3", 6)
    config = config_from_gguf(metadata, shapes)
    changed = with_rope(config, RopeOverrides(rope_scaling="yarn", rope_scale=4.0, rope_freq_base=5e5))
    assert changed.rope_tables[1] == config.rope_tables[1]
    assert (changed.rope_tables[0].base, changed.rope_tables[0].ext_factor) == (5e5, 1.0)
    assert changed.context_length == 4 * config.context_length
    assert with_rope(config, RopeOverrides()) == config


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_names_go_both_ways(architecture: str) -> None:
    config = config_from_gguf(*gguf_of(architecture))
    slots = [(slot, 7) for slot in (*layer_slots(config), *FAMILIES[architecture].optional)]
    for slot, layer in [*slots, ("token_embd", -1), ("output", -1), ("output_norm", -1)]:
        place = Place(slot, layer)
        assert place_of_gguf(gguf_name(place)) == place
        assert place_of_hf(architecture, hf_name(architecture, place)) == place


def test_names_that_nothing_needs_and_names_that_are_unknown() -> None:
    for name in ("model.layers.3.self_attn.rotary_emb.inv_freq", "vision_tower.x", "model.vision_tower.x"):
        assert place_of_hf("gemma3", name) is None
    assert place_of_gguf("rope_freqs.weight") is None
    assert place_of_hf("gemma3", "language_model.model.layers.1.mlp.up_proj.weight") == Place("ffn_up", 1)
    assert place_of_hf("gemma3", "model.language_model.norm.weight") == Place("output_norm", -1)
    for name in ("score.weight", "model.layers.x.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.bias"):
        with pytest.raises(EtudeError, match="wrong results"):
            place_of_hf("llama", name)
    for name in (
        "blk.0.ffn_gate_exps.weight",
        "blk.0.attn_qkv.weight",
        "token_embd.bias",
        "blk.0.ffn_up.bias",
    ):
        with pytest.raises(EtudeError, match="wrong results"):
            place_of_gguf(name)


@pytest.mark.parametrize(("n_heads", "head_dim"), [(1, 2), (3, 6), (4, 64)])
def test_row_order_undoes_the_converters_permutation(n_heads: int, head_dim: int) -> None:
    rows = np.arange(n_heads * head_dim)
    np.testing.assert_array_equal(pairs_from_halves(rows, n_heads)[pair_row_order(n_heads, head_dim)], rows)


def test_open_source_takes_both_kinds(tmp_path: Any) -> None:
    assert isinstance(open_source(FIXTURES / "llama"), HFFolder)
    (tmp_path / "ten.gguf").write_bytes(b"0123456789")
    with pytest.raises(EtudeError):
        open_source(tmp_path / "ten.gguf")
