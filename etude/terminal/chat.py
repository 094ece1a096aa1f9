"""`etude chat`: talk with a model. This file is the loop; what a session is stands in session.py.

question ← prompt.py        a line editor, or lines of a pipe
→ conversation.py           turns → token ids
→ answer.py                 engine steps → pieces of text
→ screen.py                 answers to stdout, all else to stderr
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from etude.records import EtudeError
from etude.terminal.commands import Then, execute
from etude.terminal.interrupts import noting_interrupts
from etude.terminal.loading import Loaded, open_model, save_prompt
from etude.terminal.options import Options
from etude.terminal.prompt import COMMAND, PlainReader, Reader, TerminalReader, history_file
from etude.terminal.screen import Screen, wants_color
from etude.terminal.session import Session
from etude.terminal.text_source import given_text


def run(options: Options) -> int:
    """The verb. A piped chat ends with 1 if a message had no answer."""
    first = given_text(options)
    screen = Screen(sys.stdout, sys.stderr, color=wants_color(options["color"], os.environ, sys.stdout))
    with open_model(options) as loaded, transcript(options) as file:
        session = new_session(options, loaded, screen)
        session.transcript = file
        reader = choose_reader(options, screen)
        if reader.interactive:
            greet(session, loaded)
        elif loaded.template is None:
            screen.note("(this model has no chat template: it completes each text by itself)")
        talk(session, reader, first)
        save_session(session, loaded)
    return int(session.failed and not reader.interactive)


def new_session(options: Options, loaded: Loaded, screen: Screen) -> Session:
    """Nothing has been said yet."""
    shows = screen.is_terminal if options["show_timings"] is None else options["show_timings"]
    return Session(
        loaded=loaded,
        conversation=loaded.conversation(),
        screen=screen,
        options=options,
        context=loaded.engine.context,
        model=loaded.engine.path.name,
        show_timings=shows,
    )


@contextmanager
def transcript(options: Options) -> Iterator[TextIO | None]:
    """The file of -o, or None."""
    if options["output"] is None:
        yield None
        return
    try:
        file = Path(options["output"]).open("w", encoding="utf-8")
    except OSError as error:
        raise options.error("output", f"cannot write {options['output']!r}: {error.strerror}") from None
    with file:
        yield file


def save_session(session: Session, loaded: Loaded) -> None:
    """--prompt-cache: the first prompt, or the whole conversation."""
    prompt_ids = session.first_prompt
    answer_ids: tuple[int, ...] = ()
    turns = session.conversation.turns
    if session.options["prompt_cache_all"] and turns and turns[-1].answer:
        prompt_ids, answer_ids = session.conversation.prompt_ids(), turns[-1].answer.ids
    if prompt_ids:
        save_prompt(session.options, loaded.engine, prompt_ids, answer_ids)


def choose_reader(options: Options, screen: Screen) -> Reader:
    """The line editor at a terminal that can do it, else plain lines."""
    multiline = options["multiline_input"]
    typed = sys.stdin.isatty()
    if typed and not options["simple_io"] and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalReader(history_file(os.environ), multiline=multiline, color=screen.color)
    return PlainReader(sys.stdin, multiline=multiline, interactive=typed)


def greet(session: Session, loaded: Loaded) -> None:
    """What runs, and how to leave."""
    session.screen.note(loaded.engine.describe())
    if session.conversation.template is None:
        session.screen.note(
            "It completes the text you type (an empty line goes on). /help, Ctrl-C stops, Ctrl-D leaves"
        )
    else:
        session.screen.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")


def talk(session: Session, reader: Reader, first: str | None = None) -> None:
    """Messages and answers until the end of the input, /exit, Ctrl-C twice, or one answer with -st."""
    with noting_interrupts() if reader.interactive else nullcontext(threading.Event()) as noted:
        default, warned = "", False
        while True:
            then = Then.ASK
            try:
                text = reader.read(noted, default) if first is None else _shown(session, reader, first)
                first = None
                then = handle(session, text)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not reader.interactive:
                    raise
                noted.set()
            if then is Then.EXIT or (then is Then.REPLY and session.options["single_turn"]):
                return
            if noted.is_set():
                if warned:
                    return
                session.screen.note("(Ctrl-C once more leaves, Ctrl-D too)")
            warned = noted.is_set()
            noted.clear()
            default = taken_back(session, reader) if then is Then.EDIT else ""


def taken_back(session: Session, reader: Reader) -> str:
    """/undo: the question, to be changed."""
    question = session.conversation.undo() or ""
    if not reader.edits:
        session.screen.note(f"(taken back: {question})")
    return question


def _shown(session: Session, reader: Reader, text: str) -> str:
    """The first message, which nobody has typed here."""
    if reader.interactive:
        session.screen.note(f"> {text}")
    return text


def handle(session: Session, text: str) -> Then:
    """Run a command, or answer a message. Then.REPLY where an answer was tried."""
    command = COMMAND.fullmatch(text)
    if command:
        try:
            return execute(session, command[1], (command[2] or "").strip())
        except EtudeError as error:
            session.screen.error(str(error))
            session.failed = True
            return Then.ASK
    if not text.strip() and not session.can_go_on:
        return Then.ASK
    session.ask(text)
    return Then.REPLY
