"""LoRA: a trained low-rank pair beside each frozen matrix of the layers, arXiv:2106.09685.

    y = W x + scale * B (A x),   scale = alpha / rank

A (r, k) starts uniform within 1/√k, as PEFT's does, B (n, r) at zero: the model starts as its base. The base
may be a transformer's own tensors or quantised blocks (quantized.py). Nothing is merged, here or in the
engine, so both compute the same function of the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from etude.model.lora import LoraWeights, LowRank
from etude.model.names import LAYER_MATRICES, Place, hf_name
from etude.model.projections import Adapter, Linear
from etude.model.transformer import Transformer
from etude.records import EtudeError


@dataclass(frozen=True)
class LoraSettings:
    """slots: which matrices of every layer, by llama.cpp's names; all of them by default. seed: of A."""

    rank: int = 16
    alpha: float = 32.0
    slots: tuple[str, ...] = LAYER_MATRICES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise EtudeError(f"rank is {self.rank}; it must be at least 1")
        if not self.alpha > 0:
            raise EtudeError(f"alpha is {self.alpha}; it must be above 0")
        unknown = sorted(set(self.slots) - set(LAYER_MATRICES))
        if unknown or not self.slots:
            raise EtudeError(f"slots are {list(self.slots)}; allowed are {', '.join(LAYER_MATRICES)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def add_lora(transformer: Transformer, settings: LoraSettings) -> dict[str, nn.Parameter]:
    """Put pairs beside the matrices, freeze everything else; the pairs' tensors by PEFT's names."""
    for parameter in transformer.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(settings.seed)
    device = transformer.final_norm.weight.device
    linears = [linear for _, linear in _linears(transformer, settings.slots)]
    for linear in linears:
        n, k = linear.shape
        if settings.rank > min(n, k):
            raise EtudeError(f"rank is {settings.rank}, but a matrix has only {n} outputs and {k} inputs")
    sizes = [settings.rank * linear.shape[1] for linear in linears]
    whole = torch.empty(sum(sizes), device=device)  # A of maps with one input lie together: one product
    for linear, part in zip(linears, torch.split(whole, sizes), strict=True):
        n, k = linear.shape
        a_rk = torch.empty(settings.rank, k).uniform_(-(k**-0.5), k**-0.5, generator=generator)
        linear.adapter = Adapter(
            part.view(settings.rank, k).copy_(a_rk),
            torch.zeros(n, settings.rank, device=device),
            settings.scale,
        )
    return dict(trained_pairs(transformer))


def trained_pairs(transformer: Transformer) -> Iterator[tuple[str, nn.Parameter]]:
    """PEFT's names and tensors of all pairs."""
    for place, linear in _linears(transformer, LAYER_MATRICES):
        if linear.adapter is not None:
            module = hf_name(transformer.config.architecture, place).removesuffix(".weight")
            yield f"base_model.model.{module}.lora_A.weight", linear.adapter.a
            yield f"base_model.model.{module}.lora_B.weight", linear.adapter.b


def lora_weights(transformer: Transformer) -> LoraWeights:
    """The pairs as `Engine.load_adapter` takes them; they share the trainer's memory."""
    tensors: dict[tuple[str, int], LowRank] = {}
    scale = 1.0
    for place, linear in _linears(transformer, LAYER_MATRICES):
        if linear.adapter is not None:
            scale = linear.adapter.scale
            tensors[place] = LowRank(_array(linear.adapter.a), _array(linear.adapter.b))
    return LoraWeights(scale, tensors)


def _array(parameter: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = parameter.detach().cpu().numpy()
    return values


def _linears(transformer: Transformer, slots: tuple[str, ...]) -> Iterator[tuple[Place, Linear]]:
    for layer in range(transformer.config.n_layers):
        for slot in slots:
            place = Place(slot, layer)
            path = hf_name(transformer.config.architecture, place).removesuffix(".weight")
            linear = transformer.get_submodule(path)
            assert isinstance(linear, Linear)
            yield place, linear
