"""LoRA adapter files: a GGUF adapter or a PEFT folder -> low-rank pairs by place, checked against the model.

y = W x + scale * B (A x), with A (r, k), B (n, r), as in arXiv:2106.09685; scale = alpha / r, or alpha /
sqrt(r) with rank-stabilised LoRA (arXiv:2312.03732). A file whose ranks or alphas differ between matrices has
one scale per matrix; the ratio to the first one's is then multiplied into B, so that `LoraWeights.scale`
serves all.

What would change the result and cannot be run as such a pair is refused with a sentence: DoRA, trained
biases, modules_to_save, embeddings, trained norms, activated LoRA (llama.cpp skips trained norms without a
word).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etude.model.checkpoint import gguf_row_order, read_json, to_f32
from etude.model.family import ModelConfig, slot_shape
from etude.model.fields import Fields
from etude.model.gguf import GGUFFile
from etude.model.names import MATRICES, Place, place_of_gguf, place_of_hf
from etude.model.safetensors import SafetensorsFile
from etude.records import EtudeError

MAX_RANK = 2**12  # the native side takes no more

_PEFT_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.\w+)?\.weight")

# PEFT settings that change what the stored pair means; each must have one of the values, or be absent.
_PEFT_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "modules_to_save": ([],),
    "fan_in_fan_out": (False,),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "alora_invocation_tokens": ([],),
    "use_qalora": (False,),
    # pissa, olora, corda and loftq change the base weights as well
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


class LowRank(NamedTuple):
    """a (r, k) and b (n, r), rows of b in Hugging Face's order."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]


@dataclass(frozen=True)
class LoraWeights:
    """One adapter: y += scale * b (a x) at every (slot, layer) in `tensors`."""

    scale: float
    tensors: Mapping[tuple[str, int], LowRank]


def read_lora(path: Path | str, config: ModelConfig) -> LoraWeights:
    """A PEFT folder or a GGUF adapter file; EtudeError when it is neither, or is for another model."""
    path = Path(path)
    return _read_peft(path, config) if path.is_dir() else _read_gguf(path, config)


# --- GGUF -------------------------------------------------------------------------------------------------


def _read_gguf(path: Path, config: ModelConfig) -> LoraWeights:
    """As llama.cpp's llama_adapter_lora_init_impl: scale = alpha / rank of each pair, and 1 where alpha is
    0."""
    with GGUFFile.open(path) as file:
        alpha = _gguf_alpha(Fields(file.metadata, str(path)), config)
        halves: dict[Place, dict[str, NDArray[np.float32]]] = {}
        for name in file.tensors:
            stem, _, half = name.rpartition(".lora_")
            if half not in ("a", "b"):
                raise EtudeError(f"{path}: tensor {name} is not half of a low-rank pair (.lora_a, .lora_b)")
            place = _place(path, name, place_of_gguf(stem))
            shape = file.tensors[name].shape
            _check_half(path, name, half, shape, config, place)
            halves.setdefault(place, {})[half] = np.array(file.dequantize(name), np.float32)
    pairs = _pairs(path, halves)
    for place, pair in pairs.items():
        order = gguf_row_order(config, place.slot)
        if order is not None:
            pairs[place] = LowRank(pair.a, np.ascontiguousarray(pair.b[order]))
    return _with_one_scale(
        {place: (pair, alpha / len(pair.a) if alpha else 1.0) for place, pair in pairs.items()}
    )


def _gguf_alpha(fields: Fields, config: ModelConfig) -> float:
    fields.choice("general.type", ("adapter",), "model")
    fields.choice("adapter.type", ("lora",))
    fields.choice("general.architecture", (config.architecture,))
    if "adapter.alora.invocation_tokens" in fields:
        raise fields.error("adapter.alora.invocation_tokens", "nothing: activated LoRA is not supported")
    return fields.number("adapter.lora.alpha", -1e6, 1e6, 0.0)


# --- PEFT -------------------------------------------------------------------------------------------------


