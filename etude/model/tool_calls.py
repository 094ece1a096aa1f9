"""What a chat model wrote, taken apart: its reasoning, its answer, and its calls of tools; whole or streamed.

However the text is cut into pieces, the result is the same, and the deltas add up to it. All of the text is
in exactly one place; only tags, and blanks beside calls, are dropped. What looks like a call and is none
(unclosed, malformed before its arguments begin, without a name) is content. A call that is well formed is a
call even if the model quoted it in a block of code, as in other servers.

The text must contain the tags: a token such as `[TOOL_CALLS]` has to be written out when ids become text.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.model.call_reader import CallReader, Properties
from etude.model.text_reader import Reading, TextReader
from etude.model.thinking import ThinkingStream, ThinkingTags
from etude.model.tool_formats import ToolFormat

ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text as the model wrote it; it may be cut off or broken, so read it with care."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ParsedMessage:
    """A reply of a model. reasoning is "" where it did not think."""

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the thoughts."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """Call `index`: the first delta of a call has its id and name, the others more of its arguments."""

    index: int
    id: str | None
    name: str | None
    arguments: str


Delta = ReasoningDelta | ContentDelta | ToolCallDelta


class MessageStream:
    """Takes a reply apart while it arrives.

    format: None where the request has no tools; then nothing is a call. tags: of thoughts, None if the model
    has none. thinking_open: the prompt ended inside the thoughts. tools: OpenAI's descriptions; they give the
    types of arguments that are written without one, and the names that JSON without tags must have.
    new_id: makes the id of a call that was written without one.
    """

    def __init__(
        self,
        format: ToolFormat | None,
        *,
        tags: ThinkingTags | None = None,
        thinking_open: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._thinking = ThinkingStream(tags, opened=thinking_open) if tags else None
        self._calls = CallSplitter(format, tools, new_id or (lambda: new_call_id(format))) if format else None
        self._finished = False

    def push(self, text: str) -> list[Delta]:
        """What this piece makes certain."""
        assert not self._finished, "the message has ended"
        split = self._thinking.push(text) if self._thinking else None
        deltas: list[Delta] = [ReasoningDelta(split.thinking)] if split and split.thinking else []
        return deltas + self._answer(split.answer if split else text)

    def finish(self) -> list[Delta]:
        """The rest, when no text follows."""
        self._finished = True
        split = self._thinking.flush() if self._thinking else None
        deltas: list[Delta] = [ReasoningDelta(split.thinking)] if split and split.thinking else []
        return deltas + self._answer(split.answer if split else "", ended=True)

    def _answer(self, text: str, ended: bool = False) -> list[Delta]:
        if self._calls:
            return self._calls.push(text, ended)
        return [ContentDelta(text)] if text else []


def parse_message(
    text: str,
    *,
    format: ToolFormat | None,
    tags: ThinkingTags | None = None,
    thinking_open: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    new_id: Callable[[], str] | None = None,
) -> ParsedMessage:
    """A whole reply, taken apart; arguments as for `MessageStream`.

    >>> from etude.model.tool_formats import HERMES
    >>> text = 'Let me look.\\n<tool_call>\\n{"name": "f", "arguments": {"a": 1}}\\n</tool_call>'
    >>> message = parse_message(text, format=HERMES, new_id=lambda: "1")
    >>> message.content, message.tool_calls
    ('Let me look.', (ToolCall(id='1', name='f', arguments='{"a": 1}'),))
    """
    stream = MessageStream(format, tags=tags, thinking_open=thinking_open, tools=tools, new_id=new_id)
    return joined([*stream.push(text), *stream.finish()])


def joined(deltas: Iterable[Delta]) -> ParsedMessage:
    """The message that a stream of deltas adds up to."""
    reasoning, content = "", ""
    calls: list[ToolCall] = []
    for delta in deltas:
        if isinstance(delta, ReasoningDelta):
            reasoning += delta.text
        elif isinstance(delta, ContentDelta):
            content += delta.text
        elif delta.name is not None:
            calls.append(ToolCall(delta.id or "", delta.name, delta.arguments))
        else:
            last = calls[delta.index]
            calls[delta.index] = ToolCall(last.id, last.name, last.arguments + delta.arguments)
    return ParsedMessage(reasoning, content, tuple(calls))


def new_call_id(format: ToolFormat | None) -> str:
    """A random id, of the length that the format asks for."""
    length = (format.id_characters if format else 0) or 24
    random = "".join(secrets.choice(ALPHANUMERIC) for _ in range(length))
    return random if format and format.id_characters else f"call_{random}"


def parameters_of(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Properties] | None:
    """Tools as OpenAI's API describes them -> the schemas of their parameters by name."""
    if tools is None:
        return None
    functions = [tool.get("function", tool) for tool in tools]
    return {
        function["name"]: (function.get("parameters") or {}).get("properties") or {} for function in functions
    }


class CallSplitter:
    """An answer in pieces -> deltas of content and calls. It is the sink of its `CallReader`."""

    def __init__(
        self, format: ToolFormat, tools: Sequence[Mapping[str, Any]] | None, new_id: Callable[[], str]
    ) -> None:
        self._reader = TextReader()
        self._call_reader = CallReader(self._reader, format, parameters_of(tools), self)
        self._closes = {open: close for open, close in format.tags if open}
        self._bare = format.bare
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self._new_content: list[str] = []
        self._n_calls = 0
        self._has_content = False
        self._after_call = False
        self._blanks = ""  # at the end of the content so far; dropped if calls follow
        self._reading: Reading[None] | None = self._read()

    def push(self, text: str, ended: bool = False) -> list[Delta]:
        """What has become certain. ended: no text follows."""
        self._reader.push(text)
        self._reader.ended = ended
        if self._reading is not None and next(self._reading, self) is self:
            self._reading = None
        self._close_content()
        deltas, self._deltas = self._deltas, []
        return deltas

    def begin(self, name: str, id: str | None) -> None:
        """A call begins."""
        self._close_content()
        self._deltas.append(ToolCallDelta(self._n_calls, id or self._new_id(), name, ""))
        self._n_calls += 1
        self._after_call = True

    def add(self, arguments: str) -> None:
        """More of the arguments of the call that was begun last."""
        last = self._deltas[-1] if self._deltas else None
        if isinstance(last, ToolCallDelta) and last.name is None:
            self._deltas[-1] = ToolCallDelta(last.index, None, None, last.arguments + arguments)
        elif arguments:
            self._deltas.append(ToolCallDelta(self._n_calls - 1, None, None, arguments))

    def _read(self) -> Reading[None]:
        """The whole answer."""
        reader = self._reader
        if self._bare and (char := (yield from reader.blanks())) and char in "[{":
            start = reader.at
            if not (yield from self._call_reader.section("", "")):
                reader.at = start
        if not self._n_calls:
            reader.at = 0
        starts = re.compile("[" + re.escape("".join({open[0] for open in self._closes})) + "]")
        while (yield from reader.has()):
            reader.forget()
            found = starts.search(reader.text, reader.at)
            if found is None or found.start() > reader.at:
                end = found.start() if found else len(reader.text)
                self._content(reader.text[reader.at : end])
                reader.at = end
                continue
            yield from self._tag_or_content()
        if self._blanks and not self._after_call:
            self._new_content.append(self._blanks)

    def _tag_or_content(self) -> Reading[None]:
        """At a character that begins a tag."""
        reader, start = self._reader, self._reader.at
        open = yield from reader.starts(list(self._closes))
        if open is not None:
            reader.at += len(open)
            if (yield from self._call_reader.section(open, self._closes[open])):
                return
        reader.at = start + len(open or " ")
        self._content(reader.text[start : reader.at])

    def _content(self, text: str) -> None:
        """Text that is no call. Blanks at its end wait: beside a call they are dropped."""
        solid = text.rstrip()
        if not solid:
            self._blanks += text
            return
        if self._has_content or not self._n_calls:
            solid = self._blanks + solid
        else:
            solid = solid.lstrip()
        self._blanks = text[len(text.rstrip()) :]
        self._has_content, self._after_call = True, False
        self._new_content.append(solid)

    def _close_content(self) -> None:
        """One delta of the content that came in a row."""
        if self._new_content:
            self._deltas.append(ContentDelta("".join(self._new_content)))
            self._new_content = []
