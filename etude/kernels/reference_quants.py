"""What the bytes of a quantised tensor mean, in numpy: the specification that every kernel is tested against.

Each type is a numpy record of its block, in the order of the bytes in the file, and one function from blocks
to float32. The arithmetic is done in the same order as ggml's `dequantize_row_*`, so that results are equal
bit for bit, odd blocks (infinite or NaN scales, denormals) included. Types are given by ggml's id
(`etude.model.quants` has their names).

The types IQ1 to IQ3 and TQ take kilobytes of tables; they are read through the optional `gguf` package.

Letters: n blocks, c chunks of a block, w bytes of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Blocks = NDArray[Any]
"""(n,) records of a block type below."""

BLOCKS_AT_ONCE = {1: 1 << 18, 32: 1 << 13, 256: 1 << 10}
"""Blocks dequantised in one go, by values a block: 1 MiB of float32 stays in the second-level cache."""

_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
_MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)
"""FP4 (e2m1) doubled; the scale is halved in turn, so that both stay exact."""


# ── packed small integers ──


def _nibbles(packed_ncw: U8) -> U8:
    """(n, c, w) -> (n, c, 2, w): the low four bits of all bytes of a chunk, then the high ones."""
    n, c, w = packed_ncw.shape
    out = np.empty((n, c, 2, w), np.uint8)
    np.bitwise_and(packed_ncw, 15, out=out[:, :, 0])
    np.right_shift(packed_ncw, 4, out=out[:, :, 1])
    return out


def _crumbs(packed_ncw: U8) -> U8:
    """(n, c, w) -> (n, c, 4, w): bits 0-1 of all bytes of a chunk, then 2-3, 4-5, 6-7."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (packed_ncw[:, :, None, :] >> shifts) & np.uint8(3)


def _bits(packed_nw: U8) -> U8:
    """(n, w) -> (n, 8, w): bit 0 of all bytes, then bit 1, ..."""
    return (packed_nw[:, None, :] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & np.uint8(1)


def _half(blocks: Blocks, name: str) -> F32:
    """Field `name`, a half-precision scale, as (n, 1) float32."""
    return np.asarray(blocks[name]).astype(np.float32)[:, None]


# ── 32 values a block ──

_Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
_Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
_MXFP4 = np.dtype([("e", "u1"), ("qs", "u1", 16)])


def _codes4(blocks: Blocks) -> U8:
    """(n, 32) codes of 0 to 15: byte j holds value j and, above it, value j + 16."""
    return _nibbles(blocks["qs"][:, None, :]).reshape(-1, 32)


def _codes5(blocks: Blocks) -> U8:
    """(n, 32) codes of 0 to 31: the fifth bit of value j is bit j of `qh`."""
    high = np.unpackbits(np.ascontiguousarray(blocks["qh"]), axis=1, bitorder="little")
    return _codes4(blocks) | (high << np.uint8(4))


def _q4_0(blocks: Blocks) -> F32:
    """d (q - 8)"""
    return _half(blocks, "d") * (_codes4(blocks).view(np.int8) - np.int8(8)).astype(np.float32)


def _q4_1(blocks: Blocks) -> F32:
    """d q + m"""
    return _half(blocks, "d") * _codes4(blocks).astype(np.float32) + _half(blocks, "m")


def _q5_0(blocks: Blocks) -> F32:
    """d (q - 16)"""
    return _half(blocks, "d") * (_codes5(blocks).view(np.int8) - np.int8(16)).astype(np.float32)


def _q5_1(blocks: Blocks) -> F32:
    """d q + m"""
    return _half(blocks, "d") * _codes5(blocks).astype(np.float32) + _half(blocks, "m")


def _q8_0(blocks: Blocks) -> F32:
    """d q"""
    return blocks["qs"].astype(np.float32) * _half(blocks, "d")


def _iq4_nl(blocks: Blocks) -> F32:
    """d T[q]"""
    return _half(blocks, "d") * _IQ4_VALUES[_codes4(blocks)]


def _mxfp4(blocks: Blocks) -> F32:
    """2^(e - 128) T[q]; the two smallest scales are denormal. e = 255 is NaN for OCP, but 2^127 for ggml."""
    e = blocks["e"].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23))
    return bits.view(np.float32)[:, None] * _MXFP4_VALUES[_codes4(blocks)]


