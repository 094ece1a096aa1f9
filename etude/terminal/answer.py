"""One answer under way: a loop over `engine.step()` that hands out text as it becomes certain.

Thinking is told from the answer while it streams, Ctrl-C ends the loop between two steps, and a reasoning
budget is kept here: when it is used up, the request is aborted and a new one goes on after the closing tag;
the engine finds everything before it in its cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from etude.engine.core import Counters
from etude.engine.text import TextCutter, TextStream
from etude.model.thinking import Split, ThinkingStream, ThinkingTags
from etude.records import Engine, EtudeError, Event, Finish, FinishedEvent, Grammar, Request, SamplingParams
from etude.terminal.conversation import Answer

Kind = Literal["answer", "thinking"]


class Piece(NamedTuple):
    """Text to show."""

    kind: Kind
    text: str


class CountingEngine(Engine, Protocol):
    """An Engine that says what it has done."""

    @property
    def counters(self) -> Counters: ...


class Decoder(Protocol):
    """What an answer needs of a Tokenizer."""

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def decode(self, ids: Iterable[int], *, special: bool = False, continuation: bool = False) -> str: ...

    def stream(self, special: bool = False) -> TextStream: ...


@dataclass(frozen=True)
class Manner:
    """How answers are given. budget: most tokens of thinking, -1 is no limit."""

    params: SamplingParams
    grammar: Grammar | None = None
    adapter: str | None = None
    adapter_scale: float = 1.0
    special: bool = False
    budget: int = -1
    budget_message: str = ""
    tags: ThinkingTags = field(default_factory=ThinkingTags)


@dataclass
class Timings:
    """Of one answer. reused: prompt tokens that were in the cache."""

    n_prompt: int = 0
    n_reused: int = 0
    n_written: int = 0
    prompt_s: float = 0.0
    writing_s: float = 0.0

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens computed per second."""
        return (self.n_prompt - self.n_reused) / self.prompt_s if self.prompt_s else 0.0

    @property
    def written_per_s(self) -> float:
        """Tokens per second after the first, whose time belongs to the prompt."""
        return (self.n_written - 1) / self.writing_s if self.writing_s else 0.0


