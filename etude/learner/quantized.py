"""A frozen base that stays in the blocks of its file: each matrix is dequantised when it is multiplied with.

    transformer, source = load_frozen("model-q4_k.gguf")        1.5B parameters: 0.9 GB, not 6

Nothing of the base is trained (a LoRA is, beside it), so it needs neither f32 masters nor gradients, and the
numbers are those that the engine samples with. A matrix in the dtype of the products exists while its
product runs: forward, backward, and once more in between where activations are computed again. Only of a
small model, where time counts more than memory, the matrices are kept once they are made.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from etude.learner.dequantize import QUICK_TYPES, dequantize
from etude.model.checkpoint import HFFolder, MatrixWeights, config_of, open_source, weights_of
from etude.model.family import FAMILIES, ModelConfig
from etude.model.gguf import GGUFFile
from etude.model.hf_tensors import places_of
from etude.model.names import LAYER_BIASES, NORMS, Place, hf_name
from etude.model.projections import Linear
from etude.model.pull import resolve
from etude.model.quants import GGMLType
from etude.model.transformer import Transformer
from etude.records import EtudeError

KEPT_BYTES = 512 << 20
"""Matrices of layers are kept if all of them together, in f32, are not larger."""


class QuantizedLinear(Linear):
    """A matrix as blocks: `blocks` (N, bytes of a row), rows in Hugging Face's order. kept: what is made of
    it for a product may stay."""

    def __init__(self, kind: GGMLType, blocks: Tensor, k: int) -> None:
        super().__init__(None, (len(blocks), k))
        self.kind = kind
        self.blocks = blocks
        self.kept = False

    def key(self) -> tuple[int, int] | None:
        return (self.blocks.data_ptr(), 0) if self.kept else None

    def fill(self, out_NK: Tensor) -> None:
        dequantize(self.kind, self.blocks, out_NK)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows of the matrix in f32, of an embedding say."""
        out_TK = torch.empty(len(ids_T), self.shape[1], device=self.blocks.device)
        return dequantize(self.kind, self.blocks[ids_T], out_TK)


def load_frozen(
    model: Path | str, device: torch.device | str = "cpu", *, download: bool = True
) -> tuple[Transformer, GGUFFile | HFFolder]:
    """A GGUF file, a Hugging Face folder or a name, nothing of it trainable; matrices keep the file's type.

    EtudeError as `load_transformer`, and for types of blocks that no quick reader exists for. The source
    stays open: saving copies tokenizer and settings from it.
    """
    source = open_source(resolve(model, download=download))
    config = config_of(source)
    places = places_of(source, config)
    biases = frozenset(place.slot for place in places if place.slot in LAYER_BIASES)
    transformer = Transformer(config, device="meta", biases=biases)
    found: set[str] = set()
    for weight in weights_of(source, config):
        name = hf_name(config.architecture, Place(weight.slot, weight.layer))
        if isinstance(weight, MatrixWeights):
            _put_matrix(transformer, name, weight, device)
        else:
            values = _as_hf(weight.values, weight.slot, config)
            owner, _, last = name.rpartition(".")
            tensor = torch.from_numpy(np.array(values, np.float32)).to(device)
            setattr(transformer.get_submodule(owner), last, nn.Parameter(tensor, requires_grad=False))
        found.add(name)
        source.release(weight.name)
    _check_complete(transformer, found, str(source.path))
    _keep_if_small(transformer)
    return transformer, source


def _keep_if_small(transformer: Transformer) -> None:
    linears = [
        linear
        for layer in transformer.layers
        for linear in layer.modules()
        if isinstance(linear, QuantizedLinear)
    ]
    if 4 * sum(n * k for n, k in (linear.shape for linear in linears)) <= KEPT_BYTES:
        for linear in linears:
            linear.kept = True


def _put_matrix(
    transformer: Transformer, name: str, weight: MatrixWeights, device: torch.device | str
) -> None:
    if weight.type not in QUICK_TYPES:
        known = ", ".join(sorted(kind.name for kind in QUICK_TYPES))
        raise EtudeError(
            f"tensor {weight.name} is {weight.type.name}; a frozen base can be {known}: quantise the model "
            "to one of them, or load it dequantised"
        )
    rows = weight.data.reshape(weight.n, -1)
    rows = np.array(rows) if weight.row_order is None else rows[weight.row_order]
    path = name.removesuffix(".weight")
    replacement = QuantizedLinear(weight.type, torch.from_numpy(rows).to(device), weight.k)
    before = transformer.get_submodule(path)
    assert isinstance(before, Linear)
    replacement.bias = before.bias
    owner, _, last = path.rpartition(".")
    transformer.get_submodule(owner).add_module(last, replacement)


def _as_hf(values: NDArray[np.float32], slot: str, config: ModelConfig) -> NDArray[np.float32]:
    """The engine takes a norm's multiplier; Hugging Face's gemma leaves out the 1."""
    offset = FAMILIES[config.architecture].hf_norm_offset if slot in NORMS else 0.0
    return values - np.float32(offset) if offset else values


def _check_complete(transformer: Transformer, found: set[str], path: str) -> None:
    for name, _ in transformer.named_parameters():
        if name not in found:
            raise EtudeError(f"{path}: {name} is missing; some layers have it and some have not")
