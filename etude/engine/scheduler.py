"""Which tokens run in the next step, and on which pages.

Every step runs one token of each completion that is being written, and as much of the waiting prompts as the
token budget leaves. Half of that goes to the prompt first in line, the other half to the shortest: a long
prompt always moves on, a short one never waits for all of it. Order is priority, then arrival.

When pages run out, the last in that order loses its pages and is recomputed later from the tokens it has; its
full pages stay in the prefix tree as long as nobody needs them. A prompt whose next page another prompt is
about to compute waits for it instead of computing it again.
"""

from __future__ import annotations

import itertools
import sys
from bisect import insort
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from etude.engine.cache import PageCache
from etude.engine.radix import Node
from etude.engine.sequence import Group, Rank, Sequence

MAX_PROMPTS = 16  # prompts that are read at the same time
MAX_LOOKAHEAD = 64  # waiting sequences looked at per step
NEVER = 2**62  # less urgent than any priority

Pages = NDArray[np.int32]


class PageStore(Protocol):
    """The native cache: contents of pages."""

    def copy_page(self, src: int, dst: int) -> None: ...

    def export_page(self, page: int) -> bytes: ...

    def import_page(self, page: int, data: bytes) -> None: ...

    def shift(self, src_pages: Pages, dst_pages: Pages, length: int, keep: int, discard: int) -> None: ...


class Chunk(NamedTuple):
    """Tokens [n_computed, n_computed + n_tokens) of a sequence run; at the end of a prompt, `n_forks` more
    completions of its group start there.
    """

    sequence: Sequence
    n_tokens: int
    n_forks: int


