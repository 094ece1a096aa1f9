"""Where a prompt comes from: -p TEXT, -f FILE, or the standard input."""

from __future__ import annotations

import sys

from etude.terminal.escapes import unescape
from etude.terminal.options import Options
from etude.terminal.sampling import read_text


def given_text(options: Options) -> str | None:
    """The text of -p, -f or --stdin; None if none was given.

    Escapes are read in -p only, so that code stays code. One newline at the end of a file or of the standard
    input is not part of the text, as in llama.cpp.
    """
    ways = [key for key in ("prompt", "file", "stdin") if options.values.get(key) not in (None, False)]
    if not ways:
        return None
    if len(ways) > 1:
        raise options.error(ways[1], f"the text was given already with {options.written[ways[0]]}")
    way = ways[0]
    if way == "stdin" or options[way] == "-":
        return read_standard_input(options, way).removesuffix("\n")
    if way == "file":
        return read_text(options, "file").removesuffix("\n")
    return unescape(options["prompt"]) if options["escape"] else str(options["prompt"])


def read_standard_input(options: Options, way: str) -> str:
    """All of it, as UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise options.error(way, "the standard input is not UTF-8 text") from None


def system_text(options: Options) -> str | None:
    """The system message of -sys or -sysf."""
    if options["system_prompt"] is None:
        return (
            None
            if options["system_prompt_file"] is None
            else read_text(options, "system_prompt_file").rstrip("\n")
        )
    if options["system_prompt_file"] is not None:
        raise options.error("system_prompt_file", f"given already with {options.written['system_prompt']}")
    return unescape(options["system_prompt"]) if options["escape"] else str(options["system_prompt"])
