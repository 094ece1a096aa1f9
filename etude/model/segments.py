"""How packed tokens see each other: a forest of segments, without padding.

A segment attends causally to itself and to all of its chain of parents: a group's prompt stands once, its
completions are its children. A plain batch is a forest of roots.

    prompt  5 6 7      segments (0, 3, None), (3, 2, 0), (5, 1, 0)
    child   8 9        token ids 5 6 7 | 8 9 | 4
    child   4          positions 0 1 2 | 3 4 | 3

T: packed tokens. Torch's side of the model starts here; nothing of this is needed to run one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from etude.records import EtudeError


class Segment(NamedTuple):
    """Tokens start .. start + length - 1 of the pack; parent: index of an earlier segment, or None."""

    start: int
    length: int
    parent: int | None


@dataclass(frozen=True)
class Layout:
    """Packed tokens. segments: in order, covering all tokens once; a parent stands before its children.

    >>> Layout.of([Segment(0, 3, None), Segment(3, 2, 0), Segment(5, 1, 0)], [5, 6, 7, 8, 9, 4]).positions_T
    tensor([0, 1, 2, 3, 4, 3])
    """

    token_ids_T: Tensor
    positions_T: Tensor
    segments: tuple[Segment, ...]

    @classmethod
    def of(
        cls,
        segments: Sequence[Segment],
        token_ids: Sequence[int] | Tensor,
        device: torch.device | str = "cpu",
    ) -> Layout:
        """Checked; positions count on from the end of the parent. EtudeError if the segments do not fit."""
        ids_T = torch.as_tensor(token_ids, dtype=torch.int64)
        firsts: list[int] = []
        end = 0
        for index, segment in enumerate(segments):
            parent = segment.parent
            if segment.start != end or segment.length < 1 or not (parent is None or 0 <= parent < index):
                raise EtudeError(
                    f"segment {index} is {tuple(segment)}: segments follow each other from token 0, are not "
                    "empty, and stand behind their parent"
                )
            firsts.append(0 if parent is None else firsts[parent] + segments[parent].length)
            end += segment.length
        if ids_T.dim() != 1 or end != len(ids_T):
            raise EtudeError(f"the segments cover {end} tokens, but there are {tuple(ids_T.shape)}")
        pairs = zip(firsts, segments, strict=True)
        positions = [torch.arange(first, first + segment.length) for first, segment in pairs]
        positions_T = torch.cat(positions) if positions else ids_T
        return cls(ids_T.to(device), positions_T.to(device), tuple(segments))

    @classmethod
    def roots(cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Layout:
        """Sequences side by side that do not see each other."""
        segments, start = [], 0
        for sequence in sequences:
            segments.append(Segment(start, len(sequence), None))
            start += len(sequence)
        return cls.of(segments, [token for sequence in sequences for token in sequence], device)

    def chain(self, index: int) -> tuple[int, ...]:
        """The segments that segment `index` sees, from its root to itself."""
        chain: list[int] = []
        at: int | None = index
        while at is not None:
            chain.append(at)
            at = self.segments[at].parent
        return tuple(reversed(chain))


# ── what attention computes at once ──

Ranges = tuple[tuple[int, int], ...]
"""Parts of the pack, each (start, end)."""

PIECE_TOKENS = 256
"""Longer segments become chains of pieces of this many tokens: half of a causal square is empty, and scores
of a piece fit the cache."""

PADDING = 0.8
"""Pieces share a block when the shortest has at least this share of the longest's length."""

BLOCK_SCORES = 2**20
"""Pairs of query and key in a block at most (where a piece alone has not more): what is in memory at once."""


