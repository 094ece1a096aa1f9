"""Tiny GGUF files for tests, by an encoder of their own that knows where each field went.

A `Draft` says what a file holds; `encode` gives its bytes and the position and kind of its fields, which is
what a mutator needs. The encoder checks nothing: any nonsense can be written. `tiny_model` drafts complete
models of the supported families (weights, tokenizer and all) of 36 to 280 KB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from etude.kernels.reference_quants import READABLE_TYPES
from etude.model.quants import GGMLType
from tests.kernels.quant_blocks import plausible

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
CODES = {
    UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i",
    FLOAT32: "f", BOOL: "B", UINT64: "Q", INT64: "q", FLOAT64: "d",
}  # fmt: skip
STRING_FIELDS = 20
"""Strings of an array with fields of their own; the others share one, or most mutations would hit tokens."""


@dataclass
class Array:
    """A metadata array: type of the items, and the items."""

    type: int
    items: list[Any]


@dataclass
class DraftTensor:
    """`dims` in the file's order, the contiguous one first. `offset` None: behind the tensor before it."""

    name: str | bytes
    dims: list[int]
    type: int
    data: bytes
    offset: int | None = None


@dataclass
class Draft:
    """Everything in a file. Keys: (name, type, value); counts None: as many as there are."""

    keys: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    tensors: list[DraftTensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None
    n_keys: int | None = None

    def copy(self) -> Draft:
        """Tensors and lists are new; values and arrays are shared, and replaced rather than changed."""
        tensors = [replace(tensor, dims=[*tensor.dims]) for tensor in self.tensors]
        return replace(self, keys=[*self.keys], tensors=tensors)


@dataclass(frozen=True)
class Field:
    """Bytes `start` to `start + size` of an encoded draft."""

    kind: str
    start: int
    size: int


def _stored(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


class _Encoder:
    def __init__(self) -> None:
        self.out = bytearray()
        self.fields: list[Field] = []

    def put(self, kind: str, stored: bytes) -> None:
        self.fields.append(Field(kind, len(self.out), len(stored)))
        self.out += stored

    def number(self, kind: str, code: str, value: float) -> None:
        if code not in "fd":
            value = int(value) & ((1 << 8 * struct.calcsize(code)) - 1)
            code = code.upper()
        self.put(kind, struct.pack("<" + code, value))

    def string(self, kind: str, text: str | bytes) -> None:
        stored = _stored(text)
        self.number(kind + "_length", "Q", len(stored))
        self.put(kind, stored)

    def value(self, type: int, value: Any) -> None:
        if type == STRING:
            self.string("string", value)
        elif type == ARRAY:
            self.number("item_type", "I", value.type)
            self.number("item_count", "Q", len(value.items))
            if value.type in (STRING, ARRAY):
                for item in value.items[:STRING_FIELDS]:
                    self.value(value.type, item)
                rest = [_stored(item) for item in value.items[STRING_FIELDS:]]
                self.put("strings", b"".join(struct.pack("<Q", len(item)) + item for item in rest))
            else:  # one field for all: a mutator would otherwise hit little else
                code = CODES[value.type]
                self.put("items", struct.pack(f"<{len(value.items)}{code}", *value.items))
        else:
            self.number("scalar", CODES[type], value)


def encode(draft: Draft) -> tuple[bytes, list[Field]]:
    """The file's bytes, and where its fields are."""
    encoder = _Encoder()
    encoder.put("magic", draft.magic)
    encoder.number("version", "I", draft.version)
    encoder.number("count", "Q", len(draft.tensors) if draft.n_tensors is None else draft.n_tensors)
    encoder.number("count", "Q", len(draft.keys) if draft.n_keys is None else draft.n_keys)
    for name, type, value in draft.keys:
        encoder.string("key", name)
        encoder.number("value_type", "I", type)
        encoder.value(type, value)
    end = 0
    places = []
    for tensor in draft.tensors:
        offset = end if tensor.offset is None else tensor.offset
        places.append(offset)
        end = max(end, offset + len(tensor.data) + -len(tensor.data) % draft.alignment)
        encoder.string("name", tensor.name)
        encoder.number("n_dims", "I", len(tensor.dims))
        for dim in tensor.dims:
            encoder.number("dim", "Q", dim)
        encoder.number("tensor_type", "I", tensor.type)
        encoder.number("offset", "Q", offset)
    encoder.put("padding", bytes(-len(encoder.out) % draft.alignment))
    data = bytearray(min(end, 1 << 22))
    for place, tensor in zip(places, draft.tensors, strict=True):
        if place <= len(data):
            data[place : place + len(tensor.data)] = tensor.data
    encoder.put("data", bytes(data))
    return bytes(encoder.out), encoder.fields


# ── tiny models ──


@dataclass(frozen=True)
class Size:
    """Of a tiny model. `types`: of the matrices in turn."""

    d_model: int
    head_dim: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    n_layers: int
    types: tuple[GGMLType, ...]


def types(names: str) -> tuple[GGMLType, ...]:
    return tuple(GGMLType[name] for name in names.split())


SMALL = Size(32, 16, 4, 2, 64, 2, types("Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 IQ4_NL F16"))
MIXED = Size(32, 32, 2, 1, 96, 1, types("BF16 MXFP4 F32 Q8_0"))
WIDE = Size(256, 64, 4, 1, 256, 1, types("Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS"))


def _sentencepiece() -> list[tuple[str, int, Any]]:
    """Three specials, 256 bytes, and a few words."""
    words = ["▁", "▁the", "e", "t", "a", "o", "n", "▁a", "in", "he", "\n", "▁▁", "nö"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words))]
    types = [2, 3, 3] + [6] * 256 + [1] * len(words)
    return [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, tokens)),
        ("tokenizer.ggml.scores", ARRAY, Array(FLOAT32, scores)),
        ("tokenizer.ggml.token_type", ARRAY, Array(INT32, types)),
        ("tokenizer.ggml.unknown_token_id", UINT32, 0),
        ("tokenizer.ggml.bos_token_id", UINT32, 1),
        ("tokenizer.ggml.eos_token_id", UINT32, 2),
        ("tokenizer.ggml.add_bos_token", BOOL, 1),
    ]


