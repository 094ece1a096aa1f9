"""Softmax attention over packed segments, block by block, with its gradient.

A block's queries (see `segments.Block`) see one prefix, whose keys are multiplied with all of them in one
product, and themselves. For scores s = q . k (q comes scaled), p = softmax(s), o = p v:

    dv = p^T do, dp = do v^T, ds = p (dp - sum(dp p)), dq = ds k, dk = ds^T q

All in the dtype of q, which is the stream's: scores of bf16 would be off by percents. Probabilities are kept
for the backward where queries see few keys, and are computed again where they see many.

G key/value heads, R query heads on each, E values a head. A block has B pieces of L tokens, M = B L R rows of
queries and S keys before them; K = S + L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from etude.model.operators import applied
from etude.model.segments import Block, Layout, plan

KEPT_KEYS = 256
"""A block whose queries see more keys than this computes its probabilities again in the backward."""


@dataclass(frozen=True)
class MaskedBlock:
    """A block with what to add to its scores: -inf where a key is hidden, (L, 1, S) and (L, 1, L)."""

    block: Block
    before: Tensor | None
    own: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """All blocks of a layout for one window; made once a forward for each window."""

    blocks: tuple[MaskedBlock, ...]
    softcap: float


def plan_attention(layout: Layout, window: int, softcap: float, dtype: torch.dtype) -> AttentionPlan:
    """See `segments.plan`."""
    device = layout.token_ids_T.device

    def added(hidden: Tensor) -> Tensor:
        zeros = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return zeros.masked_fill_(hidden, -torch.inf)[:, None]

    blocks = []
    for block in plan(layout, window):
        before, own = block.hidden(window, device)
        blocks.append(MaskedBlock(block, None if before is None else added(before), added(own)))
    return AttentionPlan(tuple(blocks), softcap)


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, q_GTRE: Tensor, k_GTE: Tensor, v_GTE: Tensor, plan: AttentionPlan, dtype: torch.dtype
    ) -> Tensor:
        heads, n_tokens, share, e = q_GTRE.shape
        out_TGRE = q_GTRE.new_empty((n_tokens, heads, share, e), dtype=dtype)
        kept: list[Tensor | None] = []
        for masked in plan.blocks:
            block = masked.block
            q_GME, k_GBE, v_GBE = (_taken(x, block) for x in (q_GTRE, k_GTE, v_GTE))
            p_GMK, _ = _probabilities(masked, q_GME, k_GBE, k_GTE, plan.softcap)
            _put(_weighted(p_GMK, v_GBE, v_GTE, block), block, out_TGRE.transpose(0, 1))
            keeps = block.n_prefix + block.n_tokens <= KEPT_KEYS and not plan.softcap
            kept.append(p_GMK if keeps else None)
        ctx.plan = plan
        ctx.save_for_backward(q_GTRE, k_GTE, v_GTE, *kept)
        return out_TGRE.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_TN: Tensor) -> tuple[Any, ...]:
        q_GTRE, k_GTE, v_GTE, *kept = ctx.saved_tensors
        heads, n_tokens, share, e = q_GTRE.shape
        g_GTRE = g_TN.view(n_tokens, heads, share, e).transpose(0, 1)
        dq_GTRE = torch.empty_like(q_GTRE)
        dk_GTE, dv_GTE = torch.zeros_like(k_GTE), torch.zeros_like(v_GTE)
        for masked, p_GMK in zip(ctx.plan.blocks, kept, strict=True):
            block = masked.block
            q_GME, k_GBE, v_GBE = (_taken(x, block) for x in (q_GTRE, k_GTE, v_GTE))
            slope_GMK = None
            if p_GMK is None:
                p_GMK, slope_GMK = _probabilities(masked, q_GME, k_GBE, k_GTE, ctx.plan.softcap)
            do_GME = _taken(g_GTRE, block).to(q_GME.dtype)
            if block.real is not None:  # places without a token have no gradient
                do_GME.view(heads, len(block.real), -1).mul_(block.real[:, None])
            _add_key_gradients(p_GMK, do_GME, block, dv_GTE)
            dp_GMK = _scores(do_GME, v_GBE, v_GTE, block)
            ds_GMK = torch._softmax_backward_data(dp_GMK, p_GMK, -1, p_GMK.dtype)
            if slope_GMK is not None:
                ds_GMK.mul_(slope_GMK)
            _add_key_gradients(ds_GMK, q_GME, block, dk_GTE)
            _put(_weighted(ds_GMK, k_GBE, k_GTE, block), block, dq_GTRE)
        return dq_GTRE, dk_GTE, dv_GTE, None, None


def attention(
    q_GTRE: Tensor, k_GTE: Tensor, v_GTE: Tensor, plan: AttentionPlan, dtype: torch.dtype
) -> Tensor:
    """softmax(q k^T) v of every segment over its chain, (T, H * E) in `dtype`."""
    out_TN: Tensor = applied(_Attention, q_GTRE, k_GTE, v_GTE, plan, dtype)
    return out_TN


# ── parts of a block ──


def _taken(x: Tensor, block: Block) -> Tensor:
    """The block's rows of (G, T, E) or (G, T, R, E), as (G, B L (R), E); a view where they lie together."""
    if block.rows_BL is None:
        rows = x[:, block.first : block.first + block.n_pieces * block.n_tokens]
    else:
        rows = x.index_select(1, block.rows_BL.reshape(-1))
    return rows.reshape(len(x), -1, x.shape[-1])


