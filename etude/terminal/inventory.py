"""What a model file holds, without running it: also of files that cannot be run.

Sizes are facts of the file; the memory of the cache follows from the shape of attention, which is known of
every supported model and read from the usual metadata keys of the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.model.checkpoint import HFFolder, config_of, open_source, read_json
from etude.model.family import ModelConfig
from etude.model.gguf import GGUFFile
from etude.records import EtudeError

FILE_TYPES = {
    0: "all F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K - Medium",
    11: "Q3_K - Small", 12: "Q3_K - Medium", 13: "Q3_K - Large", 14: "Q4_K - Small", 15: "Q4_K - Medium",
    16: "Q5_K - Small", 17: "Q5_K - Medium", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K - Small",
    22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4 MoE",
}  # fmt: skip
"""general.file_type -> name, as llama.cpp prints it."""

# per value and per token and head, in bytes: q8_0 keeps one f32 scale for the values of a head
_CACHE_BYTES = {"f32": (4, 0), "f16": (2, 0), "bf16": (2, 0), "q8_0": (1, 4)}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file; shape in numpy's order (rows, inputs)."""

    name: str
    shape: tuple[int, ...]
    type: str
    size_bytes: int

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class AttentionShape:
    """What the cache keeps per token: over all layers, heads of keys and values, and their widths."""

    heads_of_all_layers: int
    key_width: int
    value_width: int

    def cache_bytes(self, n_tokens: int, type_k: str, type_v: str) -> int:
        """Memory of keys and values of `n_tokens` positions."""
        (k_bytes, k_scale), (v_bytes, v_scale) = _CACHE_BYTES[type_k], _CACHE_BYTES[type_v]
        per_head = self.key_width * k_bytes + k_scale + self.value_width * v_bytes + v_scale
        return self.heads_of_all_layers * per_head * n_tokens


