"""Separates what a reasoning model thinks, `<think>…</think>`, from what it answers; whole or while it
streams.

Only a block at the very beginning counts: later tags are part of the answer, which may be about them. A
template may have opened the block in the prompt already (DeepSeek-R1's does). Whitespace at the edges of the
block goes with the tags.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkingTags:
    """What opens and closes the block."""

    open: str = "<think>"
    close: str = "</think>"


KNOWN_TAGS = (
    ThinkingTags(),
    ThinkingTags("[THINK]", "[/THINK]"),  # Magistral
    ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ThinkingTags("<seed:think>", "</seed:think>"),
    ThinkingTags("<thinking>", "</thinking>"),
    ThinkingTags("<reasoning>", "</reasoning>"),
)


@dataclass(frozen=True)
class Split:
    """Text that was thought and text that was answered. `thinking` is None where there was no block."""

    thinking: str | None
    answer: str


def split_thinking(text: str, tags: ThinkingTags = KNOWN_TAGS[0], *, opened: bool = False) -> Split:
    """A whole reply, split. opened: the prompt ended inside the block. A block that never ends has no answer.

    >>> split_thinking("<think>\\n2 + 2 = 4\\n</think>\\n\\nFour.")
    Split(thinking='2 + 2 = 4', answer='Four.')
    """
    stream = ThinkingStream(tags, opened=opened)
    parts = [stream.push(text), stream.flush()]
    answer = "".join(part.answer for part in parts)
    if not stream.has_thought:
        return Split(None, answer)
    return Split("".join(part.thinking or "" for part in parts), answer)


class ThinkingStream:
    """The same for a reply that comes in pieces, cut anywhere; what is certain is given out at once."""

    def __init__(self, tags: ThinkingTags = KNOWN_TAGS[0], *, opened: bool = False) -> None:
        self._tags = tags
        self._held = ""  # text whose meaning depends on what comes next
        self._state = "thinking" if opened else "start"
        self._at_edge = True  # whitespace here belongs to a tag
        self.has_thought = opened

    @property
    def thinking(self) -> bool:
        """Whether the reply is inside the block now."""
        return self._state == "thinking"

    def push(self, text: str) -> Split:
        """What this piece adds to the thoughts and to the answer. `thinking` is None when it adds none."""
        self._held += text
        if self._state == "start":
            self._decide()
        thought = self._take_thought() if self._state == "thinking" else ""
        return Split(thought or None, self._take_answer() if self._state == "answer" else "")

    def flush(self) -> Split:
        """What was held back, at the end of the reply."""
        held, self._held = self._held, ""
        if self._state == "thinking":
            return Split(held.strip() if self._at_edge else held.rstrip(), "")
        return Split(None, held)

    def _decide(self) -> None:
        """Whether the reply begins with the block, once that is certain."""
        beginning = self._held.lstrip()
        if beginning.startswith(self._tags.open):
            self._state, self._held = "thinking", beginning[len(self._tags.open) :]
            self.has_thought = True
        elif not self._tags.open.startswith(beginning):
            self._state, self._at_edge = "answer", False

    def _take_thought(self) -> str:
        if self._at_edge:
            self._held = self._held.lstrip()
        thought, close, rest = self._held.partition(self._tags.close)
        if close:
            self._state, self._held, self._at_edge = "answer", rest, True
            return thought.rstrip()
        certain = len(thought) - _overlap(thought, self._tags.close)
        certain = len(thought[:certain].rstrip())
        self._held = self._held[certain:]
        self._at_edge = self._at_edge and certain == 0
        return thought[:certain]

    def _take_answer(self) -> str:
        answer, self._held = self._held.lstrip() if self._at_edge else self._held, ""
        self._at_edge = self._at_edge and not answer
        return answer


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of the tag."""
    return next(size for size in range(min(len(text), len(tag) - 1), -1, -1) if text.endswith(tag[:size]))
