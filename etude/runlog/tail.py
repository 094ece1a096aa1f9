"""Reads a file of lines that another process appends to: each whole line once, also while one is written."""

from __future__ import annotations

import os
from pathlib import Path

MARK_BYTES = 256
"""So much of what was read is compared: whether it is still the file that was read."""


class Tail:
    """Where one reader is in a growing file. Nothing stays open between two calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._mark = b""

    def read(self) -> tuple[bool, bytes]:
        """(whether the file is another one now, its whole lines since the last call). A line that is not yet
        whole comes with a later call. A run that was resumed replaces its files: then all lines come anew.
        A file that is not there has no lines."""
        try:
            with self.path.open("rb") as file:
                anew = not self._is_where_it_was(file.fileno())
                if anew:
                    self._offset, self._mark = 0, b""
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            anew, data = self._offset > 0, b""
            self._offset, self._mark = 0, b""
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._mark = (self._mark + whole)[-MARK_BYTES:]
        return anew, whole

    def _is_where_it_was(self, descriptor: int) -> bool:
        """Whether what was read last still stands there. (The number of an inode may come back.)"""
        begin = self._offset - len(self._mark)
        return os.pread(descriptor, len(self._mark), begin) == self._mark


def last_lines(path: Path, n_bytes: int) -> bytes:
    """The whole lines among the last bytes of a file; nothing if there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - n_bytes))
            data = file.read()
    except FileNotFoundError:
        return b""
    if size > n_bytes:
        data = data[data.find(b"\n") + 1 :]
    return data[: data.rfind(b"\n") + 1]


def spread_lines(path: Path, n: int, line_bytes: int) -> bytes:
    """About n whole lines spread evenly over a file, all of them where they are no more; the first and the
    last are among them. line_bytes: no line is taken to be longer."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= n * line_bytes:
                file.seek(0)
                data = file.read()
                return data[: data.rfind(b"\n") + 1]
            found: list[bytes] = []
            for i in range(n):
                file.seek(i * (size - line_bytes) // (n - 1))
                piece = file.read(2 * line_bytes)
                begin = piece.find(b"\n") + 1 if i else 0
                end = piece.rfind(b"\n") if i == n - 1 else piece.find(b"\n", begin)
                begin = piece.rfind(b"\n", 0, end) + 1 if i == n - 1 else begin
                if begin <= end:
                    found.append(piece[begin : end + 1])
            return b"".join(found)
    except FileNotFoundError:
        return b""
