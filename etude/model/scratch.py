"""Memory that is taken again and again: for large matrices that are made, used and forgotten.

Blocks of a hundred megabytes that come and go would lie elsewhere each time: every page of a new place costs
a fault, and the holes they leave are bitten into by smaller ones.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor


class Scratch(threading.local):
    """One place for each dtype, of each thread its own: a judge may compute beside a learner."""

    def __init__(self) -> None:
        self._places: dict[torch.dtype, Tensor] = {}
        self._taken: dict[torch.dtype, weakref.ref[Tensor]] = {}

    def matrix(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Contents undefined. It has memory of its own while the one before is still held, and on devices
        other than the CPU, whose allocators keep what is freed."""
        taken = self._taken.get(dtype)
        if device.type != "cpu" or (taken is not None and taken() is not None):
            return torch.empty(shape, dtype=dtype, device=device)
        n = shape[0] * shape[1]
        place = self._places.get(dtype)
        if place is None or len(place) < n:
            self._places.pop(dtype, None)
            place = None  # freed before the larger one is there
            place = self._places[dtype] = torch.empty(n, dtype=dtype)
        found = place[:n].view(shape)
        self._taken[dtype] = weakref.ref(found)
        return found
