"""Samples into micro-batches: packed, without padding, the prompt of a group computed once.

A group's samples with equal prompts become one parent segment, the prompt, with a child for each completion;
the gradient through the shared prompt is the sum over its children, which is exact. Best-fit decreasing packs
whole groups into micro-batches of at most `max_tokens`. What no output needs is not computed: a completion
ends at the last token that its mask lets in, less one, because a token is predicted from the one before it.

    group 7: prompt 5 6, completions 8 9 4 and 8 3        tokens    5 6 | 8 9 | 8
                                                          predicts    8   9 4   3   (and 8 again, from the 6)

A group larger than `max_tokens` is split between its samples and its prompt is then computed once in each
part, unless `whole_groups` keeps it together, as losses over pairs need; a sample larger than `max_tokens` is
a micro-batch of its own. Neither is ever cut.

Axes: T packed tokens, S samples of the micro-batch, C tokens of their completions one after the other, M
those of C that the mask lets in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.model.segments import Layout, Segment
from etude.records import EtudeError

Column = NDArray[Any] | Sequence[float] | float


@dataclass(frozen=True)
class Sample:
    """One prompt and one completion. Samples of one `group` with equal prompts share its computation.

    mask: which completion tokens take part in the loss. columns: what the loss reads besides the ids, by
    name: one number for each completion token, or a single number for the sample. skip: the loss gives this
    sample no weight (a group without advantage): it counts in denominators and is never computed.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mask: tuple[bool, ...]
    group: int
    columns: Mapping[str, Column] = field(default_factory=dict)
    skip: bool = False

    def __post_init__(self) -> None:
        if len(self.mask) != len(self.completion_ids):
            raise EtudeError(
                f"a mask of {len(self.mask)} for {len(self.completion_ids)} completion tokens: give one each"
            )
        if not self.prompt_ids:
            raise EtudeError(
                "a sample without prompt tokens: the first token has nothing to be predicted from"
            )

    @property
    def n_computed(self) -> int:
        """Completion tokens that the model must read to predict all that the mask lets in."""
        return max((index for index, inside in enumerate(self.mask) if inside), default=0)

    @property
    def idle(self) -> bool:
        """Whether nothing of it needs computing."""
        return self.skip or not any(self.mask)


@dataclass(frozen=True)
class Batch:
    """A micro-batch. indices: where its samples stand in the list that was packed.

    layout: what the transformer reads. rows_M: the packed token that predicts each token of M, its hidden
    state is also where a critic's value belongs. index_M: its place on C. target_ids_C, mask_C, sequence_C
    (the sample, 0 .. S - 1): the completions. last_S: the packed token that ends each sample, None unless
    asked for. group_S: as in `Sample`. columns: over C, or over S where a sample gave one number.
    """

    indices: tuple[int, ...]
    layout: Layout
    rows_M: Tensor
    index_M: Tensor
    target_ids_C: Tensor
    mask_C: Tensor
    sequence_C: Tensor
    group_S: Tensor
    last_S: Tensor | None
    columns: Mapping[str, Tensor]

    @property
    def n_tokens(self) -> int:
        """Tokens that the transformer computes."""
        return len(self.layout.token_ids_T)

    @property
    def n_samples(self) -> int:
        return len(self.indices)

    def scattered(self, values_M: Tensor) -> Tensor:
        """Values of M on the axis C, 0 where the mask is False."""
        if len(values_M) == len(self.mask_C):
            return values_M
        return values_M.new_zeros(len(self.mask_C)).index_copy(0, self.index_M, values_M)


