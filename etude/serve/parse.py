"""The text of a reply → what was thought, what was answered, which tools were called; while it streams.

A route makes one `ReplyParser` per choice and gives it the text as it comes. model/tool_calls.py takes the
text apart; here the pieces of one moment become one Part, and all of them the Reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etude.model.thinking import ThinkingTags
from etude.model.tool_calls import ContentDelta, Delta, MessageStream, ReasoningDelta, ToolCallDelta
from etude.model.tool_formats import ToolFormat


@dataclass
class Part:
    """What a piece of text added to a reply. calls: the first delta of a call has its id and name. deltas:
    all of it, in order."""

    reasoning: str = ""
    content: str = ""
    calls: list[ToolCallDelta] = field(default_factory=list)
    deltas: Sequence[Delta] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


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
            if call.name is not None:
                function = {"name": call.name, "arguments": ""}
                self.calls.append({"id": call.id or "", "type": "function", "function": function})
            self.calls[call.index]["function"]["arguments"] += call.arguments


class ReplyParser:
    """tags None: thinking stays in the content. opened: the prompt ended inside the thoughts. prefill: the
    beginning of the reply, which stood in the prompt: it counts, but is not given out again. format, tools:
    of calls; without a format nothing is one."""

    def __init__(
        self,
        tags: ThinkingTags | None,
        *,
        opened: bool = False,
        prefill: str = "",
        format: ToolFormat | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._stream = MessageStream(format, tags=tags, thinking_open=opened, tools=tools)
        self.reply = Reply()
        if prefill:
            self._stream.push(prefill)

    def push(self, text: str, *, ended: bool = False) -> Part:
        """What this text adds to the reply, as far as that is certain. ended: no text follows."""
        deltas = self._stream.push(text) if text else []
        part = _part([*deltas, *self._stream.finish()] if ended else deltas)
        self.reply.add(part)
        return part


def _part(deltas: Sequence[Delta]) -> Part:
    part = Part(deltas=deltas)
    for delta in deltas:
        if isinstance(delta, ReasoningDelta):
            part.reasoning += delta.text
        elif isinstance(delta, ContentDelta):
            part.content += delta.text
        else:
            part.calls.append(delta)
    return part
