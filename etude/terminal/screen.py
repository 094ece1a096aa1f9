"""Where things are shown: answers on the standard output, everything else on the error output.

So a piped chat gives the answers alone. Thinking is dim on a terminal; when the output is no terminal it
goes to the error output. Colours follow --color, then NO_COLOR (no-color.org), then whether it is a
terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

DIM, RED, BOLD, PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[1m", "\x1b[0m"

# A model can write any character. On a terminal, those that steer it are shown instead of obeyed.
VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
VISIBLE |= {0x7F: "\u2421"} | {code: "\ufffd" for code in range(0x80, 0xA0)}


def wants_color(flag: bool | None, environ: Mapping[str, str], stream: TextIO) -> bool:
    """--color on or off, else NO_COLOR, else whether it is a terminal that knows colours."""
    if flag is not None:
        return flag
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Screen:
    """Writes at once: what was written is to be seen even if the next token takes a second."""

    def __init__(self, out: TextIO, err: TextIO, *, color: bool = False) -> None:
        self.out = out
        self.err = err
        self.color = color
        self.is_terminal = out.isatty()
        self._at_line_start = True
        self._thinking = False

    def answer(self, text: str) -> None:
        """Text of the answer."""
        if self._thinking:
            self._thinking = False
            self._write(self._thinking_stream, f"{'' if self._at_line_start else chr(10)}\n")
        self._write(self.out, text)

    def thinking(self, text: str) -> None:
        """Text of the thinking."""
        self._thinking = True
        self._write(self._thinking_stream, text, DIM)

    def end_answer(self) -> None:
        """End its last line."""
        if not self._at_line_start:
            self._write(self._thinking_stream if self._thinking else self.out, "\n")
        self._thinking = False
        self._at_line_start = True

    def note(self, text: str) -> None:
        """Something about the session: dim, on the error output."""
        print(self._styled(self._harmless(text, self.err), DIM), file=self.err, flush=True)

    def error(self, text: str) -> None:
        """Something that did not work."""
        print(self._styled(self._harmless(text, self.err), RED), file=self.err, flush=True)

    @property
    def _thinking_stream(self) -> TextIO:
        return self.out if self.is_terminal else self.err

    def _write(self, stream: TextIO, text: str, style: str = "") -> None:
        if not text:
            return
        shown = self._harmless(text, stream)
        stream.write(self._styled(shown, style) if style else shown)
        stream.flush()
        self._at_line_start = text.endswith("\n")

    @staticmethod
    def _harmless(text: str, stream: TextIO) -> str:
        return text.translate(VISIBLE) if stream.isatty() else text

    def _styled(self, text: str, style: str) -> str:
        return f"{style}{text}{PLAIN}" if self.color and text else text
