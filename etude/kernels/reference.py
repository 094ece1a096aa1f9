"""The specification of the native operators and of the whole decoder step, in numpy and f32.

Each function here is what the C++ of the same name must compute (tests compare them); nothing here is fast,
cached or batched. Shapes by suffix: T tokens, S keys, H query heads, G key/value heads, D head dim, C width
of the model, N outputs and K inputs of a matrix, V vocabulary.

The kernels layer imports nothing of `etude.model`: a model arrives as plain values (`Hyperparameters`, the
arguments of the native `Model`) and a dict of f32 arrays by (slot, layer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Weights = Mapping[tuple[str, int], F32]
"""Tensors by (slot, layer), layer -1 for token_embd, output and output_norm. Matrices (N, K), vectors
(N,)."""

BLOCK = 32
"""Inputs that share a scale when activations are quantised."""

OUTLIER_RATIO = 7.0
"""A block whose largest value is over this many root mean squares of its row is encoded twice."""

CHUNK = 32
"""Keys that attention takes at a time, counted from position 0."""


# --- operators --------------------------------------------------------------------------------------------


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv:1910.07467)."""
    mean_square = np.mean(x.astype(np.float32) ** 2, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight, np.float32)


def rope_angles(positions: I32, inv_freqs: F32, scale: float) -> tuple[F32, F32]:
    """(cos, sin), each (T, D/2), of position * inv_freq, times `scale`. The angle is one f32 product."""
    angles = positions.astype(np.float32)[:, None] * inv_freqs[None, :]
    return (np.cos(angles) * np.float32(scale)), (np.sin(angles) * np.float32(scale))


def rope(x_THD: F32, cos: F32, sin: F32) -> F32:
    """Rotate the pairs (i, i + n) of every head, n = cos.shape[1]: (a, b) -> (a cos - b sin, b cos + a sin).

    The NEOX layout, as Hugging Face's rotate_half. Values from 2n on stay as they are.
    """
    n = cos.shape[1]
    a, b, rest = x_THD[..., :n], x_THD[..., n : 2 * n], x_THD[..., 2 * n :]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


def silu(x: F32) -> F32:
    """x / (1 + exp(-x)), without overflow for large -x."""
    e = np.exp(-np.abs(x))
    return (x * np.where(x >= 0, 1 / (1 + e), e / (1 + e))).astype(np.float32)


def gelu_tanh(x: F32) -> F32:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): gelu_pytorch_tanh, and ggml's GELU."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), np.float32)


ACTIVATIONS: dict[str, Callable[[F32], F32]] = {"silu": silu, "gelu_tanh": gelu_tanh}


# --- products ---------------------------------------------------------------------------------------------


def matmul(x_TK: F32, w_NK: F32) -> F32:
    """(T, N) = x w^T."""
    y_TN: F32 = x_TK @ w_NK.T
    return y_TN


