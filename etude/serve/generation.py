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
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from etude.engine.text import TextCutter
from etude.records import Completion, EtudeError, Event, Finish, FinishedEvent, Request, TopLogprobs
from etude.serve.models import ServedModel
from etude.serve.types_openai import StreamOptions


@dataclass(slots=True)
class Delta:
    """What was added to a choice. Per-token fields have equal length (top_logprobs: or none). completion: the
    whole, with the last delta. text: without the token that ended it, nor what may yet become a stop
    string. pieces: the text that each token made certain; what the end set free besides is in `text` only."""

    choice: int
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    completion: Completion | None = None


class Writing:
    """One choice as it grows: its text, how many tokens, when the first came, why it ended."""

    def __init__(self, model: ServedModel, request: Request, special: bool) -> None:
        self.n_tokens = 0
        self.first_s = 0.0
        self.last_s = 0.0
        self.completion: Completion | None = None
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
        if event.finish is None:
            return text
        assert isinstance(event, FinishedEvent)
        self.completion = event.completion
        return text + self._cutter.flush()


class Generation:
    """Runs requests on a model and collects what comes. special: control tokens are part of the text.
    admitted: it did not have to wait for the end of a pause, or does no more. ended: nothing of it runs.

    Made by `Server.generate`, which also counts it; whoever has it must call `close`.
    """

    def __init__(
        self,
        model: ServedModel,
        requests: Sequence[Request],
        *,
        special: bool = False,
        closed: Callable[[Generation], None] = lambda generation: None,
    ) -> None:
        self.model = model
        self.requests = tuple(requests)
        self.n = self.requests[0].n
        self.n_choices = self.n * len(self.requests)
        self.writings = [Writing(model, request, special) for request in requests for _ in range(request.n)]
        self.started_s = time.perf_counter()
        self.closed = False
        self.admitted = False
        self.ended = asyncio.Event()
        self._aborted = False
        self._on_close = closed
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
            self._running.append(self.model.engine.watch(request, arrived))
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

    def _add(self, choice: int, event: Event, now_s: float) -> None:
        delta = self._pending.get(choice)
        if delta is None:
            delta = self._pending[choice] = Delta(choice)
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
        """Prompt tokens that were found in the cache; known when a completion has ended."""
        firsts = (self.writings[at * self.n].completion for at in range(len(self.requests)))
        return sum(completion.n_cached for completion in firsts if completion is not None)

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
        writings = self.writings if choice is None else [self.writings[choice]]
        begun = [writing for writing in writings if writing.n_tokens]
        last_s = max((writing.last_s for writing in writings), default=0.0) or time.perf_counter()
        first_s = min((writing.first_s for writing in begun), default=last_s)
        n_prompt, n_cached = (self.n_prompt, self.n_cached) if choice is None else self._prompt_of(choice)
        n = self.n_predicted if n_predicted is None and choice is None else n_predicted
        n = writings[0].n_tokens if n is None else n
        n_read = max(n_prompt - n_cached, 0)
        prompt = _rate("prompt", n_read, n_read, 1e3 * (first_s - self.started_s))
        steps = max(n - len(begun), 0)
        return {"cache_n": n_cached} | prompt | _rate("predicted", n, steps, 1e3 * (last_s - first_s))

    def _prompt_of(self, choice: int) -> tuple[int, int]:
        """(tokens, of them cached) of the prompt that a choice answers."""
        at = choice // self.n
        completion = self.writings[at * self.n].completion
        return len(self.requests[at].prompt_ids), 0 if completion is None else completion.n_cached


def _arrived(
    put: Callable[[Callable[[Any], None], Any], None],
    take: Callable[[Any], None],
    event: Event | BaseException,
) -> None:
    """In the computing thread."""
    put(take, (time.perf_counter(), event))


def _rate(name: str, n: int, n_timed: int, ms: float) -> dict[str, Any]:
    return {
        f"{name}_n": n,
        f"{name}_ms": ms,
        f"{name}_per_token_ms": ms / n_timed if n_timed else 0.0,
        f"{name}_per_second": 1e3 * n_timed / ms if n_timed and ms > 0 else 0.0,
    }
