"""write_gguf: what it writes, the `gguf` package and GGUFFile read back; a failure leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from etude.kernels.reference_quants import dequantize, quantize
from etude.model.gguf import GGMLType, GGUFError, GGUFFile, write_gguf
from tests.kernels.quant_blocks import plausible
from tests.model.test_gguf import assert_equal_to_gguf

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "empty": "",
    "template": "{% for m in messages %}…\n{% endfor %}" * 50,
    "yes": True,
    "no": False,
    "small": 7,
    "negative": -7,
    "large": 1 << 40,
    "large.negative": -(1 << 40),
    "largest": (1 << 64) - 1,
    "epsilon": 1e-5,
    "infinite": float("-inf"),
    "u16": np.uint16(3),
    "f64": np.float64(0.1),
    "tokens": ["<s>", "", "ü", "\udcff\udcfe", "\0", "🙂"] * 20,
    "no.tokens": [],
    "scores": np.array([0.5, -1e30], np.float32),
    "types": np.array([1, -3], np.int32),
    "ids": [1, 2, -3],
    "large.ids": [1, 1 << 31],
    "huge.ids": (0, (1 << 64) - 1),
    "flags": [True, False],
    "ratios": [0.5, 2.0],
    "charsmap": np.arange(256, dtype=np.uint8),
    "none": np.array([], np.float64),
    "strided": np.arange(10, dtype=np.int64)[::2],
}


def tensors() -> list[tuple[str, NDArray[Any], GGMLType]]:
    rng = np.random.default_rng(0)
    return [
        ("vector", rng.standard_normal(5).astype(np.float32), GGMLType.F32),
        ("half", rng.standard_normal((3, 7)).astype(np.float32), GGMLType.F16),
        ("brain", rng.standard_normal((3, 7)).astype(np.float16), GGMLType.BF16),
        ("q8", rng.standard_normal((4, 64)), GGMLType.Q8_0),
        ("transposed", rng.standard_normal((32, 9)).astype(np.float32).T, GGMLType.Q8_0),
        ("cube", rng.standard_normal((2, 3, 32)).astype(np.float32), GGMLType.Q8_0),
        ("ready", plausible(rng, GGMLType.Q4_K, 3, 512), GGMLType.Q4_K),
    ]


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    write_gguf(path, METADATA, iter(tensors()))
    with GGUFFile.open(path) as file:
        assert list(file.metadata) == list(METADATA)
        for name, value in METADATA.items():
            expected = np.float32(value) if name in ("epsilon", "infinite") else value
            np.testing.assert_array_equal(file.metadata[name], expected, err_msg=name)
        assert file.metadata["tokens"][3].encode("utf-8", "surrogateescape") == b"\xff\xfe"
        assert list(file.tensors) == [name for name, _, _ in tensors()]
        for name, values, type in tensors():
            info = file.tensors[name]
            assert info.type == type
            if values.dtype == np.uint8:
                assert info.shape == (3, 512)
                np.testing.assert_array_equal(file.data(name), values.reshape(-1))
                continue
            stored = quantize(type, values)
            assert info.shape == values.shape
            np.testing.assert_array_equal(file.dequantize(name), dequantize(type, stored, values.shape))
            assert np.abs(file.dequantize(name) - values).max() < 0.03
    assert list(tmp_path.iterdir()) == [path]


def test_the_gguf_package_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    write_gguf(path, METADATA, tensors())
    assert_equal_to_gguf(path)
    theirs = gguf.GGUFReader(path)
    types = {name: [type.name for type in field.types] for name, field in theirs.fields.items()}
    assert types["small"] == ["UINT32"]
    assert types["negative"] == ["INT32"]
    assert types["large"] == ["UINT64"]
    assert types["large.negative"] == ["INT64"]
    assert types["epsilon"] == ["FLOAT32"]
    assert types["u16"] == ["UINT16"]
    assert types["f64"] == ["FLOAT64"]
    assert types["yes"] == ["BOOL"]
    assert types["ids"] == ["ARRAY", "INT32"]
    assert types["large.ids"] == ["ARRAY", "UINT32"]
    assert types["huge.ids"] == ["ARRAY", "UINT64"]
    assert types["flags"] == ["ARRAY", "BOOL"]
    assert types["ratios"] == ["ARRAY", "FLOAT32"]
    assert types["tokens"] == ["ARRAY", "STRING"]


def test_reading_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    """But for types of numbers that Python does not keep apart."""
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    metadata = {name: value for name, value in METADATA.items() if name not in ("u16", "f64")}
    write_gguf(first, metadata, tensors())
    with GGUFFile.open(first) as file:
        again = [
            (name, file.data(name).reshape(*info.shape[:-1], -1), info.type)
            for name, info in file.tensors.items()
        ]
        write_gguf(second, file.metadata, again)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096, np.uint32(64)])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "out.gguf"
    write_gguf(path, {"general.alignment": alignment}, tensors())
    with GGUFFile.open(path) as file:
        assert all(info.offset % alignment == 0 for info in file.tensors.values())
        np.testing.assert_array_equal(file.dequantize("vector"), tensors()[0][1])
    assert path.stat().st_size % alignment == 0


def test_no_tensors_and_no_metadata(tmp_path: Path) -> None:
    write_gguf(tmp_path / "empty.gguf", {}, [])
    with GGUFFile.open(tmp_path / "empty.gguf") as file:
        assert (file.metadata, file.tensors) == ({}, {})


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
VALUES = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(width=32, allow_nan=False),
    st.lists(TEXT, max_size=40),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=5),
)
NAMES = TEXT.filter(
    lambda name: name.isprintable() and bool(name) and not name.startswith(("general.", "split."))
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=8))
def test_any_metadata(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("write") / "out.gguf"
    write_gguf(path, metadata, [])
    with GGUFFile.open(path) as file:
        read = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in file.metadata.items()
        }
    assert read == metadata


# ── what goes wrong ──

SIX = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("metadata", "rows", "message"),
    [
        ({"k": None}, [], "key 'k' is None: allowed are str, bool, int, float, numpy scalars"),
        ({"k": {"a": 1}}, [], "allowed are str"),
        ({"k": 1 << 64}, [], "integers have at most 64 bits"),
        ({"k": 1e300}, [], "key 'k' is 1e\\+300: it does not fit 32 bits: pass a numpy.float64"),
        ({"k": [1, "a"]}, [], "a list must hold only str, bool, float, or int of 64 bits; it holds int, str"),
        ({"k": [1, 0.5]}, [], "it holds float, int"),
        ({"k": [[1]]}, [], "it holds list"),
        ({"k": [-1, 1 << 63]}, [], "int of 64 bits; it holds int"),
        ({"k": [1e300]}, [], "does not fit 32 bits"),
        ({"k": np.zeros((2, 2))}, [], "arrays must have one axis, got shape \\(2, 2\\)"),
        ({"k": np.zeros(2, np.float16)}, [], "float16 have no GGUF type; allowed are uint8"),
        ({"k": np.array(["a"])}, [], "no GGUF type"),
        ({"k": "\ud800"}, [], "key 'k' is '\\\\ud800'"),
        ({"": 1}, [], "key '': names must be printable text"),
        ({"a\n": 1}, [], "names must be printable text"),
        ({"general.alignment": 48}, [], "general.alignment is 48; allowed are powers of two"),
        ({"general.alignment": True}, [], "general.alignment is True"),
        ({}, [("t", SIX, GGMLType.Q8_0)], "tensor 't': rows of 3 values cannot be Q8_0"),
        ({}, [("t", SIX, GGMLType.Q4_K)], "tensor 't': type 12 cannot be written"),
        ({}, [("t", SIX, 99)], "tensor 't': 99 is not a valid GGMLType"),
        (
            {},
            [("t", np.zeros((2, 3), np.uint8), GGMLType.Q4_0)],
            "rows of 3 bytes are no whole blocks of Q4_0",
        ),
        ({}, [("t", np.zeros((2, 3), np.int64), GGMLType.F32)], "got int64"),
        ({}, [("t", np.float32(1), GGMLType.F32)], "has shape \\(\\); allowed are 1 to 4 axes"),
        ({}, [("t", np.zeros((2, 0), np.float32), GGMLType.F32)], "none empty"),
        ({}, [("t", SIX, GGMLType.F32), ("t", SIX, GGMLType.F32)], "tensor 't' comes twice"),
        ({}, [("", SIX, GGMLType.F32)], "names must be 1 to 63 bytes"),
        ({}, [("ü" * 32, SIX, GGMLType.F32)], "names must be 1 to 63 bytes"),
        (
            {},
            [("t", SIX + np.inf, GGMLType.F32), ("u", SIX + 1e9, GGMLType.F16)],
            "'u': 1e\\+09 does not fit F16",
        ),
        ({}, [("t", np.full((1, 32), np.nan), GGMLType.Q8_0)], "tensor 't': Q8_0 takes finite values"),
    ],
)
def test_refused(tmp_path: Path, metadata: dict[str, Any], rows: list[Any], message: str) -> None:
    path = tmp_path / "out.gguf"
    path.write_text("what was there before")
    with pytest.raises(GGUFError, match=message) as caught:
        write_gguf(path, metadata, rows)
    assert str(caught.value).startswith(f"{path}: ")
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_stream_leaves_nothing(tmp_path: Path) -> None:
    def stream() -> Iterator[tuple[str, NDArray[Any], GGMLType]]:
        yield tensors()[0]
        raise ConnectionResetError("the trainer went away")

    with pytest.raises(ConnectionResetError, match="the trainer went away"):
        write_gguf(tmp_path / "out.gguf", {}, stream())
    assert list(tmp_path.iterdir()) == []


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"none/out\.gguf: cannot be written: No such file or directory"):
        write_gguf(tmp_path / "none" / "out.gguf", {}, [])


def test_replacing_a_mapped_file(tmp_path: Path) -> None:
    """The old contents stay valid for those who have them open."""
    path = tmp_path / "out.gguf"
    write_gguf(path, {}, [("t", np.ones((1, 4), np.float32), GGMLType.F32)])
    with GGUFFile.open(path) as old:
        write_gguf(path, {}, [("t", np.zeros((1, 1), np.float32), GGMLType.F32)])
        np.testing.assert_array_equal(old.dequantize("t"), np.ones((1, 4)))


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """A tensor is dropped before the next is asked for."""
    alive = 0
    most = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[tuple[str, NDArray[Any], GGMLType]]:
        nonlocal alive, most
        for n in range(5):
            values = np.zeros((4, 32), np.float32).view(Counted)
            alive += 1
            most = max(most, alive)
            yield f"t{n}", values, GGMLType.Q8_0
            del values

    write_gguf(tmp_path / "out.gguf", {}, stream())
    assert most <= 2
