"""`etude VERB …`: reads the flags, then imports the verb's module and calls its `run`.

The one place of the package where a function imports: `etude --help` and a mistyped flag must not wait for
numpy. Whatever the user can mend is one message on the error output; exit codes are 0, 1 (it did not work),
2 (wrong usage), 130 (Ctrl-C) and 141 (whoever read our output went away).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from etude.records import EtudeError
from etude.terminal.help import overview, verb_help
from etude.terminal.options import HELP_FLAGS, HelpWanted, UsageError, nearest, parse
from etude.terminal.verbs import TRAININGS, VERBS

MODULES = {name: f"etude.terminal.{name}" for name in VERBS}
MODULES |= {verb.name: "etude.terminal.train" for verb in TRAININGS}
OWN_COMMAND_LINES = ("merge", "pull")
"""Verbs that take names and hardly a flag: their modules' `main` reads the words after the verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code and never raises for what a user can cause."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = f"etude {arguments[0]}" if arguments and arguments[0] in VERBS else "etude"
    try:
        code = dispatch(arguments, os.environ)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _complain(f"{name}: {error}\n(see `{name} --help`)", 2)
    except EtudeError as error:
        return _complain(f"{name}: {error}", 1)
    except KeyboardInterrupt:
        return _complain("", 128 + signal.SIGINT)
    except BrokenPipeError:
        # the interpreter flushes stdout once more at its end; there it would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def dispatch(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Find the verb, read its flags, run it."""
    if not arguments or arguments[0] in (*HELP_FLAGS, "help"):
        verb = VERBS.get(arguments[1]) if len(arguments) > 1 else None
        sys.stdout.write(verb_help(verb) if verb else overview(VERBS.values()))
        return 0 if arguments else 2
    word, *rest = arguments
    if word in ("--version", "-V"):
        word = "version"
    if word not in VERBS:
        what = "flag" if word.startswith("-") else "verb"
        raise UsageError(f"{word}: no such {what}{nearest(word.lstrip('-'), list(VERBS))}")
    if word in OWN_COMMAND_LINES:
        status: int = importlib.import_module(MODULES[word]).main(rest)
        return status
    verb = VERBS[word]
    if verb in TRAININGS:
        status = importlib.import_module(MODULES[word]).main(verb, rest)
        return status
    try:
        options = parse(verb, rest, environ)
    except HelpWanted:
        sys.stdout.write(verb_help(verb))
        return 0
    code: int = importlib.import_module(MODULES[word]).run(options)
    return code


def _complain(text: str, code: int) -> int:
    """Write to the error output what is to be said, if anyone listens; returns `code`."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass
    return code
