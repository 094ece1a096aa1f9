"""A completion as llama.cpp's slot keeps it: token by token, with its two limits that look at lines.

`n_indent` ends an answer at a line that is indented less; `t_max_predict_ms` at the first line that begins
after that time. Both are for filling in code. The engine knows neither: here the text is cut, and the caller
has the engine stop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from etude.records import TopLogprobs
from etude.serve.generation import Delta

BLANKS = " \t"


@dataclass
class LineLimits:
    """Port of process_token in llama.cpp's server-context.cpp (build 11434). Offsets are in characters."""

    n_indent: int = 0
    t_max_predict_ms: int = 0
    _seen_line: bool = False
    _line_at: int = 0

    def is_over(self, text: str, piece: str, generating_ms: float) -> int | None:
        """Where to cut `text`, which ends with the `piece` of the latest token; None: it goes on."""
        cut = self._indentation(text) if self._seen_line and self.n_indent > 0 else None
        if "\n" in piece:
            self._seen_line = True
            if 0 < self.t_max_predict_ms < generating_ms:
                cut = len(text) if cut is None else cut
        return cut

    def _indentation(self, text: str) -> int | None:
        cut = None
        if self._line_at > 0:
            at = self._line_at
            while at < len(text) and text[at] in BLANKS:
                at += 1
            if at < len(text) and at - self._line_at < self.n_indent:
                cut = at
        found = text.find("\n", self._line_at)
        if found >= 0:
            self._line_at = found + 1
        return cut


@dataclass
class NativeChoice:
    """What has come of a completion. Per-token lists have equal length (tops: or none). loose: text that
    the end set free without a token. is_cut: ended by a limit of lines; what still comes does not count."""

    limits: LineLimits = field(default_factory=LineLimits)
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    tops: list[TopLogprobs] = field(default_factory=list)
    loose: str = ""
    is_cut: bool = False

    def take(self, delta: Delta, generating_ms: float) -> range:
        """Add a delta; places of the tokens that it brought."""
        first = len(self.token_ids)
        if self.is_cut:
            return range(first, first)
        for at, piece in enumerate(delta.pieces):
            self.token_ids.append(delta.token_ids[at])
            self.pieces.append(piece)
            self.logprobs.append(delta.logprobs[at])
            self.raw_logprobs.append(delta.raw_logprobs[at])
            self.tops += delta.top_logprobs[at : at + 1]
            self.text += piece
            cut = self.limits.is_over(self.text, piece, generating_ms)
            if cut is not None:
                self.text, self.is_cut = self.text[:cut], True
                return range(first, len(self.token_ids))
        rest = delta.text[sum(map(len, delta.pieces)) :]
        self.text += rest
        if delta.pieces:
            self.pieces[-1] += rest
        else:
            self.loose += rest
        return range(first, len(self.token_ids))

    @property
    def has_new_line(self) -> bool:
        return "\n" in self.text
