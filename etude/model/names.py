"""Where a tensor belongs: Hugging Face name <-> place (slot, layer) <-> GGUF name.

A place is the native model's address of a tensor. Its slots are llama.cpp's tensor names, so GGUF needs no
table beyond "blk.N.SLOT.weight"; Hugging Face does: the same name means different norms in llama and in
gemma3.

>>> place_of_gguf("blk.3.attn_q.weight")
Place(slot='attn_q', layer=3)
>>> place_of_hf("gemma3", "model.layers.0.post_attention_layernorm.weight")
Place(slot='post_attention_norm', layer=0)

GGUF files of the llama architecture hold the rows of q and k in the order of adjacent-pair rotation; the
native step and Hugging Face rotate halves. `pair_row_order` says where each row is, so nothing is copied to
reorder it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etude.records import EtudeError


class Place(NamedTuple):
    """Slot of the native model and layer; layer -1 for what exists once."""

    slot: str
    layer: int


GLOBAL_MATRICES = ("token_embd", "output")
LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
GLOBAL_VECTORS = ("output_norm",)
LAYER_NORMS = ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")
LAYER_BIASES = ("attn_q_bias", "attn_k_bias", "attn_v_bias", "attn_output_bias")
MATRICES = frozenset(GLOBAL_MATRICES + LAYER_MATRICES)
NORMS = frozenset(GLOBAL_VECTORS + LAYER_NORMS)
VECTORS = NORMS | frozenset(LAYER_BIASES)

_HF_GLOBAL = {
    "token_embd": "model.embed_tokens.weight",
    "output": "lm_head.weight",
    "output_norm": "model.norm.weight",
}
_HF_LAYER = {
    "attn_q": "self_attn.q_proj.weight",
    "attn_k": "self_attn.k_proj.weight",
    "attn_v": "self_attn.v_proj.weight",
    "attn_output": "self_attn.o_proj.weight",
    "ffn_gate": "mlp.gate_proj.weight",
    "ffn_up": "mlp.up_proj.weight",
    "ffn_down": "mlp.down_proj.weight",
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "attn_q_norm": "self_attn.q_norm.weight",
    "attn_k_norm": "self_attn.k_norm.weight",
    "attn_q_bias": "self_attn.q_proj.bias",
    "attn_k_bias": "self_attn.k_proj.bias",
    "attn_v_bias": "self_attn.v_proj.bias",
    "attn_output_bias": "self_attn.o_proj.bias",
}
_HF_GEMMA3_LAYER = _HF_LAYER | {
    "post_attention_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffw_norm": "post_feedforward_layernorm.weight",
}
_HF_LAYER_OF = {"llama": _HF_LAYER, "qwen2": _HF_LAYER, "qwen3": _HF_LAYER, "gemma3": _HF_GEMMA3_LAYER}
_SLOT_OF_HF = {arch: {name: slot for slot, name in table.items()} for arch, table in _HF_LAYER_OF.items()}

# Tensors that hold nothing to compute with: rope tables that old exporters saved (GGUF's rope_freqs is read
# with the settings), and the vision half of a multimodal gemma3, of which the text half is run.
_IGNORED_GGUF = re.compile(r"rope_freqs\.weight|blk\.\d+\.(rope_freqs|attn_rot_embd)\.weight")
_IGNORED_HF = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|self_attn\.masked_bias)|(model\.)?(vision_tower|multi_modal_projector)\..*"
)
_HF_LAYER_NAME = re.compile(r"model\.layers\.(\d{1,4})\.(.+)")
_GGUF_LAYER_NAME = re.compile(r"blk\.(\d{1,4})\.([a-z0-9_]+)\.(weight|bias)")


def _text_name(name: str) -> str:
    """gemma3's multimodal checkpoints keep the language model under another prefix (two exist); drop it."""
    if name.startswith("language_model."):
        return name.removeprefix("language_model.")
    return (
        name.replace("model.language_model.", "model.", 1)
        if name.startswith("model.language_model.")
        else name
    )


def place_of_hf(architecture: str, name: str) -> Place | None:
    """The place of a Hugging Face tensor; None for one that nothing needs. EtudeError for an unknown name."""
    text_name = _text_name(name)
    for slot, known in _HF_GLOBAL.items():
        if text_name == known:
            return Place(slot, -1)
    match = _HF_LAYER_NAME.fullmatch(text_name)
    if match and match[2] in _SLOT_OF_HF[architecture]:
        return Place(_SLOT_OF_HF[architecture][match[2]], int(match[1]))
    if _IGNORED_HF.fullmatch(name):
        return None
    raise EtudeError(
        f"tensor {name!r} is not part of a {architecture} model, and running without it would give wrong "
        "results; use a plain checkpoint of the model"
    )


def place_of_gguf(name: str) -> Place | None:
    """The place of a GGUF tensor; None for one that nothing needs. EtudeError for an unknown name."""
    stem = name.removesuffix(".weight")
    if name.endswith(".weight") and stem in GLOBAL_MATRICES + GLOBAL_VECTORS:
        return Place(stem, -1)
    match = _GGUF_LAYER_NAME.fullmatch(name)
    if match:
        slot = match[2] if match[3] == "weight" else match[2] + "_bias"
        if slot in LAYER_MATRICES + LAYER_NORMS + LAYER_BIASES:
            return Place(slot, int(match[1]))
    if _IGNORED_GGUF.fullmatch(name):
        return None
    raise EtudeError(
        f"tensor {name!r} is none that the supported architectures have, and running without it would give "
        "wrong results; use a plain file of the model"
    )


def hf_name(architecture: str, place: Place) -> str:
    """The Hugging Face name of a place.

    >>> hf_name("llama", Place("ffn_norm", 2))
    'model.layers.2.post_attention_layernorm.weight'
    """
    if place.layer < 0:
        return _HF_GLOBAL[place.slot]
    return f"model.layers.{place.layer}.{_HF_LAYER_OF[architecture][place.slot]}"


def gguf_name(place: Place) -> str:
    """The GGUF name of a place.

    >>> gguf_name(Place("attn_q_bias", 2))
    'blk.2.attn_q.bias'
    """
    stem, kind = (place.slot[:-5], "bias") if place.slot.endswith("_bias") else (place.slot, "weight")
    return f"{stem}.{kind}" if place.layer < 0 else f"blk.{place.layer}.{stem}.{kind}"


def pair_row_order(n_heads: int, head_dim: int) -> NDArray[np.int32]:
    """Where the rows of q or k are in a llama GGUF file: row i of the native order is file row order[i].

    The converter writes, per head, row c * head_dim/2 + j (half c, pair j) as row 2j + c
    (LlamaModel.permute in llama.cpp's conversion/llama.py). Shape (n_heads * head_dim,).

    >>> pair_row_order(1, 6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    rows = np.arange(n_heads * head_dim, dtype=np.int32).reshape(n_heads, head_dim // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(-1))
