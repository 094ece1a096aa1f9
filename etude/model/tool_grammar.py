"""Grammars that hold a reply to its form: a call of a tool where one is required, JSON where it is asked for.

They are Lark in llguidance's dialect, with the JSON schema of each tool's parameters inside. What is written
is what the family's template writes, so the model stays on ground that it knows. With `choice` "auto" the
model may say what it likes; once it writes the tag that opens a call, the call has to be well formed.

A tag may be one token that plain text cannot spell (`[TOOL_CALLS]`): it then stands in the grammar by its id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etude.model.thinking import ThinkingTags
from etude.model.tool_formats import ToolFormat
from etude.records import EtudeError, Grammar

WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"
"""Between the parts of JSON, as in the engine's own grammars: without a bound, a model can write blanks for
ever."""
ANYTHING = r"/(.|\n)*/"
BLANKS = r"/[ \n]{0,4}/"


def tool_grammar(
    tools: Sequence[Mapping[str, Any]],
    format: ToolFormat,
    *,
    choice: str = "auto",
    parallel: bool = True,
    tags: ThinkingTags | None = None,
    thinking_open: bool = False,
    special_ids: Mapping[str, int] | None = None,
    budget: int | None = None,
) -> Grammar:
    """choice: "auto" (text, calls or both), "required" (calls only), or the name of the tool to call.

    parallel: whether several calls may follow each other. tags, thinking_open: thoughts may come first.
    special_ids: ids of the tokens that text cannot spell, by their texts. budget: most tokens of thoughts.
    EtudeError if a tool is not there.
    """
    functions = [tool.get("function", tool) for tool in tools]
    if choice not in ("auto", "required"):
        functions = [function for function in functions if function["name"] == choice]
    if not functions:
        names = ", ".join(tool.get("function", tool)["name"] for tool in tools) or "none"
        raise EtudeError(f"tool_choice names {choice!r}, but the request has the tools: {names}")
    writer = _Writer(special_ids or {})
    one = writer.rule("call", " | ".join(_call(writer, format, function) for function in functions))
    open, close = (writer.text(text) for text in format.section())
    separator = writer.text(format.separator)
    many = f"{one} ({separator} {one})*" if parallel and format.together else one
    inside = f"{many} {close}"
    section = f"{open} {inside}"
    if parallel and not format.together:
        section = f"{section} ({separator} {section})*"
    if choice != "auto":
        reply = section
    elif format.tags[0][0]:
        opened = (
            f"{writer.until(format.tags[0][0])} {writer.text(format.section()[0][len(format.tags[0][0]) :])}"
        )
        rest = writer.rule("tail", ANYTHING)
        reply = f"({opened} {inside})* {rest}" if parallel else f"{opened} {inside} | {rest}"
    else:
        reply = f"{section} | " + writer.rule("plain", r"/\s*([^\[{\s](.|\n)*)?/")
    return writer.grammar(reply, tags, thinking_open, budget)


def thought_grammar(
    budget: int, tags: ThinkingTags, *, thinking_open: bool = False, special_ids: Mapping[str, int]
) -> Grammar:
    """Thoughts of at most `budget` tokens, which are then closed; the answer is free, and may have any of the
    tokens in special_ids. EtudeError where no token of its own closes thoughts."""
    writer = _Writer(special_ids)
    free = writer.rule("text", ANYTHING)
    others = {id for text, id in special_ids.items() if text not in (tags.open, tags.close)}
    ids = ",".join(map(str, sorted(others)))
    return writer.grammar(f"{free} (<[{ids}]> {free})*" if ids else free, tags, thinking_open, budget)


def response_grammar(
    response_format: Mapping[str, Any] | None,
    *,
    tags: ThinkingTags | None = None,
    thinking_open: bool = False,
    special_ids: Mapping[str, int] | None = None,
    budget: int | None = None,
) -> Grammar | None:
    """OpenAI's `response_format` (and llama.cpp's, with a `schema` beside json_object) -> what holds the
    reply to it; thoughts stay free, up to `budget` tokens. EtudeError with the reason if it is none."""
    if response_format is None or (kind := response_format.get("type")) == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema", {"type": "object"})
    elif kind == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
    else:
        raise EtudeError(f"response_format.type is {kind!r}; it must be text, json_object or json_schema")
    if not isinstance(schema, Mapping):
        raise EtudeError(f"the schema of response_format is {json.dumps(schema)[:40]}; it must be an object")
    if tags is None:
        return Grammar("json_schema", json.dumps(schema))
    writer = _Writer(special_ids or {})
    return writer.grammar(writer.json(schema), tags, thinking_open, budget)


class _Writer:
    """Collects the rules of a grammar."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        self._special_ids = special_ids
        specials = sorted(special_ids, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None
        self._rules: list[str] = []

    def rule(self, name: str, body: str, attributes: str = "") -> str:
        """A new rule; its name."""
        name = f"{name}_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def text(self, text: str) -> str:
        """Exactly this text; tokens that text cannot spell by their ids."""
        parts: list[str] = []
        at = 0
        for found in self._specials.finditer(text) if self._specials else ():
            parts += [text[at : found.start()], f"<[{self._special_ids[found.group()]}]>"]
            at = found.end()
        parts.append(text[at:])
        return " ".join(part if i % 2 else _literal(part) for i, part in enumerate(parts) if part) or '""'

    def until(self, end: str, budget: int | None = None) -> str:
        """Anything up to and with the first `end`, which comes after `budget` tokens at the latest."""
        if end in self._special_ids:
            limit = "" if budget is None else f"[max_tokens={budget}]"
            free = "" if budget == 0 else self.rule("free", ANYTHING, limit)
            return f"{free} {self.text(end)}"
        if budget is not None:
            raise EtudeError(
                f"thoughts end with {end}, which is no single token of this model, so that they cannot be "
                "closed after a number of tokens: leave out the budget"
            )
        return self.rule("free", ANYTHING, f"[suffix={_literal(end)}]")

    def json(self, schema: Mapping[str, Any]) -> str:
        """A JSON value of this schema."""
        own = schema.get("x-guidance", {})
        options = {"whitespace_pattern": WHITESPACE, **(own if isinstance(own, Mapping) else {})}
        return self.rule("json", f"%json {json.dumps({**schema, 'x-guidance': options})}")

    def grammar(
        self, reply: str, tags: ThinkingTags | None, thinking_open: bool, budget: int | None
    ) -> Grammar:
        """All rules; thoughts come before the reply."""
        start = self.rule("reply", reply)
        if tags:
            thought = f"{self.until(tags.close, budget)} {self.rule('blanks', BLANKS)}"
            opened = thought if thinking_open else f"({self.text(tags.open)} {thought})?"
            start = f"{opened} {start}"
        return Grammar("lark", "\n".join(["%llguidance {}", f"start: {start}", *self._rules, ""]))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _call(writer: _Writer, format: ToolFormat, function: Mapping[str, Any]) -> str:
    """A rule for one call of one tool."""
    schema = dict(function.get("parameters") or {"type": "object", "properties": {}})
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    before, after = (writer.text(text) for text in format.call(function["name"]))
    if format.body in ("object", "named"):
        return writer.rule("tool", f"{before} {writer.json(schema)} {after}")
    required = [key for key in schema.get("required", ()) if key in schema.get("properties", {})]
    optional = [key for key in schema.get("properties", {}) if key not in required]
    if format.body == "python":
        arguments = _listed(
            writer,
            [f"{writer.text(f'{key}=')} {writer.json(_property(schema, key))}" for key in required],
            [f"{writer.text(f'{key}=')} {writer.json(_property(schema, key))}" for key in optional],
        )
    else:
        arguments = " ".join(
            [_parameter(writer, schema, key) for key in required]
            + [f"({_parameter(writer, schema, key)})?" for key in optional]
        )
    return writer.rule("tool", f"{before} {arguments} {after}")


def _property(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The schema of one parameter, with the definitions that it may refer to."""
    inner = schema["properties"][key]
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return {**shared, **(inner if isinstance(inner, Mapping) else {})}


def _listed(writer: _Writer, required: Sequence[str], optional: Sequence[str]) -> str:
    """All of `required` and any of `optional`, in order, with commas between."""
    rest = ""
    for item in reversed(optional):
        rest = writer.rule("some", f'{item} (", " {rest})? | {rest}' if rest else item)
    if not required:
        return f"({rest})?" if rest else ""
    return ' ", " '.join(required) + (f' (", " {rest})?' if rest else "")


def _parameter(writer: _Writer, schema: Mapping[str, Any], key: str) -> str:
    """<parameter=KEY>, its value and the end: strings as plain text, anything else as JSON."""
    inner = _property(schema, key)
    open, close = f"<parameter={key}>\n", "\n</parameter>\n"
    values = inner.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        choices = " | ".join(writer.text(value + close) for value in values)
        return f"{writer.text(open)} ({choices})"
    if inner.get("type") == "string":
        return f"{writer.text(open)} {writer.until(close)}"
    return f"{writer.text(open)} {writer.json(inner)} {writer.text(close)}"
