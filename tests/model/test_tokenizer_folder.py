"""A Hugging Face folder gives the tokenizer that the GGUF file of the same model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from etude.model.tokenizer import Tokenizer
from etude.model.tokenizer_json import metadata_from_folder
from etude.records import EtudeError
from tests.model.packed_vocabularies import FOLDER, unpack

TEXTS = (FOLDER / "texts.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")


def save(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """The folder of that tokenizer, as after a training run."""
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    texts = {key: tokenizer.token_text(index) for key, index in ends.items() if index is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(texts | config))
    return folder


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_a_saved_folder_gives_the_same_tokenizer(name: str, tmp_path: Path) -> None:
    original = Tokenizer.from_metadata(unpack(name))
    again = Tokenizer.from_folder(save(tmp_path, original))
    assert (again.n_vocab, again.bos_id, again.eos_id) == (original.n_vocab, original.bos_id, original.eos_id)
    assert (again.eog_ids, again.add_bos, again.add_eos) == (
        original.eog_ids,
        original.add_bos,
        original.add_eos,
    )
    for text in [*TEXTS, "<|im_end|> x</s>", "<|user|> \n x"]:
        for parse_special in (False, True):
            expected = original.encode(text, parse_special=parse_special)
            assert again.encode(text, parse_special=parse_special) == expected
    assert all(again.token_bytes(i) == original.token_bytes(i) for i in range(0, original.n_vocab, 7))


def test_ids_equal_the_library_of_the_folder(tmp_path: Path) -> None:
    """A tokenizer made and saved by the other library, in its newer form with merges as pairs."""
    letters = {char: i for i, char in enumerate("abc")}
    hub = tokenizers.Tokenizer(models.BPE(letters | {"ab": 3, "abc": 4}, [("a", "b"), ("ab", "c")]))
    hub.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hub.add_special_tokens(["<end>"])
    hub.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<end>"}, "add_eos_token": true}'
    )
    (tmp_path / "config.json").write_text('{"vocab_size": 8}')
    own = Tokenizer.from_folder(tmp_path)
    assert (
        own.encode("abcab<end>", add_special=False, parse_special=True)
        == hub.encode("abcab<end>").ids
        == [4, 3, 5]
    )
    assert own.encode("a") == [0, 5] and own.n_vocab == 8 and own.token_bytes(7) == b""


@pytest.mark.parametrize(("asked", "expected"), [(None, True), (True, True), (False, False)])
def test_begin_of_sequence_as_the_configuration_says(
    asked: bool | None, expected: bool, tmp_path: Path
) -> None:
    original = Tokenizer.from_metadata(unpack("llama-spm"))
    config = {} if asked is None else {"add_bos_token": asked}
    assert Tokenizer.from_folder(save(tmp_path, original, **config)).add_bos is expected


def test_chat_templates_are_found_in_both_places(tmp_path: Path) -> None:
    original = Tokenizer.from_metadata(unpack("gpt-2"))
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    metadata = metadata_from_folder(save(tmp_path, original, chat_template=named))
    assert metadata["tokenizer.chat_template"] == "D" and metadata["tokenizer.chat_template.tool_use"] == "T"
    assert metadata_from_folder(save(tmp_path, original, chat_template="C"))["tokenizer.chat_template"] == "C"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert metadata_from_folder(tmp_path)["tokenizer.chat_template"] == "F"


def edit(folder: Path, **changes: Any) -> None:
    source = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(source | changes))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_folder(tmp_path)
    save(tmp_path, Tokenizer.from_metadata(unpack("gpt-2")))
    edit(tmp_path, pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(EtudeError, match=r"is not known.*Known: smollm"):
        Tokenizer.from_folder(tmp_path)
    added = {"id": 1, "content": "x", "special": False, "lstrip": True, "rstrip": False, "single_word": False}
    edit(tmp_path, pre_tokenizer={"type": "ByteLevel", "use_regex": True}, added_tokens=[added])
    with pytest.raises(EtudeError, match="'x' has lstrip or single_word"):
        Tokenizer.from_folder(tmp_path)
    edit(tmp_path, model={"type": "Unigram", "vocab": []})
    with pytest.raises(EtudeError, match=r"'Unigram' model\. Supported: BPE"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EtudeError, match="cannot be read as JSON"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(EtudeError, match="does not hold a JSON object"):
        Tokenizer.from_folder(tmp_path)
