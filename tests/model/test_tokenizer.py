"""Ids equal llama.cpp's (stored) and those of the `tokenizers` package (live); decoding gives a text back."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError
from tests.model.packed_vocabularies import FOLDER, NAMES, unpack

TEXTS = (FOLDER / "texts.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")

by_vocabulary = pytest.mark.parametrize("name", NAMES)


@cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_metadata(unpack(name))


@cache
def hub_tokenizer(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer(name).to_json())


@by_vocabulary
def test_ids_equal_the_vectors_of_llama_cpp(name: str) -> None:
    lines = (FOLDER / f"{name}.out").read_text().splitlines()
    assert len(lines) == 46
    for text, line in zip(TEXTS, lines, strict=False):
        assert tokenizer(name).encode(text, add_special=False) == [int(word) for word in line.split()], text


@by_vocabulary
def test_decoding_gives_the_text_back(name: str) -> None:
    for text in TEXTS:
        ids = tokenizer(name).encode(text)
        assert tokenizer(name).decode(ids) == text


@by_vocabulary
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_decoding_gives_any_text_back(name: str, text: str) -> None:
    if name == "phi-3":  # its tokens swallow whitespace, and </s> is one of them
        return
    assert tokenizer(name).decode(tokenizer(name).encode(text, add_special=False)) == text


def mixed_texts(name: str, count: int) -> list[str]:
    """Texts of characters, tokens and special tokens."""
    rng = random.Random(7)
    tok = tokenizer(name)
    control = [tok.token_text(i) for i in range(tok.n_vocab) if tok.is_control(i)]

    def piece() -> str:
        return rng.choice(
            [
                chr(rng.randrange(32, 127)),
                chr(rng.randrange(0x80, 0x3000)),
                rng.choice(" \n\t  '"),
                rng.choice(control),
                tok.token_text(rng.randrange(tok.n_vocab)),
            ]
        )

    return ["".join(piece() for _ in range(rng.randrange(16))) for _ in range(count)]


@by_vocabulary
@pytest.mark.parametrize("parse_special", [False, True])
def test_ids_equal_those_of_the_tokenizers_package(name: str, parse_special: bool) -> None:
    hub = hub_tokenizer(name)
    hub.encode_special_tokens = not parse_special
    for text in mixed_texts(name, 200):
        assert tokenizer(name).encode(text, parse_special=parse_special) == hub.encode(text).ids, text


@by_vocabulary
def test_decoding_equals_that_of_the_tokenizers_package(name: str) -> None:
    for text in mixed_texts(name, 100):
        ids = tokenizer(name).encode(text, parse_special=True)
        assert tokenizer(name).decode(ids) == hub_tokenizer(name).decode(ids, skip_special_tokens=True)


def test_special_tokens_in_text_stay_text_unless_asked() -> None:
    tok = tokenizer("llama-bpe")
    end = tok.encode("<|eot_id|>", add_special=False, parse_special=True)
    assert end == [128009] and tok.is_control(128009)
    plain = tok.encode("a<|eot_id|>b", add_special=False)
    assert len(plain) > 3 and not any(map(tok.is_control, plain)) and tok.decode(plain) == "a<|eot_id|>b"


def test_begin_of_sequence_is_added_once_when_asked() -> None:
    tok = tokenizer("llama-spm")
    assert (tok.bos_id, tok.eos_id, tok.add_bos, tok.add_eos) == (1, 2, True, False)
    assert tok.encode("") == [1]
    assert tok.encode("Hello") == [1, *tok.encode("Hello", add_special=False)]
    assert tokenizer("qwen2").encode("Hello") == tokenizer("qwen2").encode("Hello", add_special=False)


def test_end_of_sequence_is_added_when_the_file_says_so() -> None:
    tok = Tokenizer.from_metadata(unpack("llama-spm") | {"tokenizer.ggml.add_eos_token": True})
    assert tok.encode("Hello")[-1] == tok.eos_id and tok.encode("Hello", add_special=False)[-1] != tok.eos_id


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("llama-spm", {"</s>"}),
        ("llama-bpe", {"<|end_of_text|>", "<|eot_id|>"}),
        ("qwen2", {"<|endoftext|>", "<|im_end|>", "</s>"}),
        ("phi-3", {"</s>", "<|end|>", "<|endoftext|>"}),
        ("deepseek-llm", {"<｜end▁of▁sentence｜>"}),
    ],
)
def test_tokens_that_end_a_generation(name: str, texts: set[str]) -> None:
    """As llama_vocab_is_eog says of these files."""
    assert {tokenizer(name).token_text(i) for i in tokenizer(name).eog_ids} == texts


def test_overlapping_specials_parse_the_longest_first() -> None:
    """llama.cpp looks for the longest token everywhere before the next: not the leftmost that fits."""
    metadata = unpack("gpt-2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<ab", "b>cd"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4, 4]
    tok = Tokenizer.from_metadata(metadata)
    assert tok.encode("<ab>cd") == [*tok.encode("<a"), 50258]
    assert tok.encode("<ab>") == [50257, *tok.encode(">")]


def test_phi3_tokens_swallow_the_whitespace_after_them() -> None:
    tok = tokenizer("phi-3")
    parse = {"add_special": False, "parse_special": True}
    assert tok.encode("<|user|> \n Hi<|end|>", **parse) == tok.encode("<|user|>Hi<|end|>", **parse)


def test_characters_without_a_token_become_bytes() -> None:
    tok = tokenizer("llama-spm")
    ids = tok.encode("𐍈", add_special=False)
    assert ids[-4:] == tok.encode("\U00010348", add_special=False)[-4:]
    assert [tok.token_bytes(i) for i in ids[1:]] == [bytes([b]) for b in "𐍈".encode()]


def test_half_a_surrogate_pair_is_read_as_a_replacement_character() -> None:
    for name in ("gpt-2", "llama-spm"):
        assert tokenizer(name).encode("a\ud800b") == tokenizer(name).encode("a\ufffdb")


def test_ids_beyond_the_vocabulary_decode_to_nothing() -> None:
    tok = tokenizer("gpt-2")
    assert tok.token_bytes(tok.n_vocab) == b"" and tok.decode([-1, 10**9]) == "" and not tok.is_control(10**9)


def test_decode_can_show_control_tokens() -> None:
    tok = tokenizer("llama-bpe")
    ids = tok.encode("Hi<|eot_id|>", parse_special=True)
    assert tok.decode(ids) == "Hi" and tok.decode(ids, special=True) == "<|begin_of_text|>Hi<|eot_id|>"


def test_an_unknown_pre_tokenizer_is_refused_with_the_supported_names() -> None:
    with pytest.raises(
        EtudeError, match=r"'klingon' is not supported.*deepseek-v3.*llama-bpe.*qwen2.*tekken"
    ):
        Tokenizer.from_metadata(unpack("gpt-2") | {"tokenizer.ggml.pre": "klingon"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported.*gpt2.*llama"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.merges": None}, "no merges"),
        ({"tokenizer.ggml.tokens": []}, "no list of tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "1 entries for 50257"),
        ({"tokenizer.ggml.token_type": ["1"] * 50257}, "no numbers"),
        ({"tokenizer.ggml.token_type": [6] * 50257}, "byte token '!'.*is not of the form"),
        ({"tokenizer.ggml.pre": 3}, "pre is 3; allowed is a string"),
        ({"tokenizer.ggml.add_bos_token": np.array([1, 0])}, "add_bos_token is .*; allowed is true or false"),
        ({"tokenizer.ggml.add_eos_token": "yes"}, "add_eos_token is 'yes'; allowed is true or false"),
        ({"tokenizer.etude.strip_right_token_ids": 5}, "no list of token ids"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "no list of tokens"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, "add_bos_token is set"),
    ],
)
def test_damaged_metadata_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        Tokenizer.from_metadata(unpack("gpt-2") | change)


def test_ids_of_another_type_or_out_of_range_are_not_used() -> None:
    tok = Tokenizer.from_metadata(
        unpack("gpt-2") | {"tokenizer.ggml.bos_token_id": "1", "tokenizer.ggml.eos_token_id": 10**9}
    )
    assert (tok.bos_id, tok.eos_id) == (None, None)


def test_sentencepiece_without_scores_is_refused() -> None:
    with pytest.raises(EtudeError, match="scores has 1 entries for 32000 tokens"):
        Tokenizer.from_metadata(unpack("llama-spm") | {"tokenizer.ggml.scores": [0.0]})


def test_an_empty_token_gets_a_name_and_matches_nothing() -> None:
    metadata = unpack("gpt-2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], ""]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    tok = Tokenizer.from_metadata(metadata)
    assert tok.token_text(50257) == "[EMPTY_50257]" and tok.encode("Hello") == tokenizer("gpt-2").encode(
        "Hello"
    )


def test_tokens_that_are_not_utf8_keep_their_bytes() -> None:
    """A GGUF may hold a token of any bytes; the reader gives them as surrogates."""
    metadata = unpack("llama-spm")
    metadata["tokenizer.ggml.tokens"][300] = b"\xe2\x96".decode("utf-8", "surrogateescape")
    tok = Tokenizer.from_metadata(metadata)
    assert tok.token_bytes(300) == b"\xe2\x96" and tok.token_text(300) == "\ufffd"


def test_a_long_word_is_merged_like_its_short_form() -> None:
    """Beyond the memo's length; quadratic code would take minutes here."""
    tok = tokenizer("gpt-2")
    short, long = tok.encode("ab" * 64), tok.encode("ab" * 20000)
    assert len(long) == len(short) * 20000 // 64 and set(long) == set(short)