# ── 256 values a block ──

_Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
_Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
_IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])


def _q2_k(blocks: Blocks) -> F32:
    """d s q - dmin m, 4-bit s and m for every 16 values."""
    scales = blocks["scales"]
    step = _half(blocks, "d") * (scales & 15).astype(np.float32)
    low = _half(blocks, "dmin") * (scales >> 4).astype(np.float32)
    codes = _crumbs(blocks["qs"].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    return (step[:, :, None] * codes.astype(np.float32) - low[:, :, None]).reshape(-1, 256)


def _q3_k_scales(packed: U8) -> NDArray[np.int8]:
    """(n, 12) -> (n, 16) scales of -32 to 31: four low bits in bytes 0-7, two high bits in bytes 8-11."""
    low = _nibbles(packed[:, None, :8]).reshape(-1, 16)
    high = _crumbs(packed[:, None, 8:]).reshape(-1, 16)
    return (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)


def _q3_k(blocks: Blocks) -> F32:
    """d s q, q of -4 to 3: four are taken off where the bit of `hmask` is NOT set."""
    step = _half(blocks, "d") * _q3_k_scales(blocks["scales"]).astype(np.float32)
    low = _crumbs(blocks["qs"].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    high = _bits(blocks["hmask"]).reshape(-1, 16, 16)
    codes = (low | (high << np.uint8(2))).view(np.int8) - np.int8(4)
    return (step[:, :, None] * codes.astype(np.float32)).reshape(-1, 256)


def _six_bit_pairs(packed: U8) -> tuple[U8, U8]:
    """(n, 12) -> scales (n, 8) and mins (n, 8) of 0 to 63, as Q4_K and Q5_K pack them.

    Bytes 0-3 and 4-7 hold the first four scales and mins, and in their top two bits those of the last four;
    bytes 8-11 hold the low four bits of the last four scales (low half) and mins (high half).
    """
    scale, low, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([scale & 63, (rest & 15) | ((scale >> 2) & 48)], axis=1)
    lows = np.concatenate([low & 63, (rest >> 4) | ((low >> 2) & 48)], axis=1)
    return scales, lows


def _affine_k(blocks: Blocks, codes_n256: U8) -> F32:
    """d s q - dmin m, 6-bit s and m for every 32 values."""
    scales, lows = _six_bit_pairs(blocks["scales"])
    step = _half(blocks, "d") * scales.astype(np.float32)
    low = _half(blocks, "dmin") * lows.astype(np.float32)
    codes = codes_n256.reshape(-1, 8, 32).astype(np.float32)
    return (step[:, :, None] * codes - low[:, :, None]).reshape(-1, 256)


def _q4_k(blocks: Blocks) -> F32:
    return _affine_k(blocks, _nibbles(blocks["qs"].reshape(-1, 4, 32)).reshape(-1, 256))


def _q5_k(blocks: Blocks) -> F32:
    low = _nibbles(blocks["qs"].reshape(-1, 4, 32)).reshape(-1, 256)
    return _affine_k(blocks, low | (_bits(blocks["qh"]).reshape(-1, 256) << np.uint8(4)))


def _q6_k(blocks: Blocks) -> F32:
    """d s (q - 32), 8-bit s for every 16 values."""
    step = _half(blocks, "d") * blocks["scales"].astype(np.float32)
    low = _nibbles(blocks["ql"].reshape(-1, 2, 64)).reshape(-1, 256)
    high = _crumbs(blocks["qh"].reshape(-1, 2, 32)).reshape(-1, 256)
    codes = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    return (step[:, :, None] * codes.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


def _iq4_xs(blocks: Blocks) -> F32:
    """d (s - 32) T[q], 6-bit s for every 32 values: low four bits in `scales_l`, high two in `scales_h`."""
    low = np.stack([blocks["scales_l"] & 15, blocks["scales_l"] >> 4], axis=2).reshape(-1, 8)
    shifts = np.arange(0, 16, 2, dtype=np.uint16)
    high = ((blocks["scales_h"][:, None] >> shifts) & np.uint16(3)).astype(np.uint8)
    step = _half(blocks, "d") * ((low | (high << np.uint8(4))).view(np.int8) - np.int8(32)).astype(np.float32)
    codes = _nibbles(blocks["qs"].reshape(-1, 8, 16)).reshape(-1, 8, 32)
    values: F32 = step[:, :, None] * _IQ4_VALUES[codes]
    return values.reshape(-1, 256)


# ── one value a block ──


def _float(blocks: Blocks) -> F32:
    values: F32 = blocks.astype(np.float32)
    return values[:, None]


def _bf16(blocks: Blocks) -> F32:
    """bfloat16 is the upper half of a float32."""
    return (blocks.astype(np.uint32) << np.uint32(16)).view(np.float32)[:, None]


# ── by type ──

_TYPES: dict[int, tuple[str, int, np.dtype[Any], Callable[[Blocks], F32]]] = {
    0: ("F32", 1, np.dtype("<f4"), _float),
    1: ("F16", 1, np.dtype("<f2"), _float),
    2: ("Q4_0", 32, _Q4_0, _q4_0),
    3: ("Q4_1", 32, _Q4_1, _q4_1),
    6: ("Q5_0", 32, _Q5_0, _q5_0),
    7: ("Q5_1", 32, _Q5_1, _q5_1),
    8: ("Q8_0", 32, _Q8_0, _q8_0),
    10: ("Q2_K", 256, _Q2_K, _q2_k),
    11: ("Q3_K", 256, _Q3_K, _q3_k),
    12: ("Q4_K", 256, _Q4_K, _q4_k),
    13: ("Q5_K", 256, _Q5_K, _q5_k),
    14: ("Q6_K", 256, _Q6_K, _q6_k),
    20: ("IQ4_NL", 32, _Q4_0, _iq4_nl),
    23: ("IQ4_XS", 256, _IQ4_XS, _iq4_xs),
    30: ("BF16", 1, np.dtype("<u2"), _bf16),
    39: ("MXFP4", 32, _MXFP4, _mxfp4),
}

_TYPES_OF_GGUF_PACKAGE = {
    16: ("IQ2_XXS", 66),
    17: ("IQ2_XS", 74),
    18: ("IQ3_XXS", 98),
    19: ("IQ1_S", 50),
    21: ("IQ3_S", 110),
    22: ("IQ2_S", 82),
    29: ("IQ1_M", 56),
    34: ("TQ1_0", 54),
    35: ("TQ2_0", 66),
}
"""Name and bytes of a block of 256 values."""

READABLE_TYPES = frozenset(_TYPES) | frozenset(_TYPES_OF_GGUF_PACKAGE)
"""Ids that `dequantize` takes."""


def dequantize(type: int, data: U8, shape: tuple[int, ...]) -> F32:
    """The values of a tensor of `shape` (rows, inputs) from its raw bytes.

    ValueError if the type is not in READABLE_TYPES or the bytes are not exactly those of `shape`; ImportError
    if the type needs the `gguf` package and it is not installed.
    """
    if type in _TYPES_OF_GGUF_PACKAGE:
        return _dequantize_by_gguf_package(type, data, shape)
    if type not in _TYPES:
        raise ValueError(f"type {int(type)} cannot be dequantised: readable are {_readable_names()}")
    name, block_size, layout, values_of = _TYPES[type]
    _check_size(name, block_size, layout.itemsize, data, shape)
    blocks = np.ascontiguousarray(data).reshape(-1).view(layout)
    out = np.empty((len(blocks), block_size), np.float32)
    step = BLOCKS_AT_ONCE[block_size]
    with np.errstate(all="ignore"):  # a scale may be infinite or NaN: the result is then what IEEE says
        for start in range(0, len(blocks), step):
            out[start : start + step] = values_of(blocks[start : start + step])
    return out.reshape(shape)


def _readable_names() -> str:
    own = [name for name, *_ in _TYPES.values()]
    return ", ".join(own + [name for name, _ in _TYPES_OF_GGUF_PACKAGE.values()])


def _check_size(name: str, block_size: int, block_bytes: int, data: U8, shape: tuple[int, ...]) -> None:
    if not shape or shape[-1] % block_size:
        raise ValueError(f"shape {shape} cannot be {name}: the last axis must be a multiple of {block_size}")
    expected_bytes = int(np.prod(shape, dtype=object)) // block_size * block_bytes
    if data.dtype != np.uint8 or data.size != expected_bytes:
        raise ValueError(f"{name} of {shape} takes {expected_bytes} bytes, got {data.size} of {data.dtype}")


def _dequantize_by_gguf_package(type: int, data: U8, shape: tuple[int, ...]) -> F32:
    name, block_bytes = _TYPES_OF_GGUF_PACKAGE[type]
    _check_size(name, 256, block_bytes, data, shape)
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"reading {name} takes the package gguf: pip install gguf") from error
    rows = np.ascontiguousarray(data).reshape(-1, shape[-1] // 256 * block_bytes)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(type))
    return np.asarray(values, np.float32).reshape(shape)


# ── the other way: the types that training writes ──


def quantize(type: int, values: NDArray[np.floating[Any]]) -> U8:
    """Raw bytes (rows, bytes of a row) of `values` (rows, inputs) as F32, F16, BF16 or Q8_0, equal to ggml's.

    ValueError for other types, and where a finite value would become infinite. Infinite values and NaN stay
    what they are in the float types; Q8_0 has none and refuses them.
    """
    encoders: dict[int, Callable[[NDArray[Any]], U8]] = {0: _to_f32, 1: _to_f16, 8: _to_q8_0, 30: _to_bf16}
    if type not in encoders:
        raise ValueError(
            f"type {int(type)} cannot be written: allowed are F32 (0), F16 (1), Q8_0 (8), BF16 (30)"
        )
    if values.ndim == 0 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"got {values.dtype} of shape {values.shape}: allowed are float arrays of 1 axis or more"
        )
    with np.errstate(all="ignore"):
        return encoders[type](np.ascontiguousarray(values))


def _refuse_overflow(name: str, values: NDArray[Any], overflowed: NDArray[np.bool_]) -> None:
    lost = overflowed & np.isfinite(values)
    if np.any(lost):
        raise ValueError(f"{values[lost][0]:g} does not fit {name}: write a type of larger range")


def _to_f32(values: NDArray[Any]) -> U8:
    singles = values.astype("<f4", copy=False)
    _refuse_overflow("F32", values, np.isinf(singles))
    return singles.view(np.uint8)


def _to_f16(values: NDArray[Any]) -> U8:
    halves = values.astype("<f2", copy=False)
    _refuse_overflow("F16", values, np.isinf(halves))
    return halves.view(np.uint8)


def _to_bf16(values: NDArray[Any]) -> U8:
    """Round to nearest, ties to even. NaN is made quiet, or cutting its payload might make it infinite."""
    bits = values.astype("<f4", copy=False).view("<u4")
    upper, lowest_kept = bits >> np.uint32(16), (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (np.uint32(0x7FFF) + lowest_kept)) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    halves = np.where(is_nan, upper | np.uint32(64), rounded).astype("<u2")
    _refuse_overflow("BF16", values, (halves & 0x7FFF) == 0x7F80)
    return halves.view(np.uint8)


def _to_q8_0(values: NDArray[Any]) -> U8:
    """d = max |x| / 127, q = x / d rounded half away from zero, for every 32 values."""
    if values.shape[-1] % 32:
        raise ValueError(f"rows of {values.shape[-1]} values cannot be Q8_0: it takes multiples of 32")
    rows = values.astype(np.float32, copy=False).reshape(-1, 32)
    blocks = np.empty(len(rows), _Q8_0)
    step = BLOCKS_AT_ONCE[32]
    for start in range(0, len(rows), step):
        x = rows[start : start + step]
        scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        inverse[np.isinf(inverse)] = 0  # so small that the scale is stored as 0 anyway
        scaled = x * inverse
        size = np.abs(scaled)
        whole = np.floor(size)
        blocks["d"][start : start + step] = scale[:, 0]
        blocks["qs"][start : start + step] = np.copysign(whole + np.floor(2 * (size - whole)), scaled)
    if not np.all(np.isfinite(blocks["d"])):
        raise ValueError("Q8_0 takes finite values up to 8.3e6 in size: got larger ones, inf or NaN")
    return blocks.view(np.uint8).reshape(*values.shape[:-1], -1)
