"""Reading a .safetensors file: a JSON header, then raw little-endian tensors, mapped and never copied.

Own code instead of the `safetensors` package because numpy has no bf16 (the package's numpy side refuses it)
and the engine wants the raw bytes: a bf16 tensor is handed out as uint16 with the tag "BF16". The format is

    u64 header length | header, JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}} | data

with offsets into data. The header is not to be trusted: every length is checked against the file before use.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from etude.records import EtudeError

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation

_ITEM_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "BOOL": 8, "U8": 8,
    "I8": 8, "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F32": 32, "I32": 32, "U32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True)
class StoredTensor:
    """One entry of the header. `begin` is counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size_bytes: int


class SafetensorsFile:
    """An open file; `tensors` by name, `array` for the values. A context manager."""

    def __init__(self, path: Path, mapping: mmap.mmap, tensors: dict[str, StoredTensor]) -> None:
        self.path = path
        self.tensors = tensors
        self._mapping = mapping

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """EtudeError when the file cannot be read, is truncated, or its header does not fit it."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                size_bytes = file.seek(0, 2)
                if size_bytes < 8:
                    raise EtudeError(f"{path}: {size_bytes} bytes are too few for a safetensors file")
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise EtudeError(f"{path}: cannot be read ({error.strerror or error})") from error
        try:
            return cls(path, mapping, _read_header(path, mapping, size_bytes))
        except EtudeError:
            mapping.close()
            raise

    def array(self, name: str) -> tuple[NDArray[Any], str]:
        """(values, dtype): a view in the tensor's shape of float32 (F32), float16 (F16), uint16 (BF16)."""
        tensor = self.tensors[name]
        if tensor.dtype not in _NUMPY:
            raise EtudeError(
                f"{self.path}: tensor {name} is {tensor.dtype}; readable are F32, F16 and BF16 (load an "
                "unquantised checkpoint, or a GGUF file)"
            )
        dtype = np.dtype(_NUMPY[tensor.dtype])
        flat = np.frombuffer(self._mapping, dtype, tensor.size_bytes // dtype.itemsize, tensor.begin)
        return flat.reshape(tensor.shape), tensor.dtype

    def release(self, name: str) -> None:
        """Let go of the tensor's whole pages; reading it again brings them back from the file."""
        tensor = self.tensors[name]
        begin = -(-tensor.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.begin + tensor.size_bytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED, begin, length)

    def close(self) -> None:
        """Views that are still in use keep the mapping until they go."""
        try:
            self._mapping.close()
        except BufferError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _read_header(path: Path, mapping: mmap.mmap, size_bytes: int) -> dict[str, StoredTensor]:
    header_bytes = int.from_bytes(mapping[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise EtudeError(
            f"{path}: a header of {header_bytes} bytes in a file of {size_bytes}; it is truncated or no "
            "safetensors file"
        )
    try:
        header = json.loads(mapping[8 : 8 + header_bytes], object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise EtudeError(f"{path}: the header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise EtudeError(f"{path}: the header is a {type(header).__name__}, not a JSON object")
    start = 8 + header_bytes
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _stored_tensor(path, name, entry, start, size_bytes) for name, entry in entries.items()}
    _check_disjoint(path, tensors)
    return tensors


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key stands twice")
    return record


def _naturals(value: object) -> list[int] | None:
    if not isinstance(value, list):
        return None
    return value if all(type(item) is int and item >= 0 for item in value) else None


def _stored_tensor(path: Path, name: str, entry: Any, start: int, size_bytes: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.get("dtype") not in _ITEM_BITS:
        raise EtudeError(f"{path}: tensor {name[:80]} has no dtype that safetensors knows")
    shape, offsets = _naturals(entry.get("shape")), _naturals(entry.get("data_offsets"))
    if shape is None or len(shape) > 8 or offsets is None or len(offsets) != 2:
        raise EtudeError(f"{path}: tensor {name[:80]} has no readable shape and data_offsets")
    begin, end = offsets
    if not begin <= end <= size_bytes - start:
        raise EtudeError(
            f"{path}: tensor {name[:80]} lies at bytes {begin} to {end} of {size_bytes - start}; the file is "
            "truncated"
        )
    if math.prod(shape) * _ITEM_BITS[entry["dtype"]] != 8 * (end - begin):
        raise EtudeError(
            f"{path}: tensor {name[:80]}: {entry['dtype']} {shape} does not take {end - begin} bytes"
        )
    return StoredTensor(entry["dtype"], tuple(shape), start + begin, end - begin)


def _check_disjoint(path: Path, tensors: dict[str, StoredTensor]) -> None:
    """No two tensors share bytes: each byte of the file is allocated for at most once."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].size_bytes))
    for (name, first), (other, second) in itertools.pairwise(ordered):
        if first.begin + first.size_bytes > second.begin:
            raise EtudeError(f"{path}: tensors {name[:80]} and {other[:80]} overlap")
