"""The real models' tokenizers against llama.cpp's ids of 688 hard texts and of one long one."""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.model.gguf import GGUFFile
from etude.model.tokenizer import Tokenizer

DATA = Path(__file__).parent.parent / "data"

by_model = pytest.mark.parametrize("name", ["smollm2", "gemma3"])


@cache
def load(path: Path) -> Tokenizer:
    return Tokenizer.from_metadata(GGUFFile.open(path).metadata)


def peer(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(
        gzip.decompress((DATA / "peers" / f"tokenizer_{name}.json.gz").read_bytes())
    )
    assert len(record["texts"]) >= 500
    return record


@by_model
@pytest.mark.parametrize(("key", "parse_special"), [("ids_plain", False), ("ids_special", True)])
def test_ids_of_hard_texts(name: str, key: str, parse_special: bool, request: pytest.FixtureRequest) -> None:
    tokenizer, record = load(request.getfixturevalue(name)), peer(name)
    for text, ids in zip(record["texts"], record[key], strict=True):
        assert tokenizer.encode(text, add_special=False, parse_special=parse_special) == ids, text


@by_model
def test_ids_of_a_long_text(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer, expected = load(request.getfixturevalue(name)), peer(name)["ids_long"]
    ids = tokenizer.encode((DATA / "ppl" / "alice.txt").read_text(), add_special=False)
    assert len(ids) == expected["n_ids"]
    assert hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest() == expected["sha256"]


@by_model
def test_hard_texts_come_back_whole(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load(request.getfixturevalue(name))
    for text in peer(name)["texts"]:
        if name == "gemma3" and "▁" in text:
            continue  # SentencePiece writes spaces so
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_the_real_vocabularies_say(smollm2: Path, gemma3: Path) -> None:
    """As llama.cpp reports of these files; Gemma's </s>, in truth an HTML tag, is llama.cpp's judgement."""
    small, gemma = load(smollm2), load(gemma3)
    assert (small.n_vocab, small.bos_id, small.eos_id, small.add_bos) == (49152, 1, 2, False)
    assert (gemma.n_vocab, gemma.bos_id, gemma.eos_id, gemma.add_bos) == (262144, 2, 1, True)
    assert {small.token_text(i) for i in small.eog_ids} == {"<|endoftext|>", "<|im_end|>", "<reponame>"}
    assert {gemma.token_text(i) for i in gemma.eog_ids} == {"<eos>", "<end_of_turn>", "</s>"}
