"""What all routes share: settings, models, who runs, what has been done.

`server_of(request)` gives it to a handler. `generate` is the way to completions: it takes the model, refuses
when too much waits, submits, and counts.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest

from etude.records import Request
from etude.serve.assets import Site
from etude.serve.bodies import COUNTED, MAX_CONTAINERS, Bodies, check_amount
from etude.serve.conversation_file import ConversationFile
from etude.serve.errors import ApiError
from etude.serve.generation import Generation
from etude.serve.models import ModelPool, ServedModel
from etude.serve.run_store import RunStore
from etude.serve.settings import ServeSettings
from etude.serve.slot_table import SlotTable

Body = TypeVar("Body", bound=BaseModel)
RECENT = 0.2  # weight of the latest request in the mean time of a request


@dataclass
class Totals:
    """Since the start, of requests that have ended. longest: tokens of a prompt and its answer.
    predicted_steps: predicted tokens, less the first of each answer, which costs no step of its own."""

    requests: int = 0
    aborted: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    predicted_tokens: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    predicted_steps: int = 0
    longest: int = 0


class Server:
    """The state of a running server."""

    def __init__(self, settings: ServeSettings, pool: ModelPool) -> None:
        self.settings = settings
        self.pool = pool
        self.totals = Totals()
        self.scraped = Totals()  # when /metrics was read last
        self.started_at = time.time()
        self.bodies = Bodies(settings.max_body_bytes, settings.write_timeout_s)
        self.changing = asyncio.Lock()  # weights or adapters: one change after another
        self.loading = False  # the first model, at the start
        self.stopping = False  # streams that have no end of their own end now
        self.site = Site()
        self.conversations = ConversationFile(settings.data_folder) if settings.shows_pages else None
        self.runs = None if settings.runs_folder is None else RunStore(settings.runs_folder)
        self.active: dict[int, Generation] = {}
        self.known_props: dict[str, dict[str, Any]] = {}  # by model: what is said of it while it sleeps
        self.known_meta: dict[str, dict[str, Any]] = {}  # the same in the list of models
        self.slots: dict[str, SlotTable] = {}  # by model
        self._serials = itertools.count()
        self._n_running = 0
        self._mean_s = 1.0

    @property
    def n_running(self) -> int:
        """Completions that run or wait."""
        return self._n_running

    def close(self) -> None:
        """What the server itself has opened."""
        if self.conversations is not None:
            self.conversations.close()

    async def body(self, request: HttpRequest, kind: type[Body]) -> Body:
        """The request's JSON, checked; if it is large, in a thread. ApiError of bodies.py, or
        ValidationError."""
        async with self.bodies.reading(request) as raw:
            if len(raw) <= COUNTED:
                return kind.model_validate_json(raw)
            return await asyncio.to_thread(_checked, raw, kind)

    @asynccontextmanager
    async def model(self, name: str | None) -> AsyncIterator[ServedModel]:
        """A model for the time of a block."""
        async with self.pool.use(name) as model:
            yield model

    async def generate(
        self,
        name: str | None,
        make: Callable[[ServedModel], Sequence[Request]],
        *,
        special: Callable[[ServedModel], bool] = lambda model: False,
        slot: int | None = None,
        shows_reading: bool = False,
    ) -> Generation:
        """Start the requests that `make` gives for a model; it runs in a thread, where templates and
        tokenizers may take their time. The caller closes the generation. slot: the one it would like.
        shows_reading: its deltas tell how far prompts are.

        ApiError 404: no such model; 429: too much waits. EtudeError: a request could never run.
        """
        model = await self.pool.acquire(name)
        generation: Generation | None = None
        try:
            self._check_queue(1)
            requests = await asyncio.to_thread(make, model)
            n = sum(request.n for request in requests)
            self._check_queue(n)
            self._n_running += n
            serial = next(self._serials)
            generation = Generation(
                model,
                requests,
                special=special(model),
                shows_reading=shows_reading,
                closed=lambda ended: self._ended(serial, ended),
            )
            self.active[serial] = generation
            self.slots_of(model).add(serial, generation, slot)
            await generation.start()
            return generation
        except BaseException:
            if generation is not None:
                generation.close()
            else:
                self.pool.release(model)
            raise

    def slots_of(self, model: ServedModel) -> SlotTable:
        """The slots of a model: as many as completions that it writes at once."""
        if model.name not in self.slots:
            keeps_ids = self.settings.slot_folder is not None
            self.slots[model.name] = SlotTable(model.engine.max_sequences, keeps_ids=keeps_ids)
        return self.slots[model.name]

    @contextmanager
    def reserved(self, n: int) -> Iterator[None]:
        """Room for `n` pieces of work that are no completions. ApiError 429 if there is none."""
        self._check_queue(n)
        self._n_running += n
        try:
            yield
        finally:
            self._n_running -= n

    def _check_queue(self, n: int) -> None:
        limit = self.settings.max_queue
        if self._n_running + n <= limit:
            return
        self.totals.refused += 1
        if n > limit:
            raise ApiError(
                400, f"{n} completions in one request; this server takes {limit} at once", param="n"
            )
        raise ApiError(
            429,
            f"{self._n_running} completions run or wait, and {limit} is the limit: come again later",
            code="rate_limit_exceeded",
            retry_after_s=max(1, min(60, round(self._mean_s))),
        )

    def _ended(self, serial: int, generation: Generation) -> None:
        del self.active[serial]
        self._n_running -= generation.n_choices
        self.slots_of(generation.model).remove(generation)
        self.pool.release(generation.model)
        totals, timings = self.totals, generation.timings()
        totals.requests += 1
        totals.aborted += any(writing.completion is None for writing in generation.writings)
        totals.prompt_tokens += timings["prompt_n"]
        totals.cached_tokens += timings["cache_n"]
        totals.predicted_tokens += timings["predicted_n"]
        totals.prompt_ms += timings["prompt_ms"]
        totals.predicted_steps += sum(max(writing.n_tokens - 1, 0) for writing in generation.writings)
        totals.predicted_ms += timings["predicted_ms"]
        for at, writing in enumerate(generation.writings):
            n_prompt = len(generation.requests[at // generation.n].prompt_ids)
            totals.longest = max(totals.longest, n_prompt + writing.n_tokens)
        took_s = time.perf_counter() - generation.started_s
        self._mean_s += RECENT * (took_s - self._mean_s)


def _checked(raw: bytes, kind: type[Body]) -> Body:
    """A large body."""
    check_amount(raw, getattr(kind, "max_containers", MAX_CONTAINERS))
    return kind.model_validate_json(raw)


def server_of(request: HttpRequest) -> Server:
    """The server a handler works for."""
    server: Server = request.app.state.server
    return server
