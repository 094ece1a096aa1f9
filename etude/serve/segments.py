"""A reply as a row of segments, each a thought, a text or a call: begun, added to, ended; one at a time.

Anthropic calls them content blocks, OpenAI's responses output items. What a client reads whole and what it
reads streamed are made from the same steps, so both say the same, however the text was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from etude.model.thinking import ThinkingTags
from etude.model.tokenizer import Tokenizer
from etude.model.tool_calls import ContentDelta, Delta, ReasoningDelta

Kind = Literal["thought", "text", "call"]


@dataclass
class Segment:
    """text: of a call its arguments, JSON as the model wrote it. call_id, name: of calls."""

    index: int
    kind: Kind
    text: str = ""
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Step:
    """A segment begins, grows by `text`, or ends."""

    what: Literal["begin", "add", "end"]
    segment: Segment
    text: str = ""


class Segments:
    """The segments of one reply so far.

    >>> segments = Segments()
    >>> steps = segments.push([ContentDelta("a"), ContentDelta("b")], ended=True)
    >>> [(step.what, step.text) for step in steps]
    [('begin', ''), ('add', 'a'), ('add', 'b'), ('end', '')]
    >>> segments.all
    [Segment(index=0, kind='text', text='ab', call_id='', name='')]
    """

    def __init__(self) -> None:
        self.all: list[Segment] = []
        self._is_open = False

    def push(self, deltas: Iterable[Delta], *, ended: bool = False) -> list[Step]:
        """The steps that deltas of a reply make. ended: nothing follows."""
        steps: list[Step] = []
        for delta in deltas:
            self._take(delta, steps)
        if ended:
            self._end(steps)
        return steps

    @property
    def thoughts(self) -> str:
        """All that was thought."""
        return "".join(segment.text for segment in self.all if segment.kind == "thought")

    @property
    def has_calls(self) -> bool:
        return any(segment.kind == "call" for segment in self.all)

    def _take(self, delta: Delta, steps: list[Step]) -> None:
        if isinstance(delta, ReasoningDelta):
            kind: Kind = "thought"
            text = delta.text
        elif isinstance(delta, ContentDelta):
            kind, text = "text", delta.text
        else:
            kind, text = "call", delta.arguments
            if delta.name is not None:
                self._begin(Segment(len(self.all), kind, "", delta.id or "", delta.name), steps)
        if not text:
            return
        if not self._is_open or self.all[-1].kind != kind:
            self._begin(Segment(len(self.all), kind), steps)
        self.all[-1].text += text
        steps.append(Step("add", self.all[-1], text))

    def _begin(self, segment: Segment, steps: list[Step]) -> None:
        self._end(steps)
        self.all.append(segment)
        self._is_open = True
        steps.append(Step("begin", segment))

    def _end(self, steps: list[Step]) -> None:
        if self._is_open:
            steps.append(Step("end", self.all[-1]))
        self._is_open = False


def n_thought(tokenizer: Tokenizer, token_ids: Sequence[int], tags: ThinkingTags) -> int:
    """How many tokens of a reply that has thoughts they take, tags included: those up to the closing tag."""
    tail = ""
    for count, token in enumerate(token_ids, start=1):
        tail = (tail + tokenizer.token_text(token))[-2 * len(tags.close) - 64 :]
        if tags.close in tail:
            return count
    return len(token_ids)
