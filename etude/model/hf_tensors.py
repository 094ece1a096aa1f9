"""Every weight of a model's files under its Hugging Face name, layout and order of rows, as f32.

What a trainer starts from, and what is written into a Hugging Face folder; for a GGUF file these are the
engine's own numbers, dequantised. `gguf_tensor` is the way back.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from etude.model.checkpoint import HFFolder, gguf_row_order, to_f32
from etude.model.family import FAMILIES, ModelConfig
from etude.model.gguf import GGUFFile
from etude.model.names import NORMS, Place, gguf_name, hf_name, place_of_gguf, place_of_hf
from etude.records import EtudeError

F32 = NDArray[np.float32]


def places_of(source: GGUFFile | HFFolder, config: ModelConfig) -> dict[Place, str]:
    """The weights in a source that the model needs: place -> name in the file, in the file's order.

    A tied output is left out. EtudeError for a tensor that does not belong, and for two of one place.
    """
    is_gguf = isinstance(source, GGUFFile)
    places: dict[Place, str] = {}
    for name in source.tensors if isinstance(source, GGUFFile) else source.files:
        place = place_of_gguf(name) if is_gguf else place_of_hf(config.architecture, name)
        if place is None or (place.slot == "output" and config.tied_embeddings):
            continue
        if place in places:
            raise EtudeError(f"{source.path}: {name} and {places[place]} are both {gguf_name(place)}")
        places[place] = name
    return places


def hf_tensors(source: GGUFFile | HFFolder, config: ModelConfig) -> Iterator[tuple[str, F32]]:
    """(Hugging Face name, values) of every weight, one in memory at a time."""
    for place, name in places_of(source, config).items():
        if isinstance(source, GGUFFile):
            values = _from_gguf(source.dequantize(name), place, config)
        else:
            values = to_f32(*source.array(name))
        yield hf_name(config.architecture, place), values
        source.release(name)


def _from_gguf(values: F32, place: Place, config: ModelConfig) -> F32:
    order = gguf_row_order(config, place.slot)
    if order is not None:
        values = values[order]
    if place.slot in NORMS:
        values = values - np.float32(FAMILIES[config.architecture].hf_norm_offset)
    return values


def gguf_tensor(name: str, values: F32, config: ModelConfig) -> tuple[str, F32] | None:
    """A Hugging Face tensor as llama.cpp's converter stores it; None for what GGUF leaves out (a tied head).

    Rows of q and k go back to the order of adjacent-pair rotation, norms get their 1.
    """
    place = place_of_hf(config.architecture, name)
    if place is None or (place.slot == "output" and config.tied_embeddings):
        return None
    order = gguf_row_order(config, place.slot)
    if order is not None:
        stored = np.empty_like(values)
        stored[order] = values
        values = stored
    if place.slot in NORMS:
        values = values + np.float32(FAMILIES[config.architecture].hf_norm_offset)
    return gguf_name(place), values
