"""Native models and steps for tests: the smallest way to run some tokens through the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.kernels import _native, reference
from etude.kernels.reference_quants import dequantize, quantize
from etude.model.checkpoint import HFFolder, config_of
from etude.model.quants import GGMLType
from tests.model.tiny_models import FIXTURES, f32_weights, hyperparameters

F32 = NDArray[np.float32]
Weights = dict[tuple[str, int], F32]


def fixture(name: str) -> tuple[reference.Hyperparameters, Weights]:
    """One of the tiny models of transformers."""
    with HFFolder.open(FIXTURES / name) as folder:
        config = config_of(folder)
        return hyperparameters(config), f32_weights(folder, config)


def expected(name: str) -> Mapping[str, NDArray[Any]]:
    """ids_ST, logits_TV of the first row, last_logits_SV."""
    with np.load(FIXTURES / name / "expected.npz") as arrays:
        return dict(arrays)


def random_model(seed: int = 0, **changes: Any) -> tuple[reference.Hyperparameters, Weights]:
    """A llama of random weights; changes: fields of `Hyperparameters`, and `extra` slots of vectors."""
    extra: Sequence[str] = changes.pop("extra", ())
    own_head: bool = changes.pop("own_head", False)
    sizes = {"n_layers": 2, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "d_ff": 96,
             "n_vocab": 101, "norm_eps": 1e-5, "embedding_scale": 1.0, "logit_softcap": 0.0,
             "attention_softcap": 0.0, "activation": "silu"} | changes  # fmt: skip
    n_layers, head_dim = sizes["n_layers"], sizes["head_dim"]
    half = sizes.pop("rope_half", head_dim // 2)
    sizes.setdefault("attention_scale", head_dim**-0.5)
    sizes.setdefault("windows", np.zeros(n_layers, np.int32))
    sizes.setdefault("rope_of_layer", np.zeros(n_layers, np.int32))
    sizes.setdefault("inv_freqs", (10000.0 ** -(np.arange(half) / half)).astype(np.float32)[None])
    sizes.setdefault("rope_scales", np.ones(1, np.float32))
    hyper = reference.Hyperparameters(**sizes)
    c, q, kv = hyper.d_model, hyper.n_heads * head_dim, hyper.n_kv_heads * head_dim
    rng = np.random.default_rng(seed)
    weights = {("token_embd", -1): rng.normal(size=(hyper.n_vocab, c)), ("output_norm", -1): np.ones(c)}
    if own_head:
        weights["output", -1] = rng.normal(size=(hyper.n_vocab, c)) / c**0.5
    ff = hyper.d_ff
    shapes = {"attn_q": (q, c), "attn_k": (kv, c), "attn_v": (kv, c), "attn_output": (c, q),
              "ffn_gate": (ff, c), "ffn_up": (ff, c), "ffn_down": (c, ff)}  # fmt: skip
    lengths = {"attn_norm": c, "ffn_norm": c} | {slot: _length(slot, c, q, kv, head_dim) for slot in extra}
    for layer in range(n_layers):
        for slot, (n, k) in shapes.items():
            weights[slot, layer] = rng.normal(size=(n, k)) / k**0.5
        for slot, length in lengths.items():
            weights[slot, layer] = rng.normal(0.0 if slot.endswith("bias") else 1.0, 0.2, length)
    return hyper, {place: np.ascontiguousarray(values, np.float32) for place, values in weights.items()}


def _length(slot: str, c: int, q: int, kv: int, head_dim: int) -> int:
    named = {"attn_q_norm": head_dim, "attn_k_norm": head_dim, "attn_q_bias": q, "attn_k_bias": kv}
    return {**named, "attn_v_bias": kv}.get(slot, c)


def quantized(weights: Weights, type: GGMLType) -> Weights:
    """The values that the matrices have after quantisation."""
    return {
        place: dequantize(type, quantize(type, values).view(np.uint8).reshape(-1), values.shape)
        if values.ndim == 2
        else values
        for place, values in weights.items()
    }


def native(hyper: reference.Hyperparameters, weights: Weights, type: GGMLType = GGMLType.F32) -> Any:
    """A `_native.Model` with matrices of one type."""
    arguments = {field.name: getattr(hyper, field.name) for field in dataclasses.fields(hyper)}
    model = _native.Model(**arguments)
    for (slot, layer), values in weights.items():
        if values.ndim == 2:
            data = np.ascontiguousarray(quantize(type, values)).view(np.uint8).reshape(-1)
            model.set_matrix(slot, layer, int(type), *values.shape, data)
        else:
            model.set_vector(slot, layer, values)
    model.check()
    return model


@dataclass(frozen=True)
class Seq:
    """New tokens of one sequence, and where their keys and values are."""

    tokens: Any
    position: int
    pages: Any
    adapter: Any = None
    scale: float = 1.0


class Run:
    """A decoder with its cache and threads."""

    def __init__(
        self,
        model: Any,
        *,
        threads: int = 1,
        n_pages: int = 64,
        page_tokens: int = 32,
        types: tuple[str, str] = ("f32", "f32"),
    ) -> None:
        self.model, self.page_tokens = model, page_tokens
        self.cache = _native.Cache(model, n_pages, page_tokens, *types)
        self.decoder = _native.Decoder(model, self.cache, _native.Pool(threads))

    def pages(self, n_tokens: int, first: int = 0) -> NDArray[np.int32]:
        """Enough neighbouring pages."""
        return np.arange(first, first - (-n_tokens // self.page_tokens), dtype=np.int32)

    def step(self, seqs: Sequence[Seq], rows: Any = None, **more: Any) -> Any:
        """One step; all rows with their logits unless said otherwise. more: arguments of Decoder.step."""
        counts = [len(seq.tokens) for seq in seqs]
        first_token = np.cumsum([0, *counts]).astype(np.int32)
        wanted = np.arange(first_token[-1], dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
        plain = {
            "token_ids": np.concatenate([np.asarray(seq.tokens, np.int32) for seq in seqs]),
            "first_token": first_token,
            "first_position": np.array([seq.position for seq in seqs], np.int32),
            "pages": np.concatenate([np.asarray(seq.pages, np.int32) for seq in seqs]),
            "first_page": np.cumsum([0, *(len(seq.pages) for seq in seqs)]).astype(np.int32),
            "adapters": [],
            "adapter_scales": np.zeros(0, np.float32),
            "rows": wanted,
            "samplers": [None] * len(wanted),
            "targets": np.zeros(len(wanted), np.int32),
            "masks": [None] * len(wanted),
            "n_top": np.zeros(len(wanted), np.int32),
            "want_logits": True,
        }
        if any(seq.adapter is not None for seq in seqs):
            plain["adapters"] = [seq.adapter for seq in seqs]
            plain["adapter_scales"] = np.array([seq.scale for seq in seqs], np.float32)
        return self.decoder.step(**(plain | more))

    def logits(self, ids: Any, pages: Any = None, chunks: Sequence[int] = (), **seq: Any) -> F32:
        """(T, V) of one sequence from position 0, in pieces of the lengths `chunks`, and then the rest."""
        pages = self.pages(len(ids)) if pages is None else pages
        cuts = [0, *np.cumsum(chunks, dtype=int).tolist(), len(ids)]
        parts = [
            self.step([Seq(ids[begin:end], begin, pages, **seq)]).logits
            for begin, end in pairwise(cuts)
            if begin < end
        ]
        return np.concatenate(parts)


def same_bits(a: F32, b: F32) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def random_ids(n: int, seed: int = 0, n_vocab: int = 101) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, n_vocab, n).astype(np.int32)


def log_softmax(logits: F32) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_kl(exact: F32, rough: F32) -> float:
    p, q = log_softmax(exact), log_softmax(rough)
    return float((np.exp(p) * (p - q)).sum(-1).mean())
