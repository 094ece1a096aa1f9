"""Sums and means over the pieces of a flat axis: the tokens of a sample, the samples of a group."""

from __future__ import annotations

import torch
from torch import Tensor


def segments_in(segment_N: Tensor) -> int:
    """How many pieces there are, numbered from 0: the largest number plus one; 0 for an empty axis."""
    return int(segment_N.max()) + 1 if segment_N.numel() else 0


def segment_sums(values_N: Tensor, segment_N: Tensor, segments: int | None = None) -> Tensor:
    """Σ of the values of each piece, in the order of the axis.

    >>> segment_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1])).tolist()
    [3.0, 4.0]
    """
    count = segments_in(segment_N) if segments is None else segments
    return values_N.new_zeros(count).index_add(0, segment_N, values_N)


def masked(values_C: Tensor, mask_C: Tensor) -> Tensor:
    """The values, and exactly 0 (with gradient 0) where the mask is False, whatever stood there: also NaN."""
    return torch.where(mask_C, values_C, torch.zeros_like(values_C))


def sequence_sums(
    values_C: Tensor, mask_C: Tensor, sequence_C: Tensor, sequences: int | None = None
) -> Tensor:
    """Σ over the masked-in tokens of each sample: log π(y | x) = Σ_t log π(y_t | x, y_<t) from logprobs."""
    return segment_sums(masked(values_C, mask_C), sequence_C, sequences)


def sequence_lengths(
    mask_C: Tensor, sequence_C: Tensor, dtype: torch.dtype, sequences: int | None = None
) -> Tensor:
    """|o_i|: the number of masked-in tokens of each sample, and 1 for a sample that has none (a divisor)."""
    return segment_sums(mask_C.to(dtype), sequence_C, sequences).clamp(min=1)


def sequence_means(
    values_C: Tensor, mask_C: Tensor, sequence_C: Tensor, sequences: int | None = None
) -> Tensor:
    """Mean over the masked-in tokens of each sample; 0 for a sample that has none."""
    sums_S = sequence_sums(values_C, mask_C, sequence_C, sequences)
    return sums_S / sequence_lengths(mask_C, sequence_C, values_C.dtype, sequences)
