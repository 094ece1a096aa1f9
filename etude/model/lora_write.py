"""LoRA adapters into files, PEFT's folder or llama.cpp's GGUF, and into the weights themselves.

    y = W x + scale * B (A x)        alpha = scale * r, in both formats; arXiv:2106.09685

`LoraWeights` holds rows in Hugging Face's order; GGUF wants those of B for q and k of the llama architecture
in its own, see names.py. A pair of another rank than the first gets its alpha by name (PEFT) or the ratio in
its B (GGUF, which has one alpha), so that reading the file gives the same product.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.model.checkpoint import gguf_row_order
from etude.model.family import ModelConfig
from etude.model.gguf import write_gguf
from etude.model.lora import LoraWeights, LowRank
from etude.model.names import Place, gguf_name, hf_name, place_of_hf
from etude.model.quants import GGMLType
from etude.model.safetensors_write import write_safetensors, write_text
from etude.model.save import new_folder
from etude.records import EtudeError

_MAX_BYTES = 2**62  # PEFT reads one file


def save_peft_folder(folder: Path | str, config: ModelConfig, lora: LoraWeights, base: str = "") -> None:
    """adapter_config.json and adapter_model.safetensors in f32. base: name or path of the model it is for.

    Replaces an adapter in `folder`; EtudeError for another kind of folder.
    """
    pairs = _places(lora)
    rank = _usual_rank(lora)
    modules = {place: hf_name(config.architecture, place).removesuffix(".weight") for place in pairs}
    record: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _plain(lora.scale * rank),
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules.values()}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    others = {place: len(pair.a) for place, pair in pairs.items() if len(pair.a) != rank}
    record["rank_pattern"] = {modules[place]: other for place, other in others.items()}
    record["alpha_pattern"] = {modules[place]: _plain(lora.scale * other) for place, other in others.items()}
    _check_whole(pairs, modules, config)
    with new_folder(Path(folder), "adapter_config.json") as scratch:
        stream = (
            (f"base_model.model.{modules[place]}.lora_{letter}.weight", half)
            for place, pair in pairs.items()
            for letter, half in (("A", _f32(pair.a)), ("B", _f32(pair.b)))
        )
        write_safetensors(scratch, "adapter_model", stream, "f32", _MAX_BYTES)
        write_text(scratch / "adapter_config.json", json.dumps(record, indent=2) + "\n")


def _check_whole(pairs: dict[Place, LowRank], modules: dict[Place, str], config: ModelConfig) -> None:
    """target_modules names a kind of module in all layers; PEFT would make empty pairs for those left out."""
    for slot in {place.slot for place in pairs if place.layer >= 0}:
        missing = [layer for layer in range(config.n_layers) if Place(slot, layer) not in pairs]
        if missing:
            raise EtudeError(
                f"the adapter has a pair on {slot} in some layers, but not in layer {missing[0]}; PEFT's "
                "format needs all of a kind: save it as GGUF"
            )


def save_gguf_adapter(path: Path | str, config: ModelConfig, lora: LoraWeights) -> None:
    """A GGUF adapter in f32 that llama.cpp's --lora takes."""
    rank = _usual_rank(lora)
    alpha = lora.scale * rank
    if alpha == 0.0:  # llama.cpp reads an alpha of 0 as a scale of 1
        raise EtudeError("the adapter's scale is 0: it does nothing, and GGUF cannot say so")
    metadata = {
        "general.type": "adapter",
        "general.architecture": config.architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        "general.file_type": 0,
    }

    def stream() -> Iterator[tuple[str, NDArray[np.float32], GGMLType]]:
        for place, pair in _places(lora).items():
            b_nr = _f32(pair.b)
            if len(pair.a) != rank:  # the reader divides the one alpha by the pair's own rank
                b_nr = b_nr * np.float32(len(pair.a) / rank)
            order = gguf_row_order(config, place.slot)
            if order is not None:
                stored = np.empty_like(b_nr)
                stored[order] = b_nr
                b_nr = stored
            yield f"{gguf_name(place)}.lora_a", _f32(pair.a), GGMLType.F32
            yield f"{gguf_name(place)}.lora_b", b_nr, GGMLType.F32

    write_gguf(path, metadata, stream())


def merged(
    tensors: Iterable[tuple[str, NDArray[np.float32]]], config: ModelConfig, lora: LoraWeights
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """A model's weights with W + scale * B A in the place of W. EtudeError for a pair without its matrix."""
    left = set(_places(lora))
    if config.tied_embeddings and any(place.slot == "output" for place in left):
        raise EtudeError(
            "the adapter changes the output matrix, which this model shares with its embedding: merged, it "
            "would change both"
        )
    for name, values in tensors:
        place = place_of_hf(config.architecture, name)
        pair = None if place is None else lora.tensors.get(place)
        if pair is None or place is None:
            yield name, values
            continue
        left.discard(place)
        delta = _f32(pair.b).astype(np.float64) @ _f32(pair.a).astype(np.float64)
        yield name, (values + lora.scale * delta).astype(np.float32)
    if left:
        raise EtudeError(f"the adapter changes {gguf_name(min(left))}, which the model does not have")


def _places(lora: LoraWeights) -> dict[Place, LowRank]:
    return {Place(*key): pair for key, pair in lora.tensors.items()}


def _usual_rank(lora: LoraWeights) -> int:
    """The rank that most pairs have."""
    if not lora.tensors:
        raise EtudeError("the adapter holds no pairs; there is nothing to save")
    return Counter(len(pair.a) for pair in lora.tensors.values()).most_common(1)[0][0]


def _f32(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)


def _plain(number: float) -> float | int:
    """Whole numbers without a point, as PEFT writes them."""
    return int(number) if float(number).is_integer() else float(number)