def _read_peft(path: Path, config: ModelConfig) -> LoraWeights:
    fields = Fields(read_json(path / "adapter_config.json"), str(path / "adapter_config.json"))
    _check_peft(fields)
    weights = path / "adapter_model.safetensors"
    if not weights.exists():
        raise EtudeError(
            f"{path}: no adapter_model.safetensors; pickled adapter_model.bin files are not read (they can "
            "run code): save the adapter again with a current PEFT"
        )
    halves: dict[Place, dict[str, NDArray[np.float32]]] = {}
    modules: dict[Place, str] = {}
    with SafetensorsFile.open(weights) as file:
        for name in file.tensors:
            match = _PEFT_NAME.fullmatch(name)
            if not match:
                raise EtudeError(f"{weights}: tensor {name} is not half of a low-rank pair on a linear layer")
            place = _place(weights, name, place_of_hf(config.architecture, match[1] + ".weight"))
            half = match[2].lower()
            _check_half(weights, name, half, file.tensors[name].shape, config, place)
            if half in halves.setdefault(place, {}):
                raise EtudeError(f"{weights}: {name} and another tensor are the same half of one pair")
            halves[place][half] = np.array(to_f32(*file.array(name)))
            modules[place] = match[1]
    pairs = _pairs(weights, halves)
    return _with_one_scale(
        {place: (pair, _peft_scale(fields, modules[place], pair)) for place, pair in pairs.items()}
    )


def _check_peft(fields: Fields) -> None:
    for key, allowed in _PEFT_PLAIN.items():
        if key in fields and not any(fields.raw(key) == value for value in allowed):
            shown = " or ".join(str(value) for value in allowed)
            raise fields.error(key, f"{shown}: other kinds of adapters are not supported")


def _peft_scale(fields: Fields, module: str, pair: LowRank) -> float:
    """alpha / r, alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern name exceptions by
    module."""
    rank = _pattern(fields.record("rank_pattern"), module, fields.integer("r", 1, MAX_RANK))
    if rank != len(pair.a):
        raise EtudeError(
            f"{fields.source}: says rank {rank:g} for {module}, but its tensors have {len(pair.a)}"
        )
    alpha = _pattern(fields.record("alpha_pattern"), module, fields.number("lora_alpha", -1e6, 1e6))
    return alpha / (math.sqrt(rank) if fields.flag("use_rslora", False) else rank)


def _pattern(patterns: Fields, module: str, default: float) -> float:
    """The value of the first key that is the module's name or a dotted end of it; "^name" must be all of it.

    PEFT reads keys as regular expressions; a file that needs more than names is refused (matching a
    stranger's expression can take forever).
    """
    for key in patterns.values:
        plain = key.removeprefix("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]{1,200}", plain):
            raise EtudeError(
                f"{patterns.source}: {key[:80]!r} is not the name of a module; only names are read"
            )
        if module == plain or (not key.startswith("^") and module.endswith("." + plain)):
            return patterns.number(key, -1e6, 1e6)
    return default


# --- both -------------------------------------------------------------------------------------------------


def _place(path: Path, name: str, place: Place | None) -> Place:
    if place is None or place.slot not in MATRICES or place.slot == "token_embd":
        raise EtudeError(f"{path}: tensor {name}: adapters on embeddings and norms are not supported")
    return place


def _check_half(
    path: Path, name: str, half: str, shape: tuple[int, ...], config: ModelConfig, place: Place
) -> None:
    """The side of a or b that meets the matrix has its size; the rank is sane. Before any value is read."""
    n, k = slot_shape(config, place.slot)
    fits = len(shape) == 2 and ((shape[1] == k) if half == "a" else (shape[0] == n))
    rank = shape[0 if half == "a" else 1] if fits else 0
    if not fits or place.layer >= config.n_layers or not 1 <= rank <= MAX_RANK:
        raise EtudeError(
            f"{path}: tensor {name} has shape {shape}, which does not fit a matrix of {n} outputs and {k} "
            f"inputs in {config.n_layers} layers; is the adapter for another model?"
        )


def _pairs(path: Path, halves: Mapping[Place, Mapping[str, NDArray[np.float32]]]) -> dict[Place, LowRank]:
    if not halves:
        raise EtudeError(f"{path}: holds no low-rank pairs")
    for place, pair in halves.items():
        if len(pair) != 2 or pair["a"].shape[0] != pair["b"].shape[1]:
            raise EtudeError(f"{path}: {place.slot} of layer {place.layer} is not a pair a (r, k), b (n, r)")
        if not (np.isfinite(pair["a"]).all() and np.isfinite(pair["b"]).all()):
            raise EtudeError(f"{path}: {place.slot} of layer {place.layer} has values that are not finite")
    return {place: LowRank(pair["a"], pair["b"]) for place, pair in halves.items()}


def _with_one_scale(scaled: Mapping[Place, tuple[LowRank, float]]) -> LoraWeights:
    """One common scale; where a pair's own differs, the ratio goes into b."""
    common = next((scale for _, scale in scaled.values() if scale), 1.0)
    tensors: dict[tuple[str, int], LowRank] = {
        place: pair if scale == common else LowRank(pair.a, pair.b * np.float32(scale / common))
        for place, (pair, scale) in scaled.items()
    }
    return LoraWeights(common, tensors)
