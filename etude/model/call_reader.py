"""Reads the calls of tools that a model has written, in any of the formats, while they arrive.

Until it is certain that a call stands there (its name is known and its arguments begin) nothing is passed on,
and what turns out to be no call stays text. From then on the arguments are passed on as they come. If they
then break as JSON, they are still the call's arguments, as the model wrote them, up to the tag that ends the
call: the caller sees what is wrong with them and can tell the model. After the arguments, tags that are
missing are forgiven.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from etude.model.json_text import JsonScanner
from etude.model.python_calls import python_calls
from etude.model.text_reader import Reading, TextReader
from etude.model.tool_formats import ToolFormat

PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MAX_NAME = 256
MAX_HELD = 1 << 16
"""Characters of a call in Python that are held back until its end."""
MAX_VAIN = 1 << 18
"""Characters of a reply that are read in vain as calls in Python; after that its tags are text."""

Properties = Mapping[str, Mapping[str, Any]]
"""The JSON schemas of a tool's parameters."""


class Sink(Protocol):
    """Where calls go: first `begin`, then `add` for each piece of the arguments."""

    def begin(self, name: str, id: str | None) -> None: ...

    def add(self, arguments: str) -> None: ...


class CallReader:
    """tools: parameters by the names of the tools; None: not known."""

    def __init__(
        self, reader: TextReader, format: ToolFormat, tools: Mapping[str, Properties] | None, sink: Sink
    ) -> None:
        self._reader = reader
        self._format = format
        self._tools = tools
        self._sink = sink
        self._open = self._close = ""
        self._vain = 0

    def section(self, open: str, close: str) -> Reading[bool]:
        """Read what follows an opener that was read. False, and at any position, if it is no call."""
        self._open, self._close = open, close
        if self._format.body == "object":
            found = yield from self._objects()
        elif self._format.body == "named":
            found = yield from self._repeated(self._named)
        elif self._format.body == "parameters":
            found = yield from self._repeated(self._with_parameters)
        else:
            return (yield from self._python())
        if found and close:
            yield from self._reader.take(close)
        return found

    # ── JSON objects ──

    def _objects(self) -> Reading[bool]:
        """One object, several, or a list."""
        reader = self._reader
        listed = yield from reader.take("[")
        if not (yield from self._object()):
            return False
        while True:
            after = reader.at
            if listed and (yield from reader.take("]")):
                return True
            if not (yield from reader.take(",")):
                yield from reader.take(";")
            if (yield from reader.blanks()) != "{" or not (yield from self._object()):
                reader.at = after
                return True

    def _object(self) -> Reading[bool]:
        """{"name": …, "arguments": {…}} with the keys in any order, others among them."""
        reader = self._reader
        name = id = arguments = None
        begun = closed = False
        after = reader.at
        opened = yield from reader.take("{")
        while opened and (key := (yield from self._key())) is not None:
            if key in self._format.arguments_keys and not begun and arguments is None:
                if name and self._may_be(name) and (yield from reader.blanks()) == "{":
                    self._sink.begin(name, id)
                    begun = True
                    if not (yield from self._json_arguments()):
                        return True
                    after = reader.at
                else:
                    arguments = _object_text((yield from reader.json()))
                    if arguments is None:
                        return False
            elif (value := (yield from reader.json())) is None:
                break
            elif key == "name" and name is None:
                name = _string(value)
            elif key == "id":
                id = _string(value)
            if not (yield from reader.take(",")):
                closed = yield from reader.take("}")
                break
        if begun:
            if not closed:
                reader.at = after
                yield from reader.take("}")
            return True
        if not closed or not name or not self._may_be(name) or (arguments is None and self._format.bare):
            return False
        self._sink.begin(name, id)
        self._sink.add(arguments or "{}")
        return True

    def _key(self) -> Reading[str | None]:
        """A key and its colon."""
        if (yield from self._reader.blanks()) != '"':
            return None
        key = _string((yield from self._reader.json()))
        return key if (yield from self._reader.take(":")) else None

    def _may_be(self, name: str) -> bool:
        """Where calls need no tag, JSON is a call only if it names a tool."""
        return not self._format.bare or self._tools is None or name in self._tools

    def _json_arguments(self) -> Reading[bool]:
        """Pass on a JSON object as it comes. False if it broke, or the text ended; then its call is over."""
        reader, scanner = self._reader, JsonScanner()
        while True:
            end = scanner.scan(reader.text, reader.at)
            self._sink.add(reader.text[reader.at : end])
            reader.at = end
            reader.forget()
            if scanner.done:
                return True
            if scanner.broken or reader.ended:
                yield from self._broken_arguments()
                return False
            yield

    def _broken_arguments(self) -> Reading[None]:
        """What follows a break, up to the end of the call, as it is."""
        reader, format = self._reader, self._format
        end = format.call_close or self._close
        text = yield from reader.until(end or self._open) if end or self._open else _none()
        if text is None:
            while not reader.ended:
                yield
            text, reader.at = reader.text[reader.at :], len(reader.text)
        elif not end:
            reader.at -= len(self._open)
        kept = text.rstrip()
        if format.body == "object":
            kept = kept.removesuffix("]").rstrip() if format.listed else kept
            kept = kept.removesuffix("}")
        self._sink.add(kept.removesuffix(format.after_arguments.strip()).rstrip())

    # ── names in plain text ──

    def _repeated(self, one: Callable[[], Reading[bool]]) -> Reading[bool]:
        """One call, and more where they open each on their own."""
        call_open = self._format.call_open
        if call_open not in ("", self._open) and not (yield from self._reader.take(call_open)):
            return False
        if not (yield from one()):
            return False
        while call_open:
            after = self._reader.at
            if not (yield from self._reader.take(call_open)) or not (yield from one()):
                self._reader.at = after
                break
        return True

    def _named(self) -> Reading[bool]:
        """NAME, perhaps an id, then the arguments in JSON."""
        reader, format = self._reader, self._format
        if format.before_name and not (yield from reader.take(format.before_name)):
            return False
        name, id = (yield from self._word()), None
        if format.id_mark and (yield from reader.take(format.id_mark)):
            id = yield from self._word()
        if not name or not (yield from reader.take(format.after_name)):
            return False
        if (yield from reader.blanks()) != "{":
            return False
        self._sink.begin(name, id or None)
        if (yield from self._json_arguments()):
            for end in (format.after_arguments, format.call_close):
                if end:
                    yield from reader.take(end)
        return True

    def _word(self) -> Reading[str]:
        """A name or an id: anything without blanks and brackets."""
        reader = self._reader
        yield from reader.blanks()
        start = reader.at
        while (yield from reader.has()) and reader.at - start <= MAX_NAME:
            if reader.text[reader.at].isspace() or reader.text[reader.at] in "<>[]{}()\"'`,=":
                break
            reader.at += 1
        return reader.text[start : reader.at]

    # ── a tag for each argument ──

    def _with_parameters(self) -> Reading[bool]:
        """NAME>, then <parameter=KEY>VALUE</parameter> for each argument."""
        reader, close = self._reader, self._format.call_close
        name = yield from self._word()
        if not name or not (yield from reader.take(">")):
            return False
        if (yield from reader.take(close)):
            self._sink.begin(name, None)
            self._sink.add("{}")
            return True
        properties = (self._tools or {}).get(name, {})
        begun = False
        while (key := (yield from self._parameter_name())) is not None:
            if not begun:
                self._sink.begin(name, None)
            self._sink.add((", " if begun else "{") + _quoted(key) + ": ")
            begun = True
            if not (yield from self._parameter(properties.get(key))):
                return True
        if begun:
            after = reader.at
            if (yield from reader.blanks()):  # at the end of the text the arguments stay open
                self._sink.add("}")
            reader.at = after
            yield from reader.take(close)
        return begun

    def _parameter_name(self) -> Reading[str | None]:
        """<parameter=KEY>, or None and nothing read."""
        after = self._reader.at
        if (yield from self._reader.take(PARAMETER)):
            key = yield from self._reader.until(">", MAX_NAME)
            if key is not None:
                return key.strip()
        self._reader.at = after
        return None

    def _parameter(self, schema: Mapping[str, Any] | None) -> Reading[bool]:
        """The value of one. False if the text ends in it."""
        reader = self._reader
        if _types(schema) != {"string"}:
            value = yield from reader.until(PARAMETER_END)
            if value is not None:
                self._sink.add(argument_json(value, schema))
                reader.forget()
                return True
        if (yield from reader.has()) and reader.text[reader.at] == "\n":
            reader.at += 1
        self._sink.add('"')
        while (end := reader.text.find(PARAMETER_END, reader.at)) < 0:
            certain = len(reader.text) - (0 if reader.ended else len(PARAMETER_END))
            if certain > reader.at:
                self._sink.add(_escaped(reader.text[reader.at : certain]))
                reader.at = certain
                reader.forget()
            if reader.ended:
                return False
            yield
        self._sink.add(_escaped(reader.text[reader.at : end].removesuffix("\n")) + '"')
        reader.at = end + len(PARAMETER_END)
        reader.forget()
        return True

    # ── Python ──

    def _python(self) -> Reading[bool]:
        """NAME(key=value, …), all of it at once: it is only known as a call when it has ended."""
        source = yield from self._python_source()
        calls = None if source is None else python_calls(source, self._tools)
        self._vain += 0 if source is None or calls else len(source)
        for name, arguments in calls or ():
            self._sink.begin(name, None)
            self._sink.add(arguments)
        return bool(calls)

    def _python_source(self) -> Reading[str | None]:
        """The text before the closer, which is read; closers inside quotes do not count."""
        reader, quote = self._reader, ""
        at = start = reader.at
        while at - start < MAX_HELD and self._vain < MAX_VAIN:
            here = reader.text[at : at + len(self._close)]
            if not quote and here == self._close:
                reader.at = at + len(self._close)
                return reader.text[start:at]
            if len(here) < len(self._close) and not reader.ended:
                yield
            elif not here:
                break
            elif quote and here[0] == "\\":
                at += 2
            else:
                quote = ("" if here[0] == quote else quote) if quote else here[0] if here[0] in "\"'" else ""
                at += 1
        self._vain += at - start
        return None


