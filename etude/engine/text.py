"""Token ids to text that is safe to show: never half a character, never the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TextStream(Protocol):
    """Incremental decoder of a tokenizer (`Tokenizer.stream`)."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class TextCutter:
    """Cuts a stream of tokens before the first stop string. Text that may be the start of one is held back.

    When two stop strings end in the same token, the one that begins first wins, as in llama.cpp.
    stopped_by: the one that was found.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str] = ()) -> None:
        self.stopped_by: str | None = None
        self._stream = stream
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self.stopped_by is not None

    def push(self, token_id: int) -> str:
        """The text that has become certain by this token."""
        return self._take(self._stream.push(token_id))

    def flush(self) -> str:
        """The rest, when no token follows."""
        text = self._take(self._stream.flush())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        starts = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            first, self.stopped_by = min(starts)
            return self._release(first)
        return self._release(len(self._held) - self._open_stop())

    def _release(self, length: int) -> str:
        certain, self._held = self._held[:length], self._held[length:]
        return certain

    def _open_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
