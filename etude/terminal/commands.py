"""The commands of a chat: what stands after a slash at the beginning of a message."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from etude.records import EtudeError
from etude.terminal.conversation import FORMAT
from etude.terminal.flags import GRAMMAR, SAMPLING
from etude.terminal.options import nearest
from etude.terminal.sampling import grammar, sampling_params
from etude.terminal.session import Session, speed_line

SETTABLE = frozenset(flag.key for flag in (*SAMPLING.flags, *GRAMMAR.flags)) | {
    "predict", "reverse_prompt", "special", "verbose_prompt", "reasoning_budget", "reasoning_budget_message",
}  # fmt: skip
"""What /set may change while the chat runs."""


class Then(Enum):
    """What follows a command."""

    ASK = "the next message"
    REPLY = "the next message; an answer was given, or tried"
    EDIT = "the next message, beginning with the question that was taken back"
    EXIT = "the end"


class Command(NamedTuple):
    """run(session, argument); argument is '' where none was given."""

    usage: str
    help: str
    run: Callable[[Session, str], Then]


def execute(session: Session, name: str, argument: str) -> Then:
    """Run the command `name`. EtudeError if there is none, or if it cannot be done."""
    if name not in COMMANDS:
        raise EtudeError(
            f"there is no command /{name}{nearest(name, list(COMMANDS))}; /help lists them (begin with a "
            "space to send it as text)"
        )
    command = COMMANDS[name]
    if argument and command.usage == f"/{name}":
        raise EtudeError(f"/{name} takes nothing after it, got {argument!r}")
    return command.run(session, argument)


def _help(session: Session, argument: str) -> Then:
    width = max(len(command.usage) for command in COMMANDS.values()) + 2
    lines = [f"{command.usage:<{width}}{command.help}" for command in COMMANDS.values()]
    keys = 'Ctrl-C stops an answer. Alt-Enter or a backslash makes a new line, """ begins and ends a block.'
    session.screen.note("\n".join([*lines, keys]))
    return Then.ASK


def _exit(session: Session, argument: str) -> Then:
    return Then.EXIT


def _regen(session: Session, argument: str) -> Then:
    if not session.conversation.turns:
        raise EtudeError("there is no answer yet to give again")
    session.answer_again()
    return Then.REPLY


def _undo(session: Session, argument: str) -> Then:
    if not session.conversation.turns:
        raise EtudeError("there is nothing to take back")
    return Then.EDIT


def _clear(session: Session, argument: str) -> Then:
    session.conversation.clear()
    session.attachments.clear()
    session.screen.note("(the conversation is forgotten)")
    return Then.ASK


def _system(session: Session, argument: str) -> Then:
    conversation = session.conversation
    if conversation.template is None:
        raise EtudeError("a model without a chat template has no system message; write it into the text")
    if argument:
        conversation.system = None if argument == "-" else argument
    session.screen.note(f"system message: {conversation.system or '(none)'}")
    return Then.ASK


def _set(session: Session, argument: str) -> Then:
    name, _, text = argument.partition(" ")
    options = session.options
    if not name:
        lines = [f"{key} = {options[key]}" for key in options.written if key in SETTABLE]
        session.screen.note("\n".join(lines) or "all settings have their defaults: see `etude chat --help`")
        return Then.ASK
    flag = options.flag_named(name)
    if flag.key not in SETTABLE:
        raise EtudeError(
            f"{name} is read when the chat starts: leave with /exit and start with {flag.names[-1]}"
        )
    if not text.strip():
        session.screen.note(f"{flag.key} = {options[flag.key]} ({flag.help})")
        return Then.ASK
    changed = options.changed(flag, f"/set {name}", text.strip())
    sampling_params(changed)  # raises for what would have no effect
    grammar(changed)
    session.options = changed
    session.screen.note(f"{flag.key} = {changed[flag.key]}")
    return Then.ASK


def _read(session: Session, argument: str) -> Then:
    path = _path(argument, "/read FILE")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EtudeError(f"cannot read {argument!r}: {_reason(error)}") from None
    session.attachments.append(f"--- File: {argument} ---\n{text}\n")
    session.screen.note(f"({argument}: {len(text)} characters go before the next message)")
    return Then.ASK


def _save(session: Session, argument: str) -> Then:
    path = _path(argument, "/save FILE")
    if path.exists() and not _is_ours(path):
        raise EtudeError(f"{argument!r} exists and is no saved conversation; choose another name")
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_text(session.conversation.to_json(session.model), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise EtudeError(f"cannot write {argument!r}: {_reason(error)}") from None
    session.screen.note(f"({_counted(len(session.conversation.turns), 'turn')} saved)")
    return Then.ASK


def _load(session: Session, argument: str) -> Then:
    path = _path(argument, "/load FILE")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EtudeError(f"cannot read {argument!r}: {_reason(error)}") from None
    try:
        session.conversation.load_json(text)
    except EtudeError as error:
        raise EtudeError(f"cannot load {argument!r}: {error}") from None
    for turn in session.conversation.turns:
        session.screen.note(f"> {turn.question}")
        session.screen.answer(turn.answer.text if turn.answer else "")
        session.screen.end_answer()
    return Then.ASK


def _tokens(session: Session, argument: str) -> Then:
    n_tokens = session.conversation.n_tokens
    share = 100 * n_tokens / session.context
    turns = _counted(len(session.conversation.turns), "turn")
    session.screen.note(f"{turns}, {n_tokens} of {session.context} tokens ({share:.0f} %)")
    return Then.ASK


def _stats(session: Session, argument: str) -> Then:
    totals = session.totals
    lines = [
        f"model {session.model}",
        f"{_counted(totals.answers, 'answer')}, {totals.n_written} tokens written",
    ]
    if session.last:
        lines.append(f"prompts {totals.n_prompt} tokens, {totals.n_reused} of them found in the cache")
        lines.append(f"{totals.prompt_s:.1f} s reading, {totals.writing_s:.1f} s writing")
        lines.append(f"last {speed_line(session.last)}")
    lines.append(f"peak memory {_peak_bytes() / 2**20:.0f} MiB")
    session.screen.note("\n".join(lines))
    return Then.ASK


COMMANDS = {
    command.usage[1:].split()[0]: command
    for command in (
        Command("/help", "this list", _help),
        Command("/exit", "leave (Ctrl-D does too)", _exit),
        Command("/regen", "another answer to the last message", _regen),
        Command("/undo", "take the last message and its answer back", _undo),
        Command("/clear", "forget the conversation", _clear),
        Command("/system [TEXT]", "show or change the system message ('-': none)", _system),
        Command(
            "/set [NAME [VALUE]]", "show or change a setting: temp, top-k, n, seed, reasoning-budget, …", _set
        ),
        Command("/read FILE", "put a text file before the next message", _read),
        Command("/save FILE", "save the conversation", _save),
        Command("/load FILE", "go on with a saved conversation", _load),
        Command("/tokens", "how full the context is", _tokens),
        Command("/stats", "speed and memory", _stats),
    )
}


def _path(argument: str, usage: str) -> Path:
    if not argument:
        raise EtudeError(f"the name of a file is missing: {usage}")
    return Path(argument).expanduser()


def _is_ours(path: Path) -> bool:
    """Whether a file is a saved conversation, which may be written over."""
    try:
        with path.open(encoding="utf-8") as file:
            return FORMAT in file.read(100)
    except (OSError, UnicodeDecodeError):
        return False


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _peak_bytes() -> int:
    """Peak memory of this process; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
