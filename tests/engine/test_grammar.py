"""Completions held to a grammar: what is drawn fits it, and what cannot be compiled is refused in words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.engine.grammar import MAX_COMPILED, GrammarFactory, GrammarState
from etude.kernels._native import Sampler
from etude.model.gguf import GGUFFile
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError, Grammar
from tests.engine.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
FACTORY = GrammarFactory(TOKENIZER, TOKENIZER.n_vocab)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "role": {"enum": ["user", "admin"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "boss": {"anyOf": [{"type": "null"}, {"type": "number"}]},
    },
    "required": ["name", "age", "role", "tags", "boss"],
    "additionalProperties": False,
}


def allowed(state: GrammarState, n_vocab: int) -> set[int]:
    bits = np.unpackbits(state.mask().view(np.uint8), bitorder="little")
    assert not bits[n_vocab:].any()
    return {int(i) for i in np.flatnonzero(bits)}


def takes(state: GrammarState, text: str) -> bool:
    """Whether the grammar allows the tokens of a text, and the text may end there."""
    for token_id in TOKENIZER.encode(text):
        if token_id not in allowed(state, TOKENIZER.n_vocab):
            return False
        state.accept(token_id)
    ends = allowed(state, TOKENIZER.n_vocab) >= TOKENIZER.eog_ids
    assert ends == state.may_end
    return ends


def drawn(state: GrammarState, tokenizer: Any, seed: int, max_tokens: int = 400) -> str:
    """A text drawn by the native sampler from flat logits, with the end made likely."""
    logits = np.zeros(tokenizer.n_vocab, np.float32)
    logits[list(tokenizer.eog_ids)] = 3
    sampler, ids = Sampler(tokenizer.n_vocab, seed, 0), list[int]()
    for position in range(max_tokens):
        token_id = sampler.sample(logits, state.mask(), position)[0]
        assert token_id >= 0
        state.accept(token_id)
        if token_id in tokenizer.eog_ids:
            return str(tokenizer.decode(ids))
        ids.append(token_id)
    pytest.fail(f"no end after {max_tokens} tokens: {tokenizer.decode(ids)!r}")


def fits_person(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == list(PERSON["properties"])
        and 1 <= len(value["name"]) <= 8
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 130
        and value["role"] in ("user", "admin")
        and 1 <= len(value["tags"]) <= 3
        and all(isinstance(tag, bool) for tag in value["tags"])
        and (value["boss"] is None or isinstance(value["boss"], int | float))
    )


def test_json_drawn_from_a_schema_parses_and_fits() -> None:
    grammar = Grammar("json_schema", json.dumps(PERSON))
    texts = {drawn(FACTORY(grammar), TOKENIZER, seed) for seed in range(40)}
    assert len(texts) > 30
    assert all(fits_person(text) for text in texts)


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_json_drawn_with_a_real_vocabulary(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    factory = GrammarFactory(tokenizer, tokenizer.n_vocab)
    for seed in range(4):
        assert fits_person(drawn(factory(Grammar("json_schema", json.dumps(PERSON))), tokenizer, seed))
        code = drawn(factory(Grammar("regex", r"[A-Z]{2}-[0-9]{3,5} é?")), tokenizer, seed)
        assert re.fullmatch(r"[A-Z]{2}-[0-9]{3,5} é?", code)


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 12}, ["5", "12"], ["4", "13", "5.0", '"5"']),
        ({"enum": ["a", 1, None]}, ['"a"', "1", "null"], ["a", "2", "nul"]),
        ({"const": {"a": [1, 2]}}, ['{"a":[1,2]}', '{"a": [1, 2]}'], ['{"a":[2,1]}']),
        ({"type": "string", "pattern": "^a+b?$"}, ['"aab"'], ['"b"', '"aabb"']),
        ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-2-28"', '"today"']),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "boolean"}}}, ["true"], ["1"]),
        ({"prefixItems": [{"type": "null"}], "items": False}, ["[null]", "[]"], ["[null,1]"]),
        ({"type": "object"}, ['{"x":{"y":[1,"z"]}}', "{}"], ["[]", '{"x"}']),
        (True, ["1", '{"a":[]}', "null"], ["nil"]),
        ({"additionalProperties": {"type": "integer"}}, ['{ "a": 1,\n "b": 2 }'], ['{"a":"1"}']),
    ],
)  # fmt: skip
def test_schemas(schema: object, yes: list[str], no: list[str]) -> None:
    for text in yes + no:
        assert takes(FACTORY(Grammar("json_schema", json.dumps(schema))), text) == (text in yes), text


def test_blanks_in_json_are_bounded() -> None:
    grammar = Grammar("json_schema", '{"type": "array"}')
    assert takes(FACTORY(grammar), "[\n\n\t 1 , 2\n]")
    assert not takes(FACTORY(grammar), "[\n\n\n1]")
    assert not takes(FACTORY(grammar), "[1   ]")


def test_regex_matches_the_whole_answer() -> None:
    grammar = Grammar("regex", "(ab|cd)+[0-9]?")
    assert takes(FACTORY(grammar), "abcd7")
    assert not takes(FACTORY(grammar), "abc")
    assert not takes(FACTORY(grammar), "xab")


def test_lark_and_gbnf() -> None:
    lark = Grammar("lark", 'start: "(" start ")" | NUMBER\nNUMBER: /[0-9]+/')
    gbnf = Grammar("gbnf", 'root ::= "(" root ")" | [0-9]+')
    for grammar in (lark, gbnf):
        assert takes(FACTORY(grammar), "((12))")
        assert not takes(FACTORY(grammar), "((12)")
    nested = Grammar("lark", 'start: "<call>" call "</call>"\ncall: %json {"type": "boolean"}')
    assert takes(FACTORY(nested), "<call>true</call>")


def test_the_end_comes_when_the_text_is_complete() -> None:
    state = FACTORY(Grammar("regex", "ab?"))
    (a_id,), (b_id,) = TOKENIZER.encode("a"), TOKENIZER.encode("b")
    assert not allowed(state, TOKENIZER.n_vocab) & TOKENIZER.eog_ids
    assert not state.may_end
    state.accept(a_id)
    assert state.may_end
    assert not state.finished
    assert allowed(state, TOKENIZER.n_vocab) == {b_id} | TOKENIZER.eog_ids
    state.accept(b_id)
    assert state.finished
    assert allowed(state, TOKENIZER.n_vocab) == TOKENIZER.eog_ids
    state.accept(min(TOKENIZER.eog_ids))
    assert state.finished


def test_a_token_that_the_mask_forbids_is_an_error() -> None:
    state = FACTORY(Grammar("regex", "ab"))
    with pytest.raises(EtudeError, match=r"left its grammar: .*doesn't satisfy") as error:
        state.accept(TOKENIZER.encode("x")[0])
    assert "<state>" not in str(error.value)


def test_completions_are_independent() -> None:
    grammar = Grammar("regex", "[ab]{4}")
    one, two = FACTORY(grammar), FACTORY(grammar)
    one.accept(TOKENIZER.encode("a")[0])
    before = two.mask().copy()
    for char in "bb":
        one.accept(TOKENIZER.encode(char)[0])
    np.testing.assert_array_equal(two.mask(), before)
    assert one.mask() is one.mask()  # computed once


def test_special_tokens_are_no_text() -> None:
    state = FACTORY(Grammar("regex", "(?s:.)+"))
    (other,) = set(range(TOKENIZER.n_vocab - 3, TOKENIZER.n_vocab)) - TOKENIZER.eog_ids
    assert other not in allowed(state, TOKENIZER.n_vocab)


def test_logits_beyond_the_vocabulary_are_never_allowed() -> None:
    factory = GrammarFactory(TOKENIZER, TOKENIZER.n_vocab + 100)
    state = factory(Grammar("regex", "(?s:.)*"))
    assert len(state.mask()) == (TOKENIZER.n_vocab + 100 + 31) // 32
    assert max(allowed(state, TOKENIZER.n_vocab + 100)) < TOKENIZER.n_vocab


def test_the_grammar_used_last_stays_compiled() -> None:
    factory = GrammarFactory(TOKENIZER, TOKENIZER.n_vocab)
    for i in range(3 * MAX_COMPILED):
        assert takes(factory(Grammar("regex", f"x{i}")), f"x{i}")
        assert takes(factory(Grammar("regex", "again")), "again")
    assert len(factory._compiled) == MAX_COMPILED
    assert list(factory._compiled)[-1] == Grammar("regex", "again")


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("json_schema", '{"type":', "JSON schema grammar cannot be used: it is not JSON: Expecting value"),
        ("json_schema", '{"type": "strin"}', "JSON schema .*Invalid type: strin"),
        ("json_schema", "[]", "it is .., but a schema is an object"),
        ("json_schema", "false", "it is false, but a schema is an object"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum .5. is greater than"),
        ("json_schema", '{"$ref": "#/nope"}', "'/nope' does not exist"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "Unimplemented keys: .*uniqueItems"),
        ("json_schema", '{"type": "string", "pattern": "(?=a)"}', "look-around"),
        ("regex", "[ab", "regular expression grammar cannot be used: .*unclosed character class"),
        ("regex", r"[^\s\S]", "regular expression grammar cannot be used: no text fits it"),
        ("lark", 'start: "a" foo', "Lark grammar cannot be used: .*unknown name: \"foo\""),
        ("lark", 'foo: "a"', "no start rule"),
        ("lark", "", "Empty grammar"),
        ("gbnf", 'root ::= "a" foo', "GBNF grammar uses the rule 'foo'"),
        ("gbnf", "root ::= [a", "GBNF grammar cannot be used: line 1"),
        ("gbnf", 'root ::= "a" root', "GBNF grammar has no text"),
        ("xml", "<a/>", "kind of a grammar is 'xml'; it must be one of json_schema, regex, lark, gbnf"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused(kind: Any, source: str, words: str) -> None:
    with pytest.raises(EtudeError, match=re.compile(words, re.DOTALL)):
        FACTORY(Grammar(kind, source))


def test_a_model_without_an_end_is_refused() -> None:
    class Endless(ByteTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.eog_ids = frozenset()

    with pytest.raises(EtudeError, match="needs a token that ends the answer"):
        GrammarFactory(Endless(), 300)(Grammar("regex", "a"))


def test_a_tokenizer_that_llguidance_cannot_read_is_refused() -> None:
    class Broken(ByteTokenizer):
        def to_json(self) -> str:
            return '{"version": "1.0"}'

    with pytest.raises(EtudeError, match="llguidance cannot read this model's tokenizer"):
        GrammarFactory(Broken(), 300)(Grammar("regex", "a"))
