"""Answers to one prompt and what is known of their order; all of them stay together in a micro-batch.

K answers to a prompt give up to K (K - 1) / 2 pairs, but are K sequences only: each is computed once, after a
prompt that is computed once, and the pairs are picked from their K scores (InstructGPT, arXiv:2203.02155,
section 3.5: all pairs of a prompt as one batch element, else a reward model overfits).

    prompt 5 6, answers 8 9 | 8 3 | 7        pairs (0, 1), (0, 2): the first is better than both others
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from etude.learner.batch import Batch, Column, Sample
from etude.records import Message
from etude.rollout.prompts import TEXT, PromptWriter
from etude.train.answers import answer_ids, opening_ids

Ids = tuple[int, ...]


class Preference(Protocol):
    """What is needed of `data.Preference`."""

    @property
    def id(self) -> str: ...
    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def chosen(self) -> str: ...
    @property
    def rejected(self) -> str: ...
    @property
    def margin(self) -> float: ...


class Pair(NamedTuple):
    """Places of the better and the worse answer, and by how much it is better, if that is known."""

    chosen: int
    rejected: int
    margin: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """prompt_ids, the different answers to it (each with its end token), and pairs of places among them."""

    prompt_ids: Ids
    answers: tuple[Ids, ...]
    pairs: tuple[Pair, ...]

    @property
    def n_tokens(self) -> int:
        """Of the longest sequence."""
        return len(self.prompt_ids) + max(map(len, self.answers))


def comparisons_of(prompts: PromptWriter, preferences: Iterable[Preference]) -> list[Comparison]:
    """Preferences as token ids, those of equal prompts together, in the order of first occurrence.

    A pair whose answers have equal ids says nothing and is left out.
    """
    found: dict[Ids, tuple[dict[Ids, int], dict[Pair, None]]] = {}
    for preference in preferences:
        messages = preference.messages
        prompt_ids = opening_ids(prompts, messages, preference.id)
        role = TEXT if messages[0].role == TEXT else "assistant"
        chosen_ids, rejected_ids = (
            answer_ids(prompts, messages, Message(role, text), preference.id)
            for text in (preference.chosen, preference.rejected)
        )
        if chosen_ids == rejected_ids:
            continue
        answers, pairs = found.setdefault(prompt_ids, ({}, {}))
        chosen, rejected = (answers.setdefault(ids, len(answers)) for ids in (chosen_ids, rejected_ids))
        pairs[Pair(chosen, rejected, preference.margin)] = None
    return [
        Comparison(prompt_ids, tuple(answers), tuple(pairs)) for prompt_ids, (answers, pairs) in found.items()
    ]


@dataclass(frozen=True)
class Judged:
    """Comparisons as samples of one step, a group each, and their pairs as places among these samples."""

    samples: list[Sample]
    pairs: list[Pair]
    comparison_P: list[int] = field(repr=False)

    @classmethod
    def of(
        cls, comparisons: Sequence[Comparison], columns: Mapping[str, Sequence[Column]] | None = None
    ) -> Judged:
        """columns: more numbers for each answer, by name, in the order of the samples."""
        samples: list[Sample] = []
        pairs: list[Pair] = []
        groups: list[int] = []
        for group, comparison in enumerate(comparisons):
            first = len(samples)
            for ids in comparison.answers:
                more = {name: values[len(samples)] for name, values in (columns or {}).items()}
                samples.append(Sample(comparison.prompt_ids, ids, (True,) * len(ids), group, more))
            pairs += [Pair(first + a, first + b, margin) for a, b, margin in comparison.pairs]
            groups += [group] * len(comparison.pairs)
        return cls(samples, pairs, groups)

    def within(self, batch: Batch) -> Pairs:
        """The pairs of a micro-batch that holds its groups whole (`whole_groups`)."""
        place = {index: at for at, index in enumerate(batch.indices)}
        inside = [at for at, pair in enumerate(self.pairs) if pair.chosen in place]
        device = batch.mask_C.device

        def tensor(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return Pairs(
            tensor([place[self.pairs[at].chosen] for at in inside], torch.int64),
            tensor([place[self.pairs[at].rejected] for at in inside], torch.int64),
            tensor([self.pairs[at].margin for at in inside], torch.float32),
            tensor([self.comparison_P[at] for at in inside], torch.int64),
        )


class Pairs(NamedTuple):
    """Samples of a micro-batch by place: the better and the worse of each pair; its margin; its prompt."""

    chosen_P: Tensor
    rejected_P: Tensor
    margin_P: Tensor
    prompt_P: Tensor