@dataclass(frozen=True)
class Block:
    """B pieces of up to L tokens that see the same tokens before them: `prefix`, S in all, and themselves.

    prefix: ranges of the pack, in order of position; the first is at position `prefix_position`. rows_BL:
    where the pieces' tokens are; None if they are the B * L tokens from `first` on. real: which of the B * L
    places hold a token, None if all do. The pieces' first token is at position `position`.
    """

    first: int
    n_pieces: int
    n_tokens: int
    rows_BL: Tensor | None
    real: Tensor | None
    prefix: Ranges
    prefix_position: int
    position: int

    @property
    def n_prefix(self) -> int:
        return sum(end - start for start, end in self.prefix)

    def hidden(self, window: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
        """Keys that queries do not see: of the prefix (L, S), None if all are seen; of their piece (L, L).

        A query at position p sees positions p - window < s <= p, all s <= p for window 0.
        """
        query_L = torch.arange(self.n_tokens, device=device)[:, None] + self.position
        own_L = query_L.T
        hidden_LL = own_L > query_L
        if not window:
            return None, hidden_LL
        key_S = torch.arange(self.n_prefix, device=device)[None] + self.prefix_position
        hidden_LS = key_S <= query_L - window
        return (hidden_LS if bool(hidden_LS.any()) else None), hidden_LL | (own_L <= query_L - window)


class _Piece(NamedTuple):
    start: int
    length: int


def plan(layout: Layout, window: int) -> tuple[Block, ...]:
    """The blocks of a layout's attention in a layer with this window (0: none); each token is in one."""
    ends: list[tuple[Ranges, int]] = []  # by segment: its chain with itself, and their tokens
    blocks: dict[Ranges, list[_Piece]] = {}
    for segment in layout.segments:
        ranges, position = ((), 0) if segment.parent is None else ends[segment.parent]
        for start in range(segment.start, segment.start + segment.length, PIECE_TOKENS):
            length = min(PIECE_TOKENS, segment.start + segment.length - start)
            blocks.setdefault(ranges, []).append(_Piece(start, length))
            ranges, position = _joined(ranges, (start, start + length)), position + length
        ends.append((ranges, position))
    device = layout.token_ids_T.device
    return tuple(
        _block(pieces, ranges, window, device)
        for ranges, all_pieces in blocks.items()
        for pieces in _of_like_length(all_pieces, sum(end - start for start, end in ranges))
    )


def _joined(ranges: Ranges, new: tuple[int, int]) -> Ranges:
    if ranges and ranges[-1][1] == new[0]:
        return (*ranges[:-1], (ranges[-1][0], new[1]))
    return (*ranges, new)


def _of_like_length(pieces: list[_Piece], n_prefix: int) -> list[list[_Piece]]:
    """Runs of the pieces, longest first, none padded to more than 1 / PADDING of its length."""
    ordered = sorted(pieces, key=lambda piece: -piece.length)  # stable: equal lengths stay in order
    runs = [[ordered[0]]]
    for piece in ordered[1:]:
        longest = runs[-1][0].length
        fits = (len(runs[-1]) + 1) * longest * (longest + n_prefix) <= BLOCK_SCORES
        if fits and piece.length >= PADDING * longest:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _block(pieces: list[_Piece], ranges: Ranges, window: int, device: torch.device) -> Block:
    position = sum(end - start for start, end in ranges)
    skip = max(0, position - window + 1) if window else 0  # positions that no query of the block sees
    longest = pieces[0].length
    first = pieces[0].start
    together = all(piece == (first + i * longest, longest) for i, piece in enumerate(pieces))
    rows_BL, real = None, None
    if not together:
        starts_B1 = torch.tensor([piece.start for piece in pieces], device=device)[:, None]
        lengths_B1 = torch.tensor([piece.length for piece in pieces], device=device)[:, None]
        place_L = torch.arange(longest, device=device)[None]
        real_BL = place_L < lengths_B1
        rows_BL = torch.where(real_BL, starts_B1 + place_L, starts_B1)
        real = None if bool(real_BL.all()) else real_BL.reshape(-1)
    return Block(
        first,
        len(pieces),
        longest,
        rows_BL,
        real,
        _without_first(ranges, skip),
        min(skip, position),
        position,
    )


def _without_first(ranges: Ranges, count: int) -> Ranges:
    """The ranges without their first `count` tokens."""
    kept = []
    for start, end in ranges:
        dropped = min(count, end - start)
        count -= dropped
        if dropped < end - start:
            kept.append((start + dropped, end))
    return tuple(kept)
