"""A chat at work: the conversation, an engine, a screen, and what the commands change between two answers."""

from __future__ import annotations

import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TextIO

from etude.model.thinking import ThinkingStream
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError
from etude.terminal.answer import CountingEngine, Manner, Timings, Writing
from etude.terminal.conversation import Answer, Conversation
from etude.terminal.interrupts import noting_interrupts
from etude.terminal.options import Options
from etude.terminal.sampling import manner_of
from etude.terminal.screen import Screen


@dataclass
class Totals:
    """Sums over all answers, for /stats."""

    answers: int = 0
    n_prompt: int = 0
    n_reused: int = 0
    n_written: int = 0
    prompt_s: float = 0.0
    writing_s: float = 0.0

    def add(self, timings: Timings) -> None:
        """One more answer."""
        self.answers += 1
        self.n_prompt += timings.n_prompt
        self.n_reused += timings.n_reused
        self.n_written += timings.n_written
        self.prompt_s += timings.prompt_s
        self.writing_s += timings.writing_s


class Partner(Protocol):
    """Whom a session talks with (a Loaded)."""

    @property
    def engine(self) -> CountingEngine: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def adapter(self) -> str | None: ...

    @property
    def adapter_scale(self) -> float: ...

    def splitter(self, prompt_ids: tuple[int, ...]) -> ThinkingStream | None: ...


@dataclass
class Session:
    """A chat. first_prompt: the ids that --prompt-cache saves. failed: a message had no answer."""

    loaded: Partner
    conversation: Conversation
    screen: Screen
    options: Options
    context: int
    model: str = ""
    show_timings: bool = False
    transcript: TextIO | None = None
    attachments: list[str] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    last: Timings | None = None
    first_prompt: tuple[int, ...] = ()
    n_given: int = 0
    failed: bool = False

    @property
    def can_go_on(self) -> bool:
        """Whether an empty message means something: a base model goes on with its completion."""
        return self.conversation.template is None and bool(self.conversation.turns)

    # ── answers ──

    def ask(self, text: str) -> Answer | None:
        """A question with what /read put before it, and its answer; None, and no question, if that fails."""
        with noting_interrupts() as noted, unechoed(sys.stdin):
            self.conversation.ask("".join(self.attachments) + text)
            self.attachments.clear()
            return self._reply(noted.is_set)

    def answer_again(self) -> Answer | None:
        """Another answer to the last question; the one that is there stays if that fails."""
        with noting_interrupts() as noted, unechoed(sys.stdin):
            turns = list(self.conversation.turns)
            self.conversation.drop_answer()
            answer = self._reply(noted.is_set)
            if answer is None:
                self.conversation.turns = turns
            return answer

    def _reply(self, interrupted: Callable[[], bool]) -> Answer | None:
        """Write the answer of the open turn. If it cannot be written, the question is taken back."""
        try:
            answer = self._write(self._prompt_with_room(), interrupted)
        except EtudeError as error:
            self.conversation.undo()
            self.screen.end_answer()
            self.screen.error(str(error))
            self.failed = True
            return None
        self.conversation.answer(answer)
        self._explain_end(answer)
        if self.transcript:
            self.transcript.write(transcribed(self.conversation.turns[-1].question, answer))
            self.transcript.flush()
        return answer

    def _prompt_with_room(self) -> tuple[int, ...]:
        """The prompt, older turns forgotten if context shift allows that. EtudeError if it does not fit."""
        prompt_ids = self.conversation.prompt_ids()
        n_before, forgotten = len(prompt_ids), 0
        while (
            len(prompt_ids) >= self.context
            and self.options["context_shift"]
            and self.conversation.forget_oldest()
        ):
            prompt_ids = self.conversation.prompt_ids()
            forgotten += 1
        if len(prompt_ids) >= self.context:
            shift = not self.options["context_shift"] and len(self.conversation.turns) > 1
            way = " or with --context-shift" if shift else ""
            raise EtudeError(
                f"the conversation and this message are {len(prompt_ids)} tokens, the context holds "
                f"{self.context}. The message was not sent. Shorten it, /undo or /clear, start with a larger "
                f"--ctx-size{way}"
            )
        if forgotten:
            turns = "turn was" if forgotten == 1 else f"{forgotten} turns were"
            self.screen.note(
                f"(the oldest {turns} forgotten: {n_before} tokens, the context has {self.context})"
            )
        return prompt_ids

    def _write(self, prompt_ids: tuple[int, ...], interrupted: Callable[[], bool]) -> Answer:
        if self.options["verbose_prompt"]:
            show_prompt(self.screen, self.loaded.tokenizer, prompt_ids)
        loaded, manner = self.loaded, self._manner(len(prompt_ids))
        self.first_prompt = self.first_prompt or prompt_ids
        writing = Writing(loaded.engine, loaded.tokenizer, prompt_ids, manner, loaded.splitter(prompt_ids))
        self.n_given += 1
        for kind, text in writing.pieces(interrupted):
            (self.screen.thinking if kind == "thinking" else self.screen.answer)(text)
        self.screen.end_answer()
        self.last = writing.timings
        self.totals.add(writing.timings)
        if self.show_timings:
            self.screen.note(speed_line(writing.timings))
        return writing.answer

    def _manner(self, n_prompt: int) -> Manner:
        """How to answer now. A fixed seed moves on with every answer, so that /regen gives another one."""
        manner = manner_of(self.options, n_prompt=n_prompt, context=self.context, seed_offset=self.n_given)
        return replace(
            manner,
            adapter=self.loaded.adapter,
            adapter_scale=self.loaded.adapter_scale,
            tags=self.conversation.tags,
        )

    def _explain_end(self, answer: Answer) -> None:
        """Say why an answer stopped where the model did not end it."""
        if answer.finish == "abort":
            self.screen.note("(stopped)")
        elif answer.finish == "length" and 0 < self.options["predict"] <= len(answer.ids):
            self.screen.note(f"(-n {self.options['predict']} tokens reached)")
        elif answer.finish == "length":
            self.screen.note(
                f"(the context of {self.context} tokens is full: /clear or /undo makes room, a larger "
                "--ctx-size or --context-shift prevents it)"
            )


