"""What a model is: from GGUF metadata or config.json to the arguments of the one native decoder step.

A family is a row of `FAMILIES`, not a class: which norms and biases it has, how its embedding and attention
are scaled, which layers see only a window, and where its files say so. All differences end here; after
`ModelConfig` nothing asks for the architecture's name except the tensor names (names.py) and GGUF's row
order.

Sliding windows follow the peer that reads the same file: llama.cpp applies one only to gemma3, so a Mistral
GGUF has none; transformers applies `sliding_window` of config.json to mistral and, when switched on, to qwen,
and so do we for a Hugging Face folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.model.fields import Fields
from etude.model.names import GLOBAL_VECTORS, LAYER_BIASES, LAYER_MATRICES, MATRICES, Place, gguf_name
from etude.model.rope import (
    MAX_CONTEXT,
    RopeOverrides,
    RopeTable,
    inv_freqs,
    table_from_gguf,
    table_from_hf,
    with_overrides,
)
from etude.records import EtudeError

# Limits that no supported model comes near; they keep a made-up number from becoming an allocation.
MAX_LAYERS, MAX_WIDTH, MAX_HEADS, MAX_HEAD_DIM, MAX_FF, MAX_VOCAB = 512, 2**16, 1024, 1024, 2**18, 2**22

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Attention:
    """windows: per layer, how many tokens it sees, its own included; 0 is all. softcap 0 is off."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    windows: tuple[int, ...]
    softcap: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """A supported model. `rope_of_layer` are rows of `rope_tables`; `native_arguments` is what native code
    takes."""

    architecture: str
    context_length: int
    n_vocab: int
    tied_embeddings: bool
    n_layers: int
    d_model: int
    d_ff: int
    norm_eps: float
    activation: str
    attention: Attention
    rope_tables: tuple[RopeTable, ...]
    rope_of_layer: tuple[int, ...]
    embedding_scale: float = 1.0
    logit_softcap: float = 0.0

    def native_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `_native.Model` and of `kernels.reference.Hyperparameters`."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_heads": self.attention.n_heads,
            "n_kv_heads": self.attention.n_kv_heads,
            "head_dim": self.attention.head_dim,
            "d_ff": self.d_ff,
            "n_vocab": self.n_vocab,
            "norm_eps": self.norm_eps,
            "attention_scale": self.attention.scale,
            "embedding_scale": self.embedding_scale,
            "logit_softcap": self.logit_softcap,
            "attention_softcap": self.attention.softcap,
            "activation": self.activation,
            "windows": np.array(self.attention.windows, np.int32),
            "rope_of_layer": np.array(self.rope_of_layer, np.int32),
            "inv_freqs": np.stack([inv_freqs(table) for table in self.rope_tables]),
            "rope_scales": np.array([table.magnitude for table in self.rope_tables], np.float32),
        }