def pack(
    samples: Sequence[Sample],
    *,
    max_tokens: int,
    whole_groups: bool = False,
    to_the_end: bool = False,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """Micro-batches of at most max_tokens packed tokens; see the module. Idle samples are in none.

    whole_groups: never split a group, however large. to_the_end: read completions to their last token, which
    outputs "at the last token" need; a sample whose mask lets nothing in is then computed all the same.
    """
    if max_tokens < 1:
        raise EtudeError(f"max_tokens is {max_tokens}; a micro-batch needs at least 1 token")
    packer = _Packer(samples, max_tokens, to_the_end)
    kept = [i for i, sample in enumerate(samples) if not (sample.skip if to_the_end else sample.idle)]
    units = packer.units(kept, whole_groups)
    return [_batch(samples, bin_, to_the_end, device) for bin_ in packer.bins(units)]


Tree = list[int]
"""Samples of one group with one prompt."""


@dataclass(frozen=True)
class _Unit:
    """What stays together: trees of one group, or a part of one."""

    trees: list[Tree]
    n_tokens: int


@dataclass(frozen=True)
class _Packer:
    samples: Sequence[Sample]
    max_tokens: int
    to_the_end: bool

    def units(self, kept: Iterable[int], whole_groups: bool) -> list[_Unit]:
        groups: dict[int, dict[tuple[int, ...], Tree]] = {}
        for index in kept:
            sample = self.samples[index]
            groups.setdefault(sample.group, {}).setdefault(sample.prompt_ids, []).append(index)
        units = []
        for by_prompt in groups.values():
            unit = self._unit(list(by_prompt.values()))
            whole = whole_groups or unit.n_tokens <= self.max_tokens
            units += [unit] if whole else self._parts(unit)
        return units

    def bins(self, units: list[_Unit]) -> list[list[Tree]]:
        """Best-fit decreasing: the largest unit first, into the fullest micro-batch that still holds it."""
        bins: list[tuple[int, list[_Unit]]] = []
        for unit in sorted(units, key=lambda unit: -unit.n_tokens):
            fitting = [i for i, (used, _) in enumerate(bins) if used + unit.n_tokens <= self.max_tokens]
            if fitting:
                best = max(fitting, key=lambda i: bins[i][0])
                bins[best] = (bins[best][0] + unit.n_tokens, [*bins[best][1], unit])
            else:
                bins.append((unit.n_tokens, [unit]))
        trees = [sorted(tree for unit in bin_ for tree in unit.trees) for _, bin_ in bins]
        return sorted(trees)

    def _parts(self, unit: _Unit) -> list[_Unit]:
        """A group in parts of at most max_tokens, in its order; a part has at least one sample."""
        parts: list[_Unit] = []
        for tree in unit.trees:
            open_: Tree = []
            for index in tree:
                if open_ and self._unit([[*open_, index]]).n_tokens > self.max_tokens:
                    parts.append(self._unit([open_]))
                    open_ = []
                open_.append(index)
            parts.append(self._unit([open_]))
        return parts

    def _unit(self, trees: list[Tree]) -> _Unit:
        prompts = sum(len(self.samples[tree[0]].prompt_ids) for tree in trees)
        return _Unit(trees, prompts + sum(self._n_read(index) for tree in trees for index in tree))

    def _n_read(self, index: int) -> int:
        return _n_read(self.samples[index], self.to_the_end)


def _n_read(sample: Sample, to_the_end: bool) -> int:
    return len(sample.completion_ids) if to_the_end else sample.n_computed


def _batch(
    samples: Sequence[Sample], trees: list[Tree], to_the_end: bool, device: torch.device | str
) -> Batch:
    """The tensors of one micro-batch. Every token gets the row that predicts it; M keeps the mask's."""
    segments: list[Segment] = []
    ids: list[NDArray[np.int64]] = []
    rows: list[NDArray[np.int64]] = []
    lasts: list[int] = []
    order: list[int] = []
    at = 0
    for tree in trees:
        prompt = np.asarray(samples[tree[0]].prompt_ids, np.int64)
        alone = len(tree) == 1
        parent, end_of_prompt = len(segments), at + len(prompt) - 1
        ids.append(prompt)
        at += len(prompt)
        if not alone:
            segments.append(Segment(at - len(prompt), len(prompt), None))
        for index in tree:
            sample = samples[index]
            n_read = _n_read(sample, to_the_end)
            if alone:
                segments.append(Segment(at - len(prompt), len(prompt) + n_read, None))
            elif n_read:
                segments.append(Segment(at, n_read, parent))
            ids.append(np.asarray(sample.completion_ids[:n_read], np.int64))
            row = np.arange(at - 1, at - 1 + len(sample.completion_ids), dtype=np.int64)
            row[:1] = end_of_prompt
            rows.append(row)
            at += n_read
            lasts.append(at - 1 if n_read else end_of_prompt)
            order.append(index)
    mask = np.concatenate([np.asarray(samples[index].mask, np.bool_) for index in order])
    lengths = [len(samples[index].completion_ids) for index in order]
    targets = [np.asarray(samples[index].completion_ids, np.int64) for index in order]
    return Batch(
        indices=tuple(order),
        layout=Layout.of(segments, torch.from_numpy(np.concatenate(ids)), device),
        rows_M=torch.from_numpy(np.concatenate(rows)[mask]).to(device),
        index_M=torch.from_numpy(np.flatnonzero(mask)).to(device),
        target_ids_C=torch.from_numpy(np.concatenate(targets)).to(device),
        mask_C=torch.from_numpy(mask).to(device),
        sequence_C=torch.from_numpy(np.repeat(np.arange(len(order)), lengths)).to(device),
        group_S=torch.tensor([samples[index].group for index in order], device=device),
        last_S=torch.tensor(lasts, device=device) if to_the_end else None,
        columns=_columns([samples[index] for index in order], device),
    )


def _columns(samples: Sequence[Sample], device: torch.device | str) -> dict[str, Tensor]:
    """Every column of the samples; EtudeError unless all of them have it, in one form."""
    columns = {}
    for name in samples[0].columns:
        parts = []
        for sample in samples:
            if sample.columns.keys() != samples[0].columns.keys():
                raise EtudeError(
                    f"samples with different columns: {sorted(sample.columns)} and "
                    f"{sorted(samples[0].columns)}; all samples of a step need the same"
                )
            values = np.atleast_1d(np.asarray(sample.columns[name], np.float32))
            single = isinstance(sample.columns[name], int | float)
            if len(values) != (1 if single else len(sample.completion_ids)):
                raise EtudeError(
                    f"column {name!r} has {len(values)} values for {len(sample.completion_ids)} completion "
                    "tokens: give one each, or a single number for the sample"
                )
            parts.append((single, values))
        if len({single for single, _ in parts}) > 1:
            raise EtudeError(f"column {name!r} is a single number in some samples and one a token in others")
        columns[name] = torch.from_numpy(np.concatenate([values for _, values in parts])).to(device)
    return columns
