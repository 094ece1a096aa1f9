"""How fast this machine multiplies matrices, by dtype: what training's products are to be computed in.

It has to be measured. Two cores of one processor with bf16 instructions multiply 390 GFLOP/s in bf16 and half
of it in f32; of another (no AMX, one dot product of two cycles) 165 in bf16 and 330 in f32, where bf16
would cost accuracy and time.
"""

from __future__ import annotations

import time

import torch

SIZE = 1024
REPEATS = 5


def product_rate(dtype: torch.dtype, device: torch.device | str = "cpu", size: int = SIZE) -> float:
    """FLOP/s of the product of two square matrices, the best of a few: tens of milliseconds."""
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best_s = float("inf")
    for _ in range(REPEATS + 1):  # the first one warms up
        start_s = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2.0 * size**3 / best_s


def fastest_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bf16 where its products are at least 1.2 times as fast as those of f32, else f32.

    A run keeps what it was given at its start: two machines may answer differently, and so may a busy one.
    """
    bf16, f32 = (product_rate(dtype, device) for dtype in (torch.bfloat16, torch.float32))
    return torch.bfloat16 if bf16 >= 1.2 * f32 else torch.float32
