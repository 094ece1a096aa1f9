"""The merge loop of both kinds of tokenizer: join the best-ranked neighbours until no pair has a rank.

Byte-level BPE ranks pairs by their place in the list of merges; SentencePiece's BPE ranks them by the score
of the token that they form. Ties go to the leftmost pair, as in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush


def merge(symbols: list[str], ranks: Mapping[str, float], joiner: str) -> list[str]:
    """`symbols` with neighbours joined, the pair of smallest rank first, ties from the left. O(n log n).

    The rank of (a, b) is `ranks[a + joiner + b]`; a pair without one stays apart. The list passed in is used
    up.

    >>> merge(list("abab"), {"a b": 0, "ab ab": 1}, joiner=" ")
    ['abab']
    """
    count = len(symbols)
    before = list(range(-1, count - 1))
    after = list(range(1, count + 1))
    queue: list[tuple[float, int, int, int]] = []  # rank, left, right, length of the pair
    for left in range(count - 1):
        rank = ranks.get(symbols[left] + joiner + symbols[left + 1])
        if rank is not None:
            queue.append((rank, left, left + 1, len(symbols[left]) + len(symbols[left + 1])))
    heapify(queue)
    while queue:
        _, left, right, length = heappop(queue)
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
            continue  # one of the two was joined to another since
        symbols[left] += symbols[right]
        symbols[right] = ""
        next_right = after[left] = after[right]
        if next_right < count:
            before[next_right] = left
        for first, second in ((before[left], left), (left, next_right)):
            if first >= 0 and second < count:
                rank = ranks.get(symbols[first] + joiner + symbols[second])
                if rank is not None:
                    heappush(queue, (rank, first, second, len(symbols[first]) + len(symbols[second])))
    return [symbol for symbol in symbols if symbol]