def show_prompt(screen: Screen, tokenizer: Tokenizer, prompt_ids: tuple[int, ...]) -> None:
    """--verbose-prompt: each id and its text."""
    screen.note(f"prompt: {len(prompt_ids)} tokens")
    for token_id in prompt_ids:
        screen.note(f"{token_id:>7} -> {tokenizer.token_text(token_id)!r}")


@contextmanager
def unechoed(stream: TextIO) -> Iterator[None]:
    """While it holds, keys that are typed into a terminal (Ctrl-C among them) leave no mark in the answer."""
    if not stream.isatty():
        yield
        return
    before = termios.tcgetattr(stream)
    silent = [*before[:3], before[3] & ~(termios.ECHO | termios.ECHONL), *before[4:]]
    termios.tcsetattr(stream, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)


def speed_line(timings: Timings) -> str:
    """'[ prompt 35 tokens (32 reused), 160 t/s | answer 50 tokens, 112.3 t/s | first token 0.02 s ]'."""
    reused = f" ({timings.n_reused} reused)" if timings.n_reused else ""
    return (
        f"[ prompt {timings.n_prompt} tokens{reused}, {timings.prompt_per_s:.0f} t/s | "
        f"answer {timings.n_written} tokens, {timings.written_per_s:.1f} t/s | "
        f"first token {timings.prompt_s:.2f} s ]"
    )


def transcribed(question: str, answer: Answer) -> str:
    """A turn as -o writes it, in llama.cpp's form."""
    thinking = f"[Start thinking]\n\n{answer.thinking}\n[End thinking]\n\n" if answer.thinking else ""
    return f"User:\n{question}\n\nAssistant:\n{thinking}{answer.text.rstrip()}\n\n"
