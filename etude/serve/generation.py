"""Completions of one API request, as deltas that arrive while the engine writes them.

A Generation is one or more prompts (each a `Request` with its n completions) on one model. What the engine
finds between two looks of the reader is merged into one delta per choice: nothing is lost, and a slow reader
costs no more memory than the answer itself. `close` ends the work before the engine's next step.

Choices are numbered through: completion i of prompt p is choice p * n + i.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from etude.engine.text import TextCutter
from etude.records import Completion, EtudeError, Event, Finish, FinishedEvent, Request, TopLogprobs
from etude.serve.models import ServedModel
from etude.serve.timings import Reading, timings_of
from etude.serve.types_openai import StreamOptions


@dataclass(slots=True)
class Delta:
    """What was added to a choice. Per-token fields have equal length (top_logprobs: or none). completion: the
    whole, with the last delta. text: without the token that ended it, nor what may yet become a stop
    string. pieces: the text that each token made certain; what the end set free besides is in `text` only.
    readings: how far the prompt was, before any of this, where that was asked for."""

    choice: int
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    completion: Completion | None = None
    readings: list[Reading] = field(default_factory=list)


class Writing:
    """One choice as it grows: its text, how many tokens, when the first came, why it ended."""

    def __init__(self, model: ServedModel, request: Request, special: bool) -> None:
        self.n_tokens = 0
        self.first_s = 0.0
        self.last_s = 0.0
        self.completion: Completion | None = None
        self.has_new_line = False
        self._stop_ids = request.params.stop_token_ids
        self._cutter = TextCutter(model.engine.tokenizer.stream(special), request.params.stop)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._cutter.stopped_by

    def take(self, event: Event, now_s: float) -> str:
        """The text that an event makes certain."""
        if event.token_ids and not self.n_tokens:
            self.first_s = now_s
        self.last_s = now_s
        self.n_tokens += len(event.token_ids)
        ids = event.token_ids
        by_token = event.finish == "eos" or (event.finish == "stop" and ids and ids[-1] in self._stop_ids)
        text = "".join([self._cutter.push(token) for token in (ids[:-1] if by_token else ids)])
        if event.finish is not None:
            assert isinstance(event, FinishedEvent)
            self.completion = event.completion
            text += self._cutter.flush()
        self.has_new_line = self.has_new_line or "\n" in text
        return text


class Generation:
    """Runs requests on a model and collects what comes. special: control tokens are part of the text.
    shows_reading: deltas tell how far prompts are; readings: that, of each prompt.
    admitted: it did not have to wait for the end of a pause, or does no more. ended: nothing of it runs.

    Made by `Server.generate`, which also counts it; whoever has it must call `close`.
    """

    def __init__(
        self,
        model: ServedModel,
        requests: Sequence[Request],
        *,
        special: bool = False,
        shows_reading: bool = False,
        closed: Callable[[Generation], None] = lambda generation: None,
    ) -> None:
        self.model = model
        self.requests = tuple(requests)
        self.n = self.requests[0].n
        self.n_choices = self.n * len(self.requests)
        self.writings = [Writing(model, request, special) for request in requests for _ in range(request.n)]
        self.readings = [Reading(len(request.prompt_ids)) for request in requests]
        self.started_s = time.perf_counter()
        self.closed = False
        self.admitted = False
        self.ended = asyncio.Event()
        self._aborted = False
        self._on_close = closed
        self._shows_reading = shows_reading
        self._running: list[int] = []
        self._pending: dict[int, Delta] = {}
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        self._n_open = self.n_choices

    async def start(self) -> None:
        """Submit the requests. EtudeError, before anything runs, if one could never run."""
        while not self.model.open.is_set():  # it may close again before this task gets its turn
            await self.model.open.wait()
        self.admitted = True
        self.started_s = time.perf_counter()
        await asyncio.to_thread(self._submit)  # grammars and samplers take their time to be made

    def _submit(self) -> None:
        put = self.model.mailbox.put
        for at, request in enumerate(self.requests):
            take = partial(self._take, at * self.n)
            arrived = partial(_arrived, put, take)
            read = partial(_read, put, partial(self._take_reading, at))
            self._running.append(self.model.engine.watch(request, arrived, read=read))
        if self.closed:  # meanwhile, by a client that has gone
            self._forget()
        elif self._aborted:
            self._abort()

    def abort(self) -> None:
        """End everything where it is, before the next step; the last deltas still come."""
        self._aborted = True
        self._abort()

    def _abort(self) -> None:
        for request_id in tuple(self._running):
            self.model.engine.abort(request_id)

    def _forget(self) -> None:
        for request_id in self._running:
            self.model.engine.forget(request_id)

    def _take(self, first: int, arrival: tuple[float, Event | BaseException]) -> None:
        """In the event loop: an event of the prompt whose first choice is `first`."""
        now_s, event = arrival
        if isinstance(event, BaseException):
            self._failure = RuntimeError(f"the engine has stopped: {event}")
        elif isinstance(event, FinishedEvent) and event.error is not None:
            self._failure = EtudeError(event.error)
        else:
            self._add(first + event.index, event, now_s)
        if self._failure is not None or not self._n_open:
            self.ended.set()
        self._wake.set()

    def _take_reading(self, at: int, told: tuple[float, int, int]) -> None:
        """In the event loop: how far prompt `at` is."""
        now_s, n_cached, n_done = told
        reading = self.readings[at]
        reading.take(n_cached, n_done, now_s)
        if self._shows_reading:
            self._delta_of(at * self.n).readings.append(replace(reading))
            self._wake.set()

    def _delta_of(self, choice: int) -> Delta:
        """What the reader has not seen yet of a choice."""
        delta = self._pending.get(choice)
        if delta is None:
            delta = self._pending[choice] = Delta(choice)
        return delta

    def _add(self, choice: int, event: Event, now_s: float) -> None:
        delta = self._delta_of(choice)
        text = self.writings[choice].take(event, now_s)
        delta.text += text
        if event.token_ids:
            delta.pieces += [""] * (len(event.token_ids) - 1) + [text]
        delta.token_ids += event.token_ids
        delta.logprobs += event.logprobs
        delta.raw_logprobs += event.raw_logprobs
        delta.top_logprobs += event.top_logprobs
        if event.finish is not None:
            delta.finish = event.finish
            delta.completion = self.writings[choice].completion
            self._n_open -= 1

    async def deltas(self) -> AsyncIterator[Delta]:
        """What arrives, until every choice has ended. EtudeError if the engine had to end one itself."""
        while True:
            pending, self._pending = self._pending, {}
            for delta in pending.values():
                yield delta
            if self._failure is not None:
                raise self._failure
            if not self._n_open and not self._pending:
                return
            if not self._pending:
                self._wake.clear()
                await self._wake.wait()

    async def completions(self) -> list[Completion]:
        """All choices, when they have ended."""
        async for _ in self.deltas():
            pass
        return [writing.completion for writing in self.writings if writing.completion is not None]

    def stop(self, choice: int) -> None:
        """End a choice, and the others of its prompt, before the next step; its last delta still comes."""
        self.model.engine.abort(self._running[choice // self.n])

    def close(self) -> None:
        """End what still runs. May be called again."""
        if self.closed:
            return
        self.closed = True
        if self._n_open:
            self._forget()
        self.ended.set()
        self._on_close(self)

    # ── what it cost ──

    @property
    def n_prompt(self) -> int:
        """Prompt tokens; each prompt counts once, however many completions it has."""
        return sum(len(request.prompt_ids) for request in self.requests)

    @property
    def n_cached(self) -> int:
        """Prompt tokens that were found in the cache."""
        return sum(reading.n_cached for reading in self.readings)

    @property
    def n_predicted(self) -> int:
        return sum(writing.n_tokens for writing in self.writings)

    @property
    def weights_versions(self) -> list[int]:
        """Versions of the weights that wrote it, the oldest first; known when it has ended."""
        found: set[int] = set()
        for writing in self.writings:
            if writing.completion is not None:
                found.add(writing.completion.weights_version)
                found.update(version for _, version in writing.completion.new_weights)
        return sorted(found)

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_predicted,
            "total_tokens": self.n_prompt + self.n_predicted,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
        }

    def stream_extra(self, options: StreamOptions | None, always: bool) -> dict[str, Any]:
        """Timings beside a chunk: of every chunk if `always`, else of the last one, unless usage follows.
        Beside the last one also who wrote it."""
        is_last = not self._n_open and not self._pending
        if is_last and not (options is not None and options.include_usage):
            return self.summary()
        return {"timings": self.timings()} if always else {}

    def summary(self) -> dict[str, Any]:
        """What an answer says at its end besides usage."""
        return {"timings": self.timings(), "weights_versions": self.weights_versions}

    def timings(self, choice: int | None = None, n_predicted: int | None = None) -> dict[str, Any]:
        """llama.cpp's timings object, of everything or of one choice, of which only `n_predicted` tokens
        count. The prompt's time ends with the first token, which costs no step of its own: the rate is that
        of the others."""
        writings, readings = self.writings, self.readings
        if choice is not None:
            writings, readings = [writings[choice]], [readings[choice // self.n]]
        begun = [writing for writing in writings if writing.n_tokens]
        n = sum(writing.n_tokens for writing in writings) if n_predicted is None else n_predicted
        n_cached = sum(reading.n_cached for reading in readings)
        n_read = sum(max(reading.n_done - reading.n_cached, 0) for reading in readings)
        began_s = min((reading.begun_s for reading in readings if reading.begun_s), default=self.started_s)
        last_read_s = max((reading.at_s for reading in readings), default=0.0) or began_s
        first_s = min((writing.first_s for writing in begun), default=last_read_s)
        last_s = max((writing.last_s for writing in begun), default=first_s)
        steps = max(n - len(begun), 0)
        return timings_of(n_cached, n_read, 1e3 * (first_s - began_s), n, steps, 1e3 * (last_s - first_s))


def _arrived(
    put: Callable[[Callable[[Any], None], Any], None],
    take: Callable[[Any], None],
    event: Event | BaseException,
) -> None:
    """In the computing thread."""
    put(take, (time.perf_counter(), event))


def _read(
    put: Callable[[Callable[[Any], None], Any], None],
    take: Callable[[Any], None],
    n_cached: int,
    n_done: int,
) -> None:
    """In the computing thread."""
    put(take, (time.perf_counter(), n_cached, n_done))
