"""What a model wrote, taken apart: every format, hostile texts, and the same result however it is cut."""

from __future__ import annotations

import json
import time
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.model.call_reader import argument_json
from etude.model.json_text import JsonScanner
from etude.model.python_calls import python_calls
from etude.model.thinking import ThinkingTags
from etude.model.tool_calls import (
    ContentDelta,
    Delta,
    MessageStream,
    ParsedMessage,
    ReasoningDelta,
    ToolCall,
    ToolCallDelta,
    joined,
    new_call_id,
    parse_message,
)
from etude.model.tool_formats import (
    DEEPSEEK_R1,
    DEEPSEEK_V3_1,
    FORMATS,
    GENERIC,
    HERMES,
    LFM2,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    PARAMETERS,
    SEED,
    TOOL_CODE,
    ToolFormat,
)

ALL = (*FORMATS, GENERIC)
EVERY_FORMAT = pytest.mark.parametrize("format", ALL, ids=lambda format: format.name)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
TOOLS = [
    tool("weather", city=STRING, days=INTEGER, units={"enum": ["C", "F"]}, exact={"type": "boolean"}),
    tool("write", path=STRING, text=STRING),
    tool("now"),
    tool("any", x={}),
]


def stream(text: str, format: ToolFormat | None, cuts: list[int], **options: Any) -> list[Delta]:
    ids = count()
    message = MessageStream(format, new_id=lambda: f"id{next(ids)}", **options)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    return [*(delta for piece in pieces for delta in message.push(piece)), *message.finish()]


def parse(text: str, format: ToolFormat | None, **options: Any) -> ParsedMessage:
    ids = count()
    return parse_message(text, format=format, new_id=lambda: f"id{next(ids)}", **options)


def calls(message: ParsedMessage) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in message.tool_calls]


# ── each format ──

ONE = ("weather", {"city": 'Zürich "x" {\\}', "days": 3})
TWO = ("write", {"path": "a.txt", "text": "line 1\n\tline 2 \\ <b> }]`` '\""})
NONE: tuple[str, dict[str, Any]] = ("now", {})


