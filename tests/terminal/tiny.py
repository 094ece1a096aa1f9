"""A model of 27,000 random weights with a vocabulary of bytes and ChatML's tokens.

What it says is noise, and every mechanism of the terminal can be tried on it in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from etude.model.gguf_write import write_gguf
from etude.model.quants import GGMLType
from etude.model.vocabulary import BYTE_CHARS

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINKING = ("<think>", "</think>")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FORGETFUL = CHATML.replace("message['content']", "message['content'].split('</think>')[-1].strip()")
OPENING = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
CONTEXT, WIDTH, LAYERS, HEADS, KV_HEADS, FF = 512, 32, 2, 2, 1, 64


def tiny_metadata(template: str | None = CHATML) -> dict[str, Any]:
    """Metadata of the tiny model; template None: a base model."""
    tokens = [*SPECIALS, *(BYTE_CHARS[byte] for byte in range(256)), *THINKING, "~~"]
    kinds = [3] * len(SPECIALS) + [1] * 256 + [4] * len(THINKING) + [1]
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.block_count": LAYERS,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FF,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": ["~ ~"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return metadata


def write_tiny(
    path: Path, template: str | None = CHATML, seed: int = 0, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write the model; the same seed gives the same file. extra: of its metadata."""
    draw = np.random.default_rng(seed)
    metadata = tiny_metadata(template) | dict(extra or {})
    n_vocab, kv_width = len(metadata["tokenizer.ggml.tokens"]), KV_HEADS * WIDTH // HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (kv_width, WIDTH), "attn_v": (kv_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FF, WIDTH), "ffn_up": (FF, WIDTH), "ffn_down": (WIDTH, FF),
    }  # fmt: skip
    embedding = draw.normal(size=(n_vocab, WIDTH)).astype(np.float32)
    tensors = [("token_embd.weight", embedding, GGMLType.F32)]
    for layer in range(LAYERS):
        for slot, shape in shapes.items():
            values = (0.3 * draw.normal(size=shape)).astype(np.float32)
            tensors.append((f"blk.{layer}.{slot}.weight", values, GGMLType.F32))
        for slot in ("attn_norm", "ffn_norm"):
            tensors.append((f"blk.{layer}.{slot}.weight", np.ones(WIDTH, np.float32), GGMLType.F32))
    tensors.append(("output_norm.weight", np.ones(WIDTH, np.float32), GGMLType.F32))
    write_gguf(path, metadata, tensors)
    return path
