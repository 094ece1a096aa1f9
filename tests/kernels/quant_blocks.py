"""Bytes of quantised tensors for tests: plausible weights, and blocks made to break an implementation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from etude.model.quants import GGMLType, block_bytes, row_bytes

HALF_OFFSETS: dict[GGMLType, tuple[int, ...]] = {
    GGMLType.F16: (0,),
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
    GGMLType.IQ4_NL: (0,),
    GGMLType.IQ4_XS: (0,),
    GGMLType.IQ2_XXS: (0,),
    GGMLType.IQ2_XS: (0,),
    GGMLType.IQ2_S: (0,),
    GGMLType.IQ3_XXS: (0,),
    GGMLType.IQ3_S: (0,),
    GGMLType.IQ1_S: (0,),
}
"""Where a block holds its half-precision scales. (IQ1_M spreads its scale over four places.)"""

LARGEST_CODES: dict[GGMLType, int] = {
    **dict.fromkeys((GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1), 16),
    **dict.fromkeys((GGMLType.Q8_0, GGMLType.Q3_K, GGMLType.IQ4_NL), 128),
    GGMLType.Q2_K: 45,
    GGMLType.Q4_K: 63 * 15,
    GGMLType.Q5_K: 63 * 31,
    GGMLType.Q6_K: 128 * 32,
    GGMLType.IQ4_XS: 32 * 127,
}
"""About the largest factor that a block puts to its scale."""

SPECIAL_HALVES = (
    0x0000, 0x8000,  # 0, -0
    0x0001, 0x8001, 0x03FF, 0x83FF,  # smallest and largest denormals
    0x0400, 0x3C00, 0xBC00, 0x2E66, 0xAE66,  # smallest normal, 1, -1, 0.1, -0.1
    0x7BFF, 0xFBFF, 0x7C00, 0xFC00,  # largest, infinite
    0x7E00, 0xFE00, 0x7C01, 0xFDFF,  # NaN, quiet and signalling
)  # fmt: skip


def plausible(rng: np.random.Generator, type: GGMLType, rows: int, inputs: int) -> NDArray[np.uint8]:
    """(rows, bytes of a row): random codes under scales that give values around 0.1, all finite."""
    if type in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        values = (rng.standard_normal((rows, inputs)) * 0.1).astype(np.float32)
        if type == GGMLType.BF16:
            return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
        return values.astype(np.float32 if type == GGMLType.F32 else np.float16).view(np.uint8)
    data = rng.integers(0, 256, (rows, row_bytes(type, inputs)), dtype=np.uint8)
    blocks = data.reshape(-1, block_bytes(type))
    for offset in HALF_OFFSETS.get(type, ()):
        scales = (rng.uniform(0.02, 0.2, len(blocks)) / LARGEST_CODES.get(type, 512)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    if type == GGMLType.MXFP4:
        blocks[:, 0] = rng.integers(120, 126, len(blocks))
    return data


def adversarial(type: GGMLType) -> NDArray[np.uint8]:
    """(blocks, bytes of a block): every byte value at every place, constant blocks, odd pairs of scales."""
    size_bytes = block_bytes(type)
    value, place = np.meshgrid(np.arange(256), np.arange(size_bytes), indexing="ij")
    sweep = (value + 37 * place).astype(np.uint8)
    constant = value.astype(np.uint8)
    offsets = HALF_OFFSETS.get(type, ())
    if not offsets:
        return np.concatenate([sweep, constant])
    specials = []
    for first in SPECIAL_HALVES:
        for last in SPECIAL_HALVES:
            block = sweep[[0, 101, 255]]
            for offset, half in zip((offsets[0], offsets[-1]), (first, last), strict=True):
                block[:, offset : offset + 2] = np.frombuffer(np.uint16(half).tobytes(), np.uint8)
            specials.append(block)
    return np.concatenate([sweep, constant, *specials])
