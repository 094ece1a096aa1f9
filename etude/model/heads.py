"""What stands on the hidden states: the vocabulary's logits, and a scalar for reward models and critics.

D width of the model, N chosen rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from etude.model.operators import add_product, applied
from etude.model.projections import Arithmetic, Projection


class _Logits(Function):
    """Forward in the stream's dtype with the weights as the compute dtype rounds them, backward in that."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head: Projection,
        how: Arithmetic,
        softcap: float,
        weight_VD: Tensor | None,
    ) -> Tensor:
        dtype = hidden_ND.dtype
        rounded_ND = hidden_ND.to(how.dtype)
        logits_NV = rounded_ND.to(dtype) @ head.matrix(how.dtype, hidden_ND.device).to(dtype).T
        if softcap:
            logits_NV.div_(softcap).tanh_().mul_(softcap)
        ctx.head, ctx.how, ctx.softcap, ctx.weight, ctx.dtype = head, how, softcap, weight_VD, dtype
        ctx.save_for_backward(rounded_ND, logits_NV if softcap else None)
        return logits_NV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NV: Tensor) -> tuple[Any, ...]:
        rounded_ND, logits_NV = ctx.saved_tensors
        if ctx.softcap:
            g_NV = g_NV * (1.0 - (logits_NV / ctx.softcap).square_())
        g_NV = g_NV.to(ctx.how.dtype)
        gradients: list[Tensor] | None = None
        if ctx.needs_input_grad[4]:
            gradients = add_product([ctx.weight], g_NV, rounded_ND, ctx.how.adds)
        dh_ND = None
        if ctx.needs_input_grad[0]:
            dh_ND = (g_NV @ ctx.head.matrix(ctx.how.dtype, g_NV.device)).to(ctx.dtype)
        return dh_ND, None, None, None, None if gradients is None else gradients[0]


def vocabulary_logits(hidden_ND: Tensor, head: Projection, how: Arithmetic, softcap: float) -> Tensor:
    """h W^T, then softcap * tanh(logits / softcap) unless it is 0; (N, V) in the stream's dtype.

    Logits of bf16 would be off by up to 0.4 %, some hundredths of a nat: whatever the compute dtype, the
    sums here are the stream's.
    """
    weight_VD = head.linears[0].weight
    logits_NV: Tensor = applied(_Logits, hidden_ND, head, how, softcap, weight_VD)
    return logits_NV


class ScalarHead(nn.Module):
    """One number for each row: hidden_ND -> scores_N, in f32. A reward model's score or a critic's value."""

    def __init__(self, d_model: int, device: torch.device | str = "cpu") -> None:
        """Weights start at zero: all scores are then equal, and the first gradients those of the data."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, d_model, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32, device=device))

    def initialize(self, generator: torch.Generator | None = None) -> ScalarHead:
        """Normal weights of deviation 1 / sqrt(D + 1), as arXiv:2009.01325 starts its reward models."""
        with torch.no_grad():
            self.weight.normal_(0.0, (self.weight.shape[1] + 1) ** -0.5, generator=generator)
            self.bias.zero_()
        return self

    def forward(self, hidden_ND: Tensor) -> Tensor:
        scores_N1: Tensor = torch.nn.functional.linear(hidden_ND.to(torch.float32), self.weight, self.bias)
        return scores_N1.squeeze(-1)
