"""The transformer's operators with gradients written by hand: few passes over memory, few stored tensors.

Autograd's own gradients of these would store every intermediate and read and write each several times; on a
CPU that is what keeps training away from the rate of its matrix products. The stream between the layers is
f32 (f64 in a model of f64); products run in the compute dtype, norms, rotations and softmax in the stream's.

T tokens, K inputs and N outputs of a product, H query heads, G key/value heads, R = H / G, E values a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def applied(function: type[Function], *inputs: Any) -> Any:
    """`function.apply`, which torch gives no types: the caller says what comes out."""
    return function.apply(*inputs)


# ── RMS norm ──


def _normalised(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(y, inv): inv = 1 / sqrt(mean(x^2) + eps), y = x inv weight, over the last axis."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inv = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inv).mul_(weight).to(dtype), inv


def _norm_gradients(
    g: Tensor, x: Tensor, weight: Tensor, inv: Tensor, trains_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """(dx, dweight) of y = x inv weight:

    dx = inv (g w) - x inv^3 mean(g w x), dw = sum over rows of g x inv.
    """
    gx = g * x
    d_weight = (gx * inv).reshape(-1, x.shape[-1]).sum(0) if trains_weight else None
    dot = gx.mul_(weight).sum(-1, keepdim=True)
    dx = g * weight
    dx.mul_(inv).addcmul_(x, dot.mul_(inv).mul_(inv).mul_(inv).div_(-x.shape[-1]))
    return dx, d_weight


class _RMSNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, weight_K: Tensor, offset: float, eps: float, dtype: torch.dtype
    ) -> Tensor:
        multiplier_K = weight_K + offset if offset else weight_K
        y_TK, inv_T1 = _normalised(x_TK.to(weight_K.dtype), multiplier_K, eps, dtype)
        ctx.save_for_backward(x_TK, multiplier_K, inv_T1)
        return y_TK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TK: Tensor) -> tuple[Tensor | None, ...]:
        x_TK, multiplier_K, inv_T1 = ctx.saved_tensors
        dtype = multiplier_K.dtype
        trains = ctx.needs_input_grad[1]
        dx_TK, dw_K = _norm_gradients(g_TK.to(dtype), x_TK.to(dtype), multiplier_K, inv_T1, trains)
        return dx_TK.to(x_TK.dtype), dw_K, None, None, None


def rms_norm(x_TK: Tensor, weight_K: Tensor, offset: float, eps: float, dtype: torch.dtype) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight), in `dtype`; arXiv:1910.07467."""
    y_TK: Tensor = applied(_RMSNorm, x_TK, weight_K, offset, eps, dtype)
    return y_TK


# ── products ──


@dataclass(frozen=True)
class Operand:
    """The matrix of a product: the weights of one or several linear maps, one below the other.

    read() gives it in the compute dtype, (N, K); it is asked again in the backward instead of being stored.
    bias_N: in the compute dtype. rows: how many each map has. scales: for each map that of its low-rank pair,
    scale * B A, or None. adds: weight gradients are added to `.grad` where there is one already. again:
    computes the input once more, bit for bit, where that is cheap; then it is not kept for the backward.
    """

    read: Callable[[], Tensor]
    bias_N: Tensor | None
    rows: tuple[int, ...]
    scales: tuple[float | None, ...]
    adds: bool
    again: Callable[[], Tensor] | None = None


class _Product(Function):
    """Parameters come in fours: weight, bias, A (r, K), B (n, r) of each map; None where there is none."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, operand: Operand, *parameters: Tensor | None) -> Tensor:
        y_TN = F.linear(x_TK, operand.read(), operand.bias_N)
        pairs = _LowRank.of(operand, parameters, x_TK.dtype)
        inner_TR = None
        if pairs is not None:
            inner_TR = x_TK @ pairs.a_RK.T
            for outputs, ranks, b_nr in pairs.maps:
                y_TN[:, outputs].addmm_(inner_TR[:, ranks], b_nr.T)
        ctx.operand, ctx.parameters = operand, parameters
        keeps_x = any(ctx.needs_input_grad[2:]) and operand.again is None
        ctx.save_for_backward(x_TK if keeps_x else None, inner_TR)
        ctx.dtype = x_TK.dtype
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TN: Tensor) -> tuple[Any, ...]:
        x_TK, inner_TR = ctx.saved_tensors
        operand, parameters = ctx.operand, ctx.parameters
        g_TN = g_TN.to(ctx.dtype)
        dx_TK = g_TN @ operand.read() if ctx.needs_input_grad[0] else None
        if operand.again is not None and any(ctx.needs_input_grad[2:]):
            x_TK = operand.again()
        gradients: list[Tensor | None] = _matrix_gradients(ctx, g_TN, x_TK)
        pairs = _LowRank.of(operand, parameters, ctx.dtype)
        if pairs is not None:
            g_TR = torch.cat([g_TN[:, outputs] @ b_nr for outputs, _, b_nr in pairs.maps], -1)
            if dx_TK is not None:
                dx_TK.addmm_(g_TR, pairs.a_RK)
            _low_rank_gradients(pairs, operand, parameters, (g_TN, g_TR), (x_TK, inner_TR), gradients)
        return dx_TK, None, *gradients


@dataclass(frozen=True)
class _LowRank:
    """The pairs of maps of one input, in the compute dtype: one product with all A, (R, K) below each other.

    maps: for each pair the columns of the output that it adds to, its columns of x A^T, and scale * B (n, r).
    index: which of the operand's maps have a pair, with its scale.
    """

    a_RK: Tensor
    maps: tuple[tuple[slice, slice, Tensor], ...]
    index: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, operand: Operand, parameters: Sequence[Tensor | None], dtype: torch.dtype) -> _LowRank | None:
        halves, maps, index, row, rank = [], [], [], 0, 0
        for at, (n, scale) in enumerate(zip(operand.rows, operand.scales, strict=True)):
            a_rK, b_nr = parameters[4 * at + 2], parameters[4 * at + 3]
            if scale is not None and a_rK is not None and b_nr is not None:
                outputs, ranks = slice(row, row + n), slice(rank, rank + len(a_rK))
                halves.append(a_rK.detach())
                maps.append((outputs, ranks, (b_nr.detach() * scale).to(dtype)))
                index.append((at, scale))
                rank += len(a_rK)
            row += n
        if not halves:
            return None
        whole_RK = stacked(halves)
        a_RK = torch.cat(halves) if whole_RK is None else whole_RK
        return cls(a_RK.to(dtype), tuple(maps), tuple(index))


def _low_rank_gradients(
    pairs: _LowRank,
    operand: Operand,
    parameters: Sequence[Tensor | None],
    g: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor],
    gradients: list[Tensor | None],
) -> None:
    """dA = (g scale B)^T x of all pairs in one product, dB = scale g^T (x A^T), into their places."""
    (g_TN, g_TR), (x_TK, inner_TR) = g, inputs
    halves = [half for at, _ in pairs.index if (half := parameters[4 * at + 2]) is not None]
    d_halves = add_product(halves, g_TR, x_TK, operand.adds)
    for number, ((at, scale), (outputs, ranks, _)) in enumerate(zip(pairs.index, pairs.maps, strict=True)):
        gradients[4 * at + 2] = None if d_halves is None else d_halves[number]
        d_nr = (g_TN[:, outputs].T @ inner_TR[:, ranks]).mul_(scale)
        gradients[4 * at + 3] = _added(parameters[4 * at + 3], d_nr, operand.adds)


def _matrix_gradients(ctx: Any, g_TN: Tensor, x_TK: Tensor | None) -> list[Tensor | None]:
    """Gradients of weights and biases, in fours as the parameters; one product where all maps are trained."""
    operand, parameters = ctx.operand, ctx.parameters
    needed = ctx.needs_input_grad[2:]
    gradients: list[Tensor | None] = [None] * len(parameters)
    if all(needed[::4]):
        whole = add_product(parameters[::4], g_TN, x_TK, operand.adds)
        gradients[::4] = [None] * len(operand.rows) if whole is None else whole
    first = 0
    for index, n in enumerate(operand.rows):
        g_Tn = g_TN[:, first : first + n]
        if needed[4 * index] and not all(needed[::4]):
            assert x_TK is not None
            gradients[4 * index] = _added(parameters[4 * index], g_Tn.T @ x_TK, operand.adds)
        if needed[4 * index + 1]:
            d_bias = g_Tn.sum(0, dtype=parameters[4 * index + 1].dtype)
            gradients[4 * index + 1] = _added(parameters[4 * index + 1], d_bias, operand.adds)
        first += n
    return gradients


def add_product(
    parameters: Sequence[Tensor], g_TN: Tensor, x_TK: Tensor | None, adds: bool
) -> list[Tensor] | None:
    """The gradients g^T x of weights one below the other; None if they were added to `.grad` instead."""
    assert x_TK is not None
    into = [parameter.grad for parameter in parameters]
    present = [grad for grad in into if grad is not None]
    whole = stacked(present) if adds and len(present) == len(into) else None
    if whole is not None and whole.dtype == g_TN.dtype:
        whole.addmm_(g_TN.T, x_TK)
        return None
    product_NK = g_TN.T @ x_TK
    parts = torch.split(product_NK, [len(parameter) for parameter in parameters])
    gradients = [_added(p, part, adds) for p, part in zip(parameters, parts, strict=True)]
    return (
        None if any(gradient is None for gradient in gradients) else [g for g in gradients if g is not None]
    )


def _added(parameter: Tensor | None, gradient: Tensor, adds: bool) -> Tensor | None:
    """The gradient in the parameter's dtype; None once it was added to `.grad`."""
    assert parameter is not None
    if adds and parameter.grad is not None:
        parameter.grad.add_(gradient)
        return None
    return gradient.to(parameter.dtype)


