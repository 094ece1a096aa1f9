"""Writing GGUF files: F32, F16, BF16 and Q8_0 tensors with any metadata, one tensor in memory at a time.

The tensor table stands before the data, but the tensors come as a stream: the data goes to an unnamed file in
the same folder first and is copied behind the finished header. The result appears under its name at once and
complete, or not at all.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from etude.kernels import reference_quants
from etude.model.gguf_header import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAX_DIMENSIONS, STRING, GGUFError, shown
from etude.model.quants import GGMLType, block_bytes, block_size
from etude.records import EtudeError

VERSION = 3
MAX_NAME_BYTES = 63
"""Of a tensor; llama.cpp refuses longer ones."""

_U8, _U32, _I32, _F32, _U64, _I64 = 0, 4, 5, 6, 10, 11
_NUMPY_TYPES: dict[str, int] = {
    "uint8": _U8, "int8": 1, "uint16": 2, "int16": 3, "uint32": _U32, "int32": _I32, "float32": _F32,
    "bool": BOOL, "uint64": _U64, "int64": _I64, "float64": 12,
}  # fmt: skip
_COPY_BYTES = 1 << 24


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, NDArray[Any], GGMLType]],
) -> None:
    """Write a model. GGUFError names what cannot be written; then, as on any exception, `path` is as it was.

    metadata: str, bool, int, float and numpy scalars; lists and arrays of them. A Python int becomes UINT32
    (INT32 if negative, 64 bits wide if it must), a float FLOAT32, a list of ints INT32, one of floats
    FLOAT32; numpy values keep their type. Surrogates in strings become the bytes they were read from.
    tensors: (name, values, type). Float values (rows, inputs) are converted to F32, F16, BF16 or Q8_0. Values
    of dtype uint8 are the bytes of rows that have the type, any type, already.
    """
    path = Path(path)
    alignment = _checked_alignment(path, metadata)
    keys = b"".join(_key(path, name, value) for name, value in metadata.items())
    with _new_file(path) as file, tempfile.TemporaryFile(dir=path.parent) as data:
        table: dict[str, bytes] = {}
        for name, values, kind in tensors:
            if name in table:
                raise GGUFError(f"{path}: tensor {shown(name)} comes twice; names must be unique")
            table[name] = _append_tensor(path, data, name, values, kind, alignment)
        with _naming(path):
            file.write(b"GGUF" + struct.pack("<IQQ", VERSION, len(table), len(metadata)) + keys)
            file.write(b"".join(table.values()))
            file.write(_padding(file.tell(), alignment))
            data.seek(0)
            shutil.copyfileobj(data, file, _COPY_BYTES)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk, a missing folder and the like become a GGUFError; errors of the caller's stream do not."""
    try:
        yield
    except OSError as error:
        raise GGUFError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place when all is written and on disk, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _naming(path):
        file = temporary.open("wb")
    try:
        with file:
            yield file
            with _naming(path):
                file.flush()
                os.fsync(file.fileno())
        with _naming(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system lets a folder be opened (Windows does not)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checked_alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) not in (int, np.uint32) or value < 1 or value & (value - 1):
        raise GGUFError(f"{path}: general.alignment is {shown(value)}; allowed are powers of two, as UINT32")
    return int(value)


def _padding(position: int, alignment: int) -> bytes:
    return bytes(-position % alignment)


# ── tensors ──


def _append_tensor(
    path: Path, data: IO[bytes], name: str, values: NDArray[Any], kind: GGMLType, alignment: int
) -> bytes:
    """Write the padded bytes of a tensor to `data`; its entry in the table."""
    where = f"{path}: tensor {shown(name)}"
    stored_name = name.encode("utf-8", "surrogatepass")
    if not name.isprintable() or not 1 <= len(stored_name) <= MAX_NAME_BYTES:
        raise GGUFError(f"{where}: names must be 1 to {MAX_NAME_BYTES} bytes of printable text")
    if not 1 <= values.ndim <= MAX_DIMENSIONS or values.size == 0:
        raise GGUFError(
            f"{where} has shape {values.shape}; allowed are 1 to {MAX_DIMENSIONS} axes, none empty"
        )
    try:
        stored, inputs = _stored(values, GGMLType(kind))
    except ValueError as error:
        raise GGUFError(f"{where}: {error}") from error
    with _naming(path):
        offset = data.tell()
        data.write(np.ascontiguousarray(stored).data)
        data.write(_padding(data.tell(), alignment))
    dimensions = (inputs, *reversed(values.shape[:-1]))
    return _string(stored_name) + struct.pack(
        f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset
    )