@dataclass(frozen=True)
class Family:
    """How one architecture differs from plain llama.

    required, optional: layer slots beyond the matrices and the two norms that all have. paired_gguf: GGUF
    holds q and k rows for adjacent-pair rotation. hf_norm_offset: what Hugging Face's norm weights leave out
    of the multiplier. window_pattern: every how many layers one sees everything; 0 has no windows.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = LAYER_BIASES
    activation: str = "silu"
    paired_gguf: bool = False
    hf_norm_offset: float = 0.0
    scaled_embedding: bool = False
    window_pattern: int = 0
    local_rope_base: float = 10000.0


FAMILIES: dict[str, Family] = {
    "llama": Family(paired_gguf=True),
    "qwen2": Family(required=("attn_q_bias", "attn_k_bias", "attn_v_bias")),
    "qwen3": Family(required=("attn_q_norm", "attn_k_norm")),
    "gemma3": Family(
        required=("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"),
        activation="gelu_tanh",
        hf_norm_offset=1.0,
        scaled_embedding=True,
        window_pattern=6,
    ),
}


def _every_layer(fields: Fields, n_layers: int) -> list[bool]:
    return [True] * n_layers


def _upper_layers(fields: Fields, n_layers: int) -> list[bool]:
    """qwen: off unless use_sliding_window; then the layers from max_window_layers on."""
    if not fields.flag("use_sliding_window", False):
        return [False] * n_layers
    first = fields.integer("max_window_layers", 0, MAX_LAYERS, 28)
    return [layer >= first for layer in range(n_layers)]


def _all_but_each_nth(fields: Fields, n_layers: int) -> list[bool]:
    pattern = fields.integer("sliding_window_pattern", 1, MAX_LAYERS, 6)
    return [(layer + 1) % pattern != 0 for layer in range(n_layers)]


@dataclass(frozen=True)
class HFType:
    """One `model_type` of config.json: its family, what transformers assumes for absent keys, which layers
    slide."""

    architecture: str
    sliding: Callable[[Fields, int], list[bool]] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 1e6,
}
_QWEN_DEFAULTS = {"max_position_embeddings": 32768, "sliding_window": 4096}
HF_TYPES: dict[str, HFType] = {
    "llama": HFType("llama", None, {"max_position_embeddings": 2048}),
    "mistral": HFType("llama", _every_layer, {"max_position_embeddings": 131072, "sliding_window": 4096}),
    "qwen2": HFType("qwen2", _upper_layers, _QWEN_DEFAULTS),
    "qwen3": HFType("qwen3", _upper_layers, _QWEN_DEFAULTS | {"head_dim": 128}),
    "gemma3_text": HFType("gemma3", _all_but_each_nth, _GEMMA3_DEFAULTS),
}


def config_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_freqs: NDArray[np.float32] | None = None,
    source: str = "GGUF metadata",
) -> ModelConfig:
    """The model that a GGUF file's metadata and tensor shapes (numpy order: rows, inputs) describe.

    rope_freqs: values of the tensor rope_freqs.weight, where the file has it. Rules and defaults are
    llama.cpp's (src/models/*.cpp). EtudeError for an unsupported architecture, for metadata out of bounds,
    and for tensors that are missing or have another shape than the metadata says.
    """
    general = Fields(metadata, source)
    if general.text("general.type", "model") != "model":
        raise general.error("general.type", "model (a LoRA adapter is given beside a model)")
    architecture = general.text("general.architecture")
    if architecture not in FAMILIES:
        raise EtudeError(
            f"{source}: architecture {architecture!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    fields = Fields(metadata, source, architecture + ".")
    config = _gguf_config(architecture, fields, shapes, rope_freqs)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > config.n_vocab:
        raise EtudeError(f"{source}: {len(tokens)} tokens but an embedding of {config.n_vocab} rows")
    check_shapes(config, shapes, source)
    return config


def _gguf_config(
    architecture: str,
    fields: Fields,
    shapes: Mapping[str, tuple[int, ...]],
    rope_freqs: NDArray[np.float32] | None,
) -> ModelConfig:
    family = FAMILIES[architecture]
    if fields.integer("expert_count", 0, 2**16, 0) > 0:
        raise fields.error("expert_count", "0: mixtures of experts are not supported")
    n_layers = fields.integer("block_count", 1, MAX_LAYERS)
    d_model = fields.integer("embedding_length", 1, MAX_WIDTH)
    context_length = fields.integer("context_length", 1, MAX_CONTEXT)
    heads = _gguf_heads(fields, d_model)
    windows = _gguf_windows(family, fields, n_layers)
    table = table_from_gguf(fields, heads.head_dim, context_length, rope_freqs)
    tables, rope_of_layer = _layer_tables(
        table, fields.number("rope.freq_base_swa", 1.001, 1e15, 10000.0), windows
    )
    scale_dim = heads.head_dim
    if architecture == "gemma3" and n_layers == 62:
        scale_dim = d_model // heads.n_heads  # 27B: query_pre_attn_scalar is not in GGUF; llama.cpp's rule
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2 or not 1 <= embedding[0] <= MAX_VOCAB:
        raise EtudeError(
            f"{fields.source}: token_embd.weight has shape {embedding}; it must be (vocabulary, {d_model})"
        )
    return ModelConfig(
        architecture=architecture,
        context_length=context_length,
        n_vocab=embedding[0],
        tied_embeddings="output.weight" not in shapes,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=fields.integer("feed_forward_length", 1, MAX_FF),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 1e-12, 1.0),
        activation=family.activation,
        attention=replace(heads, scale=1.0 / math.sqrt(scale_dim), windows=windows),
        rope_tables=tables,
        rope_of_layer=rope_of_layer,
        embedding_scale=math.sqrt(d_model) if family.scaled_embedding else 1.0,
        logit_softcap=fields.number("final_logit_softcapping", 0.0, 1e6, 0.0),
    )


def _gguf_heads(fields: Fields, d_model: int) -> Attention:
    n_heads = fields.integer("attention.head_count", 1, MAX_HEADS)
    n_kv_heads = fields.integer("attention.head_count_kv", 1, MAX_HEADS, n_heads)
    head_dim = fields.integer("attention.key_length", 2, MAX_HEAD_DIM, d_model // n_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        default = d_model // n_heads if key == "attention.value_length" else head_dim
        if fields.integer(key, 1, MAX_HEAD_DIM, default) != head_dim:
            raise fields.error(key, f"the length of a key, {head_dim}; other sizes are not supported")
    return _checked_heads(fields, "attention.", Attention(n_heads, n_kv_heads, head_dim, 1.0, ()))


def _checked_heads(fields: Fields, prefix: str, heads: Attention) -> Attention:
    if heads.n_heads % heads.n_kv_heads:
        raise EtudeError(
            f"{fields.source}: {heads.n_heads} attention heads do not share {heads.n_kv_heads} key/value "
            "heads evenly; the first must be a multiple of the second"
        )
    if heads.head_dim % 2 or heads.head_dim > MAX_HEAD_DIM:
        raise EtudeError(
            f"{fields.source}: a head of {heads.head_dim} values; it must be even, 2 to {MAX_HEAD_DIM}"
        )
    return heads


def _gguf_windows(family: Family, fields: Fields, n_layers: int) -> tuple[int, ...]:
    window = fields.integer("attention.sliding_window", 0, MAX_CONTEXT, 0) if family.window_pattern else 0
    if window == 0:
        return (0,) * n_layers
    key = "attention.sliding_window_pattern"
    given = fields.raw(key, family.window_pattern)
    if isinstance(given, (list, tuple, np.ndarray)):
        sliding = [bool(item) for item in given]
        if len(sliding) != n_layers:
            raise fields.error(key, f"one value for each of the {n_layers} layers")
    else:
        pattern = fields.integer(key, 0, MAX_LAYERS, family.window_pattern)
        sliding = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(n_layers)]
    return tuple(window if slides else 0 for slides in sliding)


def _layer_tables(
    table: RopeTable, local_base: float, windows: tuple[int, ...]
) -> tuple[tuple[RopeTable, ...], tuple[int, ...]]:
    """gemma3: layers with a window rotate by an own base, never scaled. Table 0 is the full-attention one."""
    if not any(windows):
        return (table,), (0,) * len(windows)
    return (table, RopeTable(table.dim, local_base)), tuple(int(window > 0) for window in windows)


def config_from_hf(config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """The model that a Hugging Face config.json describes; absent keys are what transformers assumes.

    Errors as in `config_from_gguf`; the tensors are checked by `check_shapes` when the folder is opened.
    """
    fields = Fields(config, source)
    if fields.text("model_type") == "gemma3":  # multimodal: run its language model
        outer, fields = fields, fields.record("text_config")
        inherited = {
            "tie_word_embeddings": outer.flag("tie_word_embeddings", True),
            "model_type": "gemma3_text",
        }
        fields = Fields(inherited | dict(fields.values), fields.source)
    model_type = fields.text("model_type")
    if model_type not in HF_TYPES:
        known = ", ".join([*HF_TYPES, "gemma3"])
        raise EtudeError(f"{source}: model_type {model_type!r} is not supported; supported are {known}")
    known_type = HF_TYPES[model_type]
    # An explicit null stays: "sliding_window": null is no window, an absent key is transformers' default.
    fields = Fields(dict(known_type.defaults) | dict(fields.values), fields.source)
    _reject_unsupported(fields)
    return _hf_config(known_type, fields)


def _reject_unsupported(fields: Fields) -> None:
    """Settings that change the computation and that the native step does not have."""
    for key, why in (
        ("mlp_bias", "biases in the feed-forward block are not supported"),
        ("use_bidirectional_attention", "only causal models are supported"),
    ):
        if fields.flag(key, False):
            raise fields.error(key, f"false: {why}")
    for key, why in (
        ("quantization_config", "load the unquantised checkpoint, or a GGUF file"),
        ("attn_logit_softcapping", "gemma3 has none, and transformers ignores it there"),
    ):
        if key in fields:
            raise fields.error(key, f"null: {why}")


def _hf_config(known_type: HFType, fields: Fields) -> ModelConfig:
    family = FAMILIES[known_type.architecture]
    n_layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
    d_model = fields.integer("hidden_size", 1, MAX_WIDTH)
    context_length = fields.integer("max_position_embeddings", 1, MAX_CONTEXT)
    heads = _hf_heads(fields, d_model)
    windows = _hf_windows(known_type, fields, n_layers)
    tables, rope_of_layer = _hf_tables(family, fields, heads.head_dim, context_length, windows)
    act_key = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    if tables[
        0
    ].ext_factor:  # YaRN: Qwen2.5's own instructions leave max_position_embeddings at the trained length
        context_length = max(context_length, _scaled_context(tables[0]))
    return ModelConfig(
        architecture=known_type.architecture,
        context_length=context_length,
        n_vocab=fields.integer("vocab_size", 1, MAX_VOCAB),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        n_layers=n_layers,
        d_model=d_model,
        d_ff=fields.integer("intermediate_size", 1, MAX_FF),
        norm_eps=fields.number("rms_norm_eps", 1e-12, 1.0, 1e-6),
        activation=_ACTIVATIONS[fields.choice(act_key, _ACTIVATIONS, "silu")],
        attention=replace(heads, windows=windows),
        rope_tables=tables,
        rope_of_layer=rope_of_layer,
        embedding_scale=math.sqrt(d_model) if family.scaled_embedding else 1.0,
        logit_softcap=fields.number("final_logit_softcapping", 0.0, 1e6, 0.0),
    )


def _hf_heads(fields: Fields, d_model: int) -> Attention:
    n_heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    n_kv_heads = fields.integer("num_key_value_heads", 1, MAX_HEADS, n_heads)
    if "head_dim" not in fields and d_model % n_heads:
        raise fields.error("hidden_size", f"a multiple of num_attention_heads ({n_heads})")
    head_dim = fields.integer("head_dim", 2, MAX_HEAD_DIM, d_model // n_heads)
    scale = 1.0 / math.sqrt(fields.number("query_pre_attn_scalar", 1e-3, 1e6, head_dim))
    return _checked_heads(fields, "", Attention(n_heads, n_kv_heads, head_dim, scale, ()))


def _hf_windows(known_type: HFType, fields: Fields, n_layers: int) -> tuple[int, ...]:
    if known_type.sliding is None:
        return (0,) * n_layers
    window = fields.integer("sliding_window", 0, MAX_CONTEXT, 0)
    layer_types = fields.raw("layer_types")
    if layer_types is None:
        sliding = known_type.sliding(fields, n_layers)
    else:
        if not isinstance(layer_types, list) or len(layer_types) != n_layers:
            raise fields.error("layer_types", f"a list of {n_layers} names, one for each layer")
        if not set(map(str, layer_types)) <= {"full_attention", "sliding_attention"}:
            raise fields.error("layer_types", "a list of full_attention and sliding_attention")
        sliding = [kind == "sliding_attention" for kind in layer_types]
    return tuple(window if slides else 0 for slides in sliding)


def _hf_tables(
    family: Family, fields: Fields, head_dim: int, context_length: int, windows: tuple[int, ...]
) -> tuple[tuple[RopeTable, ...], tuple[int, ...]]:
    """Tables from rope_parameters (transformers 5) or rope_scaling and rope_theta (before)."""
    base = fields.number("rope_theta", 1.001, 1e15, 10000.0)
    rope = fields.record("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    if "full_attention" in rope or "sliding_attention" in rope:
        full, local = rope.record("full_attention"), rope.record("sliding_attention")
    else:
        full, local = rope, Fields({}, rope.source)
    table = table_from_hf(full, head_dim, base, context_length)
    if not family.window_pattern:
        return (table,), (0,) * len(windows)
    local_base = fields.number("rope_local_base_freq", 1.001, 1e15, family.local_rope_base)
    local_table = table_from_hf(local, head_dim, local_base, context_length)
    tables, rope_of_layer = _layer_tables(table, local_base, windows)
    return (tables if len(tables) == 1 else (table, local_table)), rope_of_layer


def _scaled_context(table: RopeTable) -> int:
    return min(int(table.original_context / table.freq_scale), MAX_CONTEXT)


def with_rope(config: ModelConfig, overrides: RopeOverrides) -> ModelConfig:
    """The config under llama.cpp's --rope-* flags. They change the full-attention layers; gemma3's local
    layers keep their frequencies and take only --yarn-attn-factor, as in llama.cpp. New YaRN settings change
    the context length.
    """
    full = with_overrides(config.rope_tables[0], overrides)
    attn_factor = 1.0 if overrides.yarn_attn_factor is None else overrides.yarn_attn_factor
    local = (replace(table, magnitude=table.magnitude * attn_factor) for table in config.rope_tables[1:])
    context_length = config.context_length
    if full.ext_factor and full.freq_scale != config.rope_tables[0].freq_scale:
        context_length = _scaled_context(full)
    return replace(config, rope_tables=(full, *local), context_length=max(context_length, 1))


def layer_slots(config: ModelConfig) -> tuple[str, ...]:
    """Every slot that each layer must have."""
    return (*LAYER_MATRICES, "attn_norm", "ffn_norm", *FAMILIES[config.architecture].required)


def slot_shape(config: ModelConfig, slot: str) -> tuple[int, ...]:
    """Shape of a slot: (n outputs, k inputs) of a matrix, (n,) of a vector. EtudeError for one it has not."""
    heads = config.attention
    q, kv = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
    d, d_ff = config.d_model, config.d_ff
    outputs = {"attn_q": q, "attn_k": kv, "attn_v": kv, "attn_output": d}
    outputs |= {"ffn_gate": d_ff, "ffn_up": d_ff, "ffn_down": d}
    inputs = {"attn_output": q, "ffn_down": d_ff}
    family = FAMILIES[config.architecture]
    if slot in ("token_embd", "output"):
        return (config.n_vocab, d)
    if slot in MATRICES:
        return (outputs[slot], inputs.get(slot, d))
    if slot not in (*GLOBAL_VECTORS, "attn_norm", "ffn_norm", *family.required, *family.optional):
        raise EtudeError(f"a {config.architecture} model has no tensor {slot!r}")
    if slot.endswith("_bias"):
        return (outputs[slot.removesuffix("_bias")],)
    return (heads.head_dim,) if slot in ("attn_q_norm", "attn_k_norm") else (d,)


def check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """EtudeError unless every tensor that the model needs is among `shapes` (GGUF names), in its shape."""
    needed = [Place("token_embd", -1), Place("output_norm", -1)]
    needed += [] if config.tied_embeddings else [Place("output", -1)]
    needed += [Place(slot, layer) for layer in range(config.n_layers) for slot in layer_slots(config)]
    for place in needed:
        name, expected = gguf_name(place), slot_shape(config, place.slot)
        if name not in shapes:
            raise EtudeError(f"{source}: tensor {name} is missing")
        if tuple(shapes[name]) != expected:
            raise EtudeError(
                f"{source}: tensor {name} has shape {tuple(shapes[name])}; the settings say {expected}"
            )
