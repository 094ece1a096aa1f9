"""Opening bad files: one GGUFError that names the file, what was found and what is allowed."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from etude.model import gguf_header
from etude.model.gguf import GGMLType, GGUFError, GGUFFile
from tests.model.gguf_samples import (
    ARRAY,
    BOOL,
    FLOAT32,
    STRING,
    UINT8,
    UINT32,
    Array,
    Draft,
    DraftTensor,
    encode,
    samples,
)

HUGE = (1 << 64) - 1


def open_bytes(tmp_path: Path, data: bytes) -> GGUFFile:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    return GGUFFile.open(path)


def refused(tmp_path: Path, data: bytes) -> str:
    """The error's text without the path, which it must begin with; opening takes next to no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError) as caught:
            open_bytes(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < (1 << 20) + 16 * len(data)
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    start = f"{tmp_path / 'bad.gguf'}: "
    assert text.startswith(start)
    assert len(text) < len(start) + 250
    assert "\n" not in text
    return text[len(start) :]


def f32(name: str | bytes = "t", dims: list[int] | None = None, **changes: int) -> DraftTensor:
    tensor = DraftTensor(name, [4] if dims is None else dims, GGMLType.F32, bytes(16))
    for key, value in changes.items():
        setattr(tensor, key, value)
    return tensor


def alignment(value: float, type: int = UINT32) -> Draft:
    return Draft([("general.alignment", type, value)], [f32()])


CASES: list[tuple[str, Draft, str]] = [
    ("version 1", Draft(version=1), "GGUF version 1 is not read; versions 2 and 3 are"),
    ("version 4", Draft(version=4), "GGUF version 4 is not read"),
    ("version 0", Draft(version=0), "GGUF version 0 is not read"),
    ("big-endian", Draft(version=3 << 24), "this is a big-endian GGUF file"),
    ("keys", Draft(n_keys=HUGE), f"key count is {HUGE}, at least"),
    ("tensors", Draft(n_tensors=1 << 40), f"tensor count is {1 << 40}, at least"),
    ("one key more", Draft([("a", UINT8, 1)], n_keys=2, alignment=1), "key count is 2, at least 28 bytes"),
    ("no name", Draft([("", UINT8, 1)]), "key 1 of 1 is named b''; names must be printable UTF-8"),
    ("name not UTF-8", Draft([(b"\xff", UINT8, 1)]), r"key 1 of 1 is named b'\xff'; names must"),
    ("name with escape", Draft([("\x1b[2J", UINT8, 1)]), r"key 1 of 1 is named b'\x1b[2J'; names must"),
    ("key twice", Draft([("k", UINT8, 1), ("k", STRING, "")]), "key 2 of 2 is a second 'k'; keys must"),
    ("array of arrays", Draft([("k", ARRAY, Array(ARRAY, []))]), "key 'k' is an array of arrays"),
    ("alignment 0", alignment(0), "general.alignment is 0; allowed are powers of two"),
    ("alignment 48", alignment(48), "general.alignment is 48; allowed"),
    ("alignment text", Draft([("general.alignment", STRING, "32")]), "general.alignment is '32'; allowed"),
    ("alignment true", alignment(1, BOOL), "general.alignment is True; allowed"),
    ("alignment 32.0", alignment(32.0, FLOAT32), "general.alignment is 32.0; allowed"),
    ("alignment 2 GB", alignment(1 << 31), "tensor 't' at offset 0 takes 16 bytes, but"),
    (
        "alignment list",
        Draft([("general.alignment", ARRAY, Array(UINT32, list(range(500))))]),
        "general.alignment is array([",
    ),
    ("tensor twice", Draft([], [f32(), f32()]), "tensor 't' is a second 't'; names must be unique"),
    ("tensor unnamed", Draft([], [f32("")]), "tensor 1 of 1 is named b''; names must"),
    ("no dimensions", Draft([], [f32(dims=[])]), "tensor 't' has 0 dimensions; allowed are 1 to 4"),
    ("5 dimensions", Draft([], [f32(dims=[4, 1, 1, 1, 1])]), "tensor 't' has 5 dimensions; allowed"),
    ("empty dimension", Draft([], [f32(dims=[4, 0])]), "has the dimensions [4, 0]; each must be at least 1"),
    ("large", Draft([], [f32(dims=[9])]), "tensor 't' at offset 0 takes 36 bytes, but the file ends after"),
    ("overflow", Draft([], [f32(dims=[1 << 62, 4])]), f"takes {1 << 66} bytes, but the file ends after 32"),
    ("wraps to 16", Draft([], [f32(dims=[1 << 32, 1 << 32, 4])]), f"takes {1 << 68} bytes"),
    ("offset", Draft([], [f32(offset=1 << 40)]), f"tensor 't' at offset {1 << 40} takes 16 bytes"),
    ("offset wraps", Draft([], [f32(offset=HUGE - 31)]), f"at offset {HUGE - 31} takes 16 bytes"),
    ("unaligned", Draft([], [f32(offset=16)]), "tensor 't' at offset 16: offsets must be multiples of 32"),
    (
        "overlap",
        Draft([], [f32("first", dims=[16], data=bytes(64)), f32("second", offset=32)]),
        "tensor 'second' at offset 32 overlaps with 'first', which ends at 64",
    ),
    ("same place", Draft([], [f32("a", offset=0), f32("b", offset=0)]), "at offset 0 overlaps with"),
    ("type 43", Draft([], [f32(type=43)]), "tensor 't' has the unknown type 43; known are 0 to 42"),
    ("type -1", Draft([], [f32(type=0xFFFFFFFF)]), "tensor 't' has the unknown type 4294967295"),
    ("removed type", Draft([], [f32(type=31)]), "tensor 't' is Q4_0_4_4, which ggml has removed"),
    ("half a block", Draft([], [f32(type=2)]), "tensor 't': a row of 4 values cannot be Q4_0: it takes mult"),
]  # fmt: skip


@pytest.mark.parametrize(("draft", "message"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_header(tmp_path: Path, draft: Draft, message: str) -> None:
    assert message in refused(tmp_path, encode(draft)[0])


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def one_key(value: bytes) -> bytes:
    """A file whose only key `k` has the given type and value, and some bytes behind."""
    return b"GGUF" + u32(3) + u64(0) + u64(1) + u64(1) + b"k" + value + bytes(16)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (u32(13) + u64(0), "key 'k' has the unknown value type 13; allowed are 0 to 12"),
        (u32(8) + u64(HUGE), f"key 'k' takes {HUGE} bytes at 45, but the file has 61: it is cut off"),
        (u32(8) + u64(17), "key 'k' takes 17 bytes at 45, but the file has 61"),
        (u32(9) + u32(8) + u64(HUGE // 8), "key 'k': string count is 2305843009213693951, at least"),
        (u32(9) + u32(8) + u64(3), "key 'k': string count is 3, at least 24 bytes at 49"),
        (u32(9) + u32(4) + u64(1 << 62), f"key 'k': item count is {1 << 62}, at least {1 << 64} bytes"),
        (u32(9) + u32(4) + u64(5), "key 'k': item count is 5, at least 20 bytes at 49, but the file has 65"),
        (u32(9) + u32(13) + u64(0), "key 'k' is an array of unknown type 13; known are 0 to 12"),
        (u32(9) + u32(8) + u64(2) + u64(1) + b"a" + u64(99), "key 'k' takes 99 bytes"),
    ],
)
def test_bad_value(tmp_path: Path, value: bytes, message: str) -> None:
    assert message in refused(tmp_path, one_key(value))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are too few for a GGUF file"),
        (b"GGUF\3\0\0\0..", "10 bytes are too few for a GGUF file"),
        (b"<!DOCTYPE html><html><body>404", "no GGUF file, it starts with b'<!DO': this is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a git-lfs pointer, not the file itself"),
        (b"PK\3\4" + bytes(40), "a zip archive, perhaps a PyTorch checkpoint"),
        (b"tjgg" + bytes(40), "a ggml file from before GGUF"),
        (b"FUGG" + bytes(40), "a big-endian file"),
        (u64(24) + b'{"__metadata__":{}}     ', "a safetensors file"),
        (bytes(100), "zeros: the download was not finished"),
        (b"hello, this is a text file", "this is no GGUF file, it starts with b'hell'"),
    ],
)
def test_other_formats(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refused(tmp_path, data)


@pytest.mark.parametrize("index", range(len(samples())))
def test_cut_anywhere(tmp_path: Path, index: int) -> None:
    """Cut at every field's start and in its middle; the header alone is refused where weights are missing."""
    draft = samples()[index]
    data, fields = encode(draft)
    needed = fields[-1].start + fields[-1].size - 32 if draft.tensors else fields[-2].start
    cuts = {field.start for field in fields} | {field.start + field.size // 2 for field in fields}
    for cut in sorted(cut for cut in cuts if cut < needed)[:: 1 + len(cuts) // 150]:
        assert "fetch it again" in refused(tmp_path, data[:cut]), cut
    open_bytes(tmp_path, data).close()


def test_oversized_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Draft([("a", STRING, "x" * 500), ("b", UINT8, 1)])
    open_bytes(tmp_path, encode(draft)[0]).close()
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 300)
    assert "key 'a' takes 500 bytes at 45, but a header has at most 300" in refused(
        tmp_path, encode(draft)[0]
    )


def no_such_file(tmp_path: Path) -> Path:
    return tmp_path / "none.gguf"


def folder(tmp_path: Path) -> Path:
    return tmp_path


def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_such_file, "none.gguf: No such file or directory"),
        (folder, "this is a folder: give the path of a GGUF file"),
        (pipe, "this is no regular file"),
    ],
)
def test_not_a_file(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(GGUFError, match=message):
        GGUFFile.open(make(tmp_path))
