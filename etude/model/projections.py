"""Linear maps of the transformer, those of one input multiplied as one matrix, with adapters beside them.

A parameter keeps Hugging Face's name and shape (`q_proj.weight`, `k_proj.weight`, `v_proj.weight`); what is
multiplied is the three below each other. In the weights' own dtype that is a view, because `Linear`s of one
input are made side by side in memory; in another (bf16 for f32 master weights) it is a copy, made once after
each change of a weight and not once a call.

T tokens, K inputs, N outputs, r the rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from etude.model.operators import Operand, product, stacked
from etude.model.scratch import Scratch


@dataclass(frozen=True)
class Arithmetic:
    """How a forward computes: dtype of the products, adapters on or off, gradients added to those there;
    remakes: inputs of products that are cheap to compute again are not kept for the backward."""

    dtype: torch.dtype
    adapters: bool
    adds: bool
    remakes: bool


class Adapter(nn.Module):
    """A low-rank pair beside a matrix, arXiv:2106.09685: y += scale * (x A^T) B^T; a (r, K), b (N, r)."""

    def __init__(self, a_rK: Tensor, b_Nr: Tensor, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(a_rK)
        self.b = nn.Parameter(b_Nr)
        self.scale = scale


class Linear(nn.Module):
    """A matrix (N, K) with an optional bias and an optional adapter; `Projection` multiplies with it.

    A frozen base that is not held as a tensor (quantised blocks, say) is a subclass without a weight and with
    its own `fill` and `rows`; put it into the place of this one.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    adapter: Adapter | None

    def __init__(
        self, weight_NK: Tensor | None, shape: tuple[int, int], bias_N: Tensor | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
        self.weight = None if weight_NK is None else nn.Parameter(weight_NK)
        self.bias = None if bias_N is None else nn.Parameter(bias_N)
        self.adapter = None

    def fill(self, out_NK: Tensor) -> None:
        """Write the matrix, in out's dtype."""
        assert self.weight is not None
        out_NK.copy_(self.weight.detach())

    def rows(self, ids_T: Tensor) -> Tensor:
        """These rows of the matrix as precisely as it is held, without gradient; of an embedding, say."""
        assert self.weight is not None
        return self.weight.detach()[ids_T]

    def key(self) -> tuple[int, int] | None:
        """Another one whenever the matrix may have changed; None: nothing made of it is to be kept."""
        return None if self.weight is None else (self.weight.data_ptr(), self.weight._version)


def side_by_side(
    rows: Sequence[int], k: int, biased: Sequence[bool], dtype: torch.dtype, device: torch.device | str
) -> list[Linear]:
    """Linear maps of one input, not initialised, their matrices one behind the other in memory."""
    whole_NK = torch.empty(sum(rows), k, dtype=dtype, device=device)
    parts = torch.split(whole_NK, list(rows))
    biases = [
        torch.empty(n, dtype=dtype, device=device) if has else None
        for n, has in zip(rows, biased, strict=True)
    ]
    return [Linear(part, (len(part), k), bias) for part, bias in zip(parts, biases, strict=True)]


LARGEST_SCRATCH_BYTES = 256 << 20
"""Larger matrices that are not kept, such as a head, get memory of their own for each product."""


_scratch = Scratch()


def _scratch_matrix(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if shape[0] * shape[1] * dtype.itemsize > LARGEST_SCRATCH_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    return _scratch.matrix(shape, dtype, device)


class Projection:
    """The `Linear`s under these names of a module, as one product."""

    def __init__(self, owner: nn.Module, names: Sequence[str]) -> None:
        self._owner = owner
        self._names = tuple(names)
        self._made: dict[torch.dtype, tuple[object, Tensor]] = {}

    @property
    def linears(self) -> list[Linear]:
        """As they are now: a learner may put others into their places."""
        found = []
        for name in self._names:
            linear = self._owner.get_submodule(name)
            assert isinstance(linear, Linear), f"{name} is a {type(linear).__name__}, not a Linear"
            found.append(linear)
        return found

    def matrix(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(N, K) in `dtype`, without gradient. Of matrices that are not kept it is good until the next call
        for any such."""
        linears = self.linears
        weights = [linear.weight.detach() for linear in linears if linear.weight is not None]
        if len(weights) == len(linears) and all(weight.dtype == dtype for weight in weights):
            whole_NK = stacked(weights)
            if whole_NK is not None:
                return whole_NK
        keys = [linear.key() for linear in linears]
        made = self._made.get(dtype)
        if made is not None and made[0] == (device, keys):
            return made[1]
        rows, k = [linear.shape[0] for linear in linears], linears[0].shape[1]
        if None in keys:
            out_NK = _scratch_matrix((sum(rows), k), dtype, device)
        else:
            out_NK = torch.empty(sum(rows), k, dtype=dtype, device=device)
        for linear, part in zip(linears, torch.split(out_NK, rows), strict=True):
            linear.fill(part)
        if None not in keys:
            self._made[dtype] = ((device, keys), out_NK)
        return out_NK

    def forget(self) -> None:
        """Give the memory of copies back."""
        self._made.clear()

    def __call__(self, x_TK: Tensor, how: Arithmetic, again: Callable[[], Tensor] | None = None) -> Tensor:
        """x W^T + b with the adapters, (T, N), in the dtype of x. again: computes x, see `Operand`."""
        linears, dtype, device = self.linears, x_TK.dtype, x_TK.device
        parameters: list[Tensor | None] = []
        for linear in linears:
            adapter = linear.adapter if how.adapters else None
            parameters += [linear.weight, linear.bias]
            parameters += [None, None] if adapter is None else [adapter.a, adapter.b]
        operand = Operand(
            read=lambda: self.matrix(dtype, device),
            bias_N=_biases(linears, dtype, device),
            rows=tuple(linear.shape[0] for linear in linears),
            scales=tuple(None if linear.adapter is None else linear.adapter.scale for linear in linears),
            adds=how.adds,
            again=again if how.remakes else None,
        )
        return product(x_TK, operand, parameters)


def _biases(linears: Sequence[Linear], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """All biases, 0 for a map without one; None if none has one."""
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat(
        [
            torch.zeros(linear.shape[0], dtype=dtype, device=device)
            if linear.bias is None
            else linear.bias.detach().to(dtype)
            for linear in linears
        ]
    )
