"""Commands run as a user runs them: arguments in; two outputs and an exit code back."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from etude.cli import main

DATA = Path(tempfile.gettempdir()) / "etude-tests"
"""Where servers that tests start keep conversations: not among the user's."""


def environment(**more: str) -> dict[str, str]:
    """This one, without what could change a result."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("LLAMA_ARG_", "ETUDE_"))}
    return {**clean, "NO_COLOR": "1", "ETUDE_DATA": str(DATA), **more}


@dataclass(frozen=True)
class Done:
    """What a command wrote, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def etude(*argv: str | Path, stdin: str = "", env: Mapping[str, str] | None = None) -> Done:
    """Run a command in this process: a new one takes seconds to start on a small machine."""
    out, err = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")),
        patch.dict(os.environ, environment() if env is None else env, clear=True),
    ):
        code = main([*map(str, argv)])
    return Done(code, out.getvalue(), err.getvalue())


def process(*argv: str | Path) -> subprocess.Popen[bytes]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "etude", *map(str, argv)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


def assert_one_message(done: Done, code: int, *parts: str) -> None:
    """The exit code, nothing on stdout, and one message with all parts; never a traceback."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert "Traceback" not in done.stderr and done.stderr.startswith("etude"), done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr
