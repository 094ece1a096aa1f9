"""Grammars of calls: what a model of the family writes fits, nothing else does, and what is drawn parses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from etude.engine.grammar import GrammarFactory, GrammarState
from etude.kernels._native import Sampler
from etude.model.thinking import ThinkingTags
from etude.model.tool_calls import parse_message
from etude.model.tool_formats import FORMATS, GENERIC, HERMES, MISTRAL_ARGS, PARAMETERS, TOOL_CODE, ToolFormat
from etude.model.tool_grammar import response_grammar, tool_grammar
from etude.records import EtudeError, Grammar
from tests.engine.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
FACTORY = GrammarFactory(TOKENIZER, TOKENIZER.n_vocab)
PARAMETERS_OF_F = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 99},
        "s": {"type": "string", "maxLength": 4},
        "b": {"type": "boolean"},
        "e": {"enum": ["x", "y"]},
    },
    "required": ["a"],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": PARAMETERS_OF_F}},
    {"type": "function", "function": {"name": "g"}},
]
EVERY_FORMAT = pytest.mark.parametrize("format", (*FORMATS, GENERIC), ids=lambda format: format.name)


def takes(grammar: Grammar, text: str) -> bool:
    """Whether the text fits, whole."""
    state = FACTORY(grammar)
    for token_id in TOKENIZER.encode(text):
        if not allowed(state, token_id):
            return False
        state.accept(token_id)
    return state.may_end


def allowed(state: GrammarState, token_id: int) -> bool:
    return bool(state.mask()[token_id // 32] >> (token_id % 32) & 1)


def drawn(grammar: Grammar, seed: int) -> str | None:
    """A text drawn from flat logits with the end made likely; None if it became long."""
    state, logits = FACTORY(grammar), np.zeros(TOKENIZER.n_vocab, np.float32)
    logits[list(TOKENIZER.eog_ids)] = 3
    sampler, ids = Sampler(TOKENIZER.n_vocab, seed, 0), list[int]()
    for position in range(400):
        token_id = sampler.sample(logits, state.mask(), position)[0]
        if token_id in TOKENIZER.eog_ids:
            return TOKENIZER.decode(ids)
        ids.append(token_id)
        state.accept(token_id)
    return None


ONE = ("f", '{"a": 1, "b": true}')


@EVERY_FORMAT
def test_required(format: ToolFormat) -> None:
    one, two = format.written([ONE]), format.written([ONE, ("g", "{}")])
    grammar = tool_grammar(TOOLS, format, choice="required")
    assert takes(grammar, one) and takes(grammar, two)
    assert not takes(grammar, "") and not takes(grammar, f"Hello {one}") and not takes(grammar, one[:-1])
    assert not takes(grammar, format.written([("h", "{}")]))
    assert not takes(grammar, format.written([("f", "{}")]))  # lacks what is required
    assert not takes(grammar, format.written([("f", '{"a": 1, "z": 1}')]))
    assert not takes(grammar, format.written([("f", '{"a": true}')]))
    single = tool_grammar(TOOLS, format, choice="required", parallel=False)
    assert takes(single, one) and not takes(single, two)


@EVERY_FORMAT
def test_a_named_tool(format: ToolFormat) -> None:
    grammar = tool_grammar(TOOLS, format, choice="g")
    assert takes(grammar, format.written([("g", "{}")])) and not takes(grammar, format.written([ONE]))
    with pytest.raises(EtudeError, match="tool_choice names 'h', but the request has the tools: f, g"):
        tool_grammar(TOOLS, format, choice="h")


@EVERY_FORMAT
def test_auto_holds_only_what_has_begun_as_a_call(format: ToolFormat) -> None:
    grammar = tool_grammar(TOOLS, format)
    one = format.written([ONE])
    assert all(
        takes(grammar, text) for text in ("", "Hello.", "a\n\n< [1] b", one, format.written([ONE, ONE]))
    )
    assert not takes(grammar, format.written([("h", "{}")]))
    if format.tags[0][0]:
        assert takes(grammar, f"Hello. {one} Bye.") and not takes(grammar, f"Hello. {format.tags[0][0]} Bye.")
    single = tool_grammar(TOOLS, format, parallel=False)
    assert takes(single, one) and takes(single, "Hello.") and not takes(single, one + format.separator + one)


@EVERY_FORMAT
def test_thoughts_come_first(format: ToolFormat) -> None:
    one, tags = format.written([ONE]), ThinkingTags()
    opened = tool_grammar(TOOLS, format, choice="required", tags=tags, thinking_open=True)
    assert takes(opened, f"I think.\n</think>\n\n{one}") and not takes(opened, one)
    free = tool_grammar(TOOLS, format, choice="required", tags=tags)
    assert takes(free, f"<think>I think.</think>{one}") and takes(free, one)
    assert not takes(free, "<think>I think.</think>") and not takes(free, f"I think.</think>{one}")


@EVERY_FORMAT
def test_whatever_is_drawn_is_a_valid_call(format: ToolFormat) -> None:
    grammar = tool_grammar(TOOLS, format, choice="required")
    texts = [text for seed in range(12) if (text := drawn(grammar, seed)) is not None]
    assert len(texts) >= 3
    for text in texts:
        message = parse_message(text, format=format, tools=TOOLS)
        assert message.tool_calls and message.content == ""
        for call in message.tool_calls:
            arguments = json.loads(call.arguments)
            assert call.name in ("f", "g") and (call.name == "g" or isinstance(arguments["a"], int))
            assert set(arguments) <= (set(PARAMETERS_OF_F["properties"]) if call.name == "f" else set())


def test_tokens_that_text_cannot_spell() -> None:
    special = {"[TOOL_CALLS]": 5, "[ARGS]": 32, "[/THINK]": 34}
    source = tool_grammar(TOOLS, MISTRAL_ARGS, choice="g", special_ids=special).source
    assert '"g" <[32]> json' in source and "reply_3: <[5]> call" in source and "TOOL_CALLS" not in source
    auto = tool_grammar(TOOLS, MISTRAL_ARGS, special_ids=special).source
    assert "suffix" not in auto and "<[5]>" in auto
    thinking = ThinkingTags("[THINK]", "[/THINK]")
    held = tool_grammar(TOOLS, MISTRAL_ARGS, choice="g", tags=thinking, special_ids=special).source
    assert "<[34]>" in held and '"[THINK]"' in held
    for grammar in (source, auto, held):
        FACTORY(Grammar("lark", grammar))


def test_strings_between_tags_are_free_text() -> None:
    grammar = tool_grammar(TOOLS, PARAMETERS, choice="f")
    text = PARAMETERS.written([("f", '{"a": 1, "s": "any \\"text\\"\\n</p>", "e": "y"}')])
    assert takes(grammar, text) and not takes(grammar, text.replace("\ny\n", "\nz\n"))


def test_arguments_in_python_in_any_selection() -> None:
    grammar = tool_grammar(TOOLS, TOOL_CODE, choice="f")
    for arguments in ("a=1", 'a=1, s="x"', "a=1, b=false", 'a=1, s="x", e="y"'):
        assert takes(grammar, f"```tool_code\nf({arguments})\n```")
    for arguments in ("", "b=true", "a=1, ", "a=1 b=true"):
        assert not takes(grammar, f"```tool_code\nf({arguments})\n```")


def test_definitions_reach_the_parameters() -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    schema = {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}},
        "required": ["p"],
        "$defs": {"P": point},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for format in (HERMES, PARAMETERS):
        grammar = tool_grammar(tools, format, choice="required")
        assert takes(grammar, format.written([("f", '{"p": {"x": 1}}')]))
        assert not takes(grammar, format.written([("f", '{"p": {"x": "1"}}')]))


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def test_response_format() -> None:
    assert response_grammar(None) is None and response_grammar({"type": "text"}) is None
    anything = response_grammar({"type": "json_object"})
    assert anything and takes(anything, '{"a": [1]}') and not takes(anything, "[1]")
    for given in (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        {"type": "json_object", "schema": SCHEMA},
    ):
        grammar = response_grammar(given)
        assert grammar and grammar.kind == "json_schema"
        assert takes(grammar, '{"x": 1}') and not takes(grammar, '{"x": "1"}')
        thinking = response_grammar(given, tags=ThinkingTags(), thinking_open=True)
        assert thinking and takes(thinking, 'hm</think>\n\n{"x": 1}') and not takes(thinking, '{"x": 1}')


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "xml"}, "response_format.type is 'xml'"),
        ({}, "response_format.type is None"),
        ({"type": "json_schema"}, "the schema of response_format is null"),
        ({"type": "json_schema", "json_schema": {"schema": [1]}}, r"is \[1\]; it must be an object"),
    ],
)
def test_a_response_format_that_is_none(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        response_grammar(given)
