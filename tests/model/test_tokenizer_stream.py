"""Streaming gives the same text as decoding at once, never half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.model.tokenizer import Tokenizer
from tests.model.packed_vocabularies import NAMES, unpack

TOKENIZERS = {name: Tokenizer.from_metadata(unpack(name)) for name in ("gpt-2", "llama-spm")}
EMOJI = "👩🏾‍🚀 ok"

by_kind = pytest.mark.parametrize("name", TOKENIZERS)


@by_kind
def test_pieces_are_whole_characters(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(EMOJI, add_special=False)
    stream = tokenizer.stream(continuation=False)
    pieces = [stream.push(token_id) for token_id in ids]
    assert len(ids) > len(EMOJI) and "" in pieces  # characters of several tokens
    assert "".join(pieces) == EMOJI and stream.flush() == ""


@by_kind
def test_an_unfinished_character_shows_at_the_end_only(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("a😀", add_special=False)[:-1]
    stream = tokenizer.stream(continuation=False)
    assert "".join(map(stream.push, ids)) == "a" and stream.flush() == "\ufffd"
    assert tokenizer.decode(ids) == "a\ufffd"


@by_kind
def test_bytes_that_cannot_become_a_character_show_at_once(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    first = tokenizer.encode("😀", add_special=False)[-4 if name == "llama-spm" else 0]
    stream = tokenizer.stream()
    assert stream.push(first) == ""
    assert stream.push(tokenizer.encode("x", add_special=False)[-1]).startswith("\ufffd")


@by_kind
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_stream_as_they_decode(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=20))
    stream = tokenizer.stream(special=True)
    text = "".join(map(stream.push, ids)) + stream.flush()
    assert text == tokenizer.decode(ids, special=True, continuation=True)
    assert text == b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")


def test_the_space_before_a_text_is_taken_away_and_that_of_a_continuation_is_kept() -> None:
    tokenizer = TOKENIZERS["llama-spm"]
    prompt, answer = "The capital of France is", " Paris"
    ids = tokenizer.encode(prompt + answer, add_special=False)
    n_prompt = len(tokenizer.encode(prompt, add_special=False))
    assert tokenizer.decode(ids[:n_prompt]) == prompt
    assert tokenizer.decode(ids[n_prompt:], continuation=True) == answer
    stream = tokenizer.stream()  # of generated tokens: they continue a prompt
    assert "".join(map(stream.push, ids[n_prompt:])) == answer
    assert tokenizer.decode(tokenizer.encode("  two")) == "  two"


def test_control_tokens_are_hidden_unless_asked_for() -> None:
    tokenizer = TOKENIZERS["gpt-2"]
    assert tokenizer.eos_id is not None
    assert tokenizer.stream().push(tokenizer.eos_id) == ""
    assert tokenizer.stream(special=True).push(tokenizer.eos_id) == "<|endoftext|>"


def test_names_are_those_of_the_stored_vocabularies() -> None:
    assert set(TOKENIZERS) <= set(NAMES)