class Scheduler:
    """Waiting and running sequences, and the pages of the latter.

    A sequence has at most `context` tokens. shift_keep: how many of its first tokens a context shift keeps
    (-1: the whole prompt); None: no shift, the engine ends it there.
    """

    def __init__(
        self,
        cache: PageCache,
        store: PageStore,
        *,
        context: int,
        shift_keep: int | None,
        after_shift: Callable[[Sequence], None],
        step_tokens: int,
        max_sequences: int,
    ) -> None:
        self.cache = cache
        self.store = store
        self.context = context
        self.shift_keep = shift_keep
        self.after_shift = after_shift
        self.step_tokens = step_tokens
        self.max_sequences = max_sequences
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.n_preempted = 0
        self.n_reused = 0  # tokens
        self._arrivals = itertools.count()

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, reader: Sequence) -> None:
        """Put what reads a prompt at the end of the line of its priority.

        Also the rest of a group whose first completions have started: one that is large does not keep others
        waiting until all of it has run.
        """
        reader.rank = (-reader.group.request.priority, next(self._arrivals), reader.index)
        insort(self.waiting, reader, key=_rank)

    def plan(self) -> list[Chunk]:
        """What runs now, neighbours sharing pages; empty if nothing can."""
        n_preempted = self.n_preempted
        self._grow()
        if self.waiting and (self.n_preempted == n_preempted or not self.running):
            self._admit_waiting()
        return self._with_forks(self._counts())

    def _counts(self) -> list[int]:
        """How many tokens of each running sequence run now."""
        counts = [sequence.n_total - sequence.n_computed for sequence in self.running]
        if self.shift_keep is not None:  # a full context is shifted (by _grow) before its last token runs
            for at, sequence in enumerate(self.running):
                counts[at] -= sequence.n_total >= self.context
        readers = [at for at, count in enumerate(counts) if count > 1]
        if readers:
            budget = self.step_tokens - (len(counts) - len(readers))
            readers.sort(key=lambda at: self.running[at].rank)
            parts = share_budget([(self.running[at].rank[0], counts[at]) for at in readers], budget)
            for at, part in zip(readers, parts, strict=True):
                counts[at] = part
        return counts

    def _with_forks(self, counts: list[int]) -> list[Chunk]:
        """The chunks of this step. A fork needs a place and, soon, a page."""
        free = self.max_sequences - len(self.running)
        room = self.cache.n_available - len(self.running)
        chunks = []
        for sequence, count in zip(self.running, counts, strict=True):
            n_forks = 0
            if sequence.is_reader and sequence.n_computed + count == sequence.n_total:
                n_forks = max(0, min(sequence.group.n_unstarted, free, room // 2))
                free -= n_forks
                room -= 2 * n_forks
            if count:
                chunks.append(Chunk(sequence, count, n_forks))
        return chunks

    # ── pages of what runs ──

    def _grow(self) -> None:
        """Give every running sequence pages it may write for its known tokens, preempting where there are
        none.
        """
        page_tokens = self.cache.page_tokens
        limit = self.context if self.shift_keep is not None else sys.maxsize
        short = [
            s
            for s in self.running
            if s.n_total > s.n_pages * page_tokens or s.tail_shared or s.n_total >= limit
        ]
        for sequence in sorted(short, key=_rank) if len(short) > 1 else short:
            while sequence.n_pages and not self._grow_one(sequence):
                self.preempt(max(self.running, key=_rank))

    def _grow_one(self, sequence: Sequence) -> bool:
        """False if no page is left for it."""
        cache = self.cache
        if self._is_full(sequence) and not self._shift(sequence):
            return False
        if sequence.tail_shared:
            at = sequence.n_computed // cache.page_tokens
            page = int(sequence.table[at])
            if cache.references[page] > 1 and not cache.n_available:
                return False
            sequence.table[at] = cache.writable(page)
            sequence.tail_shared = False
        while sequence.n_total > sequence.n_pages * cache.page_tokens:
            if not cache.n_available:
                return False
            sequence.append_page(cache.allocate())
        return True

    def _is_full(self, sequence: Sequence) -> bool:
        """Whether its context has to be shifted now."""
        is_last = sequence.n_total - sequence.n_computed == 1
        return self.shift_keep is not None and sequence.n_total >= self.context and is_last

    def _shift(self, sequence: Sequence) -> bool:
        """Discard half of the tokens after the first `keep`, as llama.cpp does; False if that lacks pages.
        The moved pages hold what no prompt would give, so the sequence leaves the prefix tree.
        """
        cache, width, length = self.cache, self.cache.page_tokens, sequence.n_computed
        n_prompt = len(sequence.group.prompt)
        keep = n_prompt if self.shift_keep in (None, -1) else min(self.shift_keep or 0, n_prompt)
        keep = min(keep, self.context - 4)
        discard = (length - keep) // 2
        n_kept = keep // width
        need = -(-(sequence.n_total - discard) // width) - n_kept
        if need > cache.n_available:
            return False
        tokens = sequence.tokens(0, sequence.n_total)
        old = sequence.pages()
        sequence.table = np.array(old[:n_kept] + [cache.allocate() for _ in range(need)], np.int32)
        sequence.n_pages = len(sequence.table)
        self.store.shift(np.array(old, np.int32), sequence.table, length, keep, discard)
        cache.release(old[n_kept:])
        sequence.past = np.concatenate([tokens[:keep], tokens[keep + discard :]])
        sequence.n_shifted = len(sequence.ids)
        sequence.n_total, sequence.n_computed = len(tokens) - discard, length - discard
        sequence.node, sequence.n_stored = None, 0
        sequence.shifted, sequence.tail_shared = True, False
        sequence.n_discarded += discard
        self.after_shift(sequence)
        return True

    def preempt(self, sequence: Sequence, *, exact: bool = True) -> None:
        """Take a running sequence's pages and put it back in line. It is recomputed from its tokens, which
        gives the same bits; after a context shift it would not, so then the pages are saved in memory (unless
        not `exact`).
        """
        self.n_preempted += 1
        if sequence.shifted and exact:
            used = -(-sequence.n_computed // self.cache.page_tokens)
            sequence.swapped = [self.store.export_page(page) for page in sequence.pages()[:used]]
        self.remove(sequence)
        if sequence.swapped is None:
            sequence.n_computed = 0
            sequence.shifted = False
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its pages back."""
        if sequence.n_pages:
            self.running.remove(sequence)
            self.cache.release(sequence.pages())
            sequence.n_pages = sequence.n_stored = 0
            sequence.node = None
            sequence.tail_shared = False
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def restart_all(self) -> None:
        """Put everything back in line as if nothing had been computed: the weights change."""
        for sequence in list(self.running):
            self.preempt(sequence, exact=False)
        for sequence in self.waiting:
            sequence.swapped, sequence.shifted, sequence.n_computed = None, False, 0

    def sequences_of(self, group: Group) -> list[Sequence]:
        """Everything of a group that runs or waits."""
        return [s for s in (*self.running, *self.waiting) if s.group is group]

    # ── starting what waits ──

    def _admit_waiting(self) -> None:
        """Start waiting sequences in order, until one does not fit."""
        readers = [s for s in self.running if s.n_total - s.n_computed > 1]
        coming = {self._next_page(s): s.rank[0] for s in readers}
        n_readers, taken = len(readers), 0
        slots = self.max_sequences - len(self.running)
        for sequence in self.waiting[:MAX_LOOKAHEAD]:
            if n_readers >= MAX_PROMPTS:
                break
            nodes = self._cached_prefix(sequence)
            following = self._page_after(sequence, nodes)
            if following is not None and coming.get(following, NEVER) <= sequence.rank[0]:
                continue  # somebody at least as urgent computes this page now
            if not (slots > 0 and self._start(sequence, nodes)) and not self._displace(sequence):
                break
            taken += 1
            slots -= 1
            n_readers += 1
            if following is not None:
                coming[following] = sequence.rank[0]
        if taken:
            self.waiting = [s for s in self.waiting if not s.n_pages]
            self.running.sort(key=_order)

    def _cached_prefix(self, sequence: Sequence) -> list[Node]:
        """Nodes of pages that need not be computed again; at least the last token is always computed."""
        if sequence.shifted or (sequence.group.reads_all and sequence.is_reader):
            return []
        ids = sequence.tokens(0, sequence.n_total)
        return self.cache.match(
            sequence.group.namespace, ids, (sequence.n_total - 1) // self.cache.page_tokens
        )

    def _page_after(self, sequence: Sequence, nodes: list[Node]) -> tuple[int, bytes] | None:
        """The first full page that a waiting sequence would compute, as a place in the tree."""
        if sequence.shifted or (sequence.group.reads_all and sequence.is_reader):
            return None
        start = len(nodes) * self.cache.page_tokens
        stop = start + self.cache.page_tokens
        if stop > sequence.n_total - 1:
            return None
        parent = nodes[-1] if nodes else self.cache.tree.root(sequence.group.namespace)
        return id(parent), self.cache.tree.key(sequence.tokens(start, stop))

    def _next_page(self, sequence: Sequence) -> tuple[int, bytes]:
        """The same of a running one; a key that no full page has if there is none."""
        start = sequence.n_stored * self.cache.page_tokens
        stop = start + self.cache.page_tokens
        if sequence.shifted or stop > sequence.n_total:
            return 0, b""
        parent = sequence.node or self.cache.tree.root(sequence.group.namespace)
        return id(parent), self.cache.tree.key(sequence.tokens(start, stop))

    def _start(self, sequence: Sequence, nodes: list[Node]) -> bool:
        """Give a waiting sequence pages for all its tokens; False if that would leave none for the running
        ones.
        """
        cache = self.cache
        pages = [node.page for node in nodes]
        cache.hold(pages)
        need = -(-sequence.n_total // cache.page_tokens) - len(pages)
        spare = cache.n_available - need
        if spare < 0 or (self.running and spare <= len(self.running)):
            cache.release(pages)
            return False
        for page in pages:
            sequence.append_page(page)
        for _ in range(need):
            sequence.append_page(cache.allocate())
        if sequence.swapped is not None:
            for page, data in zip(sequence.pages(), sequence.swapped, strict=False):
                self.store.import_page(page, data)
            sequence.swapped = None
        else:
            self.n_reused += len(nodes) * cache.page_tokens
            if sequence.group.n_cached is None:
                sequence.group.n_cached = n_cached = len(nodes) * cache.page_tokens
                if sequence.group.on_read is not None:
                    sequence.group.on_read(n_cached, n_cached)
            sequence.n_stored = len(nodes)
            sequence.n_computed = len(nodes) * cache.page_tokens
            sequence.node = nodes[-1] if nodes else None
        sequence.order = sequence.table[: sequence.n_pages].astype(">i4").tobytes()
        self.running.append(sequence)
        return True

    def _displace(self, sequence: Sequence) -> bool:
        """Start a sequence in place of running ones of lower priority, if there are enough."""
        lower = sorted((s for s in self.running if s.rank[0] > sequence.rank[0]), key=_rank)
        while lower:
            self.preempt(lower.pop())
            if self._start(sequence, self._cached_prefix(sequence)):
                return True
        return False

    # ── from one prompt to its completions ──

    def start_forks(self, parent: Sequence, forks: list[Sequence]) -> None:
        """Let completions share all pages of the one that has read their prompt. Those who come later copy
        the last page, if it is partial, before they write, so that in the end the first has it to itself.
        """
        pages = parent.pages()
        partial = parent.n_computed % self.cache.page_tokens > 0
        at = self.running.index(parent) + 1
        for fork in forks:
            self.cache.hold(pages)
            fork.table = np.array(pages, np.int32)
            fork.n_pages, fork.n_computed = len(pages), parent.n_computed
            fork.node, fork.n_stored = parent.node, parent.n_stored
            fork.order, fork.tail_shared = parent.order, partial
            fork.rank = (*parent.rank[:2], fork.index)
        self.running[at:at] = forks

    def store_pages(self, sequence: Sequence) -> None:
        """Put the pages that have become full into the tree, or take over equal ones that are there."""
        if sequence.shifted:
            return
        cache, width = self.cache, self.cache.page_tokens
        while (sequence.n_stored + 1) * width <= sequence.n_computed:
            at = sequence.n_stored
            parent = sequence.node or cache.tree.root(sequence.group.namespace)
            ids = sequence.tokens(at * width, (at + 1) * width)
            sequence.node = cache.store(parent, ids, int(sequence.table[at]))
            sequence.table[at] = sequence.node.page
            sequence.n_stored += 1


def pages_needed(context: int, page_tokens: int, *, shifts: bool) -> int:
    """Pages that let one sequence of `context` tokens run alone; a shift needs the half that stays twice."""
    pages = -(-context // page_tokens)
    return pages + (-(-(context // 2 + 1) // page_tokens) if shifts else 0)


def share_budget(wants: list[tuple[int, int]], budget: int) -> list[int]:
    """Split `budget` tokens among (-priority, tokens wanted) in order of arrival within a priority.

    Half for the first, the rest to the shortest, what is left back to the first. Lower priorities get what
    higher ones leave.

    >>> share_budget([(0, 1000), (0, 900), (0, 100)], 512)
    [256, 156, 100]
    >>> share_budget([(0, 1000), (0, 10)], 512)
    [502, 10]
    >>> share_budget([(-1, 500), (0, 100)], 512)
    [500, 12]
    """
    parts = [0] * len(wants)
    for level in sorted({priority for priority, _ in wants}):
        members = [at for at, (priority, _) in enumerate(wants) if priority == level]
        first = members[0]
        parts[first] = min(wants[first][1], (budget + 1) // 2)
        budget -= parts[first]
        for at in [*sorted(members[1:], key=lambda at: wants[at][1]), first]:
            part = min(wants[at][1] - parts[at], budget)
            parts[at] += part
            budget -= part
    return parts


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


def _order(sequence: Sequence) -> tuple[bytes, int, int]:
    return sequence.order, sequence.group.id, sequence.index
