"""GGUF blocks to f32, quickly, and equal bit for bit to the numpy specification.

A frozen quantised base is dequantised anew for every product, so this is an inner loop of training. On a CPU
the native module does it; elsewhere torch, in the order of operations of `etude.kernels.reference_quants`,
which says what the bytes mean. The values are the engine's own.

Letters: n blocks. Every function takes (n, bytes of a block) and writes (n, values of a block).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etude.kernels import _native
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
    _affine_k(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32), out))


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[:, None, 16:48] >> shifts & 1).view(len(blocks), 256)
    _affine_k(blocks, _nibbles(blocks[:, 48:].reshape(-1, 4, 32), out).add_(high, alpha=16))


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    """d s (q - 32), 8-bit s for every 16 values; bits 4 and 5 of q lie in the 64 bytes behind the nibbles."""
    n = len(blocks)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3).view(n, 256)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    codes = _nibbles(blocks[:, :128].reshape(-1, 2, 64), out).add_(high, alpha=16).sub_(32)
    codes.view(n, 16, 16).mul_(scales[:, :, None])


_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _looked_up(table: tuple[int, ...], packed_ncw: Tensor, out: Tensor) -> Tensor:
    """Values of a table for the nibbles of a chunk."""
    codes = _nibbles(packed_ncw, torch.empty(out.shape, dtype=torch.int32, device=out.device))
    values = torch.tensor(table, dtype=torch.float32, device=out.device)
    return out.copy_(values[codes])


def _iq4_nl(blocks: Tensor, out: Tensor) -> None:
    _looked_up(_IQ4_VALUES, blocks[:, None, 2:], out).mul_(_half(blocks, 0))


def _iq4_xs(blocks: Tensor, out: Tensor) -> None:
    """d (s - 32) T[q], 6-bit s for every 32 values: low four bits in bytes 4-7, high two in bytes 2-3."""
    n = len(blocks)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], 2).view(n, 8)
    high = (blocks[:, 2:4, None] >> shifts & 3).view(n, 8)
    step = _half(blocks, 0) * ((low | high << 4).float() - 32)
    _looked_up(_IQ4_VALUES, blocks[:, 8:].reshape(-1, 8, 16), out).view(n, 8, 32).mul_(step[:, :, None])


def _mxfp4(blocks: Tensor, out: Tensor) -> None:
    """2^(e - 128) T[q], a power of two made of its bits; the two smallest are denormal."""
    e = blocks[:, :1].int()
    bits = torch.where(e < 2, 0x00200000 << e.clamp(max=1), e - 1 << 23)
    _looked_up(_MXFP4_VALUES, blocks[:, None, 1:], out).mul_(bits.view(torch.float32))


def _crumbs(packed_ncw: Tensor) -> Tensor:
    """(n, c, w) -> (n, c, 4, w): bits 0-1 of all bytes of a chunk, then 2-3, 4-5, 6-7."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed_ncw.device)[:, None]
    return packed_ncw[:, :, None] >> shifts & 3


def _q2_k(blocks: Tensor, out: Tensor) -> None:
    """d s q - dmin m, 4-bit s and m for every 16 values."""
    step = _half(blocks, 80) * (blocks[:, :16] & 15)
    low = _half(blocks, 82) * (blocks[:, :16] >> 4)
    codes = out.copy_(_crumbs(blocks[:, 16:80].reshape(-1, 2, 32)).reshape(out.shape))
    codes.view(-1, 16, 16).mul_(step[:, :, None]).sub_(low[:, :, None])


def _q3_k(blocks: Tensor, out: Tensor) -> None:
    """d s q, 6-bit s for every 16 values, q of -4 to 3: four are taken off where the bit is NOT set."""
    n = len(blocks)
    bits = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    packed = blocks[:, 96:108]
    low = torch.cat([packed[:, :8] & 15, packed[:, :8] >> 4], 1)
    scales = (low | _crumbs(packed[:, None, 8:]).reshape(n, 16) << 4).float() - 32
    high = (blocks[:, None, :32] >> bits & 1).view(n, 256)
    codes = out.copy_(_crumbs(blocks[:, 32:96].reshape(-1, 2, 32)).reshape(n, 256))
    codes.add_(high, alpha=4).sub_(4)
    codes.view(n, 16, 16).mul_((_half(blocks, 108) * scales)[:, :, None])


def _f32(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.float32))


def _f16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.float16))


def _bf16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.view(torch.bfloat16))


_TYPES: dict[GGMLType, Callable[[Tensor, Tensor], None]] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f16,
    GGMLType.BF16: _bf16,
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
    GGMLType.MXFP4: _mxfp4,
}

QUICK_TYPES = frozenset(_TYPES)
"""Types that `dequantize` takes: those that the engine multiplies with as they are."""


UNBLOCKED = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
"""A copy reads them."""


def dequantize(kind: GGMLType, rows: Tensor, out: Tensor) -> Tensor:
    """Values of `rows` (n, bytes of a row, uint8) into out (n, k), rounded to its dtype; gives out.

    kind: one of QUICK_TYPES. out may be part of a wider matrix.
    """
    native = rows.device.type == "cpu" and kind not in UNBLOCKED
    return _in_pieces(kind, rows, out, _natively if native else _in_torch)


def _in_pieces(kind: GGMLType, rows: Tensor, out: Tensor, quick: _Quick) -> Tensor:
    """What is rounded or copied to its place passes through memory that stays in the cache."""
    if out.dtype == torch.float32 and out.is_contiguous():
        quick(kind, rows, out)
        return out
    step = max(1, VALUES_AT_ONCE // out.shape[1])
    scratch = torch.empty(min(step, len(rows)), out.shape[1], device=rows.device)
    for start in range(0, len(rows), step):
        part = out[start : start + step]
        quick(kind, rows[start : start + step], scratch[: len(part)])
        part.copy_(scratch[: len(part)])
    return out


_Quick = Callable[[GGMLType, Tensor, Tensor], None]
"""(type, rows, where their values go: f32 without gaps)"""


def _natively(kind: GGMLType, rows: Tensor, out: Tensor) -> None:
    _native.dequantize_into(int(kind), rows.reshape(-1).numpy(), out.numpy(), torch.get_num_threads())


def _in_torch(kind: GGMLType, rows: Tensor, out: Tensor) -> None:
    step = max(1, VALUES_AT_ONCE // out.shape[1])
    for start in range(0, len(rows), step):
        blocks = rows[start : start + step].reshape(-1, block_bytes(kind))
        _TYPES[kind](blocks, out[start : start + step].view(len(blocks), block_size(kind)))
