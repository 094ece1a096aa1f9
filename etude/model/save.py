"""A model's weights back into files: a Hugging Face folder or a GGUF file, with settings and tokenizer.

    save_hf_folder("final", source, transformer.weights(), dtype="bf16")     transformers opens it
    save_gguf("final.gguf", source, transformer.weights(), type="q8_0")      llama.cpp opens it

`source` is the open file or folder that the model was loaded from; everything but the weights comes from
there, translated where the format changes. Tensors are numpy arrays or torch's, under Hugging Face names, one
in memory at a time. A new file or folder appears under its name complete and on disk, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from etude.model.checkpoint import HFFolder, config_of
from etude.model.config_write import gguf_metadata, hf_config, rope_freqs
from etude.model.family import ModelConfig, layer_slots, slot_shape
from etude.model.gguf import GGUFFile, write_gguf
from etude.model.hf_tensors import gguf_tensor
from etude.model.names import LAYER_BIASES, Place, hf_name, place_of_hf
from etude.model.quants import GGMLType, block_size
from etude.model.safetensors_write import write_safetensors, write_text
from etude.model.tokenizer import Tokenizer
from etude.model.tokenizer_json import metadata_from_folder
from etude.records import EtudeError

GGUF_TYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16, "q8_0": GGMLType.Q8_0}
"""Types of the matrices in a GGUF file, by the name that users write; vectors are always f32."""

MAX_SHARD_BYTES = 5_000_000_000

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama.cpp's llama_ftype
_TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


class TorchTensor(Protocol):
    """What is needed of a torch tensor, so that saving does not import torch."""

    def detach(self) -> TorchTensor: ...
    def cpu(self) -> TorchTensor: ...
    def float(self) -> TorchTensor: ...
    def numpy(self) -> NDArray[np.float32]: ...


NamedTensors = Iterable[tuple[str, "NDArray[Any] | TorchTensor"]]
"""(Hugging Face name, values) of every weight of a model; a tied head may be among them."""


def save_hf_folder(
    folder: Path | str,
    source: GGUFFile | HFFolder,
    tensors: NamedTensors,
    dtype: str = "bf16",
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write safetensors, config.json, tokenizer and generation settings. dtype: "f32", "f16" or "bf16".

    A model in `folder` is replaced. EtudeError for another kind of folder, missing or unknown tensors, wrong
    shapes, and settings that config.json cannot express.
    """
    folder = Path(folder)
    config = config_of(source)
    if dtype not in _TORCH_NAMES:
        raise EtudeError(f"dtype is {dtype!r}; a Hugging Face folder can hold {', '.join(_TORCH_NAMES)}")
    with new_folder(folder, "config.json") as scratch:
        biased: set[str] = set()
        stream = _with_all_biases(_checked(tensors, config, biased), config, biased)
        write_safetensors(scratch, "model", stream, dtype, max_shard_bytes)
        _write_settings(scratch, source, config, bool(biased), _TORCH_NAMES[dtype])


def save_gguf(
    path: Path | str, source: GGUFFile | HFFolder, tensors: NamedTensors, type: str = "f16"
) -> None:
    """Write a GGUF file with tokenizer and chat template. type: "f32", "f16", "bf16" or "q8_0", of matrices.

    EtudeError as `save_hf_folder`, and for rows that q8_0's blocks of 32 do not divide.
    """
    config = config_of(source)
    if type not in GGUF_TYPES:
        raise EtudeError(f"type is {type!r}; a new GGUF file can hold {', '.join(GGUF_TYPES)}")
    kind = GGUF_TYPES[type]
    if isinstance(source, GGUFFile):
        metadata = {key: value for key, value in source.metadata.items() if not key.startswith("split.")}
    else:
        metadata = gguf_metadata(config) | {"general.name": source.path.resolve().name}
        metadata |= metadata_from_folder(source.path)
    metadata["general.file_type"] = _FILE_TYPES[type]
    if kind == GGMLType.Q8_0:
        metadata["general.quantization_version"] = 2
    write_gguf(path, metadata, _gguf_stream(tensors, config, kind))


def _gguf_stream(
    tensors: NamedTensors, config: ModelConfig, kind: GGMLType
) -> Iterator[tuple[str, NDArray[Any], GGMLType]]:
    factors = rope_freqs(config)
    if factors is not None:
        yield "rope_freqs.weight", factors, GGMLType.F32
    for name, values in _checked(tensors, config, set()):
        converted = gguf_tensor(name, values, config)
        if converted is None:
            continue
        if values.ndim == 2 and values.shape[1] % block_size(kind):
            raise EtudeError(
                f"{name} has rows of {values.shape[1]} values, which {kind.name} cannot hold (blocks of "
                f"{block_size(kind)}): save as bf16 or f16"
            )
        yield *converted, kind if values.ndim == 2 else GGMLType.F32


# ── tensors ──


def f32_of(values: NDArray[Any] | TorchTensor) -> NDArray[np.float32]:
    """Values of a numpy array or a torch tensor."""
    array = values if isinstance(values, np.ndarray) else values.detach().cpu().float().numpy()
    return np.ascontiguousarray(array, np.float32)


