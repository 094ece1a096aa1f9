"""The page pool and the prefix tree, by themselves and against a plain model of what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from etude.engine.cache import PageCache

WIDTH = 2


def new_cache(n_pages: int) -> tuple[PageCache, list[tuple[int, int]]]:
    copies: list[tuple[int, int]] = []
    return PageCache(n_pages, WIDTH, lambda src, dst: copies.append((src, dst))), copies


def put(cache: PageCache, ids: list[int], namespace: str = "base") -> list[int]:
    """Compute and store the pages of `ids`, and let them go."""
    array = np.array(ids, np.int32)
    nodes = cache.match(namespace, array, len(ids) // WIDTH)
    pages = [node.page for node in nodes]
    cache.hold(pages)
    parent = nodes[-1] if nodes else cache.tree.root(namespace)
    for start in range(len(pages) * WIDTH, len(ids), WIDTH):
        parent = cache.store(parent, array[start : start + WIDTH], cache.allocate())
        pages.append(parent.page)
    cache.release(pages)
    return pages


def cached(cache: PageCache, ids: list[int], namespace: str = "base") -> list[int]:
    return [node.page for node in cache.match(namespace, np.array(ids, np.int32), 100)]


def test_match_is_by_whole_pages_and_namespace():
    cache, _ = new_cache(8)
    pages = put(cache, [1, 2, 3, 4])
    assert cached(cache, [1, 2, 3, 4, 5]) == pages
    assert cached(cache, [1, 2, 3]) == pages[:1]
    assert cached(cache, [1, 2, 4, 4]) == pages[:1]
    assert cached(cache, [2, 2, 3, 4]) == []
    assert cached(cache, [1, 2, 3, 4], "other weights") == []
    assert [node.page for node in cache.match("base", np.array([1, 2, 3, 4], np.int32), 1)] == pages[:1]


def test_the_oldest_leaf_goes_first():
    cache, _ = new_cache(4)
    old = put(cache, [1, 1, 2, 2])
    young = put(cache, [3, 3, 4, 4])
    put(cache, [1, 1])  # used again, but not its child
    assert cache.allocate() == old[1]
    assert cached(cache, [1, 1, 2, 2]) == old[:1]
    assert cache.allocate() == young[1]
    assert cache.allocate() == young[0]
    assert cache.allocate() == old[0]
    assert cache.n_available == 0
    with pytest.raises(IndexError):
        cache.allocate()


def test_held_pages_are_not_given_up():
    cache, _ = new_cache(3)
    (page,) = put(cache, [1, 1])
    cache.hold([page])
    assert {cache.allocate(), cache.allocate()} == {0, 1, 2} - {page}
    assert cache.n_available == 0
    cache.release([page])
    assert cache.n_available == 1 and cached(cache, [1, 1]) == [page]


def test_copy_on_write():
    cache, copies = new_cache(3)
    page = cache.allocate()
    assert cache.writable(page) == page and copies == []
    cache.hold([page])
    copy = cache.writable(page)
    assert copy != page and copies == [(page, copy)]
    assert cache.references[page] == cache.references[copy] == 1
    assert cache.writable(page) == page


def test_equal_pages_become_one():
    cache, _ = new_cache(4)
    root = cache.tree.root("base")
    one, two = cache.allocate(), cache.allocate()
    node = cache.store(root, [1, 1], one)
    assert cache.store(root, [1, 1], two) is node
    assert cache.references[one] == 3 and cache.references[two] == 0
    assert cache.store(root, [1, 1], one) is node and cache.references[one] == 3


def test_dropping_prefixes_leaves_held_pages():
    cache, _ = new_cache(3)
    pages = put(cache, [1, 1, 2, 2])
    cache.hold(pages[:1])
    cache.drop_prefixes()
    assert cached(cache, [1, 1]) == []
    assert cache.n_available == 2 and cache.references[pages[0]] == 1
    cache.release(pages[:1])
    assert cache.n_available == 3


def test_one_prefix_is_dropped_as_far_as_nobody_needs_it():
    cache, _ = new_cache(8)
    pages = put(cache, [1, 1, 2, 2, 3, 3])
    put(cache, [1, 1, 4, 4])
    nodes = cache.match("base", np.array([1, 1, 2, 2, 3, 3], np.int32), 3)
    cache.hold(pages[:2])
    assert cache.drop(nodes) == 1
    cache.release(pages[:2])
    assert cache.drop(nodes[:2]) == 1 and cached(cache, [1, 1, 2, 2]) == pages[:1]
    assert len(cached(cache, [1, 1, 4, 4])) == 2 and cache.n_available == 8


def test_the_eviction_queue_does_not_grow_without_end():
    cache, _ = new_cache(4)
    for _ in range(1000):
        put(cache, [1, 1, 2, 2])
    assert len(cache._evictable) <= 2 * 4 + 65


IDS = st.lists(st.integers(1, 2), min_size=WIDTH, max_size=5 * WIDTH).map(
    lambda ids: ids[: len(ids) // WIDTH * WIDTH]
)


class Pool(RuleBasedStateMachine):
    """Holders come and go in any order; what a page holds is remembered, and must be right when it
    is found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(12, WIDTH, self.copy)
        self.contents: dict[int, tuple[int, ...]] = {}
        self.held: list[list[int]] = []

    def copy(self, src: int, dst: int) -> None:
        self.contents[dst] = self.contents[src]

    @rule(ids=IDS)
    def begin(self, ids: list[int]) -> None:
        nodes = self.cache.match("base", np.array(ids, np.int32), len(ids) // WIDTH)
        pages = [node.page for node in nodes]
        for at, page in enumerate(pages):
            assert self.contents[page] == tuple(ids[: (at + 1) * WIDTH]), (
                "a page that was found holds its prefix"
            )
        self.cache.hold(pages)
        parent = nodes[-1] if nodes else self.cache.tree.root("base")
        for start in range(len(pages) * WIDTH, len(ids), WIDTH):
            if not self.cache.n_available:
                break
            page = self.cache.allocate()
            self.contents[page] = tuple(ids[: start + WIDTH])
            parent = self.cache.store(parent, ids[start : start + WIDTH], page)
            pages.append(parent.page)
        self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def share(self, which: int) -> None:
        pages = list(self.held[which % len(self.held)])
        self.cache.hold(pages)
        self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def end(self, which: int) -> None:
        self.cache.release(self.held.pop(which % len(self.held)))

    @rule()
    def drop(self) -> None:
        self.cache.drop_prefixes()

    @rule(ids=IDS)
    def erase(self, ids: list[int]) -> None:
        nodes = self.cache.match("base", np.array(ids, np.int32), 100)
        n_left = len(nodes) - self.cache.drop(nodes)
        assert len(self.cache.match("base", np.array(ids, np.int32), 100)) == n_left

    @invariant()
    def references_are_counted(self) -> None:
        counts = [0] * 12
        for pages in self.held:
            for page in pages:
                counts[page] += 1
        nodes = list(self.cache.tree.nodes())
        for node in nodes:
            counts[node.page] += 1
        assert counts == self.cache.references
        assert sorted(self.cache._free) == [page for page, count in enumerate(counts) if count == 0]
        assert self.cache.n_idle == sum(counts[node.page] == 1 for node in nodes)

    @invariant()
    def all_available_pages_can_be_had(self) -> None:
        """Every idle page is behind an idle leaf, so that eviction finds them all."""
        for node in self.cache.tree.nodes():
            if self.cache.references[node.page] == 1:
                assert all(self.cache.references[child.page] == 1 for child in node.children.values())


Pool.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestPool = Pool.TestCase