def _none() -> Reading[None]:
    """A reading that finds nothing."""
    return None
    yield


def _string(value: str | None) -> str | None:
    """A JSON text, if it is a string."""
    try:
        decoded = json.loads(value, strict=False) if value is not None else None
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, str) else None


def _object_text(value: str | None) -> str | None:
    """Arguments as the text of an object; some models write that text as a string, or null for none."""
    if value is None or value.startswith("{"):
        return value
    if value == "null":
        return "{}"
    inner = _string(value)
    return inner if inner is not None and inner.lstrip().startswith("{") else None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _quoted(text)[1:-1]


def _types(schema: Mapping[str, Any] | None) -> set[str]:
    """The JSON types that a schema allows; empty: any."""
    if not isinstance(schema, Mapping):
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {item for item in kind if isinstance(item, str)}
    if isinstance(values := schema.get("enum"), list):
        return {"string"} if all(isinstance(value, str) for value in values) else set()
    return set()


def argument_json(text: str, schema: Mapping[str, Any] | None) -> str:
    """What stands between the tags of an argument, as JSON: what the schema allows, else a string.

    >>> argument_json("\\n5\\n", {"type": "integer"}), argument_json("5", {"type": "string"})
    ('5', '"5"')
    """
    text = text.removeprefix("\n").removesuffix("\n")
    types = _types(schema)
    written = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text.strip())
    try:
        value = json.loads(written, strict=False)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return _quoted(text)
    if types and _type_of(value) not in types and not (_type_of(value) == "integer" and "number" in types):
        return _quoted(text)
    return written


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
