"""Tensors that lie in memory as a model's parameters do, and two sets of weights that change places.

The transformer multiplies with q, k and v as one matrix because they lie one behind the other; gradients can
be added to them by one product, and a reference can stand in for them, if these lie the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def zeros_alongside(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Zeros for each parameter, laid out in memory as the parameters are."""
    storages: dict[int, Tensor] = {}
    result = {}
    for name, parameter in parameters.items():
        storage = parameter.untyped_storage()
        key = storage.data_ptr()
        if key not in storages:
            n_values = storage.nbytes() // parameter.element_size()
            storages[key] = torch.zeros(n_values, dtype=parameter.dtype, device=parameter.device)
        place = (parameter.size(), parameter.stride(), parameter.storage_offset())
        result[name] = storages[key].as_strided(*place)
    return result


def copies_alongside(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of each parameter, laid out in memory as the parameters are."""
    copies = zeros_alongside(parameters)
    for name, parameter in parameters.items():
        copies[name].copy_(parameter.detach())
    return copies


@contextmanager
def standing_in(parameters: Mapping[str, nn.Parameter], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, the parameters hold the other values. No graph may live across its ends."""
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = others[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]