@dataclass(frozen=True)
class Inventory:
    """A model file or folder. config: None where it cannot be run; `obstacle` then says why."""

    path: Path
    format: str
    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    architecture: str
    context_length: int | None
    attention: AttentionShape | None
    template: str | None
    config: ModelConfig | None
    obstacle: str

    @property
    def n_parameters(self) -> int:
        return sum(tensor.n_values for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def file_type(self) -> str:
        """The mixture that the file says it is, else its most frequent type by size."""
        named = (
            FILE_TYPES.get(self.metadata.get("general.file_type", -1))
            if self.format != "safetensors"
            else None
        )
        if named:
            return named
        sizes = bytes_by_type(self.tensors)
        return max(sizes, key=lambda name: sizes[name]) if sizes else "empty"

    @property
    def description(self) -> str:
        """'llama 135M Q4_1', as llama-bench describes a model."""
        return f"{self.architecture} {short_number(self.n_parameters)} {self.file_type}"


def take_inventory(path: Path) -> Inventory:
    """Read everything but the weights. EtudeError if it is no model file."""
    source = open_source(path)
    try:
        config, obstacle = _config(source)
        if isinstance(source, GGUFFile):
            return _of_gguf(path, source, config, obstacle)
        return _of_folder(path, source, config, obstacle)
    finally:
        source.close()


def bytes_by_type(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Type -> bytes of all tensors of that type."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size_bytes
    return sizes


def blocks(tensors: Iterable[Tensor]) -> list[tuple[str, Tensor, int]]:
    """Tensors that differ only in their layer's number, folded: (pattern, first of them, how many).

    >>> [(pattern, n) for pattern, _, n in blocks(Tensor(f"blk.{i}.w", (2,), "F32", 8) for i in range(3))]
    [('blk.{0..2}.w', 3)]
    """
    folded: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}
    for tensor in tensors:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", tensor.name, count=1)
        folded.setdefault((pattern, tensor.shape, tensor.type), []).append(tensor)
    rows = []
    for (pattern, _, _), members in folded.items():
        numbers = [match[0] for member in members if (match := re.search(r"(?<=\.)\d+(?=\.)", member.name))]
        name = (
            pattern.replace("{}", "{" + _ranges([int(n) for n in numbers]) + "}")
            if len(numbers) > 1
            else members[0].name
        )
        rows.append((name, members[0], len(members)))
    return rows


def short_number(number: float) -> str:
    """134515008 -> '135M', as models are called.

    >>> short_number(134515008), short_number(1543714304)
    ('135M', '1.5B')
    """
    if number < 999_500_000:
        return f"{number / 1e6:.0f}M" if number >= 999_500 else f"{number / 1e3:.0f}K"
    return f"{number / 1e9:.1f}B"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '0..2,5'."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("..".join(str(end) for end in part) for part in parts)


def _config(source: GGUFFile | HFFolder) -> tuple[ModelConfig | None, str]:
    try:
        return config_of(source), ""
    except EtudeError as error:
        return None, str(error)


def _of_gguf(path: Path, file: GGUFFile, config: ModelConfig | None, obstacle: str) -> Inventory:
    metadata = file.metadata
    architecture = str(metadata.get("general.architecture", "unknown"))
    template = metadata.get("tokenizer.chat_template")
    context = metadata.get(f"{architecture}.context_length")
    return Inventory(
        path=path,
        format=f"GGUF version {file.version}" + (f", {len(file.paths)} parts" if len(file.paths) > 1 else ""),
        metadata=metadata,
        tensors=tuple(Tensor(t.name, t.shape, t.type.name, t.size_bytes) for t in file.tensors.values()),
        architecture=architecture,
        context_length=config.context_length if config else context if isinstance(context, int) else None,
        attention=_attention(config) if config else _attention_of_metadata(metadata, architecture),
        template=template if isinstance(template, str) else None,
        config=config,
        obstacle=obstacle,
    )


def _of_folder(path: Path, folder: HFFolder, config: ModelConfig | None, obstacle: str) -> Inventory:
    stored = {name: file.tensors[name] for name, file in folder.files.items()}
    context = folder.config.get("max_position_embeddings")
    return Inventory(
        path=path,
        format="safetensors",
        metadata=folder.config,
        tensors=tuple(Tensor(name, t.shape, t.dtype, t.size_bytes) for name, t in stored.items()),
        architecture=config.architecture if config else str(folder.config.get("model_type", "unknown")),
        context_length=config.context_length if config else context if isinstance(context, int) else None,
        attention=_attention(config) if config else None,
        template=_template_of_folder(path),
        config=config,
        obstacle=obstacle,
    )


def _template_of_folder(path: Path) -> str | None:
    """chat_template.jinja, or the text in tokenizer_config.json."""
    jinja = path / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8", errors="replace")
    settings = path / "tokenizer_config.json"
    text = read_json(settings).get("chat_template") if settings.is_file() else None
    return text if isinstance(text, str) else None


def _attention(config: ModelConfig) -> AttentionShape:
    attention = config.attention
    return AttentionShape(config.n_layers * attention.n_kv_heads, attention.head_dim, attention.head_dim)


def _attention_of_metadata(metadata: Mapping[str, Any], architecture: str) -> AttentionShape | None:
    """The usual keys of llama.cpp; None where they are absent or say nothing sensible."""

    def number(key: str) -> int:
        value = metadata.get(f"{architecture}.{key}", 0)
        return value if isinstance(value, int) and 0 < value < 2**20 else 0

    layers, heads = number("block_count"), number("attention.head_count")
    per_layer = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    total = (
        int(np.sum(per_layer))
        if isinstance(per_layer, np.ndarray)
        else layers * number("attention.head_count_kv") or layers * heads
    )
    width = number("embedding_length") // heads if heads else 0
    key_width, value_width = (
        number("attention.key_length") or width,
        number("attention.value_length") or width,
    )
    return AttentionShape(total, key_width, value_width) if total and key_width and value_width else None
