"""The state of running work: a group (one request) and its sequences (its completions).

A sequence is whatever still has to be computed: `n_total` tokens are known, `n_computed` of them have keys
and values in the cache. A prompt being read, a completion being written and a preempted completion being
recomputed differ in nothing else. The first unstarted completion of a group reads the prompt for all of them;
the others are forked from it and share its pages.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from etude.engine.radix import Node
from etude.engine.text import TextCutter
from etude.records import Request, TopLogprobs

if TYPE_CHECKING:  # the native module is not needed to schedule
    from etude.engine.grammar import GrammarState
    from etude.kernels._native import Adapter, Sampler


Rank = tuple[int, int, int]
"""(-priority, arrival, index): who goes first; the largest is preempted first."""


@dataclass(slots=True, eq=False)
class PromptScores:
    """log p(token i | tokens before it) of a prompt (P,), filled chunk by chunk; entry 0 has no value."""

    logprobs: NDArray[np.float32]
    tops: list[TopLogprobs]
    n_top: int


@dataclass(slots=True, eq=False)
class HiddenRows:
    """Hidden states of a prompt after the final norm, filled chunk by chunk: all (P, D), or only the last (1,
    D).
    """

    rows: NDArray[np.float32]
    only_last: bool


@dataclass(slots=True, eq=False)
class Group:
    """A request and what its completions share. n_open: completions that have not ended; n_cached: prompt
    tokens that were found in the cache, None before it was looked at. weights_version: when it came; renewed:
    the latest one that came after it, for those who began later. on_read: called with
    (n_cached, tokens of the prompt that are computed) when it is begun, and after each step that reads it.
    """

    id: int
    request: Request
    prompt: NDArray[np.int32]
    adapter: Adapter | None
    adapter_key: tuple[int, float] | None
    seed: int
    max_tokens: int
    end_ids: frozenset[int]
    stop_ids: frozenset[int]
    n_open: int
    adapter_version: int | None = None
    weights_version: int = 0
    renewed: int | None = None
    namespace: Hashable = None
    scores: PromptScores | None = None
    hidden: HiddenRows | None = None
    next_index: int = 1
    was_read: bool = False
    n_cached: int | None = None
    on_read: Callable[[int, int], None] | None = None

    @property
    def n_unstarted(self) -> int:
        """Completions for which no sequence exists yet."""
        return self.request.n - self.next_index

    @property
    def wants_reading(self) -> bool:
        """Whether something is still wanted of the prompt itself."""
        return not self.was_read and (self.scores is not None or self.hidden is not None)

    @property
    def reads_all(self) -> bool:
        """Whether it is wanted of every prompt token, so that cached pages do not save the work."""
        return self.wants_reading and not (self.hidden is not None and self.hidden.only_last)


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion. `past` holds the tokens before `ids[n_shifted:]`: the prompt, or after a context shift
    what was kept of it and of the completion (`n_discarded` tokens of both were not). `table[:n_pages]` are
    its pages, the first `n_stored` of them in the tree down to `node`. `order` sorts the batch so that
    sequences with common pages are neighbours. `renewals`: (len(ids), version) of each change of weights.
    `shadow`: a second sampler, in the state of the first before it draws, where alternatives of the
    distribution sampled from are wanted.
    """

    group: Group
    index: int
    past: NDArray[np.int32]
    sampler: Sampler | None
    matcher: GrammarState | None = None
    cutter: TextCutter | None = None
    shadow: Sampler | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    tops: list[TopLogprobs] = field(default_factory=list)
    text: str = ""
    n_shifted: int = 0
    n_discarded: int = 0
    shifted: bool = False
    table: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    n_pages: int = 0
    n_computed: int = 0
    n_total: int = 0
    node: Node | None = None
    n_stored: int = 0
    tail_shared: bool = False
    swapped: list[bytes] | None = None
    order: bytes = b""
    rank: Rank = (0, 0, 0)
    renewals: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_total = len(self.past)
        if self.group.renewed is not None:
            self.renewals.append((0, self.group.renewed))

    def renew(self, version: int) -> None:
        """Weights of this version write from here on; those that wrote nothing are not told of."""
        self.renewals = [each for each in self.renewals if each[0] < len(self.ids)]
        self.renewals.append((len(self.ids), version))

    @property
    def is_reader(self) -> bool:
        """Whether it reads the prompt for its group: nothing was sampled yet."""
        return not self.ids

    def tokens(self, start: int, stop: int) -> NDArray[np.int32]:
        """Token ids of positions [start, stop)."""
        n_past = len(self.past)
        if stop <= n_past:
            return self.past[start:stop]
        first = self.n_shifted + max(start - n_past, 0)
        written = np.array(self.ids[first : self.n_shifted + stop - n_past], np.int32)
        return written if start >= n_past else np.concatenate([self.past[start:], written])

    def append_page(self, page: int) -> None:
        """Extend the page table."""
        if self.n_pages == len(self.table):
            self.table = np.concatenate([self.table, np.empty(max(8, self.n_pages), np.int32)])
        self.table[self.n_pages] = page
        self.n_pages += 1

    def pages(self) -> list[int]:
        """Its pages, in order of position."""
        pages: list[int] = self.table[: self.n_pages].tolist()
        return pages