class Writing:
    """An answer as it is written: iterate `pieces`, then read `answer` and `timings`."""

    def __init__(
        self,
        engine: CountingEngine,
        decoder: Decoder,
        prompt_ids: tuple[int, ...],
        manner: Manner,
        splitter: ThinkingStream | None = None,
    ) -> None:
        self.timings = Timings(n_prompt=len(prompt_ids))
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish: Finish = "abort"
        self._engine = engine
        self._decoder = decoder
        self._prompt_ids = prompt_ids
        self._manner = manner
        self._splitter = splitter
        self._cutter = TextCutter(decoder.stream(manner.special), manner.params.stop)
        self._opened = splitter is not None and splitter.thinking
        self._texts: list[str] = []
        self._thinking: list[str] = []
        self._n_thinking = 0
        self._n_shown = 0  # characters that the cutter let through, tags of thinking included
        self._seed = manner.params.seed

    @property
    def answer(self) -> Answer:
        """What was written so far."""
        return Answer(
            ids=tuple(self._kept_ids()),
            text="".join(self._texts),
            finish=self.finish,
            seed=self._seed,
            thinking="".join(self._thinking),
            n_thinking=self._n_thinking,
            opened=self._opened,
        )

    def pieces(self, interrupted: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """Text, piece by piece, until the end or until `interrupted` says so between two steps."""
        started_s = time.perf_counter()
        try:
            yield from self._run(interrupted, started_s)
        finally:
            if self.timings.n_written:
                self.timings.writing_s = time.perf_counter() - started_s - self.timings.prompt_s
        yield from self._told(self._cutter.flush())
        if self._splitter:
            yield from self._keep(self._splitter.flush())

    def _run(self, interrupted: Callable[[], bool], started_s: float) -> Iterator[Piece]:
        reused_before = self._engine.counters.reused_tokens
        running = self._submit()
        while True:
            if interrupted():
                self._stop(running)
                return
            for event in self._engine.step():
                if event.request_id != running:
                    continue
                if not self.timings.prompt_s:
                    self.timings.prompt_s = time.perf_counter() - started_s
                    self.timings.n_reused = self._engine.counters.reused_tokens - reused_before
                yield from self._take(event)
                if event.finish is not None:
                    self._finished(event)
                    return
            if self._cutter.stopped:
                self._stop(running)
                self.finish = "stop"
                return
            if self._over_budget():
                self._stop(running)
                yield from self._close_thinking()
                if self.finish == "length":
                    return
                running = self._submit()

    def _submit(self) -> int:
        params = self._manner.params
        if params.max_tokens is not None:
            params = replace(params, max_tokens=params.max_tokens - len(self.ids))
        return self._engine.submit(
            Request(
                prompt_ids=self._prompt_ids + tuple(self.ids),
                params=params,
                adapter=self._manner.adapter,
                adapter_scale=self._manner.adapter_scale,
                grammar=self._manner.grammar,
            )
        )

    def _stop(self, running: int) -> None:
        """Abort and take the events that are left, so that none of them meets the next request."""
        self._engine.abort(running)
        self.finish = "abort"
        while True:
            events = self._engine.step()
            if not events or any(event.request_id == running and event.finish for event in events):
                return

    def _take(self, event: Event) -> Iterator[Piece]:
        for at, token_id in enumerate(event.token_ids):
            self.ids.append(token_id)
            self.logprobs.append(event.logprobs[at])
            self.timings.n_written += 1
            if event.finish == "eos" and at == len(event.token_ids) - 1 and not self._manner.special:
                continue
            yield from self._told(self._cutter.push(token_id))

    def _told(self, text: str) -> Iterator[Piece]:
        """Text to pieces, noting how many ids are thinking."""
        self._n_shown += len(text)
        if self._splitter is None:
            yield from self._keep(Split(None, text))
            return
        before = self._splitter.thinking
        yield from self._keep(self._splitter.push(text))
        if before or self._splitter.thinking:
            self._n_thinking = len(self.ids)

    def _keep(self, split: Split) -> Iterator[Piece]:
        if split.thinking:
            self._thinking.append(split.thinking)
            yield Piece("thinking", split.thinking)
        if split.answer:
            self._texts.append(split.answer)
            yield Piece("answer", split.answer)

    def _finished(self, event: Event) -> None:
        assert event.finish is not None
        self.finish = event.finish
        if isinstance(event, FinishedEvent):
            if event.error:
                raise EtudeError(event.error)
            if event.completion:
                self._seed = event.completion.seed

    # ── thinking ──

    def _over_budget(self) -> bool:
        if self._manner.budget < 0 or self._splitter is None:
            return False
        return self._splitter.thinking and len(self.ids) >= self._manner.budget

    def _close_thinking(self) -> Iterator[Piece]:
        """Put the closing tag where the model did not."""
        text = f"{self._manner.budget_message}\n{self._manner.tags.close}\n\n"
        ids = self._decoder.encode(text, add_special=False, parse_special=True)
        for token_id in ids:
            self.ids.append(token_id)
            yield from self._told(self._cutter.push(token_id))
        self._n_thinking = len(self.ids)
        most = self._manner.params.max_tokens
        if most is not None and len(self.ids) >= most:
            self.finish = "length"

    def _kept_ids(self) -> list[int]:
        """All ids; after a stop string, only those whose text lies before it."""
        if not self._cutter.stopped:
            return self.ids
        n = len(self.ids)
        special = self._manner.special
        while (
            n and len(self._decoder.decode(self.ids[:n], special=special, continuation=True)) > self._n_shown
        ):
            n -= 1
        return self.ids[:n]
