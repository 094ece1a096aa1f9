"""The engine's inside: requests in, events out, one native call per step. Used by one thread only.

It knows nothing of files, text encodings or callers: engine.py wraps it for users, tests drive it with a fake
decoder. What a completion needs of a tokenizer, a sampler and a grammar comes in as `Parts`.
"""

from __future__ import annotations

import functools
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etude.engine.batch import Batch, Span, build
from etude.engine.cache import PageCache
from etude.engine.output import (
    Draws,
    append,
    event_of,
    finished_event,
    sampled_top,
    text_of,
    top_of,
)
from etude.engine.scheduler import Chunk, PageStore, Scheduler, pages_needed
from etude.engine.sequence import Group, HiddenRows, PromptScores, Sequence
from etude.engine.text import TextCutter, TextStream
from etude.records import EtudeError, Event, Finish, Grammar, Request, SamplingParams, TopLogprobs

if TYPE_CHECKING:
    from etude.engine.grammar import GrammarState
    from etude.kernels._native import Adapter, Decoder, Sampler, StepOutput

NO_LIMIT = 2**62
BAD_LOGITS, NOTHING_ALLOWED = -1, -2  # what the native sampler gives instead of a token id
ERRORS = {
    BAD_LOGITS: "the logits are NaN or infinite: the weights of the model or of the adapter are broken",
    NOTHING_ALLOWED: "no token is left to draw: grammar, logit_bias and sampler chain exclude all of them",
}
Running = Literal["refuse", "abort", "continue"]


def seed_after_shift(seed: int, n_discarded: int) -> int:
    """The seed of a completion after `n_discarded` tokens have left its context."""
    return (seed + n_discarded * 0x9E3779B97F4A7C15) % 2**64


class LoadedAdapter(NamedTuple):
    """A LoRA adapter; `uid` tells two that had the same name apart. version: what completions with it carry;
    None: that of the model's weights."""

    native: Adapter
    uid: int
    version: int | None


@dataclass(frozen=True)
class Parts:
    """What a completion is made of, and facts of the model that requests are checked against."""

    new_sampler: Callable[[SamplingParams, int, int, NDArray[np.int32]], Sampler]
    """(params, seed, index of the completion, prompt ids)"""
    new_matcher: Callable[[Grammar], GrammarState]
    new_stream: Callable[[], TextStream]
    n_vocab: int
    d_model: int
    eog_ids: frozenset[int]


@dataclass(frozen=True)
class Limits:
    """context: tokens of a sequence; step_tokens: tokens of a step; max_sequences: completions written at
    once; shift_keep: see `Scheduler`.
    """

    context: int
    step_tokens: int = 512
    max_sequences: int = 256
    shift_keep: int | None = None


class Counters(NamedTuple):
    """Since the start. steps: native calls; computed_tokens: tokens that ran through the model;
    reused_tokens: tokens of requests that were found in the cache; drawn_tokens; preemptions: completions put
    back for lack of pages.
    """

    steps: int
    computed_tokens: int
    reused_tokens: int
    drawn_tokens: int
    preemptions: int


