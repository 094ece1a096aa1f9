"""GGUF files: metadata, tensor table and mapped weights. Reads versions 2 and 3, whole or split into parts.

The header is read and checked by `etude.model.gguf_header`; files are written by `etude.model.gguf_write`.
Weights are mapped and read when they are touched. (A file that another program shortens while it is mapped
kills the process, as with every mapping: whatever writes models must replace files and never rewrite them.)

    with GGUFFile.open("model.gguf") as file:
        file.metadata["general.architecture"]
        file.dequantize("token_embd.weight")
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from etude.kernels import reference_quants
from etude.model.gguf_header import GGUFError, Header, TensorInfo, read_header, shown
from etude.model.gguf_write import write_gguf
from etude.model.quants import GGMLType

__all__ = ["GGMLType", "GGUFError", "GGUFFile", "TensorInfo", "write_gguf"]

_SMALLEST_FILE_BYTES = 24
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GGUFFile:
    """An open file, or all parts of a split one. Weights are mapped, not read, until they are touched.

    metadata: str, int, float and bool; arrays are list[str] or numpy arrays of the stored type. Bytes that
    are not UTF-8 are shown as U+FFFD in a single string; in an array (token texts) they are kept as
    surrogates, so that `text.encode("utf-8", "surrogateescape")` gives the stored bytes back. Of a split
    model, these are the metadata of the first part.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.path = parts[0].path
        self.paths = tuple(part.path for part in parts)
        self.version = parts[0].header.version
        self.metadata = parts[0].header.metadata
        self.tensors = _merge_tensors(parts)
        self._maps = [part.map for part in parts]

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Map the file at `path`; of a split model, all parts beside it. GGUFError if that cannot be done."""
        part = _read_part(Path(path))
        split_count = _split_number(part, "split.count", default=1)
        return cls([part] if split_count <= 1 else _read_all_parts(part, split_count))

    def data(self, name: str) -> NDArray[np.uint8]:
        """The raw bytes of a tensor: a read-only view into the mapping, valid even after `close`."""
        info = self._info(name)
        return np.frombuffer(self._maps[info.part], np.uint8, count=info.size_bytes, offset=info.offset)

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The values of a tensor, in its shape."""
        info = self._info(name)
        try:
            return reference_quants.dequantize(info.type, self.data(name), info.shape)
        except (ValueError, ImportError) as error:
            raise GGUFError(f"{self.path}: tensor {name!r} ({info.type.name}): {error}") from error

    def release(self, name: str) -> None:
        """Give the memory of a tensor's mapped pages back. Touching it again reads it from the file again."""
        info = self._info(name)
        if sys.platform != "win32":
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[info.part].madvise(mmap.MADV_DONTNEED, start, info.offset + info.size_bytes - start)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last view from `data` is gone."""
        self._maps = []

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise GGUFError(f"{self.path}: there is no tensor {name!r} among its {len(self.tensors)}")
        if not self._maps:
            raise GGUFError(f"{self.path}: the file is closed: open it again to read {name!r}")
        return self.tensors[name]

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ── one file ──


@dataclass(frozen=True)
class _Part:
    """One file on disk: its mapping and what its header says."""

    path: Path
    map: mmap.mmap
    header: Header


def _read_part(path: Path) -> _Part:
    mapping = _map_file(path)
    return _Part(path, mapping, read_header(path, mapping))


def _map_file(path: Path) -> mmap.mmap:
    try:
        if (
            not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
        ):  # opening a pipe would wait for a writer
            raise GGUFError(f"{path}: this is no regular file: give the path of a GGUF file")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < _SMALLEST_FILE_BYTES:
                raise GGUFError(f"{path}: {size_bytes} bytes are too few for a GGUF file: fetch it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        reason = "this is a folder: give the path of a GGUF file" if path.is_dir() else error.strerror
        raise GGUFError(f"{path}: {reason}") from error


# ── split files ──


def _split_number(part: _Part, key: str, default: int | None = None) -> int:
    value = part.header.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise GGUFError(f"{part.path}: {key} is {shown(value)}; a part of a split model needs a number there")
    return value


def _read_all_parts(opened: _Part, count: int) -> list[_Part]:
    """Every part of the split model that `opened` belongs to, checked to be that part and to be complete."""
    path = opened.path
    name = _PART_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise GGUFError(
            f"{path}: this is one of {count} parts, which must be named …-00001-of-{count:05}.gguf and so on"
        )
    paths = [path.with_name(f"{name['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise GGUFError(
            f"{path}: {len(missing)} of {count} parts are not there, first {missing[0]}: "
            "put all parts into one folder"
        )
    parts = [opened if part == path else _read_part(part) for part in paths]
    for index, part in enumerate(parts):
        for key, expected in (("split.no", index), ("split.count", count)):
            found = _split_number(part, key)
            if found != expected:
                raise GGUFError(f"{part.path}: {key} is {found}, its name says {expected}: fetch it again")
    expected, found = (
        _split_number(parts[0], "split.tensors.count"),
        sum(len(part.header.tensors) for part in parts),
    )
    if found != expected:
        raise GGUFError(
            f"{path}: the {count} parts have {found} tensors, split.tensors.count says {expected}"
        )
    return parts


def _merge_tensors(parts: Sequence[_Part]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for index, part in enumerate(parts):
        for name, info in part.header.tensors.items():
            if name in tensors:
                first = parts[tensors[name].part].path
                raise GGUFError(f"{part.path}: tensor {shown(name)} is also in {first.name}")
            tensors[name] = replace(info, part=index)
    return tensors