@EVERY_FORMAT
@pytest.mark.parametrize("given", [[ONE], [NONE], [ONE, TWO], [NONE, ONE, TWO]])
def test_what_is_written_is_read_back(format: ToolFormat, given: list[tuple[str, dict[str, Any]]]) -> None:
    text = format.written([(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in given])
    message = parse(text, format, tools=TOOLS)
    assert calls(message) == given
    assert message.content == "" and message.reasoning == ""


def test_arguments_are_as_the_model_wrote_them() -> None:
    odd = '{ "city":"Z\\u00fcrich",\n  "days" : 3.0e0}'
    for format in (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, DEEPSEEK_R1, DEEPSEEK_V3_1, GENERIC):
        assert parse(format.written([("weather", odd)]), format, tools=TOOLS).tool_calls[0].arguments == odd


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        (HERMES, '<tool_call>{"arguments": {"x": [1]}, "name": "any"}</tool_call>', [("any", {"x": [1]})]),
        (HERMES, '<tool_call>{"name":"now"}</tool_call>', [NONE]),
        (HERMES, '<tool_call>{"name":"now","arguments":null}</tool_call>', [NONE]),
        (HERMES, '<tool_call>{"name":"any","arguments":"{\\"x\\": 1}"}</tool_call>', [("any", {"x": 1})]),
        (HERMES, '<tool_call>[{"name":"now"},{"name":"now"}]</tool_call>', [NONE, NONE]),
        (HERMES, '<tool_call>{"name":"now"}\n{"name":"now"}</tool_call>', [NONE, NONE]),
        (HERMES, '<tool_call>{"name":"any","arguments":{"x":"</tool_call>"}}</tool_call>',
         [("any", {"x": "</tool_call>"})]),
        (HERMES, '<tool_call>{"type":"function","name":"any","parameters":{}}', [("any", {})]),
        (PARAMETERS, "<function=now>\n</function>\n</tool_call>", [NONE]),
        (PARAMETERS, "<tool_call><function=any><parameter=x>5</parameter></function></tool_call>",
         [("any", {"x": 5})]),
        (PARAMETERS, "<tool_call>\n<function=any>\n<parameter=x>\nTrue\n</parameter>\n</function>",
         [("any", {"x": True})]),
        (SEED, "<seed:tool_call>\n<function=now></function></seed:tool_call>", [NONE]),
        (LLAMA, '<|python_tag|>{"name": "any", "parameters": {"x": 1}}', [("any", {"x": 1})]),
        (LLAMA, ' {"type": "function", "name": "any", "parameters": {"x": 1}}', [("any", {"x": 1})]),
        (LLAMA, '[{"name": "now", "parameters": {}}, {"name": "now", "parameters": {}}]', [NONE, NONE]),
        (MISTRAL, '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abcdefghi"}]', [NONE]),
        (MISTRAL_ARGS, "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{}", [NONE, NONE]),
        (DEEPSEEK_R1, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```", [NONE]),
        (TOOL_CODE, "```tool_code\nprint(weather('Rome', days=2))\n```",
         [("weather", {"city": "Rome", "days": 2})]),
        (LFM2, "<|tool_call_start|>[a.b(x=None, y={'k': [1, -2.5]}), now()]<|tool_call_end|>",
         [("a.b", {"x": None, "y": {"k": [1, -2.5]}}), NONE]),
        (GENERIC, '```json\n{"name": "now", "arguments": {}}\n```', [NONE]),
    ],
)  # fmt: skip
def test_other_ways_to_write_it(format: ToolFormat, text: str, expected: list[Any]) -> None:
    message = parse(text, format, tools=TOOLS)
    assert (calls(message), message.content) == (expected, "")


def test_ids_that_the_model_wrote_are_kept() -> None:
    text = "[TOOL_CALLS]now[CALL_ID]abc123XYZ[ARGS]{}[TOOL_CALLS]now[ARGS]{}"
    assert [call.id for call in parse(text, MISTRAL_ARGS).tool_calls] == ["abc123XYZ", "id0"]
    text = '<tool_call>{"id": "7", "name": "now", "arguments": {}}</tool_call>'
    assert parse(text, HERMES).tool_calls[0].id == "7"


def test_new_ids() -> None:
    assert len({new_call_id(HERMES) for _ in range(100)}) == 100
    assert new_call_id(HERMES).startswith("call_") and new_call_id(None).startswith("call_")
    assert len(new_call_id(MISTRAL)) == 9 and new_call_id(MISTRAL).isalnum()


# ── content and reasoning beside calls ──

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "n_calls"),
    [
        ("hello \n", "hello \n", 0),
        (" \n hello", " \n hello", 0),
        (f"hello\n\n{CALL}\n", "hello", 1),
        (f"\n{CALL}\n{CALL}", "", 2),
        (f"a {CALL} b {CALL} c ", "a  b  c ", 2),
        (f"{CALL}\n\nafter", "after", 1),
        ("", "", 0),
        (" ", " ", 0),
    ],
)
def test_content_around_calls(text: str, content: str, n_calls: int) -> None:
    message = parse(text, HERMES)
    assert (message.content, len(message.tool_calls)) == (content, n_calls)


def test_thoughts_are_no_calls() -> None:
    message = parse(f"<think>\nI could {CALL}\n</think>\n\nOk.\n{CALL}", HERMES, tags=ThinkingTags())
    assert message == ParsedMessage(f"I could {CALL}", "Ok.", (ToolCall("id0", "now", "{}"),))
    opened = parse(f"hm</think>{CALL}", HERMES, tags=ThinkingTags(), thinking_open=True)
    assert (opened.reasoning, opened.content, len(opened.tool_calls)) == ("hm", "", 1)


def test_without_tools_nothing_is_a_call() -> None:
    assert parse(f" {CALL} \n", None) == ParsedMessage("", f" {CALL} \n")
    thought = parse(f"<think>a</think>{CALL}", None, tags=ThinkingTags())
    assert thought == ParsedMessage("a", CALL)


# ── what is no call is content, to the character ──

NO_CALLS = [
    (HERMES, "Write `<tool_call>` and then </tool_call>."),
    (HERMES, "```xml\n<tool_call>\nNAME\n</tool_call>\n``` \n"),
    (HERMES, "<tool_call>"),
    (HERMES, '<tool_call>\n{"name": "f", "argu'),
    (HERMES, "<tool_call>\n{name: f}\n</tool_call>"),
    (HERMES, '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {"a": 1,}, "name": "f"}</tool_call>'),
    (HERMES, "<tool_call>{}</tool_call>"),
    (HERMES, "<tool_call>[]</tool_call>"),
    (HERMES, "a < b <t <tool_cal l> <"),
    (HERMES, "<tool_call><tool_call> <tool_call>{{{"),
    (PARAMETERS, "<function=f> is how it begins"),
    (PARAMETERS, "<tool_call>\n<function=>\n<parameter=x>"),
    (PARAMETERS, "<tool_call>\n<function=f>\n<parameter=x"),
    (LLAMA, '{"name": "Ada", "parameters": {"age": 36}}'),
    (LLAMA, '{"name": "now"}'),
    (LLAMA, '[1, 2, {"name": "now", "parameters": {}}]'),
    (LLAMA, 'Look: {"name": "now", "parameters": {}}'),
    (LLAMA, "<|python_tag|>print(1)"),
    (LLAMA, '  {"a": 1} '),
    (MISTRAL, "[TOOL_CALLS] none"),
    (MISTRAL_ARGS, "[TOOL_CALLS]now [1]"),
    (MISTRAL_ARGS, "[TOOL_CALLS]now[ARGS]now"),
    (DEEPSEEK_R1, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n{}"),
    (TOOL_CODE, "```tool_code\nimport os\n```"),
    (TOOL_CODE, "```tool_code\nnow(f())\n```"),
    (TOOL_CODE, "```tool_code\nnow(1)\n```"),
    (TOOL_CODE, "```tool_code\nnow('"),
    (TOOL_CODE, "```python\nnow()\n```"),
    (GENERIC, '```json\n{"name": "Ada", "arguments": {}}\n```'),
    (GENERIC, '{"name": "now", "description": "d", "parameters": {}}'),
]


@pytest.mark.parametrize(("format", "text"), NO_CALLS)
def test_what_is_no_call_is_content(format: ToolFormat, text: str) -> None:
    assert parse(text, format, tools=TOOLS) == ParsedMessage("", text)


def test_a_call_after_one_that_is_none() -> None:
    message = parse(f"<tool_call>? {CALL}", HERMES)
    assert (message.content, len(message.tool_calls)) == ("<tool_call>?", 1)
    message = parse(f'<tool_call>{{"name": {CALL}', HERMES)
    assert (message.content, len(message.tool_calls)) == ('<tool_call>{"name":', 1)


@pytest.mark.parametrize(
    ("format", "text", "arguments", "content"),
    [
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call> z', '{"a": 1,}', "z"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "a "b""}}</tool_call>', '{"a": "a "b""}', ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "cut', '{"a": "cut', ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}} </tool', '{"a": 1}', "</tool"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>z', '{"a": 1}', "z"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}, oops}</tool_call>', "{}", ", oops}</tool_call>"),
        (LLAMA, '{"name": "any", "parameters": {a: 1}}', "{a: 1}", ""),
        (MISTRAL_ARGS, "[TOOL_CALLS]f[ARGS]{a}", "{a}", ""),
        (DEEPSEEK_V3_1, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{a}<｜tool▁call▁end｜>z", "{a}", "z"),
        (PARAMETERS, "<function=f><parameter=x>cut", '{"x": "cut', ""),
        (PARAMETERS, "<function=f><parameter=x>1</parameter>", '{"x": 1', ""),
        (PARAMETERS, "<function=f><parameter=x>1</parameter> ?", '{"x": 1}', "?"),
    ],
)  # fmt: skip
def test_a_call_that_breaks_in_its_arguments_stays_one(
    format: ToolFormat, text: str, arguments: str, content: str
) -> None:
    """It was passed on already: what the model wrote are its arguments."""
    message = parse(text, format, tools=TOOLS)
    assert [call.arguments for call in message.tool_calls] == [arguments]
    assert message.content.strip() == content


def test_a_break_ends_with_its_call() -> None:
    message = parse("[TOOL_CALLS]f[ARGS]{a[TOOL_CALLS]g[ARGS]{}", MISTRAL_ARGS)
    assert [(call.name, call.arguments) for call in message.tool_calls] == [("f", "{a"), ("g", "{}")]


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("5", INTEGER, "5"),
        ("5", STRING, '"5"'),
        ("five", INTEGER, '"five"'),
        ("5", {"type": ["string", "null"]}, '"5"'),
        ("null", {"type": ["string", "null"]}, "null"),
        ("None", {"type": "null"}, "null"),
        ("false", {"type": "boolean"}, "false"),
        ("2", {"type": "number"}, "2"),
        ("\n[1,\n 2]\n", {"type": "array"}, "[1,\n 2]"),
        ("\n\n a \n", STRING, '"\\n a "'),
        ("NaN", {"type": "number"}, '"NaN"'),
        ("C", {"enum": ["C", "F"]}, '"C"'),
        ("5", None, "5"),
        ("[" * 100_000, None, json.dumps("[" * 100_000)),
    ],
)
def test_values_between_tags_by_their_schema(text: str, schema: Any, expected: str) -> None:
    assert argument_json(text, schema) == expected


