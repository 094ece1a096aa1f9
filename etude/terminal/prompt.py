"""Where questions come from: a line editor at a terminal, plain lines out of a pipe.

A message is one line. A backslash at its end goes on in the next line, and lines between two of three
double quotes are one message; with -mli it is the other way round: lines go on until one ends in a
backslash.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from etude.terminal.interrupts import raising_interrupts

FENCE = '"""'
COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?")
"""A line that is a command; '/etc/hosts is …' is none."""


class Reader(Protocol):
    """Gives the next message; EOFError at the end, KeyboardInterrupt for Ctrl-C on an empty line.

    noted: Ctrl-C came before the reader listened.

    interactive: somebody types. edits: `default` can be changed before it is sent.
    """

    interactive: bool
    edits: bool

    def read(self, noted: threading.Event, default: str = "") -> str: ...


def is_complete(text: str, multiline: bool = False) -> bool:
    """Whether a message ends here.

    >>> [is_complete(text) for text in ("hi", "hi\\\\", FENCE + "a", FENCE + "a" + FENCE)]
    [True, False, False, True]
    >>> [is_complete(text, multiline=True) for text in ("hi", "hi\\\\")]
    [False, True]
    """
    if text.lstrip().startswith(FENCE):
        return text.strip().endswith(FENCE) and len(text.strip()) >= 2 * len(FENCE)
    return text.endswith("\\") == multiline or (multiline and COMMAND.fullmatch(text) is not None)


def message(text: str, multiline: bool = False) -> str:
    """A complete message without what only ended it.

    >>> message(FENCE + "\\na\\nb\\n" + FENCE), message("a\\\\", multiline=True)
    ('a\\nb', 'a')
    """
    if text.lstrip().startswith(FENCE):
        return text.strip()[len(FENCE) : -len(FENCE)].strip("\n")
    return text.removesuffix("\\") if multiline else text


class PlainReader:
    """Lines of a stream, without editing. interactive: somebody types them, so a prompt is shown."""

    edits = False

    def __init__(self, stream: TextIO, *, multiline: bool = False, interactive: bool = False) -> None:
        self.interactive = interactive
        self._stream = stream
        self._multiline = multiline

    def read(self, noted: threading.Event, default: str = "") -> str:
        """The next message. What stands at the end of the stream is one even if it is not complete."""
        lines: list[str] = []
        while True:
            if self.interactive:
                print("… " if lines else "> ", end="", file=sys.stderr, flush=True)
            with raising_interrupts() if self.interactive else nullcontext():
                if noted.is_set():
                    raise KeyboardInterrupt
                line = self._stream.readline()
            if not line:
                if not lines:
                    raise EOFError
                return "\n".join(lines)
            line = line.rstrip("\r\n")
            text = "\n".join([*lines, line])
            if is_complete(text, self._multiline):
                return message(text, self._multiline)
            fenced = text.lstrip().startswith(FENCE)
            lines.append(line if fenced or self._multiline else line.removesuffix("\\"))


class TerminalReader:
    """prompt_toolkit's line editor with a history file."""

    interactive = True
    edits = True

    def __init__(self, history: Path | None, *, multiline: bool = False, color: bool = True) -> None:
        self._multiline = multiline
        output = create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr)
        self._session: PromptSession[str] = PromptSession(
            ANSI("\x1b[1m> \x1b[0m") if color else "> ",
            multiline=True,
            prompt_continuation="… ",
            history=_history(history),
            key_bindings=self._keys(),
            output=output,
        )

    def read(self, noted: threading.Event, default: str = "") -> str:
        """The next message; `default` stands there to be edited."""

        def check() -> None:
            if noted.is_set():
                self._session.app.exit(exception=KeyboardInterrupt)

        return message(self._session.prompt(default=default, pre_run=check), self._multiline)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_complete(buffer.text, self._multiline):
                buffer.validate_and_handle()
                return
            fenced = buffer.text.lstrip().startswith(FENCE)
            if buffer.document.text_before_cursor.endswith("\\") and not self._multiline and not fenced:
                buffer.delete_before_cursor(1)
            buffer.insert_text("\n")

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            if self._multiline:
                event.current_buffer.insert_text("\\")
                event.current_buffer.validate_and_handle()
            else:
                event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                event.app.exit(exception=KeyboardInterrupt)

        return keys


def history_file(environ: Mapping[str, str]) -> Path:
    """XDG_STATE_HOME/etude/chat_history, else in ~/.local/state."""
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "etude" / "chat_history"


def _history(path: Path | None) -> History:
    """The file, for its owner's eyes only; in memory where it cannot be written."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