def _stored(values: NDArray[Any], kind: GGMLType) -> tuple[NDArray[np.uint8], int]:
    """Bytes of all rows, and the values in a row."""
    if values.dtype != np.uint8:
        return reference_quants.quantize(kind, values), values.shape[-1]
    size_bytes = block_bytes(kind)
    if values.shape[-1] % size_bytes:
        raise EtudeError(
            f"rows of {values.shape[-1]} bytes are no whole blocks of {kind.name}, {size_bytes} each"
        )
    return values, values.shape[-1] // size_bytes * block_size(kind)


# ── metadata ──


def _key(path: Path, name: str, value: Any) -> bytes:
    if not name or not name.isprintable():
        raise GGUFError(f"{path}: key {shown(name)}: names must be printable text")
    try:
        type_id, stored = _value(value)
    except (TypeError, UnicodeEncodeError, OverflowError) as error:
        raise GGUFError(f"{path}: key {shown(name)} is {shown(value)}: {error}") from error
    return _string(name.encode()) + struct.pack("<I", type_id) + stored


def _string(stored: bytes) -> bytes:
    return struct.pack("<Q", len(stored)) + stored


def _value(value: Any) -> tuple[int, bytes]:
    """Type id and bytes of a metadata value."""
    if isinstance(value, str):
        return STRING, _string(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise TypeError(f"arrays must have one axis, got shape {value.shape}")
        return ARRAY, _array_header(_numpy_type(value.dtype), len(value)) + _little_endian(value)
    if isinstance(value, list | tuple):
        return ARRAY, _list(value)
    if isinstance(value, bool | int | float) and not isinstance(value, np.generic):  # float64 is a float
        value = _typed_scalar(value)
    if not isinstance(value, np.generic):
        raise TypeError("allowed are str, bool, int, float, numpy scalars, and lists or arrays of them")
    return _numpy_type(value.dtype), _little_endian(np.asarray(value))


def _list(items: list[Any] | tuple[Any, ...]) -> bytes:
    kinds = {type(item) for item in items}
    if kinds <= {str}:
        texts = (_string(item.encode("utf-8", "surrogateescape")) for item in items)
        return _array_header(STRING, len(items)) + b"".join(texts)
    if kinds == {bool}:
        return _value(np.array(items, np.bool_))[1]
    if kinds == {float}:
        return _value(np.array([_as_float32(item) for item in items], np.float32))[1]
    if kinds == {int}:
        low, high = min(items), max(items)
        for dtype in ("int32", "uint32", "int64", "uint64"):
            if _fits(low, dtype) and _fits(high, dtype):
                return _value(np.array(items, dtype))[1]
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise TypeError(f"a list must hold only str, bool, float, or int of 64 bits; it holds {names}")


def _fits(number: int, dtype: str) -> bool:
    return bool(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max)


def _typed_scalar(value: bool | int | float) -> np.generic:
    """The type that readers of llama.cpp's keys expect."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return _as_float32(value)
    for dtype in ("uint32", "int32", "uint64", "int64"):
        if _fits(value, dtype):
            return np.dtype(dtype).type(value)
    raise OverflowError("integers have at most 64 bits")


def _as_float32(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        single = np.float32(value)
    if np.isinf(single) and not np.isinf(value):
        raise OverflowError("it does not fit 32 bits: pass a numpy.float64")
    return single


def _numpy_type(dtype: np.dtype[Any]) -> int:
    if dtype.name not in _NUMPY_TYPES:
        raise TypeError(f"arrays of {dtype.name} have no GGUF type; allowed are {', '.join(_NUMPY_TYPES)}")
    return _NUMPY_TYPES[dtype.name]


def _array_header(type_id: int, count: int) -> bytes:
    return struct.pack("<IQ", type_id, count)


def _little_endian(values: NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<")).tobytes()
