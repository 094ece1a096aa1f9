"""A tree of cached pages: which token sequences already have their keys and values in memory.

One node is one full page. Its key is the page's token ids as bytes, so a path from a root spells a prefix,
and a root exists per namespace: (weights version, adapter, adapter scale), since the same ids give other keys
and values under other weights. The tree only knows what is cached; who uses a page and what may be dropped is
cache.py's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np
from numpy.typing import NDArray


class Node:
    """A full page at a place in the tree. The root of a namespace has page -1. `last_used` orders
    eviction.
    """

    __slots__ = ("children", "key", "last_used", "page", "parent")

    def __init__(self, parent: Node | None, key: bytes, page: int) -> None:
        self.parent = parent
        self.key = key
        self.page = page
        self.children: dict[bytes, Node] = {}
        self.last_used = 0


class PrefixTree:
    """Maps prefixes of whole pages to pages. Pure bookkeeping.

    >>> tree = PrefixTree(page_tokens=2)
    >>> node = tree.insert(tree.root("base"), tree.key([5, 6]), page=7)
    >>> [match.page for match in tree.match("base", np.array([5, 6, 8], np.int32), max_pages=1)]
    [7]
    """

    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._roots: dict[Hashable, Node] = {}

    def root(self, namespace: Hashable) -> Node:
        """The namespace's root, made on first use."""
        found = self._roots.get(namespace)
        if found is None:
            found = self._roots[namespace] = Node(None, b"", -1)
        return found

    @staticmethod
    def key(ids: list[int] | NDArray[np.int32]) -> bytes:
        """Token ids of one page as a dictionary key."""
        return np.asarray(ids, np.int32).tobytes()

    def match(self, namespace: Hashable, ids: NDArray[np.int32], max_pages: int) -> list[Node]:
        """Nodes of the longest cached prefix of `ids` (L,), at most `max_pages`."""
        node = self._roots.get(namespace)
        path: list[Node] = []
        if node is None:
            return path
        data, width = ids.tobytes(), 4 * self.page_tokens
        for start in range(0, min(max_pages, len(ids) // self.page_tokens) * width, width):
            node = node.children.get(data[start : start + width])
            if node is None:
                break
            path.append(node)
        return path

    def insert(self, parent: Node, key: bytes, page: int) -> Node:
        """A new node below `parent`, which must not have `key` yet."""
        assert key not in parent.children
        node = parent.children[key] = Node(parent, key, page)
        return node

    def remove(self, node: Node) -> Node | None:
        """Take out a leaf; returns its parent if that is a page itself."""
        assert node.parent is not None and not node.children
        parent = node.parent
        del parent.children[node.key]
        node.parent = None
        return parent if parent.parent is not None else None

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()

    def nodes(self) -> Iterator[Node]:
        """Every page in the tree, parents before children."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.page >= 0:
                yield node
            stack.extend(node.children.values())
