"""Writing .safetensors files: one, or several shards with their index; one tensor in memory at a time.

The header stands before the data, but the tensors come as a stream: the data of a shard goes to an unnamed
file first and is copied behind its header, as in gguf_write.py. Values are rounded to the stored type like
everywhere else (to nearest, ties to even).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from etude.kernels import reference_quants
from etude.model.quants import GGMLType
from etude.records import EtudeError

DTYPES = {"f32": ("F32", GGMLType.F32), "f16": ("F16", GGMLType.F16), "bf16": ("BF16", GGMLType.BF16)}
"""By the name that users write: safetensors' tag, and how values are rounded."""

_COPY_BYTES = 1 << 24
_ALIGNMENT = 8


class ShardWriter:
    """Collects tensors into shards of at most `max_bytes`; `finish` names the files and writes the index.

    A context manager: what was begun is closed whatever happens.
    """

    def __init__(self, folder: Path, stem: str, max_bytes: int) -> None:
        self._folder = folder
        self._stem = stem
        self._max_bytes = max_bytes
        self._parts: list[Path] = []
        self._names: list[list[str]] = []
        self._header: dict[str, Any] = {}
        self._data: IO[bytes] | None = None
        self._total_bytes = 0

    def add(self, name: str, values: NDArray[np.float32], dtype: str) -> None:
        """Append a tensor as "f32", "f16" or "bf16"."""
        tag, kind = DTYPES[dtype]
        stored = reference_quants.quantize(kind, values) if values.size else np.empty(0, np.uint8)
        if self._data is not None and self._data.tell() + stored.nbytes > self._max_bytes:
            self._finish_part()
        if self._data is None:
            self._data = tempfile.TemporaryFile(dir=self._folder)
        begin = self._data.tell()
        self._data.write(np.ascontiguousarray(stored).data)
        offsets = [begin, begin + stored.nbytes]
        self._header[name] = {"dtype": tag, "shape": list(values.shape), "data_offsets": offsets}
        self._total_bytes += stored.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._data is not None:
            self._data.close()

    def finish(self) -> None:
        """STEM.safetensors, or STEM-00001-of-0000N.safetensors and so on with an index."""
        if self._data is not None or not self._parts:
            self._finish_part()
        count = len(self._parts)
        if count == 1:
            os.replace(self._parts[0], self._folder / f"{self._stem}.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (part, names) in enumerate(zip(self._parts, self._names, strict=True)):
            file = f"{self._stem}-{number + 1:05}-of-{count:05}.safetensors"
            os.replace(part, self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_text(self._folder / f"{self._stem}.safetensors.index.json", json.dumps(index, indent=2) + "\n")

    def _finish_part(self) -> None:
        text = json.dumps({"__metadata__": {"format": "pt"}, **self._header}, ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        part = self._folder / f".{self._stem}.part{len(self._parts)}"
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            if self._data is not None:
                self._data.seek(0)
                shutil.copyfileobj(self._data, file, _COPY_BYTES)
                self._data.close()
            file.flush()
            os.fsync(file.fileno())
        self._parts.append(part)
        self._names.append(list(self._header))
        self._header, self._data = {}, None


def write_safetensors(
    folder: Path, stem: str, tensors: Iterable[tuple[str, NDArray[np.float32]]], dtype: str, max_bytes: int
) -> None:
    """All tensors of a stream into `folder`. EtudeError for an unknown dtype or a name that comes twice."""
    if dtype not in DTYPES:
        raise EtudeError(f"dtype is {dtype!r}; a safetensors file can hold {', '.join(DTYPES)}")
    seen: set[str] = set()
    with ShardWriter(folder, stem, max_bytes) as writer:
        for name, values in tensors:
            if name in seen:
                raise EtudeError(f"tensor {name} comes twice; names must be unique")
            seen.add(name)
            writer.add(name, values, dtype)
        writer.finish()


def write_text(path: Path, text: str) -> None:
    """A text file that is on disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