@pytest.mark.parametrize(
    "source",
    ["", "f", "f(*a)", "f(**a)", "f(g())", "f(x=1, x=2)", "f(x={1})", "f(x=1e999)", "f(x=b'')", "x = f()",
     "f(", "f(x=" + "[" * 5000, "f(x=" + "-" * 20_000 + "1)", "f(x={1: 2})", "f()()", "f(\0)"],
)  # fmt: skip
def test_python_that_is_no_plain_call(source: str) -> None:
    assert not python_calls(source, None)


# ── streaming ──

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FRAGMENTS = st.sampled_from(
    ['{"name": "now", "arguments": {', '"x": "', "}", "]", "[", ",", '"', "\\", " ", "\n", "now", "f(",
     "hi <", "<think>", "</think>", "<parameter=x>", "</parameter>", ">", "1", "'", "{}", "```", ";"]
    + [tag for format in ALL for pair in format.tags for tag in pair]
    + [text for format in ALL for text in (format.call_open, format.call_close, format.after_name)]
    + [format.written([("weather", '{"city": "a", "days": 1}')]) for format in ALL]
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.sampled_from(ALL),
    st.lists(FRAGMENTS | st.text(max_size=3), max_size=14).map("".join),
    st.lists(st.integers(0, 400), max_size=60),
    st.booleans(),
)
def test_any_cut_of_any_text_gives_the_same_message(
    format: ToolFormat, text: str, cuts: list[int], thinks: bool
) -> None:
    options = {"tools": TOOLS, "tags": ThinkingTags() if thinks else None}
    deltas = stream(text, format, cuts, **options)
    assert joined(deltas) == parse(text, format, **options)
    assert joined(stream(text, format, list(range(len(text))), **options)) == joined(deltas)