class EngineCore:
    """Runs requests. `prepare` may be called by any thread, all else by the one that owns the core."""

    def __init__(
        self,
        decoder: Decoder,
        store: PageStore,
        cache: PageCache,
        parts: Parts,
        limits: Limits,
    ) -> None:
        shifts = limits.shift_keep is not None
        assert cache.n_pages >= pages_needed(limits.context, cache.page_tokens, shifts=shifts)
        assert limits.step_tokens > limits.max_sequences
        self.parts = parts
        self.limits = limits
        self.cache = cache
        self._steps = self._computed_tokens = self._drawn_tokens = 0
        self.weights_version = 0
        self.adapters: dict[str, LoadedAdapter] = {}
        self.scheduler = Scheduler(
            cache,
            store,
            context=limits.context,
            shift_keep=limits.shift_keep,
            after_shift=functools.partial(_renew_sampler, parts),
            step_tokens=limits.step_tokens,
            max_sequences=limits.max_sequences,
        )
        self._decoder = decoder
        self._ids = itertools.count()
        self._uids = itertools.count()
        self._groups: dict[int, Group] = {}
        self._events: list[Event] = []

    @property
    def has_work(self) -> bool:
        """Whether `step` would return or compute something."""
        return bool(self._groups or self._events)

    def is_live(self, request_id: int) -> bool:
        """Whether completions of a request have not ended yet."""
        return request_id in self._groups

    @property
    def counters(self) -> Counters:
        """What has been done."""
        scheduler = self.scheduler
        return Counters(
            self._steps,
            self._computed_tokens,
            scheduler.n_reused,
            self._drawn_tokens,
            scheduler.n_preempted,
        )

    # ── requests ──

    def prepare(self, request: Request, *, hidden: Literal["all", "last"] | None = None) -> Sequence:
        """Check a request and make the sequence that reads its prompt; EtudeError if it could never run.

        hidden: hidden states of the prompt are wanted instead of completions.
        """
        self._check(request, reads_only=hidden is not None)
        request = _within(request, self.parts.n_vocab)
        params = request.params
        room = self.limits.context - len(request.prompt_ids)
        wanted = NO_LIMIT if params.max_tokens is None else params.max_tokens
        adapter = None if request.adapter is None else self._adapter(request.adapter)
        group = Group(
            id=next(self._ids),
            request=request,
            prompt=np.array(request.prompt_ids, np.int32),
            adapter=adapter.native if adapter else None,
            adapter_key=(adapter.uid, request.adapter_scale) if adapter else None,
            adapter_version=adapter.version if adapter else None,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            max_tokens=wanted if self.limits.shift_keep is not None else min(wanted, room),
            end_ids=frozenset() if params.ignore_eos else self.parts.eog_ids,
            stop_ids=frozenset(params.stop_token_ids),
            n_open=request.n,
        )
        n_prompt = len(group.prompt)
        if request.prompt_logprobs is not None:
            logprobs = np.full(n_prompt, np.nan, np.float32)
            group.scores = PromptScores(logprobs, [()] * n_prompt, request.prompt_logprobs)
        if hidden is not None:
            shape = (1 if hidden == "last" else n_prompt, self.parts.d_model)
            group.hidden = HiddenRows(np.empty(shape, np.float32), hidden == "last")
        if hidden is not None or group.max_tokens == 0:
            group.next_index = request.n  # nothing is drawn, so nothing forks
        return self._sequence(group, 0)

    def add(self, reader: Sequence) -> None:
        """Put a prepared request in line."""
        group = reader.group
        version = group.adapter_version
        group.weights_version = self.weights_version if version is None else version
        group.namespace = (self.weights_version, group.adapter_key)
        self._groups[group.id] = group
        self.scheduler.add(reader)

    def abort(self, request_id: int) -> None:
        """End a request's completions where they are; nothing happens if it has ended by itself."""
        group = self._groups.get(request_id)
        if group is None:
            return
        for sequence in self.scheduler.sequences_of(group):
            self._finish(sequence, "abort")
        for index in range(group.next_index, group.request.n):
            self._finish(Sequence(group, index, group.prompt, None), "abort")

    def _check(self, request: Request, reads_only: bool) -> None:
        params, n_prompt, n_vocab = request.params, len(request.prompt_ids), self.parts.n_vocab
        if n_prompt == 0:
            raise EtudeError("the prompt has no tokens; give at least one, such as the model's BOS")
        for name, ids in (("prompt", request.prompt_ids), ("stop_token_ids", params.stop_token_ids)):
            if ids and not 0 <= min(ids) <= max(ids) < n_vocab:
                bad = next(token for token in ids if not 0 <= token < n_vocab)
                raise EtudeError(f"token id {bad} in {name}: the model's ids are 0 to {n_vocab - 1}")
        for name, value, least in (
            ("n", request.n, 1),
            ("max_tokens", params.max_tokens, 0),
            ("prompt_logprobs", request.prompt_logprobs, 0),
            ("logprobs", params.logprobs, 0),
            ("seed", params.seed, 0),
        ):
            if value is not None and value < least:
                raise EtudeError(f"{name} is {value}; it must be at least {least}")
        if params.seed is not None and params.seed >= 2**64:
            raise EtudeError(f"seed is {params.seed}; it must be below 2**64")
        if request.grammar is not None and params.max_tokens == 0:
            self.parts.new_matcher(request.grammar)  # a wrong one is an error even where nothing is written
        writes = params.max_tokens != 0 and not reads_only
        if n_prompt + writes > self.limits.context:
            raise EtudeError(
                f"the prompt has {n_prompt} tokens, the context holds {self.limits.context} "
                f"({'one of them for the answer, ' if writes else ''}{self.cache.n_pages} cache pages of "
                f"{self.cache.page_tokens}): shorten the prompt or load the model with a larger context"
            )

    def _sequence(self, group: Group, index: int) -> Sequence:
        """A completion of which nothing is computed."""
        params = group.request.params
        if group.hidden is not None or group.max_tokens == 0:
            return Sequence(group, index, group.prompt, None)
        grammar = group.request.grammar
        new = functools.partial(self.parts.new_sampler, params, group.seed, index, group.prompt)
        return Sequence(
            group,
            index,
            group.prompt,
            new(),
            matcher=None if grammar is None else self.parts.new_matcher(grammar),
            cutter=TextCutter(self.parts.new_stream(), params.stop) if params.stop else None,
            shadow=new() if group.request.sampled_top and params.logprobs else None,
        )

    # ── steps ──

    def step(self) -> list[Event]:
        """One model step; [] when there is nothing to do."""
        chunks = self.scheduler.plan()
        if chunks:
            forks = {chunk.sequence: self._fork(chunk) for chunk in chunks if chunk.n_forks}
            batch = build(chunks, forks, self.cache.page_tokens)
            output = self._decoder.step(**batch.arguments)
            readers = self._advance(chunks, forks)
            self._take_spans(batch.spans, output)
            self._take_draws(batch, output)
            for reader in readers:
                self._end_reading(reader)
            self._steps += 1
            self._computed_tokens += len(batch.arguments["token_ids"])
            self._drawn_tokens += len(batch.draws)
        events, self._events = self._events, []
        return events

    def _fork(self, chunk: Chunk) -> list[Sequence]:
        group = chunk.sequence.group
        first = group.next_index
        group.next_index += chunk.n_forks
        return [self._sequence(group, index) for index in range(first, group.next_index)]

    def _advance(self, chunks: list[Chunk], forks: dict[Sequence, list[Sequence]]) -> list[Sequence]:
        """The tokens of this step are in the cache now. Returns who has come to the end of a prompt."""
        width = self.cache.page_tokens
        readers = []
        for sequence, n_tokens, _ in chunks:
            sequence.n_computed += n_tokens
            group = sequence.group
            if group.on_read is not None and not group.was_read:
                group.on_read(group.n_cached or 0, sequence.n_computed)
            if (sequence.n_stored + 1) * width <= sequence.n_computed:
                self.scheduler.store_pages(sequence)
            if sequence.n_computed == sequence.n_total and not sequence.ids:
                readers.append(sequence)
        for parent, children in forks.items():
            self.scheduler.start_forks(parent, children)
        return readers

    def _take_spans(self, spans: list[Span], output: StepOutput) -> None:
        """What was asked of prompt tokens."""
        for sequence, start, row, n_rows in spans:
            group, rows = sequence.group, slice(row, row + n_rows)
            if group.scores is not None:
                group.scores.logprobs[start + 1 : start + 1 + n_rows] = output.raw_logprobs[rows]
                for at in range(n_rows if group.scores.n_top else 0):
                    group.scores.tops[start + 1 + at] = top_of(output, row + at, group.scores.n_top)
            elif group.hidden is not None:
                assert output.hidden is not None
                first = 0 if group.hidden.only_last else start
                group.hidden.rows[first : first + n_rows] = output.hidden[rows]

    def _take_draws(self, batch: Batch, output: StepOutput) -> None:
        """Append the drawn tokens, and see which completions end with them."""
        draws = Draws.of(output)
        held: list[tuple[Sequence, GrammarState]] = []
        for sequence, row in zip(batch.draws, batch.draw_rows, strict=True):
            token = draws.token_ids[row]
            if token < 0:
                self._finish(sequence, "abort", ERRORS[token])
                continue
            n_top = sequence.group.request.params.logprobs
            if sequence.shadow is not None:
                top: TopLogprobs | None = sampled_top(sequence, output, row, batch.arguments["masks"][row])
            else:
                top = top_of(output, row, n_top) if n_top else None
            append(sequence, draws, row, top)
            try:
                finish = self._why_finished(sequence, token)
            except EtudeError as error:  # its grammar took back what its mask had allowed
                self._finish(sequence, "abort", str(error))
                continue
            if finish is not None:
                self._finish(sequence, finish, has_new=True)
                continue
            self._events.append(event_of(sequence))
            if sequence.matcher is not None:
                held.append((sequence, sequence.matcher))
        if held:
            self._prepare_masks(held)

    def _prepare_masks(self, held: list[tuple[Sequence, GrammarState]]) -> None:
        """The masks of the next step; a completion whose grammar gives up (too complex, say) ends
        with its reason.
        """
        for sequence, matcher in held:
            try:
                matcher.mask()
            except EtudeError as error:
                self._finish(sequence, "abort", str(error))

    def _why_finished(self, sequence: Sequence, token: int) -> Finish | None:
        group = sequence.group
        if token in group.end_ids:
            return "eos"
        if token in group.stop_ids:
            return "stop"
        if sequence.cutter is not None:
            sequence.text += sequence.cutter.push(token)
            if sequence.cutter.stopped:
                return "stop"
        if sequence.matcher is not None:
            sequence.matcher.accept(token)
        return "length" if len(sequence.ids) >= group.max_tokens else None

    def _end_reading(self, reader: Sequence) -> None:
        """A prompt has been read to its end: what was only read is done, what found no place waits
        for one.
        """
        group = reader.group
        group.was_read = True
        if reader.sampler is None:
            self._finish(reader, "length")
            for index in range(1, group.request.n):
                self._finish(Sequence(group, index, group.prompt, None), "length")
        elif group.n_unstarted:
            self.scheduler.add(self._sequence(group, group.next_index))
            group.next_index += 1

    def _finish(
        self, sequence: Sequence, finish: Finish, error: str | None = None, *, has_new: bool = False
    ) -> None:
        """Let a completion leave, with its last event."""
        group = sequence.group
        self.scheduler.remove(sequence)
        group.n_open -= 1
        if group.n_open == 0:
            del self._groups[group.id]
        by_token = has_new and (sequence.ids[-1] in group.end_ids or sequence.ids[-1] in group.stop_ids)
        cutter = sequence.cutter or TextCutter(self.parts.new_stream())
        text = text_of(sequence, cutter, by_token)
        self._events.append(finished_event(sequence, finish, text, error, has_new))

    # ── weights and adapters ──

    def change_weights(self, apply: Callable[[], None], version: int, running: Running) -> None:
        """Run `apply`, which changes the model in place; nothing computed before it is used after it."""
        if self._groups and running == "refuse":
            raise EtudeError(
                f"{len(self._groups)} requests are running: finish them first, or say running='abort' or "
                "running='continue' (then they go on from their tokens with the new weights)"
            )
        if running == "abort":
            for request_id in list(self._groups):
                self.abort(request_id)
        self.scheduler.restart_all()
        self.cache.drop_prefixes()
        self.weights_version = version
        for group in self._groups.values():
            group.namespace = (version, group.adapter_key)
            if group.adapter_version is None:
                group.renewed = version
        for sequence in self.scheduler.waiting:  # nothing runs now
            if sequence.group.adapter_version is None:
                sequence.renew(version)
        apply()

    def forget_prefixes(self) -> None:
        """Nothing cached is used any more. EtudeError while requests run."""
        if self._groups:
            raise EtudeError(f"{len(self._groups)} requests are running: finish them first, or abort them")
        self.cache.drop_prefixes()

    def add_adapter(self, name: str, native: Adapter, version: int | None = None) -> None:
        """Make an adapter known, in place of one of the same name: new requests get the new one."""
        self.adapters[name] = LoadedAdapter(native, next(self._uids), version)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter. Requests that run with it keep it to their end."""
        self._adapter(name)
        del self.adapters[name]

    def _adapter(self, name: str) -> LoadedAdapter:
        if name not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "none"
            raise EtudeError(f"adapter {name!r} is not loaded; loaded are: {known}")
        return self.adapters[name]


def _within(request: Request, n_vocab: int) -> Request:
    """A request that wants no more alternatives than there are."""
    n_top, n_prompt_top = request.params.logprobs, request.prompt_logprobs
    if max(n_top, n_prompt_top or 0) <= n_vocab:
        return request
    params = replace(request.params, logprobs=min(n_top, n_vocab))
    return replace(
        request, params=params, prompt_logprobs=None if n_prompt_top is None else min(n_prompt_top, n_vocab)
    )


def _renew_sampler(parts: Parts, sequence: Sequence) -> None:
    """After a context shift, positions come again: go on with other random numbers, or the text
    would repeat.
    """
    group = sequence.group
    seen = np.concatenate([group.prompt, np.array(sequence.ids, np.int32)])
    seed = seed_after_shift(group.seed, sequence.n_discarded)
    sequence.sampler = parts.new_sampler(group.request.params, seed, sequence.index, seen)
    if sequence.shadow is not None:
        sequence.shadow = parts.new_sampler(group.request.params, seed, sequence.index, seen)
