"""A model's files as one stream of weights for the native model: from a GGUF file or a Hugging Face folder.

    source = open_source(path)                     GGUFFile, or HFFolder for a directory
    config = config_of(source)
    for weight in weights_of(source, config):      MatrixWeights -> set_matrix, VectorWeights -> set_vector
        ...; source.release(weight.name)

Differences of layout end here: rows of q and k in a llama GGUF come with their order, Hugging Face's gemma
norms come with the 1 added, vectors come as f32. Matrix data is a view of the mapped file, in its own type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from etude.model.family import (
    FAMILIES,
    MAX_HEAD_DIM,
    ModelConfig,
    check_shapes,
    config_from_gguf,
    config_from_hf,
    slot_shape,
)
from etude.model.gguf import GGUFFile
from etude.model.names import MATRICES, NORMS, Place, gguf_name, pair_row_order, place_of_gguf, place_of_hf
from etude.model.quants import GGMLType
from etude.model.safetensors import SafetensorsFile
from etude.records import EtudeError

MAX_JSON_BYTES = 64 * 2**20

HF_DTYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
"""Tag of a Hugging Face tensor -> ggml type; BF16 values travel as uint16."""


@dataclass(frozen=True)
class MatrixWeights:
    """Arguments of `Model.set_matrix`. data: raw bytes, n rows of k inputs of `type`; `name` as in the file.

    row_order: packed row i comes from file row row_order[i]; None: as it stands.
    """

    slot: str
    layer: int
    type: GGMLType
    n: int
    k: int
    data: NDArray[np.uint8]
    row_order: NDArray[np.int32] | None
    name: str


@dataclass(frozen=True)
class VectorWeights:
    """Arguments of `Model.set_vector`: a norm's multiplier or a bias."""

    slot: str
    layer: int
    values: NDArray[np.float32]
    name: str


class HFFolder:
    """A Hugging Face checkpoint: config.json and one or several .safetensors files. A context manager."""

    def __init__(self, path: Path, config: dict[str, Any], files: dict[str, SafetensorsFile]) -> None:
        self.path = path
        self.config = config
        self.files = files
        """The file that holds each tensor."""

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """EtudeError when something is missing, unreadable or inconsistent."""
        path = Path(path)
        config = read_json(path / "config.json")
        opened: dict[str, SafetensorsFile] = {}
        try:
            files = _open_shards(path, opened)
        except EtudeError:
            for file in opened.values():
                file.close()
            raise
        return cls(path, config, files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: file.tensors[name].shape for name, file in self.files.items()}

    def array(self, name: str) -> tuple[NDArray[Any], str]:
        """(values, dtype tag) of a tensor, see `SafetensorsFile.array`."""
        return self.files[name].array(name)

    def release(self, name: str) -> None:
        self.files[name].release(name)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, not larger than 64 MiB; EtudeError otherwise."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise EtudeError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(text) > MAX_JSON_BYTES:
        raise EtudeError(f"{path}: larger than {MAX_JSON_BYTES} bytes; that is no settings file")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EtudeError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise EtudeError(f"{path}: a {type(record).__name__}, not a JSON object")
    return record