@settings(max_examples=150)
@given(st.sampled_from(ALL), st.lists(FRAGMENTS | st.text(max_size=3), max_size=14).map("".join))
def test_no_character_is_invented_and_what_is_dropped_is_a_tag(format: ToolFormat, text: str) -> None:
    """Content is a subsequence of the text, all of it where there is no call."""
    message = parse(text, format, tools=TOOLS)
    rest = iter(text)
    assert all(char in rest for char in message.content)
    if not message.tool_calls:
        assert message.content == text


@settings(max_examples=150)
@given(
    st.sampled_from(ALL), st.dictionaries(st.text("abc_", min_size=1, max_size=4), JSON_VALUES, max_size=3)
)
def test_any_arguments_are_read_back(format: ToolFormat, arguments: dict[str, Any]) -> None:
    if format.body == "python" and "_" in "".join(arguments):
        return
    text = format.written([("any", json.dumps(arguments, ensure_ascii=False))])
    [(name, found)] = calls(
        parse(text, format, tools=[tool("any", **{k: schema_of(v) for k, v in arguments.items()})])
    )
    assert (name, found) == ("any", arguments)


def schema_of(value: Any) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return {"type": names.get(type(value), "null")}


def test_deltas_come_as_early_as_they_are_certain() -> None:
    message = MessageStream(HERMES, tags=ThinkingTags(), new_id=lambda: "1")
    pieces = ["<think>a b", " c</think>\n\nAn answer", ". <tool", '_call>\n{"name": "wri',
              'te", "arguments": {"te', 'xt": "long', " text", '"}}', "\n</tool_call>"]  # fmt: skip
    assert [message.push(piece) for piece in pieces] == [
        [ReasoningDelta("a b")],
        [ReasoningDelta(" c"), ContentDelta("An answer")],
        [ContentDelta(".")],
        [],
        [ToolCallDelta(0, "1", "write", ""), ToolCallDelta(0, None, None, '{"te')],
        [ToolCallDelta(0, None, None, 'xt": "long')],
        [ToolCallDelta(0, None, None, " text")],
        [ToolCallDelta(0, None, None, '"}')],
        [],
    ]
    assert message.finish() == []


