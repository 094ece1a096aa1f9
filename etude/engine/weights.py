"""Weights into the native model: from files at the start, from a trainer's tensors later, adapters beside it.

A tensor from a trainer comes in f32, f16 or bf16 and is converted to the type that its place was loaded with.
Only f32, f16, bf16 and Q8_0 can be made quickly and without a search, so a place that holds another type
refuses: the model has to be loaded with a `weight_type` to be trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import isclose
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from etude.engine.dlpack import values_of
from etude.kernels import _native
from etude.kernels.reference_quants import dequantize, quantize
from etude.model.checkpoint import (
    HFFolder,
    MatrixWeights,
    VectorWeights,
    config_of,
    weight_from_hf,
    weights_of,
)
from etude.model.family import ModelConfig
from etude.model.gguf import GGUFFile
from etude.model.lora import LoraWeights
from etude.model.names import Place, place_of_hf
from etude.model.quants import GGMLType, row_bytes
from etude.records import EtudeError

if TYPE_CHECKING:
    from etude.kernels._native import Adapter, Model

Weight = MatrixWeights | VectorWeights

WEIGHT_TYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16, "q8_0": GGMLType.Q8_0}
"""Types that weights can be converted to, by the name that users write."""


CHUNK_VALUES = 1 << 17  # converted at once: numpy's intermediate arrays then stay in the processor's cache
PACKED = frozenset(
    GGMLType[name]
    for name in "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
)
"""Types that the native kernels multiply with. The rarer ones are converted to Q8_0, which has four times
their bits and more.
"""


def held_type(weight: MatrixWeights, to: GGMLType | None) -> GGMLType:
    """The type in which a matrix from a file is held; `to`: the one that the user asked for."""
    return to if to is not None else weight.type if weight.type in PACKED else GGMLType.Q8_0


def set_weight(model: Model, weight: Weight, to: GGMLType | None = None) -> None:
    """Give a weight to the native model, converted to type `to` (None: as it is)."""
    if isinstance(weight, VectorWeights):
        model.set_vector(weight.slot, weight.layer, np.ascontiguousarray(weight.values, np.float32))
        return
    kind = held_type(weight, to)
    model.set_matrix(
        weight.slot, weight.layer, int(kind), weight.n, weight.k, converted(weight, kind), weight.row_order
    )


def converted(weight: MatrixWeights, to: GGMLType) -> NDArray[np.uint8]:
    """The bytes of a matrix in another type."""
    if weight.type == to:
        return weight.data
    if to == GGMLType.Q8_0 and weight.k % 32:
        raise EtudeError(
            f"{weight.name} has rows of {weight.k} values, which Q8_0 cannot hold (blocks of 32): "
            "load the model with weight_type='bf16'"
        )
    try:
        return _rows_converted(weight, to)
    except ValueError as error:  # a type that nothing reads, or values that the other type cannot hold
        message = f"{weight.name} cannot be converted from {weight.type.name} to {to.name}: {error}"
        raise EtudeError(message) from error


def _rows_converted(weight: MatrixWeights, to: GGMLType) -> NDArray[np.uint8]:
    if weight.type == GGMLType.F32:  # a trainer's, after every step
        return _native.quantize(int(to), weight.data.view(np.float32).reshape(weight.n, weight.k))
    wide, narrow = row_bytes(weight.type, weight.k), row_bytes(to, weight.k)
    step = max(1, CHUNK_VALUES // weight.k)
    result = np.empty(weight.n * narrow, np.uint8)
    for row in range(0, weight.n, step):
        n_rows = min(step, weight.n - row)
        part = weight.data[row * wide : (row + n_rows) * wide]
        values = quantize(to, dequantize(weight.type, part, (n_rows, weight.k)))
        result[row * narrow : (row + n_rows) * narrow] = values.reshape(-1)
    return result


def read_update(config: ModelConfig, model: Model, tensors: Iterable[tuple[str, Any]]) -> list[Weight]:
    """A trainer's tensors under Hugging Face names, all checked, none taken yet.

    EtudeError for an unknown or doubled name, a wrong shape or type, a place that holds a type which tensors
    cannot be converted to, and an lm_head that differs from the embedding it is tied to.
    """
    weights: dict[Place, Weight] = {}
    heads: list[NDArray[Any]] = []
    embedding: NDArray[Any] | None = None
    for name, tensor in tensors:
        values, tag = values_of(name, tensor)
        weight = weight_from_hf(config, name, values, tag)
        if weight is None:
            if _is_head(config, name):
                heads.append(values)
            continue
        place = Place(weight.slot, weight.layer)
        if place in weights:
            raise EtudeError(f"tensor {name!r} comes twice (also as {weights[place].name!r})")
        if isinstance(weight, MatrixWeights):
            _check_slot(model, weight)
        if weight.slot == "token_embd":
            embedding = values
        weights[place] = weight
    for head in heads:
        if embedding is None or not np.array_equal(head, embedding):
            raise EtudeError(
                "lm_head.weight differs from model.embed_tokens.weight (or came without it), but this model "
                "uses one matrix for both: tie them in the trainer, or leave lm_head.weight out"
            )
    return list(weights.values())


def _is_head(config: ModelConfig, name: str) -> bool:
    place = place_of_hf(config.architecture, name)
    return place is not None and place.slot == "output"


def _check_slot(model: Model, weight: MatrixWeights) -> None:
    kind = GGMLType(model.matrix_type(weight.slot, weight.layer))
    if kind not in WEIGHT_TYPES.values():
        raise EtudeError(
            f"{weight.name!r} is held as {kind.name}, which new weights cannot be converted to: load the "
            "model with weight_type='bf16' (or 'f32', 'f16', 'q8_0')"
        )
    if kind == GGMLType.Q8_0 and weight.k % 32:
        converted(weight, kind)


def read_files(config: ModelConfig, model: Model, source: GGUFFile | HFFolder) -> list[Weight]:
    """The weights of another file or folder of the same model, all checked and converted, none taken yet;
    views of the open source where nothing had to be converted.

    A GGUF file's matrices keep its types, which somebody chose; a folder's become those that the model holds.
    EtudeError for another model, and for types that cannot be converted to.
    """
    _check_same(config, config_of(source), str(source.path))
    weights: list[Weight] = []
    for weight in weights_of(source, config):
        if isinstance(weight, MatrixWeights):
            if isinstance(source, HFFolder):
                _check_slot(model, weight)
                kind = GGMLType(model.matrix_type(weight.slot, weight.layer))
            else:
                kind = held_type(weight, None)
            weight = replace(weight, type=kind, data=converted(weight, kind))
        weights.append(weight)
    return weights


def _check_same(config: ModelConfig, other: ModelConfig, where: str) -> None:
    """All but the rope, which stays as the model was loaded, and the context. Files hold numbers in f32."""
    ours, theirs = ({**each.native_arguments(), **vars(each)} for each in (config, other))
    for name in ("architecture", "tied_embeddings", *config.native_arguments()):
        if name in ("inv_freqs", "rope_scales", "rope_of_layer"):
            continue
        one, two = ours[name], theirs[name]
        same = isclose(one, two, rel_tol=1e-5) if isinstance(one, float) else np.array_equal(one, two)
        if not same:
            raise EtudeError(
                f"{where}: {name} is {two}, of the running model {one}: new weights must be of the same model"
            )


def set_update(model: Model, weights: Iterable[Weight]) -> None:
    """Take tensors that `read_update` has checked."""
    for weight in weights:
        if isinstance(weight, MatrixWeights):
            set_weight(model, weight, GGMLType(model.matrix_type(weight.slot, weight.layer)))
        else:
            set_weight(model, weight)


def native_adapter(new_adapter: type[Adapter], model: Model, lora: LoraWeights) -> Adapter:
    """A LoRA adapter beside the model; nothing is merged."""
    adapter = new_adapter(model, lora.scale)
    for (slot, layer), (a, b) in lora.tensors.items():
        adapter.set(slot, layer, np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32))
    return adapter
