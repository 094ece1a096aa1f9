"""A program at a pseudo-terminal: type, wait for what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

DEADLINE_S = 120.0
FORWARD = re.compile(r"(\x08*)\x1b\[(\d*)C")
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>])")


class PseudoTerminal:
    """Runs a command with a terminal of its own. A context manager; kills what outlives it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.raw = ""
        self._seen = 0

    def type(self, text: str) -> None:
        """Press keys. Enter is \\r, Ctrl-C \\x03, Alt-Enter \\x1b\\r."""
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` is shown after what earlier calls found; returns the text up to its end."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            match = re.compile(pattern).search(self.shown, self._seen)
            if match:
                start, self._seen = self._seen, match.end()
                return self.shown[start : match.end()]
            if not self._read(deadline_s - time.monotonic()):
                raise AssertionError(f"{pattern!r} was not shown after {self.shown[self._seen :]!r}")

    def wait_for_editor(self) -> None:
        """Read until a line editor has taken over the terminal; keys typed before may be lost."""
        deadline_s = time.monotonic() + DEADLINE_S
        while termios.tcgetattr(self._master)[3] & termios.ICANON:
            assert time.monotonic() < deadline_s, f"no editor after {self.shown[self._seen :]!r}"
            self._read(0.05)

    def wait_for_end(self) -> int:
        """Read to the end; returns the exit code."""
        deadline_s = time.monotonic() + DEADLINE_S
        while self._read(deadline_s - time.monotonic()):
            pass
        return self._process.wait(DEADLINE_S)

    @property
    def shown(self) -> str:
        """All that was shown, without colours; moving the cursor to the right leaves spaces."""
        spaced = FORWARD.sub(lambda match: " " * (int(match[2] or 1) - len(match[1])), self.raw)
        return ANSI.sub("", spaced).replace("\r", "")

    def _read(self, timeout_s: float) -> bool:
        if timeout_s <= 0 or not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program has ended
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)
