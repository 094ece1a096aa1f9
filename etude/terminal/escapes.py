"""Backslash escapes in prompts given as flags, as llama.cpp reads them."""

from __future__ import annotations

import re

_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([nrt'\"\\]))")


def unescape(text: str) -> str:
    r"""\n \r \t \' \" \\ and \xNN (a byte of UTF-8) become what they stand for; any other backslash stays.

    >>> unescape(r"a\tb\q\\n \xe2\x82\xac")
    'a\tb\\q\\n €'
    """

    def stands_for(match: re.Match[bytes]) -> bytes:
        return _LETTERS[match[2]] if match[2] else bytes([int(match[1], 16)])

    return _ESCAPE.sub(stands_for, text.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")
