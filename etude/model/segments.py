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