def _open_shards(folder: Path, opened: dict[str, SafetensorsFile]) -> dict[str, SafetensorsFile]:
    """tensor name -> its open file. `opened` collects the files by name, so that a failure can close them."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        name = _single_file(folder)
        opened[name] = SafetensorsFile.open(folder / name)
        return dict.fromkeys(opened[name].tensors, opened[name])
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise EtudeError(f"{index}: has no weight_map")
    files = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise EtudeError(f"{index}: {str(name)[:80]!r} is not a .safetensors file beside it")
        if name not in opened:
            opened[name] = SafetensorsFile.open(folder / name)
        if tensor not in opened[name].tensors:
            raise EtudeError(f"{index}: tensor {tensor[:80]} is not in {name}")
        files[tensor] = opened[name]
    return files


def _single_file(folder: Path) -> str:
    if (folder / "model.safetensors").exists():
        return "model.safetensors"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(names) == 1:
        return names[0]
    if names:
        raise EtudeError(f"{folder}: {len(names)} .safetensors files but no model.safetensors.index.json")
    raise EtudeError(
        f"{folder}: no model.safetensors; only safetensors are read (pickled .bin files can run code: "
        "convert them with transformers' save_pretrained)"
    )


def open_source(path: Path | str) -> GGUFFile | HFFolder:
    """A GGUF file, or a Hugging Face folder for a directory."""
    path = Path(path)
    return HFFolder.open(path) if path.is_dir() else GGUFFile.open(path)


def config_of(source: GGUFFile | HFFolder) -> ModelConfig:
    """The model in `source`; all its tensors are there and have their shapes, or EtudeError."""
    if isinstance(source, GGUFFile):
        shapes = {name: info.shape for name, info in source.tensors.items()}
        if math.prod(shapes.get("rope_freqs.weight", ())) > MAX_HEAD_DIM:
            raise EtudeError(f"{source.path}: rope_freqs.weight has shape {shapes['rope_freqs.weight']}")
        rope_freqs = source.dequantize("rope_freqs.weight") if "rope_freqs.weight" in shapes else None
        return config_from_gguf(source.metadata, shapes, rope_freqs, str(source.path))
    config = config_from_hf(source.config, str(source.path / "config.json"))
    check_shapes(config, _shapes_by_gguf_name(source, config), str(source.path))
    return config


def _shapes_by_gguf_name(source: HFFolder, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, shape in source.shapes.items():
        place = place_of_hf(config.architecture, name)
        if place is not None:
            shapes[gguf_name(place)] = shape
    return shapes


def weights_of(source: GGUFFile | HFFolder, config: ModelConfig) -> Iterator[MatrixWeights | VectorWeights]:
    """Every weight of the model once, in the file's order; EtudeError for a tensor that does not belong."""
    seen: set[Place] = set()
    is_gguf = isinstance(source, GGUFFile)
    names = source.tensors if isinstance(source, GGUFFile) else source.files
    for name in names:
        place = place_of_gguf(name) if is_gguf else place_of_hf(config.architecture, name)
        if place is None or (place.slot == "output" and config.tied_embeddings):
            continue
        if place in seen:
            raise EtudeError(f"{source.path}: {name} and another tensor are both {gguf_name(place)}")
        seen.add(place)
        if isinstance(source, GGUFFile):
            yield _gguf_weight(source, config, name, place)
        else:
            yield _hf_weight(config, name, place, *source.array(name))


def _checked_shape(config: ModelConfig, name: str, place: Place, shape: tuple[int, ...]) -> None:
    if place.layer >= config.n_layers:
        raise EtudeError(
            f"tensor {name} is of layer {place.layer}, but the model has {config.n_layers} layers"
        )
    expected = slot_shape(config, place.slot)
    if tuple(shape) != expected:
        raise EtudeError(f"tensor {name} has shape {tuple(shape)}; this model needs {expected}")


def _gguf_weight(
    source: GGUFFile, config: ModelConfig, name: str, place: Place
) -> MatrixWeights | VectorWeights:
    info = source.tensors[name]
    _checked_shape(config, name, place, info.shape)
    order = gguf_row_order(config, place.slot)
    if place.slot in MATRICES:
        n, k = info.shape
        return MatrixWeights(place.slot, place.layer, info.type, n, k, source.data(name), order, name)
    values = source.dequantize(name)
    return VectorWeights(place.slot, place.layer, values if order is None else values[order], name)


def gguf_row_order(config: ModelConfig, slot: str) -> NDArray[np.int32] | None:
    """The order of a GGUF tensor's rows where it is not the native one: q and k of the llama architecture."""
    if not FAMILIES[config.architecture].paired_gguf:
        return None
    heads = {"attn_q": config.attention.n_heads, "attn_k": config.attention.n_kv_heads}
    n_heads = heads.get(slot.removesuffix("_bias"))
    return None if n_heads is None else pair_row_order(n_heads, config.attention.head_dim)


def weight_from_hf(
    config: ModelConfig, name: str, values: NDArray[Any], dtype: str
) -> MatrixWeights | VectorWeights | None:
    """A trainer's tensor, under its Hugging Face name and in that layout, as the native model takes it.

    dtype: "F32", "F16" or "BF16" (values as uint16). None: nothing needs it (a tied lm_head, rope tables).
    """
    place = place_of_hf(config.architecture, name)
    if place is None or (place.slot == "output" and config.tied_embeddings):
        return None
    return _hf_weight(config, name, place, values, dtype)


def _hf_weight(
    config: ModelConfig, name: str, place: Place, values: NDArray[Any], dtype: str
) -> MatrixWeights | VectorWeights:
    _checked_shape(config, name, place, values.shape)
    if place.slot in MATRICES:
        data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        n, k = values.shape
        return MatrixWeights(place.slot, place.layer, HF_DTYPES[dtype], n, k, data, None, name)
    vector = to_f32(values, dtype)
    if place.slot in NORMS:
        vector = vector + np.float32(FAMILIES[config.architecture].hf_norm_offset)
    return VectorWeights(place.slot, place.layer, vector, name)


def to_f32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Values of an F32, F16 or BF16 (as uint16) tensor, exactly.

    >>> to_f32(np.array([0x3F80, 0xC000], np.uint16), "BF16").tolist()
    [1.0, -2.0]
    """
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