def stacked(matrices: Sequence[Tensor]) -> Tensor | None:
    """Matrices that lie one behind the other in memory as one matrix, without a copy; else None."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    at, rows = first.data_ptr(), 0
    storage = first.untyped_storage().data_ptr()
    for matrix in matrices:
        same = matrix.dtype == first.dtype and matrix.shape[1:] == first.shape[1:] and matrix.is_contiguous()
        if not same or matrix.data_ptr() != at or matrix.untyped_storage().data_ptr() != storage:
            return None
        at += matrix.numel() * matrix.element_size()
        rows += len(matrix)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def product(x_TK: Tensor, operand: Operand, parameters: Sequence[Tensor | None]) -> Tensor:
    """y = x W^T + b (+ scale * (x A^T) B^T), (T, N) in the dtype of x."""
    y_TN: Tensor = applied(_Product, x_TK, operand, *parameters)
    return y_TN


# ── embedding ──


class _Embedding(Function):
    @staticmethod
    def forward(
        ctx: Any, ids_T: Tensor, weight_VD: Tensor, scale: float, dtype: torch.dtype, adds: bool
    ) -> Tensor:
        ctx.scale, ctx.adds, ctx.weight = scale, adds, weight_VD
        ctx.save_for_backward(ids_T)
        return F.embedding(ids_T, weight_VD).to(dtype).to(weight_VD.dtype).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TD: Tensor) -> tuple[Any, ...]:
        (ids_T,) = ctx.saved_tensors
        weight = ctx.weight
        if ctx.scale != 1.0:
            g_TD = g_TD * ctx.scale
        if ctx.adds and weight.grad is not None:
            weight.grad.index_add_(0, ids_T, g_TD)
            return None, None, None, None, None
        return None, torch.zeros_like(weight).index_add_(0, ids_T, g_TD), None, None, None


def embedding(ids_T: Tensor, weight_VD: Tensor, scale: float, dtype: torch.dtype, adds: bool) -> Tensor:
    """scale * weight[ids], rounded to `dtype` as the matrix of the logits is; in the weight's dtype."""
    x_TD: Tensor = applied(_Embedding, ids_T, weight_VD, scale, dtype, adds)
    return x_TD


