"""Padded batches as our flat axes, and the stored outputs of the peers."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORED = Path(__file__).parents[1] / "data" / "peers"


@dataclass(frozen=True)
class Totals:
    """The totals of a step, as the learner counts them."""

    tokens: int
    sequences: int
    max_tokens: int = 0


@cache
def peer(name: str) -> dict[str, Any]:
    """What a peer of the training maths said; see tests/peers/make_verl_fixtures.py and
    make_trl_fixtures.py."""
    stored: dict[str, Any] = json.loads(gzip.decompress((STORED / f"training_{name}.json.gz").read_bytes()))
    return stored


def matrix(values: Any) -> Tensor:
    """Nested lists as a double tensor."""
    return torch.tensor(values, dtype=torch.float64)


class Padded:
    """A batch B × T as flat axes. Padding stays in as masked-out tokens: it must not matter."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        mask_BT = torch.tensor(inputs["mask_BT"])
        self.rows, self.columns = mask_BT.shape
        self.mask_C = mask_BT.flatten()
        self.sequence_C = torch.arange(self.rows).repeat_interleave(self.columns)

    def flat(self, name: str) -> Tensor:
        """An input over C ("old" → old_BT)."""
        return matrix(self.inputs[f"{name}_BT"]).flatten()

    def rowwise(self, name: str) -> Tensor:
        """An input over the samples ("rewards" → rewards_B)."""
        return torch.tensor(self.inputs[f"{name}_B"])

    @property
    def advantages_C(self) -> Tensor:
        return self.spread(self.rowwise("advantages"))

    @property
    def totals(self) -> Totals:
        return Totals(int(self.mask_C.sum()), self.rows, self.columns)

    def spread(self, values_S: Tensor) -> Tensor:
        """One number per sample at each of its masked-in tokens."""
        return torch.where(self.mask_C, values_S[self.sequence_C], 0.0)

    def masked(self, values: Any) -> Tensor:
        """A peer's B × T or B × 1 output over C, 0 where masked out."""
        values_BT = matrix(values).expand(self.rows, self.columns)
        return torch.where(self.mask_C, values_BT.flatten(), 0.0)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    """Within `tolerance`, absolute below 1 and relative above."""
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def with_gradient(function: Any, leaf: Tensor) -> tuple[Tensor, Tensor]:
    """A value and the gradient of its sum."""
    leaf = leaf.clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient
