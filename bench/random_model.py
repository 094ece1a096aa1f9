"""A model of Qwen2.5-1.5B's shape with random weights, in Q8_0 or Q4_K, to measure speed with.

The blocks are written straight (random bytes under one scale), because 1.5 billion floats take minutes to
draw and half an hour to quantise. The Q4_K file keeps its embedding, which is also the head, in Q6_K, as
llama-quantize does (Q4_K_S).
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

N_LAYERS, D_MODEL, D_FF, N_HEADS, N_KV_HEADS, N_VOCAB = 28, 1536, 8960, 12, 2, 151936
D_KV = D_MODEL // N_HEADS * N_KV_HEADS
# Weights that one token meets: all matrices of the layers, and the head, which shares the embedding's tensor.
LAYER_WEIGHTS = N_LAYERS * (2 * D_MODEL * (D_MODEL + D_KV) + 3 * D_MODEL * D_FF)
HEAD_WEIGHTS = N_VOCAB * D_MODEL

MATRICES = {
    "attn_q": (D_MODEL, D_MODEL), "attn_k": (D_KV, D_MODEL), "attn_v": (D_KV, D_MODEL),
    "attn_output": (D_MODEL, D_MODEL), "ffn_gate": (D_FF, D_MODEL), "ffn_up": (D_FF, D_MODEL),
    "ffn_down": (D_MODEL, D_FF),
}  # fmt: skip
BIASES = {"attn_q": D_MODEL, "attn_k": D_KV, "attn_v": D_KV}


def tensors() -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor: two-dimensional ones are quantised, the others F32."""
    listed: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (N_VOCAB, D_MODEL))]
    for layer in range(N_LAYERS):
        listed += [(f"blk.{layer}.{name}.weight", shape) for name, shape in MATRICES.items()]
        listed += [(f"blk.{layer}.{name}.bias", (n,)) for name, n in BIASES.items()]
        listed += [(f"blk.{layer}.{name}.weight", (D_MODEL,)) for name in ("attn_norm", "ffn_norm")]
    return [*listed, ("output_norm.weight", (D_MODEL,))]


def random_blocks(n_blocks: int, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """(n_blocks, block_bytes): random bytes, with the f16 scales set so that weights stay near 0.02.

    The standard deviations, for bytes spread evenly: Q8_0 74 scales, Q6_K 74 * 18.5, Q4_K 258 with the
    minimum's scale at 7.5 times the other, which also makes the mean 0.
    """
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
    scales = {
        Kind.Q8_0: (0, [0.02 / 74]),
        Kind.Q6_K: (208, [0.02 / 1369]),
        Kind.Q4_K: (0, [0.02 / 258, 0.15 / 258]),
    }
    at, values = scales[kind]
    blocks[:, at : at + 2 * len(values)] = np.array(values, np.float16).view(np.uint8)
    return blocks


def kind_of(name: str, kind: Kind) -> Kind:
    """The type of a matrix in the file whose type is `kind`."""
    return Kind.Q6_K if kind == Kind.Q4_K and name == "token_embd.weight" else kind


def values_of(name: str, shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    block, _ = gguf.GGML_QUANT_SIZES[kind_of(name, kind)]
    return random_blocks(shape[0] * shape[1] // block, kind_of(name, kind), rng).reshape(shape[0], -1)


def add_metadata(writer: gguf.GGUFWriter, kind: Kind) -> None:
    """Qwen2.5's hyperparameters, and a vocabulary of the right size: the 256 bytes and invented words."""
    writer.add_name("random weights in the shape of Qwen2.5-1.5B")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(32768)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    types = {Kind.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0, Kind.Q4_K: gguf.LlamaFileType.MOSTLY_Q4_K_S}
    writer.add_file_type(types[kind])
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(
        symbols + [f"word{i}" for i in range(N_VOCAB - len(symbols) - 1)] + ["<|endoftext|>"]
    )
    writer.add_token_types([gguf.TokenType.NORMAL] * (N_VOCAB - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h", "i n"])
    writer.add_eos_token_id(N_VOCAB - 1)
    writer.add_add_bos_token(False)


def add_tensor_table(writer: gguf.GGUFWriter, kind: Kind) -> None:
    """Announce every tensor, so that the data can be written one after the other."""
    for name, shape in tensors():
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
            continue
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind_of(name, kind)]
        stored = (shape[0], shape[1] // block * block_bytes)
        writer.add_tensor_info(
            name, stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=kind_of(name, kind)
        )


def write_random_model(path: Path, kind: Kind) -> None:
    """Write 0.9 (Q4_K) or 1.6 GB (Q8_0); the file appears under its name only when it is whole."""
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen2")
    add_metadata(writer, kind)
    add_tensor_table(writer, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(15)
    for name, shape in tensors():
        writer.write_tensor_data(values_of(name, shape, kind, rng))
    writer.close()
    os.replace(partial, path)