def test_a_string_between_tags_is_streamed() -> None:
    message = MessageStream(PARAMETERS, tools=TOOLS, new_id=lambda: "1")
    message.push("<tool_call>\n<function=write>\n<parameter=text>\n")
    pieces = [delta for _ in range(50) for delta in message.push('a "line"\n')]
    assert len(pieces) > 40
    assert all(isinstance(delta, ToolCallDelta) and len(delta.arguments) < 40 for delta in pieces)


def test_content_is_not_held_back() -> None:
    for format in ALL:
        message = MessageStream(format, tools=TOOLS)
        assert joined(message.push("Hello, world. 1 [2] {3} < 4")).content.startswith("Hello, world. 1 ")


# ── cost ──


@EVERY_FORMAT
def test_hostile_texts_take_linear_time(format: ToolFormat) -> None:
    """Each case far below the many seconds that a quadratic reader needs."""
    open = format.tags[-1][0]
    hostile = [
        *("<" * 20_000, "{" * 20_000, " " * 50_000, "a\n" * 20_000, open * 8_000, open + "[" * 100_000),
        *(open + '{"a":' * 20_000, (open + '{"name":"') * 2_000, (open + '{"arguments":"') * 2_000),
        *((open + "now(") * 2_000, (open + "now('\\'") * 2_000, open * 1_000 + "```"),
    ]
    for text in hostile:
        began = time.process_time()
        message = parse(text, format, tools=TOOLS)
        assert time.process_time() - began < 4
        assert message.content == text or message.tool_calls


@settings(max_examples=100)
@given(JSON_VALUES, st.sampled_from(["", " ", "}", "]", ",", "x"]), st.sampled_from([None, 1, 3]))
def test_the_scanner_finds_the_end_of_json(value: Any, after: str, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    scanner = JsonScanner()
    at = 0
    for end in range(len(text + after) + 1):
        at = scanner.scan((text + after)[:end], at)
    if not scanner.done:
        scanner.end()
    glued = after == "x" and not isinstance(value, str | list | dict)
    assert (scanner.done, at) == (True, len(text)) or glued


@settings(max_examples=200)
@given(st.text('{}[]",:0.e-tru\\n ', max_size=12))
def test_the_scanner_and_json_agree(text: str) -> None:
    scanner = JsonScanner()
    end = scanner.scan(text, 0)
    if not scanner.done:
        scanner.end()
    try:
        json.loads(text, strict=False)
        assert scanner.done and not text[end:].strip()
    except ValueError:
        assert not scanner.done or text[end:].strip()