# ── heads: norm and rotation of q and k ──


@dataclass(frozen=True)
class HeadShape:
    """n_heads query heads, n_kv_heads key/value heads of head_dim; q is multiplied by `scale`."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    eps: float


class _Heads(Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_TN: Tensor,
        cos_TF: Tensor,
        sin_TF: Tensor,
        shape: HeadShape,
        q_weight_E: Tensor | None,
        k_weight_E: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = _split(qkv_TN, shape)
        dtype, n_tokens = cos_TF.dtype, len(qkv_TN)
        saved: list[Tensor | None] = [None, None]
        if q_weight_E is not None and k_weight_E is not None:
            q, saved[0] = _normalised(q.to(dtype), q_weight_E, shape.eps, dtype)
            k, saved[1] = _normalised(k.to(dtype), k_weight_E, shape.eps, dtype)
        g, share, e = shape.n_kv_heads, shape.n_heads // shape.n_kv_heads, shape.head_dim
        q_GTRE = qkv_TN.new_empty((g, n_tokens, share, e), dtype=dtype)
        k_GTE = qkv_TN.new_empty((g, n_tokens, e), dtype=dtype)
        q_out = q_GTRE.permute(1, 0, 2, 3)
        _rotate(q.view(n_tokens, g, share, e), cos_TF[:, None, None], sin_TF[:, None, None], q_out)
        q_GTRE.mul_(shape.scale)
        _rotate(k, cos_TF[:, None], sin_TF[:, None], k_GTE.transpose(0, 1))
        v_GTE = v.transpose(0, 1).to(dtype).contiguous()
        ctx.shape, ctx.dtype, ctx.is_normed = shape, qkv_TN.dtype, q_weight_E is not None
        ctx.save_for_backward(
            qkv_TN if ctx.is_normed else None, cos_TF, sin_TF, q_weight_E, k_weight_E, *saved
        )
        return q_GTRE, k_GTE, v_GTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gq_GTRE: Tensor, gk_GTE: Tensor, gv_GTE: Tensor) -> tuple[Any, ...]:
        qkv_TN, cos_TF, sin_TF, q_weight_E, k_weight_E, q_inv, k_inv = ctx.saved_tensors
        shape: HeadShape = ctx.shape
        n_tokens, share, e = len(cos_TF), shape.n_heads // shape.n_kv_heads, shape.head_dim
        n = (shape.n_heads + 2 * shape.n_kv_heads) * e
        d_TN = gq_GTRE.new_empty((n_tokens, n), dtype=gq_GTRE.dtype if ctx.is_normed else ctx.dtype)
        dq, dk, dv = _split(d_TN, shape)
        grouped = dq.view(n_tokens, shape.n_kv_heads, share, e)
        cos, sin = cos_TF * shape.scale, sin_TF * -shape.scale
        _rotate(gq_GTRE.permute(1, 0, 2, 3), cos[:, None, None], sin[:, None, None], grouped)
        _rotate(gk_GTE.transpose(0, 1), cos_TF[:, None], -sin_TF[:, None], dk)
        dv.copy_(gv_GTE.transpose(0, 1))
        if not ctx.is_normed:
            return d_TN, None, None, None, None, None
        q, k, _ = _split(qkv_TN.to(d_TN.dtype), shape)
        dq_new, dq_weight = _norm_gradients(dq, q, q_weight_E, q_inv, ctx.needs_input_grad[4])
        dk_new, dk_weight = _norm_gradients(dk, k, k_weight_E, k_inv, ctx.needs_input_grad[5])
        dq.copy_(dq_new)
        dk.copy_(dk_new)
        return d_TN.to(ctx.dtype), None, None, None, dq_weight, dk_weight


def _split(qkv_TN: Tensor, shape: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """Views (T, H, E), (T, G, E), (T, G, E)."""
    all_heads = qkv_TN.view(len(qkv_TN), -1, shape.head_dim)
    q, k, v = torch.split(all_heads, [shape.n_heads, shape.n_kv_heads, shape.n_kv_heads], 1)
    return q, k, v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """out: pairs (i, i + E/2) of the last axis turned: (a, b) -> (a cos - b sin, b cos + a sin)."""
    half = cos.shape[-1]
    x = x.to(cos.dtype)
    a, b = x[..., :half], x[..., half:]
    if out.dtype == cos.dtype:
        torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-1.0)
        torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin)
    else:
        out[..., :half] = (a * cos).addcmul_(b, sin, value=-1.0)
        out[..., half:] = (b * cos).addcmul_(a, sin)


def heads_of(
    qkv_TN: Tensor,
    cos_TF: Tensor,
    sin_TF: Tensor,
    shape: HeadShape,
    q_weight_E: Tensor | None,
    k_weight_E: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (G, T, R, E) times the attention's scale, k and v (G, T, E), in the dtype of cos.

    F = E / 2. The weights normalise q and k head by head before they are rotated.
    """
    q, k, v = applied(_Heads, qkv_TN, cos_TF, sin_TF, shape, q_weight_E, k_weight_E)
    return q, k, v


