"""A transformers model with the weights of a GGUF file, dequantised by the `gguf` package, in float32.

Assembled by hand, so that the only thing shared with our loader is the file: config from the metadata,
llama's q/k rows brought back from GGUF's order (pairs next to each other) to Hugging Face's (halves), and
Gemma's norms less the 1 that the conversion to GGUF adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}  # fmt: skip
LLAMA_NAMES = LAYER_NAMES | {"ffn_norm": "post_attention_layernorm"}
GEMMA_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """All values of the file that are no arrays, without the architecture's prefix."""
    architecture = reader.fields["general.architecture"].contents()
    return {
        name.removeprefix(f"{architecture}."): field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0].name != "ARRAY"
    }


def llama_config(meta: dict[str, Any], n_vocab: int) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=n_vocab,
        hidden_size=meta["embedding_length"],
        intermediate_size=meta["feed_forward_length"],
        num_hidden_layers=meta["block_count"],
        num_attention_heads=meta["attention.head_count"],
        num_key_value_heads=meta["attention.head_count_kv"],
        rms_norm_eps=meta["attention.layer_norm_rms_epsilon"],
        max_position_embeddings=meta["context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["rope.freq_base"]},
        tie_word_embeddings=True,
    )


def gemma3_config(meta: dict[str, Any], n_vocab: int) -> transformers.Gemma3TextConfig:
    """Every sixth layer attends to everything, with its own rope base; attention is scaled by 1/sqrt(256)."""
    local = {"rope_type": "default", "rope_theta": 10000.0}
    return transformers.Gemma3TextConfig(
        vocab_size=n_vocab,
        hidden_size=meta["embedding_length"],
        intermediate_size=meta["feed_forward_length"],
        num_hidden_layers=meta["block_count"],
        num_attention_heads=meta["attention.head_count"],
        num_key_value_heads=meta["attention.head_count_kv"],
        head_dim=meta["attention.key_length"],
        query_pre_attn_scalar=meta["attention.key_length"],
        sliding_window=meta["attention.sliding_window"],
        rms_norm_eps=meta["attention.layer_norm_rms_epsilon"],
        max_position_embeddings=meta["context_length"],
        rope_parameters={
            "sliding_attention": local,
            "full_attention": local | {"rope_theta": meta["rope.freq_base"]},
        },
        tie_word_embeddings=True,
    )


def halves_from_pairs(weight_NK: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of each head from (0, h, 1, h + 1, …) to (0, 1, …, h, h + 1, …), h half the head's dimension."""
    n, k = weight_NK.shape
    return weight_NK.reshape(n_heads, n // n_heads // 2, 2, k).swapaxes(1, 2).reshape(n, k)


def hugging_face_name(gguf_name: str, layer_names: dict[str, str]) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight, and the three outside layers."""
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not gguf_name.startswith("blk."):
        return outside[gguf_name]
    _, layer, slot, kind = gguf_name.split(".")
    return f"model.layers.{layer}.{layer_names[slot]}.{kind}"


def load_gguf(path: Path) -> torch.nn.Module:
    """The model in float32 with eager attention. KeyError for an architecture or tensor it does not know."""
    reader = GGUFReader(path)
    meta = metadata(reader)
    is_gemma = {"llama": False, "gemma3": True}[meta["general.architecture"]]
    n_heads = {"attn_q": meta["attention.head_count"], "attn_k": meta["attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        slot = tensor.name.split(".")[-2]
        if slot in n_heads and not is_gemma:
            values = halves_from_pairs(values, n_heads[slot])
        if is_gemma and "norm" in tensor.name:
            values = values - np.float32(1.0)
        name = hugging_face_name(tensor.name, GEMMA_NAMES if is_gemma else LLAMA_NAMES)
        weights[name] = torch.from_numpy(np.ascontiguousarray(values))
    n_vocab = len(weights["model.embed_tokens.weight"])
    config = (gemma3_config if is_gemma else llama_config)(meta, n_vocab)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model.eval()
