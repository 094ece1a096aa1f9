"""Conversations in the forms that data sets have → `Message`s.

[{"role": "user", "content": "hi"}] as TRL, verl and OpenAI write it; [{"from": "human", "value": "hi"}] as
ShareGPT does; content as a list of text parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etude.data.rows import Row
from etude.records import Message

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
TEXT = "text"
"""The role of a message that is plain text, to be completed without a chat template."""


def messages_of(value: Any, row: Row, key: str) -> tuple[Message, ...]:
    """The messages of a column."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise row.error(f"{key} is {_shown(value)}, it should be a list of messages")
    return tuple(_message(item, row, key) for item in value)


def _message(item: Any, row: Row, key: str) -> Message:
    if not isinstance(item, Mapping):
        raise row.error(f"{key} has {_shown(item)} in it, a message is an object with role and content")
    role = item.get("role", item.get("from"))
    if not isinstance(role, str) or not role:
        raise row.error(f"a message in {key} has no role: {_shown(item)}")
    content = _content(item.get("content", item.get("value")), row, key)
    thoughts = item.get("reasoning_content")
    calls = item.get("tool_calls") or ()
    if content is None and not calls:
        raise row.error(f"a message in {key} has no content: {_shown(item)}")
    known = ("role", "from", "content", "value", "reasoning_content", "tool_calls")
    extra = {name: value for name, value in item.items() if name not in known and value is not None}
    return Message(ROLES.get(role, role), content or "", thoughts, tuple(calls), extra)


def _content(value: Any, row: Row, key: str) -> str | None:
    """Text, or the text of a list of parts."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        parts = [part if isinstance(part, str) else _text_part(part, row, key) for part in value]
        return "".join(parts)
    raise row.error(f"a message in {key} has {_shown(value)} as content, it should be text")


def _text_part(part: Any, row: Row, key: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise row.error(f"a message in {key} has {_shown(part)} in it; only text is supported")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
