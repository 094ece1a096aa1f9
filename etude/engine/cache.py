"""The pool of cache pages: reference counts, copy-on-write, and eviction of unused prefixes.

A page is `page_tokens` positions of all layers; the keys and values themselves live in the native cache, here
are only page numbers. A page is free (0 references), held (by sequences, each one reference, and by the
prefix tree, one more), or idle: only the tree holds it. Idle pages are found again by later requests, and
given up, least recently used leaf first, when a sequence needs room. Who holds a page holds all pages before
it, so dropping leaves is enough.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

from etude.engine.radix import Node, PrefixTree


class PageCache:
    """Page numbers 0..n_pages-1. `copy_page(src, dst)` copies the contents (native)."""

    def __init__(self, n_pages: int, page_tokens: int, copy_page: Callable[[int, int], None]) -> None:
        self.n_pages = n_pages
        self.page_tokens = page_tokens
        self.tree = PrefixTree(page_tokens)
        self.references = [0] * n_pages
        self.n_idle = 0
        self._copy_page = copy_page
        self._free = list(range(n_pages - 1, -1, -1))
        self._node_of: list[Node | None] = [None] * n_pages
        # heap of idle leaves as (last_used, page, leaf); entries may be stale
        self._evictable: list[tuple[int, int, Node]] = []
        self._clock = 0

    @property
    def n_available(self) -> int:
        """Pages that can be allocated now: free ones and idle ones."""
        return len(self._free) + self.n_idle

    def allocate(self) -> int:
        """A page with one reference, giving up an idle one if none is free. IndexError if there is none."""
        if not self._free:
            self._evict()
        page = self._free.pop()
        self.references[page] = 1
        return page

    def hold(self, pages: Iterable[int]) -> None:
        """One more reference on each page."""
        for page in pages:
            self.references[page] += 1
            if self.references[page] == 2 and self._node_of[page] is not None:
                self.n_idle -= 1

    def release(self, pages: Iterable[int]) -> None:
        """One reference less on each; pages in the tree stay cached."""
        self._clock += 1
        for page in pages:
            left = self.references[page] - 1
            assert left >= 0, f"page {page} released more often than held"
            self.references[page] = left
            node = self._node_of[page]
            if left == 0:
                self._free.append(page)
            elif left == 1 and node is not None:
                self._retire(node)

    def _retire(self, node: Node) -> None:
        """A node's page has become idle."""
        self.n_idle += 1
        node.last_used = self._clock
        if not node.children:
            self._offer(node)

    def _offer(self, node: Node) -> None:
        """Note an idle leaf for eviction."""
        if len(self._evictable) > 2 * self.n_pages + 64:
            self._evictable = [entry for entry in self._evictable if self._is_current(entry)]
            heapq.heapify(self._evictable)
        heapq.heappush(self._evictable, (node.last_used, node.page, node))

    def _is_current(self, entry: tuple[int, int, Node]) -> bool:
        """Whether a heap entry still names an idle leaf with this age."""
        last_used, page, node = entry
        return (
            self._node_of[page] is node
            and not node.children
            and self.references[page] == 1
            and node.last_used == last_used
        )

    def _evict(self) -> None:
        """Give up the idle leaf that was used longest ago."""
        entry = heapq.heappop(self._evictable)
        while not self._is_current(entry):
            entry = heapq.heappop(self._evictable)
        _, page, node = entry
        self._forget(page)
        parent = self.tree.remove(node)
        if parent is not None and not parent.children and self.references[parent.page] == 1:
            self._offer(parent)

    def _forget(self, page: int) -> None:
        """Take an idle page out of the tree's possession."""
        self._node_of[page] = None
        self.n_idle -= 1
        self.references[page] = 0
        self._free.append(page)

    def writable(self, page: int) -> int:
        """The page itself if its one holder asks, else a copy of it, for which the holder's
        reference moves.
        """
        if self.references[page] == 1:
            return page
        copy = self.allocate()
        self._copy_page(page, copy)
        self.release((page,))
        return copy

    def match(self, namespace: Hashable, ids: NDArray[np.int32], max_pages: int) -> list[Node]:
        """The cached prefix of `ids` (L,); hold its pages before allocating anything."""
        return self.tree.match(namespace, ids, max_pages)

    def store(self, parent: Node, ids: list[int] | NDArray[np.int32], page: int) -> Node:
        """Put a full, held page into the tree after `parent`.

        If the tree already has these ids there, the caller's reference moves to that page and `page` is
        released: equal tokens at equal positions have equal bits, whoever computed them. The caller goes on
        with `node.page`.
        """
        key = self.tree.key(ids)
        known = parent.children.get(key)
        if known is not None:
            if known.page != page:
                self.hold((known.page,))
                self.release((page,))
            return known
        node = self.tree.insert(parent, key, page)
        self._node_of[page] = node
        self.references[page] += 1
        return node

    def drop(self, nodes: list[Node]) -> int:
        """Give up the pages of a path, from its end, as far as they are idle and lead nowhere else."""
        n_dropped = 0
        for node in reversed(nodes):
            if node.children or self.references[node.page] != 1:
                break
            self._forget(node.page)
            self.tree.remove(node)
            n_dropped += 1
        return n_dropped

    def drop_prefixes(self) -> None:
        """Empty the tree. Held pages stay with their holders; idle ones become free."""
        for page, node in enumerate(self._node_of):
            if node is None:
                continue
            if self.references[page] == 1:
                self._forget(page)
            else:
                self._node_of[page] = None
                self.references[page] -= 1
        self._evictable.clear()
        self.tree.clear()
