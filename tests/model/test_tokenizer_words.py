"""Unicode classes, pre-tokenizers and the merge loop, each against its definition or llama.cpp."""

from __future__ import annotations

import gzip
import json
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from etude.model.merging import merge
from etude.model.pretokenizers import HUB_PATTERNS, PRETOKENIZERS, compile_pattern, supported_names
from etude.model.tokenizer import Tokenizer
from etude.model.unicode_classes import OTHER, STAND_INS, collapse, collapse_spaces, stand_in
from tests.model.packed_vocabularies import unpack

PEERS = Path(__file__).parents[1] / "data" / "peers"
SPACES = "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@cache
def references() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(gzip.decompress((PEERS / "pretokenizers.json.gz").read_bytes()))
    return record


def test_classes_equal_those_of_python() -> None:
    """Python's Unicode is another version: characters that only one of the two knows are left out."""
    for code_point in range(0x80, 0x110000):
        category = unicodedata.category(chr(code_point))
        found = stand_in(code_point)
        if chr(code_point) in SPACES:
            assert found == STAND_INS["W"]
        elif category != "Cn" and found != OTHER:
            assert found == STAND_INS[category[0]], hex(code_point)
        elif category[0] in STAND_INS and unicodedata.unidata_version <= "15.1.0":
            pytest.fail(f"U+{code_point:04X} is {category} but has no class")


def test_collapsing_keeps_ascii_and_the_length() -> None:
    text = "a1 \n" + "é²。\u0301€\u200d\u3000😀"
    assert collapse(text) == "a1 \n" + "\xd2\xd1\xd3\xd4\xd5\xd0\x0b\xd5"
    assert collapse_spaces(text) == text.replace("\u3000", "\x0b")


@pytest.mark.parametrize("name", sorted({*supported_names()}))
def test_words_equal_those_of_llama_cpp(name: str) -> None:
    """Seen through the ids of GPT-2's merges: where a word ends, merging ends."""
    tokenizer = Tokenizer.from_metadata(unpack("gpt-2") | {"tokenizer.ggml.pre": name})
    for text, ids in zip(references()["texts"], references()["ids"][name], strict=True):
        assert tokenizer.encode(text, add_special=False) == ids, text


@pytest.mark.parametrize("name", sorted(HUB_PATTERNS))
def test_patterns_of_the_hub_cut_ascii_alike(name: str) -> None:
    """What a folder is recognised by means the same words; beyond ASCII, llama.cpp differs a little."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in HUB_PATTERNS[name]]
    steps = pre_tokenizers.Sequence(splits)
    for text in filter(str.isascii, references()["texts"]):
        expected = [word for word, _ in steps.pre_tokenize_str(text)]
        if text.isprintable():
            assert PRETOKENIZERS[name].split(text) == expected


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), name=st.sampled_from(sorted(PRETOKENIZERS)))
def test_words_joined_are_the_text(text: str, name: str) -> None:
    words = PRETOKENIZERS[name].split(text)
    assert "".join(words) == text and all(words)


def test_whitespace_of_patterns_is_not_pythons() -> None:
    assert compile_pattern(r"\s").match("\x0b") and not compile_pattern(r"\s").match("\x1c")
    assert compile_pattern(r"[^\s\p{L}]").match("1") and not compile_pattern(r"[^\s\p{L}]").match("x")


def slow_merge(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """The definition: again and again the best pair, the leftmost of equals."""
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in ranks]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=30),
    tokens=st.lists(st.text(alphabet="abc", min_size=2, max_size=5), max_size=20),
    ties=st.integers(1, 4),
)
def test_merging_equals_its_definition(text: str, tokens: list[str], ties: int) -> None:
    ranks = {token: index // ties for index, token in enumerate(tokens)}
    assert merge(list(text), ranks, "") == slow_merge(list(text), ranks)
