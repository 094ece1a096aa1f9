"""From the arrays of a step to the records that leave the engine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etude.engine.sequence import PromptScores, Sequence
from etude.engine.text import TextCutter
from etude.records import Completion, Event, Finish, FinishedEvent, TopLogprobs

if TYPE_CHECKING:
    from etude.kernels._native import StepOutput


class Draws(NamedTuple):
    """The rows of a step as Python numbers (R,): one conversion instead of one per completion."""

    token_ids: list[int]
    logprobs: list[float]
    raw_logprobs: list[float]
    entropies: list[float]

    @classmethod
    def of(cls, output: StepOutput) -> Draws:
        return cls(
            output.token_ids.tolist(),
            output.logprobs.tolist(),
            output.raw_logprobs.tolist(),
            output.entropies.tolist(),
        )


def top_of(output: StepOutput, row: int, n_top: int) -> TopLogprobs:
    """The alternatives of a row, best first; fewer than `n_top` if no more are possible."""
    ids, logprobs = output.top_ids[row, :n_top].tolist(), output.top_logprobs[row, :n_top].tolist()
    return tuple((token, logprob) for token, logprob in zip(ids, logprobs, strict=True) if token >= 0)


def sampled_top(
    sequence: Sequence, output: StepOutput, row: int, mask: NDArray[np.uint32] | None
) -> TopLogprobs:
    """The most likely tokens of the distribution that a completion's new token was drawn from.

    The shadow draws the same token from the same logits, which moves it on as mirostat moves the sampler.
    """
    assert sequence.shadow is not None and output.logits is not None
    logits_V, position = output.logits[row], sequence.n_total
    ids, logprobs = sequence.shadow.distribution(logits_V, mask, position)
    drawn, *_ = sequence.shadow.sample(logits_V, mask, position)
    sequence.shadow.accept(drawn)
    best = np.lexsort((ids, -logprobs))[: sequence.group.request.params.logprobs]
    return tuple(zip(ids[best].tolist(), logprobs[best].tolist(), strict=True))


def append(sequence: Sequence, draws: Draws, row: int, top: TopLogprobs | None) -> None:
    """Add a drawn token to a completion."""
    sequence.ids.append(draws.token_ids[row])
    sequence.logprobs.append(draws.logprobs[row])
    sequence.raw_logprobs.append(draws.raw_logprobs[row])
    sequence.entropies.append(draws.entropies[row])
    if top is not None:
        sequence.tops.append(top)
    sequence.n_total += 1


def event_of(sequence: Sequence) -> Event:
    """The event of the last token."""
    return Event(
        sequence.group.id,
        sequence.index,
        (sequence.ids[-1],),
        (sequence.logprobs[-1],),
        (sequence.raw_logprobs[-1],),
        (sequence.entropies[-1],),
        (sequence.tops[-1],) if sequence.tops else (),
    )


def finished_event(
    sequence: Sequence, finish: Finish, text: str, error: str | None, has_new: bool
) -> FinishedEvent:
    """The last event of a completion; `has_new`: it also brings the last token."""
    last = slice(-1, None) if has_new else slice(0, 0)
    hidden = sequence.group.hidden
    return FinishedEvent(
        sequence.group.id,
        sequence.index,
        tuple(sequence.ids[last]),
        tuple(sequence.logprobs[last]),
        tuple(sequence.raw_logprobs[last]),
        tuple(sequence.entropies[last]),
        tuple(sequence.tops[last]),
        finish,
        _completion(sequence, finish, text),
        None if hidden is None else hidden.rows,
        error,
    )


def _completion(sequence: Sequence, finish: Finish, text: str) -> Completion:
    group = sequence.group
    first, later = _versions(sequence)
    return Completion(
        text=text,
        token_ids=tuple(sequence.ids),
        logprobs=tuple(sequence.logprobs),
        raw_logprobs=tuple(sequence.raw_logprobs),
        entropies=tuple(sequence.entropies),
        finish=finish,
        weights_version=first,
        seed=group.seed,
        top_logprobs=tuple(sequence.tops),
        prompt_logprobs=None if group.scores is None else _optional(group.scores),
        prompt_top_logprobs=tuple(group.scores.tops) if group.scores and group.scores.n_top else None,
        n_cached=group.n_cached or 0,
        new_weights=later,
    )


def _versions(sequence: Sequence) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The version that drew the first token, and the changes after it that drew any."""
    first, later = sequence.group.weights_version, []
    for n_before, version in sequence.renewals:
        if n_before == 0:
            first = version
        elif n_before < len(sequence.ids):
            later.append((n_before, version))
    return first, tuple(later)


def _optional(scores: PromptScores) -> tuple[float | None, ...]:
    """Prompt logprobs; None where there is none: the first token, and what an aborted request did
    not reach.
    """
    return tuple(None if math.isnan(value) else value for value in scores.logprobs.tolist())


def text_of(sequence: Sequence, cutter: TextCutter, ended_by_token: bool) -> str:
    """The text of a completion without the token that ended it."""
    if cutter is not sequence.cutter:
        ids = sequence.ids[:-1] if ended_by_token else sequence.ids
        sequence.text = "".join([cutter.push(token) for token in ids])
    return sequence.text + cutter.flush()
