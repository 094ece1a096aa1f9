"""Opening good files: what is read equals what the `gguf` package reads and what was written."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etude.kernels.reference_quants import READABLE_TYPES
from etude.model import gguf_header
from etude.model.gguf import GGMLType, GGUFError, GGUFFile
from etude.model.gguf_header import read_header
from etude.model.quants import block_bytes, block_size, row_bytes
from etude.records import EtudeError
from tests.model.gguf_samples import (
    ARRAY,
    BOOL,
    STRING,
    UINT32,
    Array,
    Draft,
    DraftTensor,
    all_tensor_types,
    all_value_types,
    encode,
    samples,
)


def written(tmp_path: Path, draft: Draft, name: str = "model.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(encode(draft)[0])
    return path


def metadata_of(data: bytes) -> dict[str, Any]:
    """Through an anonymous mapping: no file."""
    mapping = mmap.mmap(-1, len(data))
    mapping[:] = data
    return read_header(Path("test.gguf"), mapping).metadata


def assert_equal_to_gguf(path: Path) -> None:
    """Metadata, shapes, bytes and values as `gguf` reads them; texts that it cannot decode are left out."""
    theirs = gguf.GGUFReader(path)
    with GGUFFile.open(path) as ours:
        assert set(ours.metadata) == {name for name in theirs.fields if not name.startswith("GGUF.")}
        for name, value in ours.metadata.items():
            try:
                expected = theirs.fields[name].contents()
            except UnicodeDecodeError:
                continue
            np.testing.assert_array_equal(value, expected, err_msg=name)
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert info.shape == tuple(reversed(tensor.shape.tolist()))
            assert info.type == tensor.tensor_type
            assert (info.offset, info.size_bytes) == (tensor.data_offset, tensor.n_bytes)
            np.testing.assert_array_equal(ours.data(tensor.name), tensor.data.reshape(-1).view(np.uint8))
            if info.type in READABLE_TYPES:
                with np.errstate(all="ignore"):
                    values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(info.shape)
                np.testing.assert_array_equal(ours.dequantize(tensor.name), values)


@pytest.mark.parametrize("index", range(len(samples())))
def test_samples_equal_gguf(tmp_path: Path, index: int) -> None:
    assert_equal_to_gguf(written(tmp_path, samples()[index]))


def test_files_of_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float64("f", 0.1)
    writer.add_bool("b", True)
    writer.add_int64("i", -5)
    writer.add_token_list(["a", "b ü", "🙂"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    rng = np.random.default_rng(0)
    writer.add_tensor("f32", rng.standard_normal((3, 5)).astype(np.float32))
    writer.add_tensor("f16", rng.standard_normal(7).astype(np.float16))
    q8_0 = gguf.quantize(rng.standard_normal((2, 4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8_0", q8_0, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_equal_to_gguf(path)
    with GGUFFile.open(path) as file:
        assert file.tensors["q8_0"].shape == (2, 4, 64)
        assert file.metadata["b"] is True
        assert file.metadata["llama.block_count"] == 3
        assert file.metadata["f"] == 0.1
        assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b ü", "🙂"]
        assert file.metadata["tokenizer.ggml.scores"].dtype == np.float32


def test_value_types(tmp_path: Path) -> None:
    draft = all_value_types()
    stored = {name: (type, value) for name, type, value in draft.keys}
    with GGUFFile.open(written(tmp_path, draft)) as file:
        assert file.version == 3
        for name, value in file.metadata.items():
            type, expected = stored[name]
            if isinstance(expected, Array) and expected.type != STRING:
                assert value.dtype == gguf_header._DTYPES[expected.type]
                np.testing.assert_array_equal(value, np.array(expected.items, value.dtype), err_msg=name)
            elif type not in (STRING, ARRAY):
                python_type = bool if type == BOOL else float if isinstance(expected, float) else int
                assert builtin_type(value) is python_type
                assert value == (np.float32(expected) if name == "one.6" else expected)


def builtin_type(value: object) -> type:
    return type(value)


def test_broken_utf8(tmp_path: Path) -> None:
    """A text shows the replacement character; a token keeps its bytes."""
    tokens = [b"\xff\xfe", b"ok", b"\xe2\x82", b"\xed\xa0\x80", b"\x80" * 300, "ü".encode()]
    draft = Draft([("text", STRING, b"a\xffb"), ("tokens", ARRAY, Array(STRING, tokens * 20))])
    with GGUFFile.open(written(tmp_path, draft)) as file:
        assert file.metadata["text"] == "a\ufffdb"
        texts = file.metadata["tokens"]
    assert [text.encode("utf-8", "surrogateescape") for text in texts] == tokens * 20
    assert texts[1] == "ok"
    assert texts[5] == "ü"


PLAIN = st.binary(min_size=1, max_size=12).map(lambda item: item.replace(b"\0", b"x"))
HARD = st.one_of(st.binary(max_size=20), st.just(b"\0" * 9), st.just(b"x" * 255), st.just(b"y" * 700))


@example([b"a\0b"] * 40, 1 << 16)
@example([b"y" * 700, *[b"ab"] * 40], 1 << 16)
@example([b""] * 40, 1 << 16)
@example([b"ab"] * 40 + [b"\0" * 9] + [b"ab"] * 40, 1 << 16)
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(PLAIN, PLAIN, PLAIN, HARD), max_size=120),
    st.sampled_from([40, 100, 1000, 1 << 16]),
)
def test_strings_read_together_equal_strings_read_alone(items: list[bytes], window_bytes: int) -> None:
    data = encode(Draft([("a", ARRAY, Array(STRING, items)), ("b", UINT32, 7)]))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_header, "_STRING_WINDOW_BYTES", window_bytes)
        metadata = metadata_of(data)
    assert metadata == {"a": [item.decode("utf-8", "surrogateescape") for item in items], "b": 7}


def test_vocabulary_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two strings a window may be read one by one, or opening Gemma takes a third of a second."""
    items = [f"token {n}" for n in range(20_000)]
    data = encode(Draft([("a", ARRAY, Array(STRING, items))]))[0]
    calls = 0
    read_alone = gguf_header._Reader._string_bytes

    def counted(reader: gguf_header._Reader) -> bytes:
        nonlocal calls
        calls += 1
        return read_alone(reader)

    monkeypatch.setattr(gguf_header._Reader, "_string_bytes", counted)
    assert metadata_of(data)["a"] == items
    assert calls <= 2 * (len(data) // gguf_header._STRING_WINDOW_BYTES + 1) + 1


# ── tensors ──


def test_data_is_a_view_and_outlives_the_file(tmp_path: Path) -> None:
    draft = all_tensor_types()
    with GGUFFile.open(written(tmp_path, draft)) as file:
        view = file.data("t.Q4_0")
        assert not view.flags.writeable
        assert not view.flags.owndata
    gc.collect()
    assert view.tobytes() == next(tensor.data for tensor in draft.tensors if tensor.name == "t.Q4_0")
    with pytest.raises(GGUFError, match=r"model\.gguf: the file is closed"):
        file.data("t.Q4_0")


def test_released_pages_come_back(tmp_path: Path) -> None:
    with GGUFFile.open(written(tmp_path, samples()[1])) as file:
        for name in file.tensors:
            before = file.data(name).tobytes()
            file.release(name)
            assert file.data(name).tobytes() == before


def test_unknown_tensor_and_unreadable_type(tmp_path: Path) -> None:
    with GGUFFile.open(written(tmp_path, all_tensor_types())) as file:
        with pytest.raises(GGUFError, match="no tensor 'x' among its 26"):
            file.data("x")
        with pytest.raises(GGUFError, match=r"model\.gguf: tensor 't\.I32' \(I32\): type 26 cannot be deq"):
            file.dequantize("t.I32")


def test_order_and_gaps_do_not_matter(tmp_path: Path) -> None:
    """llama.cpp wants tensors back to back in order; nothing depends on it."""
    tensors = [
        DraftTensor("b", [4], GGMLType.F32, np.arange(4, dtype="<f4").tobytes(), offset=256),
        DraftTensor("a", [2, 2], GGMLType.F32, np.arange(4, 8, dtype="<f4").tobytes(), offset=64),
    ]
    with GGUFFile.open(written(tmp_path, Draft([], tensors))) as file:
        np.testing.assert_array_equal(file.dequantize("b"), [0, 1, 2, 3])
        np.testing.assert_array_equal(file.dequantize("a"), [[4, 5], [6, 7]])


def test_alignment_of_one(tmp_path: Path) -> None:
    values = np.arange(5, dtype="<f4")
    draft = Draft(
        [("general.alignment", UINT32, 1)],
        [DraftTensor("odd", [5], GGMLType.F32, values.tobytes())],
        alignment=1,
    )
    with GGUFFile.open(written(tmp_path, draft)) as file:
        np.testing.assert_array_equal(file.dequantize("odd"), values)


def test_sizes() -> None:
    assert (block_size(GGMLType.Q4_K), block_bytes(GGMLType.Q4_K)) == (256, 144)
    assert row_bytes(GGMLType.Q4_0, 576) == 324
    with pytest.raises(EtudeError, match="a row of 576 values cannot be Q4_K: it takes multiples of 256"):
        row_bytes(GGMLType.Q4_K, 576)
