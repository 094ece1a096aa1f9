"""Where a JSON value ends, while its text still arrives: character by character, without recursion.

`json.loads` needs the whole text. A stream of arguments is passed on as it comes, so something must say at
each character whether the value goes on, has ended, or is no JSON. Control characters inside strings, which
models write, are let through here; `json.loads(…, strict=False)` reads them.
"""

from __future__ import annotations

import re

BLANKS = " \t\n\r"
PLAIN = re.compile(r'[^"\\]*')
SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
SCALARS = re.compile(r"true|false|null|-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
HEX = "0123456789abcdefABCDEF"


class JsonScanner:
    """Reads one value. `done`: it has ended; `broken`: it can be no JSON any more."""

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._state = "value"
        self._closers: list[str] = []  # of the open brackets
        self._is_key = False
        self._hex_left = 0
        self._scalar = ""

    def scan(self, text: str, at: int) -> int:
        """Read from `at` on; the position after the last character that belongs to the value."""
        while at < len(text) and not self.done and not self.broken:
            if self._state == "string":
                end = PLAIN.match(text, at)
                at = end.end() if end else at
                if at < len(text):
                    self._end_of_run(text[at])
                    at += 1
            elif self._state == "scalar":
                run = SCALAR.match(text, at)
                assert run is not None
                self._scalar += run.group()
                at = run.end()
                if at < len(text):
                    self._end_scalar()
            else:
                self._take(text[at])
                at += not (self.broken or self._state == "scalar")
        return at

    def end(self) -> None:
        """The text ends here: a number on its own is complete."""
        if self._state == "scalar" and not self._closers:
            self._end_scalar()
        self.broken = not self.done

    def _end_of_run(self, char: str) -> None:
        if char == "\\":
            self._state = "escape"
        elif self._is_key:
            self._state = "colon"
        else:
            self._ended()

    def _end_scalar(self) -> None:
        if SCALARS.fullmatch(self._scalar):
            self._scalar = ""
            self._ended()
        else:
            self.broken = True

    def _ended(self) -> None:
        self._state = "after"
        self.done = not self._closers

    def _take(self, char: str) -> None:
        state = self._state
        if state == "escape":
            self._hex_left = 4 * (char == "u")
            self._state = "hex" if char == "u" else "string"
            self.broken = char not in '"\\/bfnrtu'
        elif state == "hex":
            self._hex_left -= 1
            self._state = "hex" if self._hex_left else "string"
            self.broken = char not in HEX
        elif char in BLANKS:
            pass
        elif state == "colon":
            self._state = "value"
            self.broken = char != ":"
        elif state in ("first key", "key"):
            self._take_key(char)
        elif state == "after":
            self._take_after(char)
        else:
            self._take_value(char)

    def _take_key(self, char: str) -> None:
        if char == '"':
            self._state, self._is_key = "string", True
        elif char == "}" and self._state == "first key":
            self._closers.pop()
            self._ended()
        else:
            self.broken = True

    def _take_after(self, char: str) -> None:
        if char == self._closers[-1]:
            self._closers.pop()
            self._ended()
        elif char == ",":
            self._state = "key" if self._closers[-1] == "}" else "value"
        else:
            self.broken = True

    def _take_value(self, char: str) -> None:
        if char == '"':
            self._state, self._is_key = "string", False
        elif char == "{":
            self._closers.append("}")
            self._state = "first key"
        elif char == "[":
            self._closers.append("]")
            self._state = "first value"
        elif char == "]" and self._state == "first value":
            self._closers.pop()
            self._ended()
        elif SCALAR.fullmatch(char):
            self._state = "scalar"
        else:
            self.broken = True
