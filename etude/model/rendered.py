"""A rendered prompt: what a chat template gave, and which special texts in it are not the template's.

The text alone does not say whether a `<|im_end|>` in it came from the template or from somebody's message.
The template can tell: it renders once more with a mark inside each special text of the messages (a character
that occurs nowhere else), which shows where those texts came to lie. A tokenizer asks for that with its own
special texts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

MARKS = (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))
"""Candidates for the mark, noncharacters and private-use ones: the first that the text does not have."""


class RenderedPrompt(str):
    """The prompt as text, for people; `locate` is for the tokenizer.

    An operation on it, such as `+`, gives a plain `str`: no tokenizer takes that for a rendered prompt by
    accident.
    """

    _render_marked: Callable[[Collection[str], str], str]

    def __new__(cls, text: str, render_marked: Callable[[Collection[str], str], str]) -> RenderedPrompt:
        """render_marked(specials, mark): the same prompt with `mark` after the first character of every
        occurrence of one of `specials` in what the caller gave to the template."""
        prompt = super().__new__(cls, text)
        prompt._render_marked = render_marked
        return prompt

    def locate(self, specials: Collection[str]) -> tuple[str, frozenset[int]]:
        """The text, and the positions inside occurrences of `specials` that are to stay text.

        A special token of the template never has such a position between its first and last character.
        """
        mark = next(chr(code_point) for code_point in MARKS if chr(code_point) not in self)
        marked = self._render_marked(specials, mark)
        pieces = marked.split(mark)
        positions, length = set(), 0
        for piece in pieces[:-1]:
            length += len(piece)
            positions.add(length)
        return "".join(pieces), frozenset(positions)

    def extended(self, text: str) -> RenderedPrompt:
        """The prompt with `text`, such as the beginning of an answer, after it; specials in it stay text."""

        def render_marked(specials: Collection[str], mark: str) -> str:
            return self._render_marked(specials, mark) + mark_specials(text, specials, mark)

        return RenderedPrompt(str(self) + text, render_marked)


def mark_specials(text: str, specials: Collection[str], mark: str) -> str:
    """`text` with `mark` after the first character of each occurrence of one of `specials`.

    A beginning of one at the end of the text is marked as well: the template may put other text behind it.

    >>> mark_specials("a <s> b <", ["<s>"], "^")
    'a <^s> b <^'
    """
    positions = set()
    end = len(text.rstrip())
    for special in specials:
        start = text.find(special)
        while start >= 0:
            positions.add(start + 1)
            start = text.find(special, start + 1)
        positions.update(end - n + 1 for n in range(1, len(special)) if text.endswith(special[:n], 0, end))
    if not positions:
        return text
    cuts = [0, *sorted(positions), len(text)]
    return mark.join(text[start:stop] for start, stop in pairwise(cuts))
