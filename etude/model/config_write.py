"""The way back from `ModelConfig`: config.json for transformers, metadata keys for a GGUF file.

Each is read again by family.py before anything is written, and must give the same model: what a format
cannot say (an attention scale in GGUF, say) is an error that names it, never a file that computes something
else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.model.family import (
    FAMILIES,
    ModelConfig,
    config_from_gguf,
    config_from_hf,
    layer_slots,
    slot_shape,
)
from etude.model.names import Place, gguf_name
from etude.model.rope import RopeTable, inv_freqs, llama3_factors, yarn_magnitude
from etude.records import EtudeError

_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}

_TOLERANCE = 1e-6  # relative; files hold f32 or decimal numbers


# ── config.json ──


def hf_config(config: ModelConfig, *, attention_bias: bool, dtype: str) -> dict[str, Any]:
    """config.json of a model that came from a GGUF file. dtype: as torch names it. EtudeError: see above."""
    model_type, architecture = _ARCHITECTURES[config.architecture]
    heads = config.attention
    record: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.n_vocab,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads,
        "head_dim": heads.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        "rope_theta": config.rope_tables[0].base,
        "rope_scaling": _rope_scaling(config.rope_tables[0]),
    }
    if config.architecture == "gemma3":
        record |= _gemma3_settings(config)
    else:
        record["hidden_act"] = config.activation
    if config.architecture in ("llama", "qwen3"):
        record["attention_bias"] = attention_bias
    if config.architecture in ("qwen2", "qwen3"):
        record |= {"use_sliding_window": False, "sliding_window": None}
    if config.architecture == "qwen2":
        del record["head_dim"]  # transformers derives it
    _check_same(config, config_from_hf(record, "config.json"), "a Hugging Face config.json")
    return record


def _gemma3_settings(config: ModelConfig) -> dict[str, Any]:
    windows = config.attention.windows
    local = config.rope_tables[config.rope_of_layer[windows.index(max(windows))]] if any(windows) else None
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(config.attention.scale**-2),  # transformers wants an integer
        "sliding_window": max(windows) or config.context_length,
        "layer_types": kinds,
        "rope_local_base_freq": 10000.0 if local is None else local.base,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": config.logit_softcap or None,
        "attention_bias": False,
    }


def _rope_scaling(table: RopeTable) -> dict[str, Any] | None:
    """transformers' rope_scaling object; None for plain frequencies."""
    factor = 1.0 / table.freq_scale
    if table.ext_factor:
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": table.original_context,
            "beta_fast": table.beta_fast,
            "beta_slow": table.beta_slow,
            "attention_factor": table.magnitude,
            "truncate": table.truncate,
        }
    if table.freq_factors:
        return _llama3_scaling(table)
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _llama3_scaling(table: RopeTable) -> dict[str, Any]:
    """The settings behind a table of factors, with low 1 and high 4 as all Llama 3 models have.

    A factor f between 1 and the largest, F, tells the context: 1/f = (1 - t)/F + t, t = (c/l - 1) / 3.
    """
    factor, low, high = max(table.freq_factors), 1.0, 4.0
    original = 8192
    for index, f in enumerate(table.freq_factors):
        if 1.001 < f < 0.999 * factor:
            wavelength = 2.0 * math.pi * table.base ** (2.0 * index / table.dim)
            t = (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor)
            original = round(wavelength * (low + t * (high - low)))
            break
    known = llama3_factors(table.dim, table.base, factor, low, high, original)
    if not np.allclose(known, table.freq_factors, rtol=1e-4):
        raise EtudeError(
            "the file's rope_freqs.weight is no llama3 scaling, and config.json can express no other: save "
            "the model as GGUF instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


# ── GGUF ──


def gguf_metadata(config: ModelConfig) -> dict[str, Any]:
    """The architecture's keys, as llama.cpp's converter writes them. EtudeError: see above."""
    heads, table = config.attention, config.rope_tables[0]
    keys: dict[str, Any] = {
        "block_count": config.n_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": heads.n_heads,
        "attention.head_count_kv": heads.n_kv_heads,
        "attention.key_length": heads.head_dim,
        "attention.value_length": heads.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": heads.head_dim,
        "rope.freq_base": float(table.base),
        "vocab_size": config.n_vocab,
    }
    keys |= _gguf_rope(table)
    if config.logit_softcap:
        keys["final_logit_softcapping"] = float(config.logit_softcap)
    if any(heads.windows) and FAMILIES[config.architecture].window_pattern:
        keys["attention.sliding_window"] = max(heads.windows)
        keys["attention.sliding_window_pattern"] = np.array(heads.windows) > 0
        keys["rope.freq_base_swa"] = float(config.rope_tables[1].base)
    metadata = {"general.architecture": config.architecture, "general.type": "model"}
    metadata |= {f"{config.architecture}.{key}": value for key, value in keys.items()}
    _check_same(config, _read_back(config, metadata), "a GGUF file")
    return metadata


def _gguf_rope(table: RopeTable) -> dict[str, Any]:
    factor = 1.0 / table.freq_scale
    if table.ext_factor:
        keys: dict[str, Any] = {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": table.original_context,
            "rope.scaling.yarn_beta_fast": float(table.beta_fast),
            "rope.scaling.yarn_beta_slow": float(table.beta_slow),
        }
        if abs(table.magnitude - yarn_magnitude(factor)) > _TOLERANCE:
            keys["rope.scaling.yarn_attn_factor"] = float(table.magnitude)
        return keys
    return {} if factor == 1.0 else {"rope.scaling.type": "linear", "rope.scaling.factor": factor}


def rope_freqs(config: ModelConfig) -> NDArray[np.float32] | None:
    """The tensor rope_freqs.weight, where the model needs it (llama3's scaling)."""
    factors = config.rope_tables[0].freq_factors
    return np.array(factors, np.float32) if factors else None


def _read_back(config: ModelConfig, metadata: Mapping[str, Any]) -> ModelConfig:
    places = [Place("token_embd", -1), Place("output_norm", -1)]
    places += [] if config.tied_embeddings else [Place("output", -1)]
    places += [Place(slot, layer) for layer in range(config.n_layers) for slot in layer_slots(config)]
    shapes = {gguf_name(place): slot_shape(config, place.slot) for place in places}
    return config_from_gguf(metadata, shapes, rope_freqs(config), "the new file")


# ── both ──


def _check_same(config: ModelConfig, read: ModelConfig, form: str) -> None:
    """EtudeError unless what was read again is the same model."""
    ours, theirs = _facts(config), _facts(read)
    for name, value in ours.items():
        other = theirs[name]
        if isinstance(value, str | bool):
            same = value == other
        else:
            same = np.shape(value) == np.shape(other) and np.allclose(value, other, rtol=_TOLERANCE, atol=0)
        if not same:
            raise EtudeError(
                f"{form} of a {config.architecture} model cannot express its {name}: it would be read as "
                f"{str(other)[:60]} instead of {str(value)[:60]}; save it in its own format"
            )


def _facts(config: ModelConfig) -> dict[str, Any]:
    """What the model computes with, free of how tables are numbered."""
    facts = config.native_arguments()
    tables = facts.pop("rope_of_layer")
    facts["rope frequencies"] = np.stack([inv_freqs(config.rope_tables[table]) for table in tables])
    facts["rope magnitudes"] = facts.pop("rope_scales")[tables]
    facts["sliding windows"] = facts.pop("windows")
    del facts["inv_freqs"]
    facts |= {"tied embeddings": config.tied_embeddings, "context_length": config.context_length}
    return facts