# ── the gate of the feed-forward block ──


CACHED_BYTES = 3 << 19
"""The gate works on this much of its input at a time: what is between its steps stays in the cache."""


class _Gated(Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TN: Tensor, activation: str) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate_up_TN)
        return gated_values(gate_up_TN, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TF: Tensor) -> tuple[Any, ...]:
        (gate_up_TN,) = ctx.saved_tensors
        forward, backward = ACTIVATIONS[ctx.activation]
        d_TN = torch.empty_like(gate_up_TN)
        for rows in _cached_rows(gate_up_TN):
            gate_RF, up_RF = gate_up_TN[rows].chunk(2, -1)
            d_gate, d_up = d_TN[rows].chunk(2, -1)
            torch.mul(forward(gate_RF), g_TF[rows], out=d_up)
            backward(g_TF[rows] * up_RF, gate_RF, d_gate)
        return d_TN, None


def gated_values(gate_up_TN: Tensor, activation: str) -> Tensor:
    """`gated`, without a gradient."""
    n_tokens, n = gate_up_TN.shape
    a_TF = gate_up_TN.new_empty((n_tokens, n // 2))
    for rows in _cached_rows(gate_up_TN):
        gate_RF, up_RF = gate_up_TN[rows].chunk(2, -1)
        torch.mul(ACTIVATIONS[activation][0](gate_RF), up_RF, out=a_TF[rows])
    return a_TF


def _cached_rows(x_TN: Tensor) -> Iterator[slice]:
    """Slices of the rows, of CACHED_BYTES each; all at once on a device that wants large operations."""
    n_tokens, n = x_TN.shape
    step = max(16, CACHED_BYTES // (n * x_TN.element_size())) if x_TN.device.type == "cpu" else n_tokens
    for start in range(0, n_tokens, step):
        yield slice(start, start + step)


def _silu_backward(g: Tensor, x: Tensor, out: Tensor) -> None:
    torch.ops.aten.silu_backward.grad_input(g, x, grad_input=out)


def _gelu_backward(g: Tensor, x: Tensor, out: Tensor) -> None:
    torch.ops.aten.gelu_backward.grad_input(g, x, approximate="tanh", grad_input=out)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], None]]] = {
    "silu": (F.silu, _silu_backward),
    "gelu_tanh": (_gelu_tanh, _gelu_backward),
}
"""name -> (x -> act(x); (g, x, out) -> out = g act'(x))."""


def gated(gate_up_TN: Tensor, activation: str) -> Tensor:
    """act(gate) * up of two matrices side by side, (T, N / 2)."""
    a_TF: Tensor = applied(_Gated, gate_up_TN, activation)
    return a_TF