def _byte_level_bpe() -> list[tuple[str, int, Any]]:
    """The 256 bytes under GPT-2's printable names, some merges, and two specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    merges = ["Ġ t", "h e", "i n", "Ġt he", "Ġ a", "e r", "o n", "Ġ Ġ"]
    tokens = [names[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    return [
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "qwen2"),
        ("tokenizer.ggml.tokens", ARRAY, Array(STRING, [*tokens, "<|im_start|>", "<|im_end|>"])),
        ("tokenizer.ggml.token_type", ARRAY, Array(INT32, [1] * len(tokens) + [3, 3])),
        ("tokenizer.ggml.merges", ARRAY, Array(STRING, merges)),
        ("tokenizer.ggml.eos_token_id", UINT32, len(tokens) + 1),
        ("tokenizer.ggml.add_bos_token", BOOL, 0),
    ]


def _hyperparameters(family: str, size: Size) -> list[tuple[str, int, Any]]:
    keys: list[tuple[str, int, Any]] = [
        ("context_length", UINT32, 128),
        ("embedding_length", UINT32, size.d_model),
        ("block_count", UINT32, size.n_layers),
        ("feed_forward_length", UINT32, size.d_ff),
        ("attention.head_count", UINT32, size.n_heads),
        ("attention.head_count_kv", UINT32, size.n_kv_heads),
        ("attention.key_length", UINT32, size.head_dim),
        ("attention.value_length", UINT32, size.head_dim),
        ("attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        ("rope.freq_base", FLOAT32, 10000.0),
        ("rope.dimension_count", UINT32, size.head_dim),
    ]
    if family == "gemma3":
        keys.append(("attention.sliding_window", UINT32, 16))
    return [(f"{family}.{name}", type, value) for name, type, value in keys]


def _matrices(family: str, size: Size) -> Iterable[tuple[str, int, int]]:
    """(name, rows, inputs) of the matrices of all layers, and rows 0 for vectors."""
    q_size, kv_size = size.n_heads * size.head_dim, size.n_kv_heads * size.head_dim
    for layer in range(size.n_layers):
        blk = f"blk.{layer}"
        yield f"{blk}.attn_norm.weight", 0, size.d_model
        yield f"{blk}.attn_q.weight", q_size, size.d_model
        yield f"{blk}.attn_k.weight", kv_size, size.d_model
        yield f"{blk}.attn_v.weight", kv_size, size.d_model
        if family == "qwen2":
            yield f"{blk}.attn_q.bias", 0, q_size
            yield f"{blk}.attn_k.bias", 0, kv_size
            yield f"{blk}.attn_v.bias", 0, kv_size
        if family in ("qwen3", "gemma3"):
            yield f"{blk}.attn_q_norm.weight", 0, size.head_dim
            yield f"{blk}.attn_k_norm.weight", 0, size.head_dim
        yield f"{blk}.attn_output.weight", size.d_model, q_size
        if family == "gemma3":
            yield f"{blk}.post_attention_norm.weight", 0, size.d_model
            yield f"{blk}.post_ffw_norm.weight", 0, size.d_model
        yield f"{blk}.ffn_norm.weight", 0, size.d_model
        yield f"{blk}.ffn_gate.weight", size.d_ff, size.d_model
        yield f"{blk}.ffn_up.weight", size.d_ff, size.d_model
        yield f"{blk}.ffn_down.weight", size.d_model, size.d_ff


def tiny_model(family: str, size: Size, seed: int = 0) -> Draft:
    """A complete random model of `family`: llama (with an output matrix), qwen2, qwen3 or gemma3 (tied)."""
    rng = np.random.default_rng(seed)
    tokenizer = _sentencepiece() if family in ("llama", "gemma3") else _byte_level_bpe()
    tokens = next(value for name, _, value in tokenizer if name == "tokenizer.ggml.tokens")
    n_vocab = len(tokens.items)
    wanted = [("token_embd.weight", n_vocab, size.d_model), *_matrices(family, size)]
    wanted.append(("output_norm.weight", 0, size.d_model))
    if family == "llama":
        wanted.append(("output.weight", n_vocab, size.d_model))
    tensors = []
    for index, (name, rows, inputs) in enumerate(wanted):
        if rows:
            type = size.types[index % len(size.types)]
            tensors.append(
                DraftTensor(name, [inputs, rows], type, plausible(rng, type, rows, inputs).tobytes())
            )
        else:
            values = (1 + 0.1 * rng.standard_normal(inputs)).astype("<f4")
            tensors.append(DraftTensor(name, [inputs], GGMLType.F32, values.tobytes()))
    keys: list[tuple[str | bytes, int, Any]] = [
        ("general.architecture", STRING, family),
        ("general.name", STRING, f"tiny {family}"),
        *_hyperparameters(family, size),
        *tokenizer,
    ]
    return Draft(keys, tensors)


def all_value_types() -> Draft:
    """No weights; every type of value alone and in an array, extremes, odd strings."""
    keys: list[tuple[str | bytes, int, Any]] = [("general.architecture", STRING, "none")]
    for type, code in CODES.items():
        bits = 8 * struct.calcsize(code)
        values = [0, 1] if type == BOOL else [0.5, -1e30, 3.0] if code in "fd" else [0, 1, 100]
        if code in "bhiq":
            values += [-(1 << (bits - 1)), (1 << (bits - 1)) - 1]
        elif code in "BHIQ" and type != BOOL:
            values += [(1 << bits) - 1]
        keys.append((f"one.{type}", type, values[-1]))
        keys.append((f"many.{type}", ARRAY, Array(type, values)))
        keys.append((f"none.{type}", ARRAY, Array(type, [])))
    long = "ab" * 200
    texts = ["", "a", "ü", "\0", "日本語", long, "\0\0\0\0\0\0\0\0", b"\xff\xfe", b"\xe2\x82", "", "🙂"]
    keys += [
        ("text.empty", STRING, ""),
        ("text.long", STRING, long * 20),
        ("text.broken", STRING, b"a\xffb"),
        ("texts", ARRAY, Array(STRING, texts * 3)),
        ("texts.none", ARRAY, Array(STRING, [])),
    ]
    return Draft(keys)


def all_tensor_types() -> Draft:
    """Every type that can be dequantised, with 1 to 4 dimensions, at an alignment of 64."""
    rng = np.random.default_rng(5)
    tensors = []
    for index, type in enumerate([GGMLType(type) for type in sorted(READABLE_TYPES)] + [GGMLType.I32]):
        dims = [256, *([3, 2, 1][: index % 4])]
        rows = int(np.prod(dims[1:]))
        data = rng.bytes(rows * 1024) if type == GGMLType.I32 else plausible(rng, type, rows, 256).tobytes()
        tensors.append(DraftTensor(f"t.{type.name}", dims, type, data))
    keys: list[tuple[str | bytes, int, Any]] = [("general.alignment", UINT32, 64)]
    return Draft(keys, tensors, alignment=64)


def samples() -> list[Draft]:
    """What the fuzzer starts from."""
    version_2 = tiny_model("llama", MIXED, seed=7)
    version_2.version = 2
    return [
        tiny_model("llama", SMALL),
        tiny_model("llama", WIDE, seed=1),
        tiny_model("qwen2", SMALL, seed=2),
        tiny_model("qwen3", MIXED, seed=3),
        tiny_model("gemma3", SMALL, seed=4),
        version_2,
        all_value_types(),
        all_tensor_types(),
    ]
