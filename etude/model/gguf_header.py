"""The header of a GGUF file, read from untrusted bytes: version, metadata, tensor table.

Layout (little-endian): "GGUF", version u32, tensor count u64, key count u64; the keys (name, type u32,
value); the tensor table (name, number of dimensions u32, dimensions u64 with the contiguous one first, type
u32, offset u64 from the start of the data); padding to `general.alignment`; the data. A string is its length
as u64 and its bytes.

Every count, length, offset and dimension is compared with the bytes that are there before anything is
allocated for it, so memory stays in proportion to the file; whatever is wrong becomes one GGUFError that
names the file, what was found and what is allowed. Headers that llama.cpp takes are taken here, except for
tensors without values, which have no use, and names that would not print.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from etude.model.quants import REMOVED_TYPES, GGMLType, row_bytes
from etude.records import EtudeError

DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_HEADER_BYTES = 1 << 28
"""Everything before the weights. Vocabularies of 262k tokens take 15 MiB; the limit bounds memory, as decoded
metadata takes up to some 20 times its bytes in the file."""

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: dict[int, tuple[str, str]] = {  # id -> name, struct and numpy code
    0: ("UINT8", "<u1"),
    1: ("INT8", "<i1"),
    2: ("UINT16", "<u2"),
    3: ("INT16", "<i2"),
    4: ("UINT32", "<u4"),
    5: ("INT32", "<i4"),
    6: ("FLOAT32", "<f4"),
    BOOL: ("BOOL", "|b1"),
    10: ("UINT64", "<u8"),
    11: ("INT64", "<i8"),
    12: ("FLOAT64", "<f8"),
}
"""Types of metadata values other than STRING and ARRAY: name and numpy code."""

_DTYPES = {id: np.dtype(code) for id, (_, code) in SCALARS.items()}
_U32, _U64, _TYPE_AND_OFFSET = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_SMALLEST_KEY_BYTES = 8 + 1 + 4 + 1
_SMALLEST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_STRING_WINDOW_BYTES = 1 << 16

_OTHER_FORMATS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"<", "a web page: the download failed"),
    (b"PK", "a zip archive, perhaps a PyTorch checkpoint: convert it to GGUF"),
    (b"tjgg", "a ggml file from before GGUF: convert it again"),
    (b"lmgg", "a ggml file from before GGUF: convert it again"),
    (b"fmgg", "a ggml file from before GGUF: convert it again"),
    (b"FUGG", "a big-endian file: only little-endian ones are read"),
    (b"\0\0\0\0", "zeros: the download was not finished"),
)


class GGUFError(EtudeError):
    """A GGUF file that cannot be read or written as asked; the text names the file."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in numpy's order, (rows, inputs).

    `offset` counts from the start of the file, or of file `part` of a split model.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    size_bytes: int
    part: int = 0


