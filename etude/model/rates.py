"""How fast this machine multiplies matrices, by dtype: what training's products are to be computed in.

It has to be measured. Two cores of one processor with bf16 instructions multiply 390 GFLOP/s in bf16 and half
of it in f32; of another (no AMX, one dot product of two cycles) 165 in bf16 and 330 in f32, where bf16
would cost accuracy and time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch

SIZE = 1024
ROUNDS = 8
WORTH_IT = 1.2
"""How much faster bf16 must be: it costs accuracy, and what is between the products does not gain."""


def product_rates(
    dtypes: Sequence[torch.dtype],
    device: torch.device | str = "cpu",
    size: int = SIZE,
    rounds: int = ROUNDS,
) -> list[float]:
    """FLOP/s of the product of two square matrices in each dtype: a few tenths of a second.

    The best of several rounds through all dtypes: what a busy machine takes away for a while it takes from
    all of them, and the best round of each is the one least disturbed.
    """
    pairs = [tuple(torch.ones(size, size, dtype=dtype, device=device) for _ in range(2)) for dtype in dtypes]
    best_s = [float("inf")] * len(pairs)
    for number in range(rounds + 1):  # the first round warms up
        for index, (a, b) in enumerate(pairs):
            start_s = time.perf_counter()
            float((a @ b)[0, 0])  # waits for the device
            if number:
                best_s[index] = min(best_s[index], time.perf_counter() - start_s)
    return [2.0 * size**3 / seconds for seconds in best_s]


@cache
def fastest_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bf16 where its products are at least WORTH_IT times as fast as those of f32, else f32.

    Measured once in a process, so that all models of a run compute alike. A run keeps what was measured at
    its start: two machines may answer differently, and so may a busy one.
    """
    bf16, f32 = product_rates((torch.bfloat16, torch.float32), device)
    return torch.bfloat16 if bf16 >= WORTH_IT * f32 else torch.float32
