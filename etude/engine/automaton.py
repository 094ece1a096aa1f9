"""Finite automata of grammar parts: which characters can start, continue and extend a text.

Sets of characters are bit masks over an alphabet of intervals. Counts are widened (`x{2,5}` becomes `x+`), so
an automaton accepts its part's texts and maybe more; the questions asked of it err to the safe
side then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from etude.engine.gbnf import MAX_CHAR, Alt, Chars, Lexeme, Node, Ref, Repeat, Seq, children

MAX_POSITIONS = 2000
MAX_STATES = 500
FIRST_NON_ASCII = 0x80
UTF8_BLOCKS = [*range(0x80, 0x800, 64), *range(0x800, 0x10000, 4096), *range(0x10000, MAX_CHAR + 1, 1 << 18)]
"""Where characters with another first UTF-8 byte begin."""


class TooLarge(Exception):
    """The automaton of a part would have too many states to look at."""


class Alphabet:
    """Intervals of characters that the sets of a grammar never split. all: the mask of every character."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        sets = {chars for node in nodes for chars in _char_sets(node)}
        edges = {edge for chars in sets for first, last in chars.ranges for edge in (first, last + 1)}
        blocks = UTF8_BLOCKS if any(edge > FIRST_NON_ASCII for edge in edges) else [FIRST_NON_ASCII]
        self._starts = sorted(({0, *edges, *blocks}) - {MAX_CHAR + 1})
        self.all = (1 << len(self._starts)) - 1
        self._masks = {chars: self._mask_of(chars) for chars in sets}
        self._blocks = self._mask_of_blocks(blocks)

    def mask(self, chars: Chars) -> int:
        """The set as a mask; of the grammar's own sets only."""
        return self._masks[chars]

    def with_same_first_byte(self, mask: int) -> int:
        """All characters whose first UTF-8 byte is that of one in the mask."""
        for block in self._blocks:
            if mask & block:
                mask |= block
        return mask

    def _mask_of(self, chars: Chars) -> int:
        inside = (any(first <= start <= last for first, last in chars.ranges) for start in self._starts)
        return sum(1 << i for i, is_in in enumerate(inside) if is_in)

    def _mask_of_blocks(self, blocks: list[int]) -> list[int]:
        ends = [*blocks[1:], MAX_CHAR + 1]
        return [
            sum(1 << i for i, start in enumerate(self._starts) if begin <= start < end)
            for begin, end in zip(blocks, ends, strict=True)
        ]


def _char_sets(node: Node) -> Iterator[Chars]:
    if isinstance(node, Chars):
        yield node
    for child in children(node):
        yield from _char_sets(child)


@dataclass
class _Positions:
    """Glushkov's construction: a state for every set of characters written in a part."""

    rules: Mapping[str, Node]
    alphabet: Alphabet
    masks: list[int] = field(default_factory=list)
    follow: list[set[int]] = field(default_factory=list)

    def add(self, node: Node) -> tuple[bool, set[int], set[int]]:
        """Positions of a part: (matches the empty text, its first positions, its last ones)."""
        match node:
            case Chars():
                if len(self.masks) == MAX_POSITIONS:
                    raise TooLarge
                self.masks.append(self.alphabet.mask(node))
                self.follow.append(set())
                here = {len(self.masks) - 1}
                return False, here, here
            case Ref(name):
                return self.add(self.rules[name])
            case Lexeme(inner):
                return self.add(inner)
            case Seq(items):
                return self._add_sequence(items)
            case Alt(options):
                parts = [self.add(option) for option in options]
                empty = any(part[0] for part in parts)
                return empty, set().union(*(p[1] for p in parts)), set().union(*(p[2] for p in parts))
            case Repeat(item, least, most):
                empty, first, last = self.add(item)
                if most != 1:
                    self._link(last, first)
                return empty or least == 0, first, last

    def _add_sequence(self, items: tuple[Node, ...]) -> tuple[bool, set[int], set[int]]:
        empty, first, last = True, set[int](), set[int]()
        for item in items:
            item_empty, item_first, item_last = self.add(item)
            self._link(last, item_first)
            first = first | item_first if empty else first
            last = last | item_last if item_empty else item_last
            empty = empty and item_empty
        return empty, first, last

    def _link(self, last: set[int], first: set[int]) -> None:
        for position in last:
            self.follow[position] |= first


class Automaton:
    """Deterministic automaton of a part without recursion; state 0 is the start. TooLarge if it is.

    moves[state]: (mask, next state), masks disjoint. accepts[state]. inner: characters that can come second
    or later in a text.
    """

    def __init__(self, node: Node, rules: Mapping[str, Node], alphabet: Alphabet) -> None:
        positions = _Positions(rules, alphabet)
        empty, first, last = positions.add(node)
        numbers: dict[frozenset[int], int] = {}
        self.moves: list[list[tuple[int, int]]] = [[]]
        self.accepts: list[bool] = [empty]
        waiting: list[tuple[int, set[int]]] = [(0, first)]
        while waiting:
            state, following = waiting.pop()
            for mask, reached in _partition(following, positions.masks):
                if reached not in numbers:
                    if len(self.moves) == MAX_STATES:
                        raise TooLarge
                    numbers[reached] = len(self.moves)
                    self.moves.append([])
                    self.accepts.append(not last.isdisjoint(reached))
                    waiting.append((numbers[reached], set().union(*(positions.follow[p] for p in reached))))
                self.moves[state].append((mask, numbers[reached]))
        self.inner = 0
        for moves in self.moves[1:]:
            for mask, _ in moves:
                self.inner |= mask

    def may_swallow(self, other: Automaton, following: int) -> bool:
        """Whether `other` could read some text of this one and then a character of `following`."""
        seen, waiting = {(0, 0)}, [(0, 0)]
        while waiting:
            mine, others = waiting.pop()
            if (mine or others) and self.accepts[mine]:
                if any(mask & following for mask, _ in other.moves[others]):
                    return True
            for my_mask, my_next in self.moves[mine]:
                for mask, following_state in other.moves[others]:
                    if my_mask & mask and (my_next, following_state) not in seen:
                        seen.add((my_next, following_state))
                        waiting.append((my_next, following_state))
        return False


def _partition(positions: set[int], masks: list[int]) -> list[tuple[int, frozenset[int]]]:
    """Disjoint masks with the positions that each of their characters leads to."""
    parts: list[tuple[int, frozenset[int]]] = []
    for position in sorted(positions):
        rest, refined = masks[position], []
        for mask, reached in parts:
            if mask & masks[position]:
                refined.append((mask & masks[position], reached | {position}))
            if mask & ~masks[position]:
                refined.append((mask & ~masks[position], reached))
            rest &= ~mask
        if rest:
            refined.append((rest, frozenset((position,))))
        parts = refined
    return parts
