"""Saved = loaded: every family as a Hugging Face folder and as GGUF, there and back; nothing half written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from etude.engine.engine import Engine
from etude.kernels import reference_quants
from etude.model.chat import ChatTemplate
from etude.model.checkpoint import HFFolder, config_of, open_source
from etude.model.gguf import GGMLType, GGUFFile
from etude.model.hf_tensors import hf_tensors
from etude.model.save import save_gguf, save_hf_folder
from etude.model.tokenizer import Tokenizer
from etude.model.tokenizer_json import metadata_from_folder
from etude.model.transformer import load_transformer
from etude.records import EtudeError
from tests.model.tiny_models import FIXTURES, NAMES, hyperparameters
from tests.terminal.tiny import write_tiny

NOT_IN_GGUF = {"gemma3": "attention_scale", "mistral_window": "sliding windows"}
Weights = dict[str, NDArray[np.float32]]


def weights_in(path: Path) -> Weights:
    with open_source(path) as source:
        return {name: np.array(values) for name, values in hf_tensors(source, config_of(source))}


def assert_same_model(path: Path, other: Path) -> None:
    """Weights bit for bit, and what they are computed with."""
    ours, theirs = weights_in(path), weights_in(other)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    with open_source(path) as a, open_source(other) as b:
        mine, yours = (hyperparameters(config_of(source)) for source in (a, b))
    for field in vars(mine):
        np.testing.assert_allclose(
            getattr(mine, field), getattr(yours, field), rtol=1e-6, err_msg=field
        ) if not (isinstance(getattr(mine, field), str)) else None
    assert mine.activation == yours.activation


def save(folder: Path, source: Path, **how: Any) -> Path:
    with open_source(source) as opened:
        save_hf_folder(folder, opened, hf_tensors(opened, config_of(opened)), **how)
    return folder


def save_file(path: Path, source: Path, type: str = "f32") -> Path:
    with open_source(source) as opened:
        save_gguf(path, opened, hf_tensors(opened, config_of(opened)), type)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_comes_back(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", FIXTURES / name, dtype="f32")
    assert_same_model(folder, FIXTURES / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / file).read_bytes() == (FIXTURES / name / file).read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name != "saved"]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_IN_GGUF])
def test_a_gguf_file_comes_back_and_becomes_a_folder(name: str, tmp_path: Path) -> None:
    """Folder -> GGUF -> folder: rows of q and k, norms, rope scaling and tokenizer survive both ways."""
    file = save_file(tmp_path / "model.gguf", FIXTURES / name)
    assert_same_model(file, FIXTURES / name)
    again = save(tmp_path / "again", file, dtype="f32")
    assert_same_model(again, FIXTURES / name)
    ids = list(range(128))
    assert Tokenizer.from_folder(again).decode(ids) == Tokenizer.from_folder(FIXTURES / name).decode(ids)


@pytest.mark.parametrize("name", NOT_IN_GGUF)
def test_what_gguf_cannot_say_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match=NOT_IN_GGUF[name]):
        save_file(tmp_path / "model.gguf", FIXTURES / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama_biases", "qwen3_tied"])
def test_trained_tensors_are_saved_as_they_are(name: str, tmp_path: Path) -> None:
    """torch tensors under a trainer's names, in bf16: what is read is their rounded values."""
    model, source = load_transformer(FIXTURES / name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    save_hf_folder(tmp_path / "saved", source, model.weights(), "bf16")
    again, _ = load_transformer(tmp_path / "saved")
    saved = dict(again.weights())
    for tensor_name, tensor in model.weights():
        assert torch.equal(saved[tensor_name], tensor.to(torch.bfloat16).float())
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_types_of_gguf(type: str, tmp_path: Path) -> None:
    path = save_file(tmp_path / "model.gguf", FIXTURES / "llama", type)
    kind = GGMLType[type.upper()]
    original = weights_in(FIXTURES / "llama")
    with GGUFFile.open(path) as file:
        assert file.metadata["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7}[type]
        assert file.tensors["blk.0.ffn_up.weight"].type == kind
        assert file.tensors["blk.0.attn_norm.weight"].type == GGMLType.F32
        values = original["model.layers.0.mlp.up_proj.weight"]
        rounded = reference_quants.dequantize(kind, reference_quants.quantize(kind, values), values.shape)
        np.testing.assert_array_equal(file.dequantize("blk.0.ffn_up.weight"), rounded)
    with Engine.load(path, context=64) as engine:
        assert len(engine.generate([[5, 6, 7]], max_tokens=4, ignore_eos=True)[0][0].token_ids) == 4


def test_large_models_come_in_shards(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", FIXTURES / "llama", dtype="f32", max_shard_bytes=60_000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert [path.name for path in shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in weights_in(folder).values())
    assert_same_model(folder, FIXTURES / "llama")


def test_template_and_special_tokens_of_a_gguf_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", write_tiny(tmp_path / "tiny.gguf"))
    metadata = metadata_from_folder(folder)
    ours, theirs = Tokenizer.from_metadata(metadata), None
    with GGUFFile.open(tmp_path / "tiny.gguf") as file:
        theirs = Tokenizer.from_metadata(file.metadata)
        template = file.metadata["tokenizer.chat_template"]
    text = "Hello <|im_end|> ~~ world <think>\n12345 äöü"
    assert ours.encode(text, parse_special=True) == theirs.encode(text, parse_special=True)
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (theirs.bos_id, theirs.eos_id, theirs.add_bos)
    assert metadata["tokenizer.chat_template"] == template
    assert ChatTemplate.from_metadata(metadata) is not None
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted(theirs.eog_ids)


def test_transformers_peft_and_llama_cpp_open_what_we_save() -> None:
    """As stored by tests/peers/make_saved_fixtures.py, which opens everything with them."""
    opened = json.loads((FIXTURES.parent / "saved.json").read_text())["opened"]
    assert set(opened) == {*NAMES, "real smollm2", "real gemma3"}
    exceptions = {
        ("llama_rope_yarn", "GGUF in llama.cpp"),  # it does not read YaRN's betas
        ("llama_rope_yarn", "GGUF adapter in llama.cpp = merged folder"),
        ("gemma3", "GGUF in llama.cpp"),  # NOT_IN_GGUF
        ("mistral_window", "GGUF in llama.cpp"),
    }
    for name, ways in opened.items():
        for way, finding in ways.items():
            if way != "float32_max_difference":
                assert (finding == "equal") != ((name, way) in exceptions), (name, way, finding)


def broken_stream(source: HFFolder) -> Iterator[tuple[str, Any]]:
    stream = hf_tensors(source, config_of(source))
    yield next(stream)
    yield next(stream)
    raise RuntimeError("the trainer died")


def test_nothing_is_half_written(tmp_path: Path) -> None:
    """A failure in the middle leaves what was there, and no scraps."""
    save(tmp_path / "model", FIXTURES / "llama_tied")
    save_file(tmp_path / "model.gguf", FIXTURES / "llama_tied")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with HFFolder.open(FIXTURES / "llama") as source:
        with pytest.raises(RuntimeError):
            save_hf_folder(tmp_path / "model", source, broken_stream(source))
        with pytest.raises(RuntimeError):
            save_gguf(tmp_path / "model.gguf", source, broken_stream(source))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    save(tmp_path / "model", FIXTURES / "llama", dtype="f32")
    assert_same_model(tmp_path / "model", FIXTURES / "llama")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(EtudeError, match="is there already"):
        save(tmp_path / "notes", FIXTURES / "llama")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", FIXTURES / "llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda w: w.update({"model.norm.weight": np.ones(3, np.float32)}), "has shape"),
        (lambda w: w.update({"model.norm.bias": np.ones(32, np.float32)}), "is not part of"),
        (lambda w: w["model.norm.weight"].fill(np.nan), "not finite"),
    ],
)
def test_wrong_tensors_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    weights = weights_in(FIXTURES / "llama")
    change(weights)
    with HFFolder.open(FIXTURES / "llama") as source:
        for attempt in (
            lambda: save_hf_folder(tmp_path / "out", source, weights.items()),
            lambda: save_gguf(tmp_path / "out.gguf", source, weights.items()),
        ):
            with pytest.raises(EtudeError, match=message):
                attempt()
    assert not list(tmp_path.iterdir())


def test_types_that_a_format_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match="f32, f16, bf16"):
        save(tmp_path / "out", FIXTURES / "llama", dtype="q8_0")
    with pytest.raises(EtudeError, match="q8_0"):
        save_file(tmp_path / "out.gguf", FIXTURES / "llama", "q4_k")
