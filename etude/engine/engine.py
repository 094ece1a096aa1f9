"""The engine as users meet it: load a model, generate, stream, score, embed; change weights while it lives.

    with Engine.load("smollm2-135m") as engine:
        [completions] = engine.generate(["Once upon a time"], n=8, max_tokens=64)
        for piece in engine.stream("Once upon a time", temperature=0):
            print(piece.text, end="")

`submit`, `step` and `abort` are the protocol of records.py, for loops of one's own; all else is such a loop.
Any thread may call anything, and the async forms may run beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from etude.engine.cache import PageCache
from etude.engine.cachefile import (
    CacheIdentity,
    drop_prefix,
    export_prefix,
    import_prefix,
    read_cache,
    write_cache,
)
from etude.engine.core import Counters, EngineCore, Running
from etude.engine.driver import Driver, Inbox
from etude.engine.loader import (
    CacheSettings,
    LoadedModel,
    NativePages,
    RunSettings,
    limits_of,
    load_model,
    parts_of,
    plan_cache,
)
from etude.engine.prompting import Piece, Pieces, Prompt, ids_of, request_of
from etude.engine.weights import Weight, native_adapter, read_files, read_update, set_update, set_weight
from etude.kernels import _native
from etude.model.checkpoint import MatrixWeights, open_source
from etude.model.lora import LoraWeights, read_lora
from etude.model.pull import resolve
from etude.model.rope import RopeOverrides
from etude.records import Completion, EtudeError, Event, FinishedEvent, Request, SamplingParams


class Engine:
    """A model that runs. tokenizer; chat: its chat template, None for a base model; config: what it is;
    shift_keep: tokens that a context shift keeps (-1: the prompt), None where contexts are not shifted."""

    def __init__(self, model: LoadedModel, cache: CacheSettings, run: RunSettings) -> None:
        plan = plan_cache(model, cache, shifts=run.context_shift)
        limits = limits_of(run, plan, model.tokenizer)
        self.path = model.path
        self.config = model.config
        self.tokenizer = model.tokenizer
        self.chat = model.chat
        self.weight_types = model.weight_types
        self.context = plan.context
        self.step_tokens = limits.step_tokens
        self.max_sequences = limits.max_sequences
        self.shift_keep = limits.shift_keep
        self.page_tokens = cache.page_tokens
        self.cache_types = (cache.type_k, cache.type_v)
        self.cache_bytes = plan.n_pages * plan.page_bytes
        self._model = model.native
        native = _native.Cache(model.native, plan.n_pages, cache.page_tokens, cache.type_k, cache.type_v)
        self._pages = NativePages(model.native, native)
        self._pool = _native.Pool(run.n_threads)
        decoder = _native.Decoder(model.native, native, self._pool)
        pages = PageCache(plan.n_pages, cache.page_tokens, self._pages.copy_page)
        self._core = EngineCore(decoder, self._pages, pages, parts_of(model), limits)
        self._driver = Driver(self._core)
        self._identity = CacheIdentity(
            model=model.fingerprint,
            isa=_native.isa(),
            cache_type_k=cache.type_k,
            cache_type_v=cache.type_v,
            page_tokens=cache.page_tokens,
            page_bytes=plan.page_bytes,
        )

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        threads: int | None = None,
        context: int | None = None,
        cache_type_k: str = "f16",
        cache_type_v: str = "f16",
        page_tokens: int = 32,
        cache_memory_bytes: int | None = None,
        cache_tokens: int | None = None,
        weight_type: str | None = None,
        rope: RopeOverrides | None = None,
        step_tokens: int = 512,
        max_sequences: int | None = None,
        context_shift: bool = False,
        keep: int = 0,
        download: bool = True,
    ) -> Self:
        """Load a GGUF file, a Hugging Face folder, or a name that `etude pull` knows (fetched if `download`).

        threads: None is one per physical core. context: tokens of one sequence; None is the model's own, at
        most 8192, and 0 is the model's own. cache_memory_bytes, or cache_tokens: the size of the cache that
        all sequences share; the default holds at least one full context. weight_type: convert the matrices to
        "f32", "bf16", "f16" or "q8_0" (for `load_weights`). step_tokens: tokens of one model step, prompts
        and completions together. max_sequences: completions written at once; None is half of step_tokens, at
        most 256. context_shift: when the context is full, keep BOS and the first `keep` prompt tokens (-1:
        all) and discard half of the rest, instead of ending. EtudeError for what does not fit together.
        """
        path = resolve(model, download=download)
        run = RunSettings(threads, step_tokens, max_sequences, context_shift, keep)
        settings = CacheSettings(
            context, cache_type_k, cache_type_v, page_tokens, cache_memory_bytes, cache_tokens
        )
        return cls(load_model(path, rope=rope, weight_type=weight_type), settings, run)

    # ── what it is ──

    @property
    def threads(self) -> int:
        return int(self._pool.threads)

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights."""
        return int(self._model.weight_bytes)

    @property
    def weights_version(self) -> int:
        """0 for the weights of the file, else what `load_weights` was told."""
        return self._core.weights_version

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded LoRA adapters."""
        return tuple(self._core.adapters)

    @property
    def counters(self) -> Counters:
        """What has been done since the start."""
        return self._core.counters

    def describe(self) -> str:
        """Model, memory and limits in a few lines."""
        pages = f"{self._core.cache.n_pages} pages of {self.page_tokens} tokens"
        over = "" if self.context <= self.config.context_length else ", more than it was trained for"
        return (
            f"{self.path.name}: {self.config.architecture}, {'/'.join(self.weight_types)}, "
            f"{self.weight_bytes / 2**20:,.0f} MiB of weights\n"
            f"cache: {self.cache_bytes / 2**20:,.0f} MiB, {pages}, {'/'.join(self.cache_types)}\n"
            f"context: {self.context} of {self.config.context_length} tokens{over}\n"
            f"steps: {self.step_tokens} tokens, {self.max_sequences} completions, {self.threads} threads, "
            f"{_native.isa()}"
        )

    # ── the protocol ──

    def submit(self, request: Request) -> int:
        """Put a request in line; `step` gives its events. EtudeError if it could never run."""
        return self._driver.submit(self._core.prepare(request))

    def step(self) -> Sequence[Event]:
        """One model step for everything that runs; [] when there is nothing to do or to tell yet."""
        return self._driver.step()

    def abort(self, request_id: int) -> None:
        """End a request before the next step, which gives its last events; one that has ended is
        left alone.
        """
        self._driver.abort(request_id)

    def pause(self) -> None:
        """No step begins from now on; what runs stays where it is until `resume`. Returns when the step that
        runs has ended. Weights and adapters may be changed meanwhile.
        """
        self._driver.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._driver.resume()

    def close(self) -> None:
        """Stop. Whoever still waits for something gets an error."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ── completions ──

    def request(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Request:
        """A request from text, ids or a conversation. options: fields of `SamplingParams` and of
        `Request`.
        """
        return request_of(ids_of(self.tokenizer, self.chat, prompt), params, options)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, n: int = 1, **options: Any
    ) -> list[list[Completion]]:
        """The `n` completions of each prompt. options: fields of `SamplingParams` and of `Request`."""
        requests = self._requests(prompts, params, n=n, **options)
        inbox = Inbox(only_ends=True)
        running = self._submit(requests, inbox)
        results: dict[tuple[int, int], Completion] = {}
        try:
            while len(results) < n * len(requests):
                for event in self._driver.wait(inbox):
                    _collect(event, results)
        finally:
            self._forget(running)
        return [[results[request_id, index] for index in range(n)] for request_id in running]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Iterator[Piece]:
        """Text as it becomes certain, never half a character or the start of a stop string. Leaving the loop
        ends the request."""
        request = self.request(prompt, params, **options)
        pieces = Pieces(self.tokenizer, request)
        inbox = Inbox()
        running = self._submit([request], inbox)
        try:
            while pieces.n_open:
                for event in self._driver.wait(inbox):
                    yield pieces.of(event)
        finally:
            self._forget(running)

    async def agenerate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, n: int = 1, **options: Any
    ) -> list[list[Completion]]:
        """`generate` for asyncio; cancelling it ends the requests."""
        requests = self._requests(prompts, params, n=n, **options)
        results: dict[tuple[int, int], Completion] = {}
        inbox, events = _async_inbox(only_ends=True)
        running = self._submit(requests, inbox)
        try:
            while len(results) < n * len(requests):
                _collect(await _next(events), results)
        finally:
            self._forget(running)
        return [[results[request_id, index] for index in range(n)] for request_id in running]

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> AsyncIterator[Piece]:
        """`stream` for asyncio."""
        request = self.request(prompt, params, **options)
        pieces = Pieces(self.tokenizer, request)
        inbox, events = _async_inbox(only_ends=False)
        running = self._submit([request], inbox)
        try:
            while pieces.n_open:
                yield pieces.of(await _next(events))
        finally:
            self._forget(running)

    def watch(
        self,
        request: Request,
        arrived: Callable[[Event | BaseException], None],
        *,
        hidden: Literal["all", "last"] | None = None,
        read: Callable[[int, int], None] | None = None,
    ) -> int:
        """Submit a request whose events `arrived` is called with, by the thread that computes; with an
        exception when the engine fails. hidden: hidden states of the prompt instead of completions. read:
        called likewise with (n_cached, n_computed) tokens of the prompt, when it is begun and as it is read.
        """
        reader = self._core.prepare(request, hidden=hidden)
        reader.group.on_read = read
        return self._driver.submit(reader, Inbox(arrived))

    def forget(self, request_id: int) -> None:
        """End a watched request before the next step; `arrived` hears no more of it."""
        self._driver.forget(request_id)

    def score(self, prompt: Prompt, **options: Any) -> tuple[float | None, ...]:
        """log p(token | tokens before it) of each prompt token; None for the first. options: of `Request`."""
        [[completion]] = self.generate([prompt], max_tokens=0, prompt_logprobs=0, **options)
        assert completion.prompt_logprobs is not None
        return completion.prompt_logprobs

    def embed(
        self, prompt: Prompt, pooling: Literal["mean", "last", "none"] = "mean", **options: Any
    ) -> NDArray[np.float32]:
        """Hidden state after the final norm: of the last token or the mean (D,), or of every token (P, D)."""
        if pooling not in ("mean", "last", "none"):
            raise EtudeError(f"pooling is {pooling!r}; it must be 'mean', 'last' or 'none'")
        request = self.request(prompt, **options)
        inbox = Inbox()
        reader = self._core.prepare(request, hidden="last" if pooling == "last" else "all")
        running = [self._driver.submit(reader, inbox)]
        try:
            [event] = self._driver.wait(inbox)
        finally:
            self._forget(running)
        assert isinstance(event, FinishedEvent) and event.hidden is not None
        rows_PD = event.hidden
        if pooling == "none":
            return rows_PD
        pooled_D = rows_PD[0] if pooling == "last" else rows_PD.mean(axis=0, dtype=np.float64)
        return np.asarray(pooled_D, np.float32)

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams | None, **options: Any
    ) -> list[Request]:
        if isinstance(prompts, str) or any(isinstance(prompt, int) for prompt in prompts):
            raise EtudeError("generate takes a list of prompts; write [prompt] for a single one")
        return [self.request(prompt, params, **options) for prompt in prompts]

    def _submit(self, requests: list[Request], inbox: Inbox) -> list[int]:
        """All or none of them."""
        readers = [self._core.prepare(request) for request in requests]
        return [self._driver.submit(reader, inbox) for reader in readers]

    def _forget(self, running: list[int]) -> None:
        for request_id in running:
            self._driver.forget(request_id)

    # ── weights ──

    def load_weights(
        self, tensors: Iterable[tuple[str, Any]], version: int, *, running: Running = "refuse"
    ) -> None:
        """Take a trainer's tensors (DLPack, in main memory) under Hugging Face names and layout, between
        steps.

        All are checked before the first is taken. Nothing cached is used any more. running: what to do with
        requests that are not done: "refuse" to change, "abort" them, or "continue" them from the tokens they
        have with the new weights (`Completion.new_weights` says where the new ones began).
        """
        weights = read_update(self.config, self._model, tensors)
        self._change(lambda: set_update(self._model, weights), version, running)

    def load_weights_from(self, source: str | Path, version: int, *, running: Running = "refuse") -> None:
        """`load_weights` from a GGUF file or Hugging Face folder of the same model. A GGUF file's matrices
        keep its types, a folder's become those that the model holds. EtudeError leaves all as it was.
        """
        with open_source(source) as files:
            weights = read_files(self.config, self._model, files)

            def apply() -> None:
                for weight in weights:
                    set_weight(self._model, weight)

            self._change(apply, version, running)
            self.weight_types = _types_of(weights)

    def _change(self, apply: Callable[[], None], version: int, running: Running) -> None:
        if running not in ("refuse", "abort", "continue"):
            raise EtudeError(f"running is {running!r}; it must be 'refuse', 'abort' or 'continue'")
        self._driver.between_steps(lambda: self._core.change_weights(apply, version, running))

    def load_adapter(self, name: str, source: str | Path | LoraWeights, version: int | None = None) -> None:
        """Load a LoRA adapter (GGUF file, PEFT folder, or weights from a trainer) for `Request.adapter`.

        It replaces one of the same name for requests to come. version: what their completions carry as
        `weights_version`; None: that of the model's weights.
        """
        lora = source if isinstance(source, LoraWeights) else read_lora(source, self.config)
        adapter = native_adapter(_native.Adapter, self._model, lora)
        self._driver.between_steps(lambda: self._core.add_adapter(name, adapter, version))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that run with it keep it to their end."""
        self._driver.between_steps(lambda: self._core.remove_adapter(name))

    # ── the prompt cache as a file ──

    def save_cache(self, path: str | Path, prompt: Prompt) -> int:
        """Write the keys and values of a prompt, computed if they are not cached; how many tokens are saved.

        Whole pages are: what is left of the prompt is computed again by whoever loads it.
        """
        if self.weights_version != 0:
            raise EtudeError(
                "the weights were changed in place; a prompt cache of them would fit no model file"
            )
        ids = np.array(ids_of(self.tokenizer, self.chat, prompt), np.int32)
        self.generate([ids.tolist()], max_tokens=0)
        pages = self._driver.between_steps(lambda: export_prefix(self._core, self._pages, ids))
        n_tokens = len(pages) * self.page_tokens
        write_cache(Path(path), self._identity, ids[:n_tokens], pages)
        return n_tokens

    def load_cache(self, path: str | Path) -> int:
        """Read a file of `save_cache`; how many prompt tokens are cached by it. EtudeError if it
        does not fit.
        """
        if self.weights_version != 0:
            raise EtudeError("the weights were changed in place; no prompt cache fits them")
        ids, pages = read_cache(Path(path), self._identity)
        return self._driver.between_steps(lambda: import_prefix(self._core, self._pages, ids, pages))

    def erase_cache(self, prompt: Prompt) -> int:
        """Forget what is cached of a prompt, from its end, as far as nothing else needs it; how many tokens
        were.
        """
        ids = np.array(ids_of(self.tokenizer, self.chat, prompt), np.int32)
        return self._driver.between_steps(lambda: drop_prefix(self._core, ids))

    def release_cache(self) -> None:
        """Forget all cached prompts and give their memory back, until sequences need it again: for a trainer,
        between sampling and an update. EtudeError while requests run."""

        def release() -> None:
            self._core.forget_prefixes()
            self._pages.release()

        self._driver.between_steps(release)


def _collect(event: Event, results: dict[tuple[int, int], Completion]) -> None:
    """Keep what has ended."""
    if isinstance(event, FinishedEvent):
        if event.error is not None:
            raise EtudeError(event.error)
        assert event.completion is not None
        results[event.request_id, event.index] = event.completion


def _types_of(weights: Iterable[Weight]) -> tuple[str, ...]:
    """Types of the matrices, each once."""
    return tuple(dict.fromkeys(each.type.name for each in weights if isinstance(each, MatrixWeights)))


def _async_inbox(only_ends: bool) -> tuple[Inbox, asyncio.Queue[Event | BaseException]]:
    """An inbox that fills a queue of the running event loop."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
    return Inbox(lambda event: _put(loop, events, event), only_ends=only_ends), events


def _put(
    loop: asyncio.AbstractEventLoop,
    events: asyncio.Queue[Event | BaseException],
    event: Event | BaseException,
) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


async def _next(events: asyncio.Queue[Event | BaseException]) -> Event:
    event = await events.get()
    if isinstance(event, BaseException):
        raise RuntimeError(f"the engine has stopped: {event}") from event
    return event
