"""GGUF blocks to f32 in torch: the common types, quickly, and equal bit for bit to the numpy specification.

A frozen quantised base is dequantised anew for every product, so this is an inner loop of training:
`etude.kernels.reference_quants` says what the bytes mean, this does the same in the same order of operations
with four times its speed. The values are the engine's own.

Letters: n blocks. Every function takes (n, bytes of a block) and writes (n, values of a block).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etude.model.quants import GGMLType, block_bytes, block_size

VALUES_AT_ONCE = 1 << 18
"""1 MiB of f32: intermediate results stay in the processor's cache."""


def _half(blocks: Tensor, at: int) -> Tensor:
    """(n, 1): a half-precision scale at byte `at`."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed_ncw: Tensor, out_n: Tensor) -> Tensor:
    """Low four bits of all bytes of a chunk, then the high ones, into out (n, values)."""
    n, c, w = packed_ncw.shape
    out = out_n.view(n, c, 2, w)
    out[:, :, 0] = packed_ncw & 15
    out[:, :, 1] = packed_ncw >> 4
    return out_n


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, None, 2:], out).sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, None, 4:], out).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _with_fifth_bit(blocks: Tensor, at: int, out: Tensor) -> Tensor:
    """Codes of 0 to 31: the fifth bit of value j is bit j of the four bytes at `at`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    high = (blocks[:, at : at + 4, None] >> shifts & 1).view(len(blocks), 32)
    return _nibbles(blocks[:, None, at + 4 :], out).add_(high, alpha=16)


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    _with_fifth_bit(blocks, 2, out).sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    _with_fifth_bit(blocks, 4, out).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    torch.mul(blocks[:, 2:].view(torch.int8), _half(blocks, 0), out=out)


def _affine_k(blocks: Tensor, codes: Tensor) -> None:
    """d s q - dmin m in place, 6-bit s and m for every 32 values, packed as reference_quants says."""
    scale, low, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([scale & 63, (rest & 15) | (scale >> 2 & 48)], 1)
    lows = torch.cat([low & 63, (rest >> 4) | (low >> 2 & 48)], 1)
    values = codes.view(-1, 8, 32)
    values.mul_((_half(blocks, 0) * scales)[:, :, None]).sub_((_half(blocks, 2) * lows)[:, :, None])


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    _affine_k(blocks, _nibbles(blocks[:, 16:].unflatten(1, (4, 32)), out))


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[:, None, 16:48] >> shifts & 1).view(len(blocks), 256)
    _affine_k(blocks, _nibbles(blocks[:, 48:].unflatten(1, (4, 32)), out).add_(high, alpha=16))


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    """d s (q - 32), 8-bit s for every 16 values; bits 4 and 5 of q lie in the 64 bytes behind the nibbles."""
    n = len(blocks)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[:, 128:192].unflatten(1, (2, 1, 32)) >> shifts & 3).view(n, 256)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    codes = _nibbles(blocks[:, :128].unflatten(1, (2, 64)), out).add_(high, alpha=16).sub_(32)
    codes.view(n, 16, 16).mul_(scales[:, :, None])


def _f32(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.contiguous().view(torch.float32))


def _f16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.contiguous().view(torch.float16))


def _bf16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.contiguous().view(torch.bfloat16))


_TYPES: dict[GGMLType, Callable[[Tensor, Tensor], None]] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f16,
    GGMLType.BF16: _bf16,
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
}

QUICK_TYPES = frozenset(_TYPES)
"""Types that `dequantize` takes."""


def dequantize(kind: GGMLType, rows: Tensor, out: Tensor) -> Tensor:
    """Values of `rows` (n, bytes of a row, uint8) into out (n, k), rounded to its dtype; gives out.

    kind: one of QUICK_TYPES.
    """
    size = block_size(kind)
    blocks = rows.reshape(-1, block_bytes(kind) if size > 1 else rows.shape[-1])
    values = out.view(len(blocks), -1)
    step = max(1, VALUES_AT_ONCE // values.shape[1])
    scratch = torch.empty(min(step, len(blocks)), values.shape[1], device=rows.device)
    for start in range(0, len(blocks), step):
        part = values[start : start + step]
        f32 = part if out.dtype == torch.float32 else scratch[: len(part)]
        _TYPES[kind](blocks[start : start + step], f32)
        if f32 is not part:
            part.copy_(f32)
    return out
