"""The items of a response of OpenAI's, and the events that tell of them while they grow.

reasoning      output_item.added, content_part.added, reasoning_text.delta …, .done, content_part.done, …
message        output_item.added, content_part.added, output_text.delta …, .done, content_part.done, …
function_call  output_item.added, function_call_arguments.delta …, .done, …          … output_item.done
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etude.serve.openai_json import new_item_id
from etude.serve.segments import Segment, Step

PREFIXES = {"thought": "rs", "text": "msg", "call": "fc"}
TEXTS = {"thought": "reasoning_text", "text": "output_text"}


class TextTokens:
    """Which tokens wrote which text, where tags are taken out of the reply and some of it is held back for a
    while: a text is the end of what was written up to then, so its tokens are found backwards. Control tokens
    write nothing."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []

    def take(self, entry: dict[str, Any]) -> None:
        """A token, as the logprobs of a chat have it."""
        if entry["bytes"]:
            self._waiting.append(entry)

    def wrote(self, text: str) -> list[dict[str, Any]]:
        """Those of a text. What was written before it and is in no text was a tag.

        >>> tokens = TextTokens()
        >>> for written in (b"<t>", b"Hel", b"lo"):
        ...     tokens.take({"bytes": list(written)})
        >>> [bytes(entry["bytes"]) for entry in tokens.wrote("Hello")]
        [b'Hel', b'lo']
        """
        missing, found = len(text.encode("utf-8", "surrogatepass")), []
        while missing > 0 and self._waiting:
            found.append(self._waiting.pop())
            missing -= len(found[-1]["bytes"])
        self._waiting.clear()
        return found[::-1]


class Items:
    """Of one response; done: those that are complete."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._id = ""
        self._logprobs: list[dict[str, Any]] = []

    def events(
        self, step: Step, *, is_cut: bool, logprobs: Sequence[dict[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """What a step of the reply is told as. is_cut: a limit has ended the reply, and with it the item.
        logprobs: of the tokens that a text grew by."""
        segment = step.segment
        if step.what == "begin":
            self._id, self._logprobs = new_item_id(PREFIXES[segment.kind]), []
            found = self._begin(segment)
        elif step.what == "add":
            self._logprobs += logprobs
            found = [self._add(segment, step.text, logprobs)]
        else:
            found = self._end(segment, "incomplete" if is_cut else "completed")
        return [
            {"type": f"response.{each.pop('type')}", "output_index": segment.index, **each} for each in found
        ]

    def _begin(self, segment: Segment) -> list[dict[str, Any]]:
        added = {"type": "output_item.added", "item": self._item(segment, "in_progress", [], "")}
        if segment.kind == "call":
            return [added]
        return [added, self._of_part(segment, "content_part.added", part=_part(segment, "", ()))]

    def _add(self, segment: Segment, text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if segment.kind == "call":
            return {"type": "function_call_arguments.delta", "item_id": self._id, "delta": text}
        return self._of_part(
            segment, f"{TEXTS[segment.kind]}.delta", delta=text, **_logprobs(segment, logprobs)
        )

    def _end(self, segment: Segment, status: str) -> list[dict[str, Any]]:
        if segment.kind == "call":
            ended = [
                {
                    "type": "function_call_arguments.done",
                    "item_id": self._id,
                    "name": segment.name,
                    "arguments": segment.text,
                }
            ]
            item = self._item(segment, status, [], segment.text)
        else:
            part = _part(segment, segment.text, self._logprobs)
            said = f"{TEXTS[segment.kind]}.done"
            ended = [
                self._of_part(segment, said, text=segment.text, **_logprobs(segment, self._logprobs)),
                self._of_part(segment, "content_part.done", part=part),
            ]
            item = self._item(segment, status, [part], "")
        self.done.append(item)
        return [*ended, {"type": "output_item.done", "item": item}]

    def _of_part(self, segment: Segment, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self._id, "content_index": 0, **fields}

    def _item(
        self, segment: Segment, status: str, content: list[dict[str, Any]], arguments: str
    ) -> dict[str, Any]:
        if segment.kind == "call":
            return {
                "id": self._id,
                "type": "function_call",
                "status": status,
                "call_id": segment.call_id,
                "name": segment.name,
                "arguments": arguments,
            }
        if segment.kind == "thought":
            return {
                "id": self._id,
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": content,
                "encrypted_content": None,
            }
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


def _part(segment: Segment, text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if segment.kind == "thought":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _logprobs(segment: Segment, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A field that clients want to find beside text, also where nobody asked for logprobs."""
    return {"logprobs": list(logprobs)} if segment.kind == "text" else {}