@dataclass(frozen=True)
class Header:
    """What comes before the weights. Offsets of `tensors` count from the start of the file."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path, mapping: mmap.mmap) -> Header:
    """Read and check the header of the mapped file; `path` is for error texts."""
    reader = _Reader(path, mapping)
    version = reader.read_version()
    tensor_count = reader.read_count("tensor count", _SMALLEST_TENSOR_BYTES)
    key_count = reader.read_count("key count", _SMALLEST_KEY_BYTES)
    metadata = reader.read_metadata(key_count)
    tensors = reader.read_tensor_table(tensor_count)
    alignment = _alignment(reader, metadata)
    data_start = (reader.position + alignment - 1) // alignment * alignment
    _check_placement(reader, tensors, data_start, alignment)
    placed = {info.name: replace(info, offset=data_start + info.offset) for info in tensors}
    return Header(version, metadata, placed)


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        reader.fail(f"general.alignment is {shown(value)}; allowed are powers of two")
    return value


def _check_placement(reader: _Reader, tensors: Sequence[TensorInfo], data_start: int, alignment: int) -> None:
    """Every tensor starts aligned, lies inside the file and shares no byte with another."""
    file_bytes = reader.size_bytes
    end, before = 0, ""
    for info in sorted(tensors, key=lambda info: info.offset):
        where = f"tensor {shown(info.name)} at offset {info.offset}"
        if info.offset % alignment:
            reader.fail(f"{where}: offsets must be multiples of {alignment}")
        if data_start + info.offset + info.size_bytes > file_bytes:
            room = max(0, file_bytes - data_start - info.offset)
            reader.fail(
                f"{where} takes {info.size_bytes} bytes, but the file ends after {room}: "
                "it is cut off or damaged, fetch it again"
            )
        if info.offset < end:
            reader.fail(f"{where} overlaps with {shown(before)}, which ends at {end}")
        end, before = info.offset + info.size_bytes, info.name


def shown(value: object) -> str:
    """For error texts: quoted, control characters escaped, cut to a line."""
    text = repr(value).replace("\n", " ")  # numpy breaks lines
    return text if len(text) <= 80 else f"{text[:76]}...'"


class _Reader:
    """A position that moves through the header and never past the end of the file."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.size_bytes = len(mapping)
        self.position = 0
        self._bytes = mapping
        self._end = min(self.size_bytes, MAX_HEADER_BYTES)
        self._where = "the header"

    def fail(self, problem: str) -> NoReturn:
        raise GGUFError(f"{self.path}: {problem}")

    def read_version(self) -> int:
        start = bytes(self._bytes[:32])
        self.position = 4
        version = self._u32()
        if start[:4] != b"GGUF":
            kinds = [kind for magic, kind in _OTHER_FORMATS if start.startswith(magic)]
            if start[8:9] == b"{":
                kinds = ["a safetensors file: give its folder, or convert it to GGUF"]
            known = f": this is {kinds[0]}" if kinds else ""
            self.fail(f"this is no GGUF file, it starts with {start[:4]!r}{known}")
        if version and version & 0xFFFF == 0:
            self.fail("this is a big-endian GGUF file: only little-endian ones are read")
        if version not in (2, 3):
            self.fail(f"GGUF version {version} is not read; versions 2 and 3 are: convert the model again")
        return version

    def read_count(self, what: str, smallest_bytes: int) -> int:
        count = self._u64()
        self._check_count(count, what, smallest_bytes)
        return count

    def read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            self._where = f"key {index + 1} of {count}"
            name = self._name()
            if name in metadata:
                self.fail(f"{self._where} is a second {shown(name)}; keys must be unique")
            self._where = f"key {shown(name)}"
            metadata[name] = self._value(self._u32())
        return metadata

    def read_tensor_table(self, count: int) -> list[TensorInfo]:
        """Offsets are those of the file, from the start of the data."""
        tensors: dict[str, TensorInfo] = {}
        for index in range(count):
            self._where = f"tensor {index + 1} of {count}"
            info = self._tensor()
            if info.name in tensors:
                self.fail(f"{self._where} is a second {shown(info.name)}; names must be unique")
            tensors[info.name] = info
        return list(tensors.values())

    def _tensor(self) -> TensorInfo:
        name = self._name()
        self._where = f"tensor {shown(name)}"
        dimension_count = self._u32()
        if not 1 <= dimension_count <= MAX_DIMENSIONS:
            self.fail(f"{self._where} has {dimension_count} dimensions; allowed are 1 to {MAX_DIMENSIONS}")
        dimensions = [self._u64() for _ in range(dimension_count)]
        start = self._take(_TYPE_AND_OFFSET.size)
        type_id, offset = _TYPE_AND_OFFSET.unpack_from(self._bytes, start)
        if 0 in dimensions:
            self.fail(f"{self._where} has the dimensions {dimensions}; each must be at least 1")
        if type_id in REMOVED_TYPES:
            self.fail(f"{self._where} is {REMOVED_TYPES[type_id]}, which ggml has removed: quantise it again")
        try:
            kind = GGMLType(type_id)
        except ValueError:
            self.fail(f"{self._where} has the unknown type {type_id}; known are 0 to {max(GGMLType)}")
        try:
            size_bytes = row_bytes(kind, dimensions[0])
        except EtudeError as error:
            self.fail(f"{self._where}: {error}")
        for dimension in dimensions[1:]:
            size_bytes *= dimension
        return TensorInfo(name, tuple(reversed(dimensions)), kind, offset, size_bytes)

    # ── values ──

    def _value(self, type_id: int) -> Any:
        if type_id == STRING:
            return self._string_bytes().decode("utf-8", "replace")
        if type_id == ARRAY:
            return self._array()
        if type_id not in _DTYPES:
            self.fail(f"{self._where} has the unknown value type {type_id}; allowed are 0 to {max(SCALARS)}")
        return self._numbers(type_id, 1)[0].item()

    def _array(self) -> list[str] | NDArray[Any]:
        item_type, count = self._u32(), self._u64()
        if item_type == ARRAY:
            self.fail(f"{self._where} is an array of arrays, which GGUF readers do not take")
        if item_type == STRING:
            self._check_count(count, f"{self._where}: string count", 8)
            return self._strings(count)
        if item_type not in _DTYPES:
            self.fail(f"{self._where} is an array of unknown type {item_type}; known are 0 to {max(SCALARS)}")
        self._check_count(count, f"{self._where}: item count", _DTYPES[item_type].itemsize)
        return self._numbers(item_type, count)

    def _numbers(self, type_id: int, count: int) -> NDArray[Any]:
        """A copy of `count` numbers. Booleans are bytes: all but 0 are true."""
        dtype = _DTYPES[type_id]
        start = self._take(count * dtype.itemsize)
        stored = np.dtype(np.uint8) if type_id == BOOL else dtype
        numbers: NDArray[Any] = np.frombuffer(self._bytes, stored, count=count, offset=start)
        return numbers != 0 if type_id == BOOL else numbers.astype(dtype.newbyteorder("="))

    def _strings(self, count: int) -> list[str]:
        """A vocabulary: up to half a million short strings, which one by one would take half a second."""
        texts: list[str] = []
        while len(texts) < count:
            window_end = min(self.position + _STRING_WINDOW_BYTES, self._end)
            if count - len(texts) >= 16:
                texts += self._plain_strings(count - len(texts), window_end)
            while len(texts) < count:
                texts.append(self._string_bytes().decode("utf-8", "surrogateescape"))
                if self.position >= window_end:
                    break
        return texts

    def _plain_strings(self, count: int, window_end: int) -> list[str]:
        """At most `count` strings from here, as far as all are plain: under 256 bytes and free of zeros.

        The length of a plain string is a byte and seven zeros, and seven zeros occur nowhere else. So all
        lengths of a window are found at once, checked to lead from one to the next, and replaced by one zero
        each; then one decode and one split give the texts. Whatever is not plain ends the run early.
        """
        window = np.frombuffer(self._bytes, np.uint8, count=window_end - self.position, offset=self.position)
        zeros = window == 0
        zeros2 = zeros[:-1] & zeros[1:]
        zeros4 = zeros2[:-2] & zeros2[2:]
        zeros7 = zeros4[:-3] & zeros4[3:]
        starts = np.flatnonzero(zeros7[1:])
        if len(starts) == 0 or starts[0] != 0:
            return []
        ends = starts + 8 + window[starts]
        leads_on = np.append(ends[:-1] == starts[1:], False)
        run = min(count, int(np.argmin(leads_on)))
        if run == 0:
            return []
        end = int(ends[run - 1])
        kept = np.ones(end, np.bool_)
        kept[starts[:run, None] + np.arange(7)] = False
        texts = window[:end][kept].tobytes().decode("utf-8", "surrogateescape").split("\0")
        if len(texts) != run + 1:
            return []
        self.position += end
        return texts[1:]

    # ── bytes ──

    def _name(self) -> str:
        stored = self._string_bytes()
        try:
            name = stored.decode("utf-8")
        except UnicodeDecodeError:
            name = ""
        if not name.isprintable() or not name:
            self.fail(f"{self._where} is named {shown(stored)}; names must be printable UTF-8")
        return name

    def _string_bytes(self) -> bytes:
        length = self._u64()
        start = self._take(length)
        return self._bytes[start : start + length]

    def _u32(self) -> int:
        value: int = _U32.unpack_from(self._bytes, self._take(4))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack_from(self._bytes, self._take(8))[0]
        return value

    def _take(self, size_bytes: int) -> int:
        """The start of the next `size_bytes` bytes, all inside the file; the position moves behind them."""
        start = self.position
        if size_bytes > self._end - start:
            self._fail_at_end(f"{self._where} takes {size_bytes} bytes at {start}")
        self.position = start + size_bytes
        return start

    def _check_count(self, count: int, what: str, smallest_bytes: int) -> None:
        if count * smallest_bytes > self._end - self.position:
            self._fail_at_end(
                f"{what} is {count}, at least {count * smallest_bytes} bytes at {self.position}"
            )

    def _fail_at_end(self, what: str) -> NoReturn:
        if self._end < self.size_bytes:
            self.fail(f"{what}, but a header has at most {MAX_HEADER_BYTES} bytes")
        self.fail(f"{what}, but the file has {self._end}: it is cut off or damaged, fetch it again")
