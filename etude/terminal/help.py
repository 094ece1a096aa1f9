"""Text of `etude --help` and `etude VERB --help`, made from the same tables that read the command line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from etude.terminal.options import Flag, Verb

_WIDTH = 100
_INDENT = 34


def overview(verbs: Iterable[Verb]) -> str:
    """The help of the program itself."""
    verbs = list(verbs)
    width = max(len(verb.name) for verb in verbs) + 2
    lines = [f"    {verb.name:<{width}}{verb.summary}" for verb in verbs]
    return (
        "usage: etude VERB …\n\nRuns language models on this machine's CPU.\n\n"
        + "\n".join(lines)
        + "\n\n`etude VERB --help` shows the flags of a verb. To begin: etude chat\n"
    )


def verb_help(verb: Verb) -> str:
    """The help of one verb."""
    parts = [f"usage: {verb.usage}\n\n{verb.summary[0].upper()}{verb.summary[1:]}.\n{verb.details}"]
    for group in verb.groups:
        parts.append(f"\n{group.title}:\n" + "".join(_entry(flag) for flag in group.flags))
    return "".join(parts).rstrip("\n") + "\n"


def _entry(flag: Flag) -> str:
    names = ", ".join(flag.names + flag.off) + (f" {flag.metavar}" if flag.read else "")
    text = flag.help + _default(flag) + (f" [{flag.env}]" if flag.env else "")
    lines = textwrap.wrap(text, _WIDTH - _INDENT, break_on_hyphens=False, break_long_words=False)
    if len(names) + 4 > _INDENT:
        return f"  {names}\n" + "".join(f"{'':{_INDENT}}{line}\n" for line in lines)
    first = f"  {names:<{_INDENT - 2}}{lines[0]}\n"
    return first + "".join(f"{'':{_INDENT}}{line}\n" for line in lines[1:])


def _default(flag: Flag) -> str:
    """' (default: 0.8)' where the default is a value that a reader can use."""
    if flag.read is None or flag.default in (None, "", ()) or "default" in flag.help:
        return ""
    value = flag.default
    shown = ",".join(str(part) for part in value) if isinstance(value, tuple) else f"{value}"
    return f" (default: {shown})"
