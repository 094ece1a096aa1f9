"""The text of a reply → what was thought, what was answered, which tools were called; while it streams.

A route makes one `ReplyParser` per choice and gives it the text as it comes. What a format does with tools is
a ToolParser's affair, which sees the answer only, never the thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from etude.model.thinking import Split, ThinkingStream, ThinkingTags


@dataclass(frozen=True)
class CallDelta:
    """What was added to tool call `index` of a reply: its name first, then pieces of the JSON arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Part:
    """What a piece of text added to a reply."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class ToolParser(Protocol):
    """Takes an answer apart into text and calls."""

    def push(self, text: str) -> Part: ...

    def flush(self) -> Part: ...


@dataclass
class Reply:
    """A whole reply. calls: as OpenAI's tool_calls, arguments as text."""

    reasoning: str = ""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Take what a piece of text added."""
        self.reasoning += part.reasoning
        self.content += part.content
        for call in part.calls:
            while len(self.calls) <= call.index:
                self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            found = self.calls[call.index]
            found["id"] = call.id or found["id"]
            found["function"]["name"] += call.name or ""
            found["function"]["arguments"] += call.arguments


class ReplyParser:
    """tags None: thinking stays in the content. opened: the prompt ended inside the thoughts. prefill: the
    beginning of the reply, which stood in the prompt: it counts, but is not given out again."""

    def __init__(
        self,
        tags: ThinkingTags | None,
        *,
        opened: bool = False,
        prefill: str = "",
        tools: ToolParser | None = None,
    ) -> None:
        self._thinking = None if tags is None else ThinkingStream(tags, opened=opened)
        self._tools = tools
        self.reply = Reply()
        if prefill and self._thinking is not None:
            self._thinking.push(prefill)

    def push(self, text: str) -> Part:
        """What this text adds to the reply, as far as that is certain."""
        if self._thinking is None:
            return self._taken("", text)
        return self._split(self._thinking.push(text))

    def flush(self) -> Part:
        """The rest, when no text follows."""
        part = Part() if self._thinking is None else self._split(self._thinking.flush())
        if self._tools is None:
            return part
        rest = self._tools.flush()
        self.reply.add(rest)
        return Part(part.reasoning, part.content + rest.content, part.calls + rest.calls)

    def _split(self, split: Split) -> Part:
        return self._taken(split.thinking or "", split.answer)

    def _taken(self, thought: str, answer: str) -> Part:
        if self._tools is None:
            part = Part(thought, answer)
        else:
            found = self._tools.push(answer) if answer else Part()
            part = Part(thought, found.content, found.calls)
        self.reply.add(part)
        return part


def whole(parser: ReplyParser, texts: Sequence[str]) -> Reply:
    """A reply that is there already."""
    for text in texts:
        parser.push(text)
    parser.flush()
    return parser.reply