def _put(x_GME: Tensor, block: Block, into: Tensor) -> None:
    """Write rows of queries to their tokens in (G, T, R, E)."""
    rows = x_GME.view(len(x_GME), -1, *into.shape[2:])
    if block.rows_BL is None:
        into[:, block.first : block.first + rows.shape[1]] = rows
        return
    tokens = block.rows_BL.reshape(-1)
    if block.real is not None:
        tokens, rows = tokens[block.real], rows[:, block.real]
    into[:, tokens] = rows.to(into.dtype)


def _scores(a_GME: Tensor, k_GBE: Tensor, k_GTE: Tensor, block: Block) -> Tensor:
    """a k^T of every row with the prefix and with its own piece: (G, M, S + L)."""
    heads, m, e = a_GME.shape
    n_prefix, n_own, n_pieces = block.n_prefix, block.n_tokens, block.n_pieces
    own = torch.bmm(
        a_GME.reshape(heads * n_pieces, -1, e), k_GBE.reshape(heads * n_pieces, n_own, e).transpose(1, 2)
    ).view(heads, m, n_own)
    if not n_prefix:
        return own
    scores_GMK = a_GME.new_empty((heads, m, n_prefix + n_own))
    scores_GMK[..., n_prefix:] = own
    at = 0
    for start, end in block.prefix:
        for group in range(heads):
            out = scores_GMK[group, :, at : at + end - start]
            torch.mm(a_GME[group], k_GTE[group, start:end].T, out=out)
        at += end - start
    return scores_GMK


def _probabilities(
    masked: MaskedBlock, q_GME: Tensor, k_GBE: Tensor, k_GTE: Tensor, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """(softmax of the scores (G, M, S + L), slope of the softcap at each, None without one)."""
    block = masked.block
    scores_GMK = _scores(q_GME, k_GBE, k_GTE, block)
    slope_GMK = None
    if softcap:
        capped = scores_GMK.div_(softcap).tanh_()
        slope_GMK = 1.0 - capped.square()
        scores_GMK = capped.mul_(softcap)
    by_token = scores_GMK.view(len(q_GME), block.n_pieces, block.n_tokens, -1, scores_GMK.shape[-1])
    by_token[..., block.n_prefix :].add_(masked.own)
    if masked.before is not None:
        by_token[..., : block.n_prefix].add_(masked.before)
    return torch.softmax(scores_GMK, -1), slope_GMK


def _weighted(p_GMK: Tensor, v_GBE: Tensor, v_GTE: Tensor, block: Block) -> Tensor:
    """p v over the prefix and each row's own piece: (G, M, E)."""
    heads, m, _ = p_GMK.shape
    n_prefix, n_own, n_pieces, e = block.n_prefix, block.n_tokens, block.n_pieces, v_GTE.shape[-1]
    own = p_GMK.view(heads * n_pieces, m // n_pieces, -1)[..., n_prefix:]
    out = torch.bmm(own, v_GBE.reshape(heads * n_pieces, n_own, e)).view(heads, m, e)
    at = 0
    for start, end in block.prefix:
        for group in range(heads):
            out[group].addmm_(p_GMK[group, :, at : at + end - start], v_GTE[group, start:end])
        at += end - start
    return out


def _add_key_gradients(p_GMK: Tensor, a_GME: Tensor, block: Block, into_GTE: Tensor) -> None:
    """Add p^T a to the rows of the keys: dv with a = do, dk with p = ds and a = q."""
    heads, m, e = a_GME.shape
    n_prefix, n_pieces = block.n_prefix, block.n_pieces
    own_p = p_GMK.view(heads * n_pieces, m // n_pieces, -1)[..., n_prefix:]
    own = torch.bmm(own_p.transpose(1, 2), a_GME.reshape(heads * n_pieces, -1, e)).view(heads, -1, e)
    if block.rows_BL is None:
        into_GTE[:, block.first : block.first + own.shape[1]] += own
    else:
        into_GTE.index_add_(1, block.rows_BL.reshape(-1), own)
    at = 0
    for start, end in block.prefix:
        for group in range(heads):
            into_GTE[group, start:end].addmm_(p_GMK[group, :, at : at + end - start].T, a_GME[group])
        at += end - start
