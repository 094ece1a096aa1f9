"""Hugging Face folders and safetensors files: values exact, and every broken file one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from etude.model.checkpoint import (
    HFFolder,
    MatrixWeights,
    VectorWeights,
    config_of,
    read_json,
    to_f32,
    weight_from_hf,
    weights_of,
)
from etude.model.gguf import GGMLType, GGUFFile, write_gguf
from etude.model.safetensors import SafetensorsFile
from etude.records import EtudeError
from tests.model.tiny_models import FIXTURES, gguf_metadata, write_safetensors, write_twin


def save(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# --- safetensors ------------------------------------------------------------------------------------------


def test_values_of_every_type(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 3.25], [0.0, 65504.0, 2.0**-14]], np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": values, "b": values.astype(np.float16), "c": bf16, "none": values[:0]})
    with SafetensorsFile.open(path) as file:
        assert [file.array(name)[1] for name in "abc"] == ["F32", "F16", "BF16"]
        assert file.array("c")[0].dtype == np.uint16
        np.testing.assert_array_equal(to_f32(*file.array("a")), values)
        np.testing.assert_array_equal(to_f32(*file.array("b")), values)
        np.testing.assert_array_equal(to_f32(*file.array("c"))[:, :3][0], [1.0, -2.5, 3.25])
        assert file.array("none")[0].shape == (0, 3)
        file.release("a")
        np.testing.assert_array_equal(file.array("a")[0], values)


def test_to_f32_of_bf16_is_exact() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    expected = np.frombuffer((bits.astype("<u4") << 16).tobytes(), "<f4")
    np.testing.assert_array_equal(to_f32(bits, "BF16").view(np.uint32), expected.view(np.uint32))


GOOD = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry("F32", [3], 0, 12)}, bytes(8), "truncated"),
        ({"a": entry("F32", [3], 0, 8)}, bytes(8), "does not take 8 bytes"),
        ({"a": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8), "does not take 8 bytes"),
        ({"a": entry("F32", [-2, -1], 0, 8)}, bytes(8), "shape"),
        ({"a": entry("F32", [True, 2], 0, 8)}, bytes(8), "shape"),
        ({"a": entry("F32", [2.0], 0, 8)}, bytes(8), "shape"),
        ({"a": entry("F32", [1] * 9, 0, 4)}, bytes(8), "shape"),
        ({"a": entry("F32", [2], 8, 0)}, bytes(8), "bytes 8 to 0"),
        ({"a": entry("F32", [2], -8, 0)}, bytes(8), "data_offsets"),
        ({"a": entry("F32", [2], 0, "8")}, bytes(8), "data_offsets"),
        ({"a": entry("F31", [2], 0, 8)}, bytes(8), "dtype"),
        ({"a": {"dtype": "F32"}}, bytes(8), "shape"),
        ({"a": [1]}, bytes(8), "dtype"),
        ({"a": GOOD, "b": entry("F32", [2], 4, 12)}, bytes(12), "overlap"),
        ([GOOD], bytes(8), "not a JSON object"),
        (b'{"a": {}, "a": {}}', b"", "twice"),
        (b"{", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
    ],
)
def test_a_broken_header_is_one_error(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        SafetensorsFile.open(save(tmp_path / "x.safetensors", header, data))


def test_lengths_that_no_file_has(tmp_path: Path) -> None:
    for length in (2**63, 10**9, 3):
        with pytest.raises(EtudeError, match=r"truncated|JSON"):
            SafetensorsFile.open(save(tmp_path / "x.safetensors", {"a": GOOD}, bytes(8), length))
    (tmp_path / "small").write_bytes(b"1234567")
    with pytest.raises(EtudeError, match="7 bytes are too few"):
        SafetensorsFile.open(tmp_path / "small")
    with pytest.raises(EtudeError, match="cannot be read"):
        SafetensorsFile.open(tmp_path / "absent")


def test_types_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {"a": entry("F8_E4M3", [8], 0, 8)}, bytes(8))
    with SafetensorsFile.open(path) as file, pytest.raises(EtudeError, match="F8_E4M3; readable are F32"):
        file.array("a")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_open_or_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray((FIXTURES / "gemma3" / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, 2000))] = data.draw(
            st.sampled_from(list(b'0123456789[]{}",:-e\x00\xff'))
        )
    (tmp_path / "x").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        with SafetensorsFile.open(tmp_path / "x") as file:
            for name in file.tensors:
                to_f32(*file.array(name)).sum()
    except EtudeError:
        return


# --- folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "qwen3", tmp_path / "model")
    return tmp_path / "model"


def test_shards_are_read_through_their_index(folder: Path) -> None:
    with HFFolder.open(folder) as source:
        assert len({file.path for file in source.files.values()}) == 2
        weights = list(weights_of(source, config_of(source)))
    assert len(weights) == 3 + 2 * 11
    assert len({(weight.slot, weight.layer) for weight in weights}) == len(weights)


def edit(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | changes))


def test_broken_folders_are_one_error(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    name, file = next(iter(weight_map.items()))
    for bad, message in (
        ({name: "../secret.safetensors"}, "not a .safetensors file beside it"),
        ({name: "model.bin"}, "not a .safetensors file beside it"),
        ({name: 3}, "not a .safetensors file beside it"),
        ({name: "gone.safetensors"}, "cannot be read"),
        ({"model.unknown": file}, "is not in"),
    ):
        edit(index, weight_map=weight_map | bad)
        with pytest.raises(EtudeError, match=message):
            HFFolder.open(folder)
    edit(index, weight_map=[name])
    with pytest.raises(EtudeError, match="no weight_map"):
        HFFolder.open(folder)
    index.unlink()
    with pytest.raises(EtudeError, match=r"2 \.safetensors files but no"):
        HFFolder.open(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(EtudeError, match="pickled"):
        HFFolder.open(folder)
    (folder / "config.json").unlink()
    with pytest.raises(EtudeError, match=r"config\.json: cannot be read"):
        HFFolder.open(folder)


def test_settings_that_do_not_fit_the_tensors(folder: Path) -> None:
    for changes, message in (
        ({"vocab_size": 129}, r"token_embd\.weight has shape \(128, 32\); the settings say \(129, 32\)"),
        ({"num_hidden_layers": 3}, r"blk\.2\.attn_q\.weight is missing"),
        ({"intermediate_size": 2**18}, "ffn_gate"),
    ):
        shutil.copy(FIXTURES / "qwen3" / "config.json", folder / "config.json")
        edit(folder / "config.json", **changes)
        with HFFolder.open(folder) as source, pytest.raises(EtudeError, match=message):
            config_of(source)
    shutil.copy(FIXTURES / "qwen3" / "config.json", folder / "config.json")
    edit(folder / "config.json", num_hidden_layers=1)
    with HFFolder.open(folder) as source:
        config = config_of(source)
        with pytest.raises(EtudeError, match="is of layer 1, but the model has 1 layers"):
            list(weights_of(source, config))


def test_json_that_is_none(tmp_path: Path) -> None:
    for text, message in (
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not valid JSON"),
    ):
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(EtudeError, match=message):
            read_json(tmp_path / "config.json")


def test_bf16_matrices_stay_raw_and_vectors_become_f32() -> None:
    with HFFolder.open(FIXTURES / "qwen2_tied") as source:
        config = config_of(source)
        assert config.tied_embeddings
        weights = {(weight.slot, weight.layer): weight for weight in weights_of(source, config)}
        matrix, bias = weights["attn_q", 1], weights["attn_q_bias", 1]
        assert isinstance(matrix, MatrixWeights) and isinstance(bias, VectorWeights)
        assert (matrix.type, matrix.n, matrix.k, matrix.row_order) == (GGMLType.BF16, 64, 64, None)
        assert matrix.data.nbytes == 2 * 64 * 64
        stored, dtype = source.array("model.layers.1.self_attn.q_proj.bias")
        np.testing.assert_array_equal(bias.values, to_f32(stored, dtype))
    assert ("output", -1) not in weights


# --- a trainer's tensors, GGUF ----------------------------------------------------------------------------


def test_weight_from_hf_is_what_the_folder_gives() -> None:
    for name in ("gemma3", "llama_tied", "qwen2"):
        with HFFolder.open(FIXTURES / name) as source:
            config = config_of(source)
            for stored in weights_of(source, config):
                given_weight = weight_from_hf(config, stored.name, *source.array(stored.name))
                assert type(given_weight) is type(stored)
                assert values_of(given_weight).tobytes() == values_of(stored).tobytes()


def values_of(weight: MatrixWeights | VectorWeights | None) -> NDArray[Any]:
    assert weight is not None
    return weight.data if isinstance(weight, MatrixWeights) else weight.values


def test_weight_from_hf_skips_and_refuses() -> None:
    with HFFolder.open(FIXTURES / "llama_tied") as source:
        config = config_of(source)
    embedding = np.zeros((128, 32), np.float32)
    assert weight_from_hf(config, "lm_head.weight", embedding, "F32") is None
    with pytest.raises(EtudeError, match=r"has shape \(128, 31\); this model needs \(128, 32\)"):
        weight_from_hf(config, "model.embed_tokens.weight", embedding[:, :31], "F32")
    with pytest.raises(EtudeError, match="layer 9"):
        weight_from_hf(config, "model.layers.9.input_layernorm.weight", embedding[0], "F32")
    with pytest.raises(EtudeError, match="no tensor 'attn_q_norm'"):
        weight_from_hf(config, "model.layers.0.self_attn.q_norm.weight", embedding[0, :16], "F32")


def test_the_same_place_twice_is_refused(tmp_path: Path) -> None:
    with HFFolder.open(FIXTURES / "llama") as source:
        config = config_of(source)
        write_twin(tmp_path / "twin.gguf", source, config)
    with GGUFFile.open(tmp_path / "twin.gguf") as file:
        tensors = [(name, file.dequantize(name), GGMLType.F32) for name in file.tensors]
    again = ("blk.01.attn_norm.weight", np.ones(32, np.float32), GGMLType.F32)
    write_gguf(tmp_path / "twice.gguf", gguf_metadata(config), [*tensors, again])
    with GGUFFile.open(tmp_path / "twice.gguf") as file, pytest.raises(EtudeError, match="are both"):
        list(weights_of(file, config_of(file)))


def test_rope_factors_of_a_gguf_file(tmp_path: Path) -> None:
    with HFFolder.open(FIXTURES / "llama_rope_llama3") as source:
        config = config_of(source)
        write_twin(tmp_path / "plain.gguf", source, config)
    factors = np.array(config.rope_tables[0].freq_factors, np.float32)
    for bad, message in ((factors[:3], "must be"), (np.zeros(8), "positive"), (np.ones(5000), "has shape")):
        save_with_factors(tmp_path, bad.astype(np.float32))
        with GGUFFile.open(tmp_path / "x.gguf") as file, pytest.raises(EtudeError, match=message):
            config_of(file)
    save_with_factors(tmp_path, factors)
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        twin = config_of(file)
        assert len(list(weights_of(file, twin))) == len(file.tensors) - 1
    np.testing.assert_allclose(
        twin.native_arguments()["inv_freqs"], config.native_arguments()["inv_freqs"], rtol=1e-6
    )


def save_with_factors(tmp_path: Path, factors: NDArray[np.float32]) -> None:
    with GGUFFile.open(tmp_path / "plain.gguf") as file:
        tensors = [(name, file.dequantize(name), GGMLType.F32) for name in file.tensors]
        write_gguf(
            tmp_path / "x.gguf", file.metadata, [*tensors, ("rope_freqs.weight", factors, GGMLType.F32)]
        )