def _checked(
    tensors: NamedTensors, config: ModelConfig, biased: set[str]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The stream in f32 without a tied head; at its end, EtudeError if a weight was missing.

    biased: collects the slots of biases that came.
    """
    seen: set[Place] = set()
    for name, tensor in tensors:
        place = place_of_hf(config.architecture, name)
        if place is None or (place.slot == "output" and config.tied_embeddings):
            continue
        values = f32_of(tensor)
        if values.shape != slot_shape(config, place.slot) or place.layer >= config.n_layers:
            raise EtudeError(
                f"{name} has shape {values.shape}; this model has {slot_shape(config, place.slot)}"
            )
        if not np.isfinite(values).all():
            raise EtudeError(f"{name} holds values that are not finite; a model of them would be useless")
        if place in seen:
            raise EtudeError(f"{name} comes twice")
        seen.add(place)
        if place.slot in LAYER_BIASES:
            biased.add(place.slot)
        yield hf_name(config.architecture, place), values
    for place in _needed(config):
        if place not in seen:
            raise EtudeError(f"{hf_name(config.architecture, place)} is missing among the tensors to save")


def _needed(config: ModelConfig) -> Iterator[Place]:
    yield Place("token_embd", -1)
    yield Place("output_norm", -1)
    if not config.tied_embeddings:
        yield Place("output", -1)
    for layer in range(config.n_layers):
        yield from (Place(slot, layer) for slot in layer_slots(config))


def _with_all_biases(
    tensors: Iterator[tuple[str, NDArray[np.float32]]], config: ModelConfig, biased: set[str]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """transformers' attention_bias means all four; a GGUF may have fewer, and gets the others as zeros."""
    yield from tensors
    if config.architecture not in ("llama", "qwen3") or not biased:
        return
    for slot in sorted(set(LAYER_BIASES) - biased):
        for layer in range(config.n_layers):
            zeros = np.zeros(slot_shape(config, slot), np.float32)
            yield hf_name(config.architecture, Place(slot, layer)), zeros


# ── settings and tokenizer ──


def _write_settings(
    folder: Path, source: GGUFFile | HFFolder, config: ModelConfig, has_biases: bool, dtype: str
) -> None:
    if isinstance(source, HFFolder):
        record = _text_config(source.config)
        record["dtype" if "dtype" in record else "torch_dtype"] = dtype
        for name in _COPIED:
            if (source.path / name).exists():
                _copy(source.path / name, folder / name)
    else:
        record = hf_config(config, attention_bias=has_biases, dtype=dtype)
        record |= _write_tokenizer(folder, source.metadata)
    _write_json(folder / "config.json", record)


def _text_config(record: dict[str, Any]) -> dict[str, Any]:
    """A multimodal gemma3's language model, which alone is run and saved."""
    if record.get("model_type") != "gemma3":
        return dict(record)
    outer = {key: record[key] for key in ("tie_word_embeddings", "torch_dtype", "dtype") if key in record}
    names = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    return outer | dict(record["text_config"]) | names


def _write_tokenizer(folder: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json, its settings and generation_config.json; the special ids, for config.json."""
    tokenizer = Tokenizer.from_metadata(metadata)
    write_text(folder / "tokenizer.json", tokenizer.to_json() + "\n")
    ids = {
        key: metadata.get(f"tokenizer.ggml.{name}_token_id")
        for key, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    texts = metadata["tokenizer.ggml.tokens"]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "clean_up_tokenization_spaces": False,
    }
    settings |= {f"{key}_token": texts[index] for key, index in ids.items() if index is not None}
    settings |= _chat_template(metadata)
    _write_json(folder / "tokenizer_config.json", settings)
    special = {
        f"{key}_token_id": int(index) for key, index in ids.items() if key != "unk" and index is not None
    }
    ends = sorted(tokenizer.eog_ids)
    _write_json(folder / "generation_config.json", special | ({"eos_token_id": ends} if ends else {}))
    return dict(special)


def _chat_template(metadata: dict[str, Any]) -> dict[str, Any]:
    """The template, or the list of named ones, as tokenizer_config.json holds it."""
    key = "tokenizer.chat_template"
    named = {
        "default" if name == key else name.removeprefix(key + "."): text
        for name, text in metadata.items()
        if (name == key or name.startswith(key + ".")) and isinstance(text, str)
    }
    if not named:
        return {}
    if named.keys() == {"default"}:
        return {"chat_template": named["default"]}
    return {"chat_template": [{"name": name, "template": text} for name, text in named.items()]}


# ── folders that appear at once ──


@contextmanager
def new_folder(folder: Path, mark: str) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends well, and vanishes otherwise.

    mark: the file by which an older one of the kind is known; a folder without it is not replaced.
    """
    folder = folder.absolute()
    if (
        folder.exists()
        and not (folder / mark).is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise EtudeError(f"{folder} is there already and has no {mark}; give another name, or remove it")
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed process that had our number
        scratch.mkdir()
    except OSError as error:
        raise EtudeError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        try:
            yield scratch
        except OSError as error:
            raise EtudeError(f"{folder}: cannot be written: {error.strerror}") from error
        _sync(scratch)
        _put_in_place(scratch, folder, old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put_in_place(scratch: Path, folder: Path, old: Path) -> None:
    """Two renames where a folder is replaced: between them the old one lies under the name `old`."""
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(scratch, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False, default=int) + "\n")