def quantize_activations(x_TK: F32) -> tuple[NDArray[np.int8], F32]:
    """(codes (T, B * 32) int8, scales (T, B)): x ~ scale * code in blocks of 32 inputs, B = ceil(K / 32).

    scale = max|x| / 127 over the block with the two lowest mantissa bits cleared (so that scale times a sum
    of integers is rounded once, see matmul.cpp); code = x * (127 / max|x|) rounded to nearest, ties to even
    (rintf; ggml rounds ties away from zero). A block below 1e-30 counts as zero: scale 0, codes 0. Inputs
    beyond K count as 0.
    """
    n_rows, k = x_TK.shape
    blocks = np.zeros((n_rows, -(-k // BLOCK), BLOCK), np.float32)
    blocks.reshape(n_rows, -1)[:, :k] = x_TK
    peak = np.abs(blocks).max(axis=-1, keepdims=True)
    counts = peak >= np.float32(1e-30)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=counts)
    codes = np.rint(blocks * inverse).astype(np.int8)
    scales = np.where(counts, peak / np.float32(127), np.float32(0))[..., 0]
    return codes.reshape(n_rows, -1), (scales.view(np.uint32) & np.uint32(0xFFFFFFFC)).view(np.float32)


def outlier_blocks(x_TK: F32) -> NDArray[np.bool_]:
    """(T, B): the blocks with max|x|^2 > OUTLIER_RATIO^2 * mean(x^2), the mean over the whole row."""
    n_rows, k = x_TK.shape
    mean_square = np.mean(x_TK.astype(np.float64) ** 2, axis=-1, keepdims=True)
    starts = np.arange(0, k, BLOCK)
    peak = np.maximum.reduceat(np.abs(x_TK), starts, axis=-1).astype(np.float64)
    return np.asarray(peak**2 > OUTLIER_RATIO**2 * mean_square).reshape(n_rows, len(starts))


def encode_activations(x_TK: F32) -> NDArray[np.float64]:
    """(T, K), exactly what an integer kernel multiplies with: scale * code, and in blocks with an outlier
    what that leaves of x, encoded once more.

    Why twice: one input that stands far out gives its block a scale in which the others are a few codes, and
    these few blocks make most of the error. With about 5 % of the blocks encoded again, the mean KL of the
    logits to those of f32 activations falls from 3.4e-3 to about 0.9e-3 on SmolLM2-135M (docs/kernels.md).
    """
    k = x_TK.shape[1]
    codes, scales = quantize_activations(x_TK)
    first_TK = (codes * np.repeat(scales, BLOCK, axis=1))[:, :k]  # f32: the kernel forms the rest from it
    codes_again, scales_again = quantize_activations(x_TK - first_TK)
    decoded = codes * np.repeat(scales.astype(np.float64), BLOCK, axis=1)
    again = codes_again * np.repeat(scales_again.astype(np.float64), BLOCK, axis=1)
    decoded += np.where(np.repeat(outlier_blocks(x_TK), BLOCK, axis=1), again, 0.0)
    return np.asarray(decoded[:, :k], np.float64)


def matmul_int8(x_TK: F32, w_NK: F32) -> F32:
    """(T, N): the product with encoded activations, summed in f64.

    w holds the exact values that the weight's codes stand for, so this differs from the native kernel only by
    the rounding of f32 sums.
    """
    return np.asarray(encode_activations(x_TK) @ w_NK.T.astype(np.float64), np.float32)


def round_bf16(x: F32) -> F32:
    """The nearest bf16, ties to even, as f32. NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32)).astype(np.float32)


def round_f16(x: F32) -> F32:
    """The nearest f16 as f32."""
    return x.astype(np.float16).astype(np.float32)


def round_q8(x: F32) -> F32:
    """The last axis as one int8 block: what the q8_0 cache keeps of a head of one token."""
    peak = np.abs(x).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    return np.asarray(np.rint(x * inverse) * (peak / np.float32(127)), np.float32)


CACHE_ROUNDING: dict[str, Callable[[F32], F32]] = {
    "f32": lambda x: x,
    "f16": round_f16,
    "bf16": round_bf16,
    "q8_0": round_q8,
}


# --- attention --------------------------------------------------------------------------------------------


def attention_scores(
    q_THD: F32, k_SGD: F32, positions: I32, scale: float, softcap: float = 0.0, window: int = 0
) -> F32:
    """(H, T, S) scores; key s is at position s; -inf where query t must not look.

    score = scale * q . k, then softcap * tanh(score / softcap) unless softcap is 0. A query at position p
    sees keys p - window < s <= p (all s <= p for window 0). Query head h reads key head h // (H / G).
    """
    n_heads, n_keys = q_THD.shape[1], k_SGD.shape[0]
    k_SHD = np.repeat(k_SGD, n_heads // k_SGD.shape[1], axis=1)
    scores = np.einsum("thd,shd->hts", q_THD * np.float32(scale), k_SHD, dtype=np.float32)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    distance = positions[:, None] - np.arange(n_keys)[None, :]
    hidden = (distance < 0) | ((distance >= window) if window else False)
    return np.where(hidden, np.float32(-np.inf), scores)


def attention(
    q_THD: F32, k_SGD: F32, v_SGD: F32, positions: I32, scale: float, softcap: float = 0.0, window: int = 0
) -> F32:
    """(T, H, D) = softmax(scores) v, all keys at once; scores as in `attention_scores`."""
    scores = attention_scores(q_THD, k_SGD, positions, scale, softcap, window)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    v_SHD = np.repeat(v_SGD, q_THD.shape[1] // v_SGD.shape[1], axis=1)
    out_THD: F32 = np.einsum("hts,shd->thd", weights, v_SHD, dtype=np.float32)
    return out_THD


def attention_online(
    q_THD: F32, k_SGD: F32, v_SGD: F32, positions: I32, scale: float, softcap: float = 0.0, window: int = 0
) -> F32:
    """`attention` as the native kernel computes it: a running softmax over chunks of 32 keys in order of
    position.

    With peak m, total l and accumulator o of the keys before, a chunk with scores s gives m' = max(m, max s),
    l' = l e^(m - m') + sum e^(s - m'), o' = o e^(m - m') + sum e^(s - m') v (arXiv:2205.14135, algorithm 1);
    a chunk of which a query sees nothing changes nothing. The result is o / l.
    """
    scores = attention_scores(q_THD, k_SGD, positions, scale, softcap, window)
    n_heads, n_queries, n_keys = scores.shape
    v_SHD = np.repeat(v_SGD, n_heads // v_SGD.shape[1], axis=1)
    peak = np.full((n_heads, n_queries, 1), -np.inf, np.float32)
    total = np.zeros_like(peak)
    out = np.zeros((n_heads, n_queries, q_THD.shape[2]), np.float32)
    for first in range(0, n_keys, CHUNK):
        chunk = scores[:, :, first : first + CHUNK]
        new_peak = np.maximum(peak, chunk.max(axis=-1, keepdims=True))
        base = np.where(np.isneginf(new_peak), np.float32(0), new_peak)
        shrink, weights = np.exp(peak - base), np.exp(chunk - base)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        out = out * shrink + np.einsum("hts,shd->htd", weights, v_SHD[first : first + CHUNK])
        peak = new_peak
    return (out / total).swapaxes(0, 1)


# --- distributions ----------------------------------------------------------------------------------------


def _logsumexp(logits_TV: F32) -> NDArray[np.float64]:
    peak = logits_TV.max(axis=-1).astype(np.float64)
    total: NDArray[np.float64] = np.exp(logits_TV.astype(np.float64) - peak[..., None]).sum(axis=-1)
    return np.asarray(peak + np.log(total), np.float64)


def logsumexp(logits_TV: F32) -> F32:
    """(T,): m + log sum exp(x - m), m the maximum; summed in f64."""
    return _logsumexp(logits_TV).astype(np.float32)


def log_softmax(logits_TV: F32) -> F32:
    """(T, V): x - logsumexp(x), subtracted in f64: an f32 logsumexp of 10,000 would be wrong by 5e-4."""
    return (logits_TV - _logsumexp(logits_TV)[..., None]).astype(np.float32)


def entropy(logits_TV: F32) -> F32:
    """(T,) in nats: -sum p log p of p = softmax(x); a token of logit -inf adds nothing."""
    logprobs = logits_TV - _logsumexp(logits_TV)[..., None]
    terms = np.exp(logprobs) * np.where(np.isneginf(logprobs), 0.0, logprobs)
    return np.asarray(-terms.sum(axis=-1), np.float32)


# --- the decoder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hyperparameters:
    """The arguments of the native `Model`, under its names. windows and rope_of_layer have one value per
    layer; inv_freqs (tables, D/2) and rope_scales (tables,) one row per rope table; a softcap of 0 is off."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    n_vocab: int
    norm_eps: float
    attention_scale: float
    embedding_scale: float
    logit_softcap: float
    attention_softcap: float
    activation: str
    windows: I32
    rope_of_layer: I32
    inv_freqs: F32
    rope_scales: F32


@dataclass(frozen=True)
class Arithmetic:
    """How the decoder computes: product(x_TK, w_NK), attention, what the cache keeps of K and V, and an
    adapter.

    adapter: pairs a (r, K), b (N, r) by (slot, layer), ("output", -1) for the head; every product there gets
    + adapter_scale * (x a^T) b^T.
    """

    product: Callable[[F32, F32], F32] = matmul
    attention: Callable[..., F32] = attention
    round_k: Callable[[F32], F32] = CACHE_ROUNDING["f32"]
    round_v: Callable[[F32], F32] = CACHE_ROUNDING["f32"]
    adapter: Mapping[tuple[str, int], tuple[F32, F32]] | None = None
    adapter_scale: float = 1.0


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer (or, at -1, of the whole model) and how to multiply with them."""

    weights: Weights
    index: int
    hyper: Hyperparameters
    how: Arithmetic

    def linear(self, slot: str, x_TK: F32) -> F32:
        """x w^T, plus bias and adapter where there are any."""
        y_TN = self.how.product(x_TK, self.weights[slot, self.index])
        bias = self.weights.get((slot + "_bias", self.index))
        pair = (self.how.adapter or {}).get((slot, self.index))
        if pair is not None:
            low_rank = matmul(matmul(x_TK, pair[0]), pair[1])
            y_TN = y_TN + np.float32(self.how.adapter_scale) * low_rank
        return y_TN if bias is None else y_TN + bias

    def norm(self, slot: str, x: F32) -> F32:
        """RMS norm with the slot's weight; x itself where the model has no such norm."""
        weight = self.weights.get((slot, self.index))
        return x if weight is None else rms_norm(x, weight, self.hyper.norm_eps)


def decoder_hidden(
    token_ids: I32, weights: Weights, hyper: Hyperparameters, how: Arithmetic | None = None
) -> F32:
    """Hidden states (T, C) after the final norm of one whole sequence, positions 0 to T - 1.

    x = embedding_scale * token_embd[ids]; per layer
        x += post_attention_norm(attention(attn_norm(x)))     post_attention_norm, post_ffw_norm: gemma3 only
        x += post_ffw_norm(ffn_down(act(ffn_gate(h)) * ffn_up(h))), h = ffn_norm(x)
    and output_norm at the end.
    """
    how = how or Arithmetic()
    positions = np.arange(len(token_ids), dtype=np.int32)
    x_TC = weights["token_embd", -1][token_ids] * np.float32(hyper.embedding_scale)
    for index in range(hyper.n_layers):
        layer = _Layer(weights, index, hyper, how)
        attended = _attention_block(layer, layer.norm("attn_norm", x_TC), positions)
        x_TC = x_TC + layer.norm("post_attention_norm", attended)
        h_TC = layer.norm("ffn_norm", x_TC)
        gate = ACTIVATIONS[hyper.activation](layer.linear("ffn_gate", h_TC))
        fed = layer.linear("ffn_down", gate * layer.linear("ffn_up", h_TC))
        x_TC = x_TC + layer.norm("post_ffw_norm", fed)
    return rms_norm(x_TC, weights["output_norm", -1], hyper.norm_eps)


def _attention_block(layer: _Layer, x_TC: F32, positions: I32) -> F32:
    """attn_output(attention(rope(q), rope(k), v)); q and k are normalised per head before where the model
    does so."""
    hyper, how, index = layer.hyper, layer.how, layer.index
    table = int(hyper.rope_of_layer[index])
    cos, sin = rope_angles(positions, hyper.inv_freqs[table], float(hyper.rope_scales[table]))

    def heads(slot: str, count: int) -> F32:
        return layer.linear(slot, x_TC).reshape(len(positions), count, hyper.head_dim)

    q_THD = rope(layer.norm("attn_q_norm", heads("attn_q", hyper.n_heads)), cos, sin)
    k_TGD = rope(layer.norm("attn_k_norm", heads("attn_k", hyper.n_kv_heads)), cos, sin)
    v_TGD = heads("attn_v", hyper.n_kv_heads)
    out_THD = how.attention(
        q_THD,
        how.round_k(k_TGD),
        how.round_v(v_TGD),
        positions,
        hyper.attention_scale,
        hyper.attention_softcap,
        int(hyper.windows[index]),
    )
    return layer.linear("attn_output", out_THD.reshape(len(positions), -1))


def decoder_logits(
    token_ids: I32, weights: Weights, hyper: Hyperparameters, how: Arithmetic | None = None
) -> F32:
    """Logits (T, V) of one whole sequence: output (or token_embd where there is none) times the hidden
    states, then logit_softcap * tanh(logits / logit_softcap) unless that is 0."""
    how = how or Arithmetic()
    hidden_TC = decoder_hidden(token_ids, weights, hyper, how)
    head = "output" if ("output", -1) in weights else "token_embd"
    untied = {("output", -1): weights[head, -1]}
    logits_TV = _Layer(untied, -1, hyper, how).linear("output", hidden_TC)
    if hyper.logit_softcap:
        cap = np.float32(hyper.logit_softcap)
        logits_TV = cap * np.tanh(logits_TV / cap)
    return logits_TV
