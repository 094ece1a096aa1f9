"""A text that arrives in pieces, read as if it were whole.

What reads is a generator: it asks for characters and is suspended where they have not come yet. So a parser
is written once, for whole texts, and gives the same result wherever the text was cut. `None` is yielded to
ask for more.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

from etude.model.json_text import JsonScanner

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A reading that is suspended while it waits for text."""

KEPT = 4096


class TextReader:
    """`text` from position `at` on is unread. `ended`: nothing follows."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False

    def push(self, text: str) -> None:
        """More of the text."""
        self.text += text

    def forget(self) -> None:
        """Drop what was read; positions kept from before are void. Call it where nothing is read again."""
        if self.at > KEPT:
            self.text, self.at = self.text[self.at :], 0

    def has(self, count: int = 1) -> Reading[bool]:
        """Whether so many characters follow."""
        while len(self.text) < self.at + count:
            if self.ended:
                return False
            yield
        return True

    def blanks(self) -> Reading[str]:
        """Skip whitespace; the next character, "" at the end."""
        while (yield from self.has()):
            if not self.text[self.at].isspace():
                return self.text[self.at]
            self.at += 1
        return ""

    def starts(self, literals: Sequence[str]) -> Reading[str | None]:
        """The first of `literals` that stands here; nothing is read."""
        while True:
            here = self.text[self.at : self.at + max(map(len, literals), default=0)]
            open_still = False
            for literal in literals:
                if here.startswith(literal):
                    return literal
                open_still = open_still or literal.startswith(here)
            if not open_still or self.ended:
                return None
            yield

    def take(self, literal: str) -> Reading[bool]:
        """Read whitespace and then `literal` (without its own around it); if that is not there, nothing."""
        start = self.at
        yield from self.blanks()
        wanted = literal.strip()
        if (yield from self.starts([wanted])) is not None:
            self.at += len(wanted)
            return True
        self.at = start
        return False

    def until(self, literal: str, limit: int | None = None) -> Reading[str | None]:
        """The text before `literal`, which is read too. None, and nothing read, where it does not follow
        (within `limit` characters)."""
        searched = self.at
        while (found := self.text.find(literal, searched)) < 0:
            searched = max(self.at, len(self.text) - len(literal) + 1)
            if self.ended or (limit is not None and searched - self.at > limit):
                return None
            yield
        if limit is not None and found - self.at > limit:
            return None
        taken, self.at = self.text[self.at : found], found + len(literal)
        return taken

    def json(self) -> Reading[str | None]:
        """One JSON value as it is written; None, and nothing read, if there is none."""
        start = self.at
        if not (yield from self.blanks()):
            self.at = start
            return None
        first, scanner = self.at, JsonScanner()
        while True:
            self.at = scanner.scan(self.text, self.at)
            if scanner.done or scanner.broken:
                break
            if self.ended:
                scanner.end()
                break
            yield
        if scanner.done:
            return self.text[first : self.at]
        self.at = start
        return None
