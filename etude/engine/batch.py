"""One model step as arrays: what the chunks of a step become for the single native call.

Rows are the positions whose next-token distribution is wanted. A row is drawn from (once per completion: at
the end of a prompt the same row serves the whole group), or it scores a prompt token that is already known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from etude.engine.scheduler import Chunk
from etude.engine.sequence import Sequence

if TYPE_CHECKING:
    from etude.kernels._native import Adapter, Sampler

HIDDEN_ONLY = -1  # a target that is none: no logits are computed for this row


class Span(NamedTuple):
    """Rows [first_row, first_row + n_rows) belong to prompt positions [start, …) of a sequence's group."""

    sequence: Sequence
    start: int
    first_row: int
    n_rows: int


class Batch(NamedTuple):
    """Arguments of `Decoder.step`, and whose rows they are: `draws[i]` takes row `draw_rows[i]`."""

    arguments: dict[str, Any]
    draws: list[Sequence]
    draw_rows: list[int]
    spans: list[Span]


class Rows:
    """The wanted rows, while a batch is put together."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.samplers: list[Sampler | None] = []
        self.targets: list[int] = []
        self.masks: list[NDArray[np.uint32] | None] = []
        self.n_top: list[int] = []
        self.draws: list[Sequence] = []
        self.draw_rows: list[int] = []
        self.spans: list[Span] = []
        self.want_logits = False

    def draw(self, at: int, sequence: Sequence) -> None:
        """Draw the next token of `sequence` from token `at` of the batch."""
        self.draws.append(sequence)
        self.draw_rows.append(len(self.at))
        self.at.append(at)
        self.samplers.append(sequence.sampler)
        self.targets.append(0)
        self.masks.append(None if sequence.matcher is None else sequence.matcher.mask())
        self.n_top.append(sequence.group.request.params.logprobs if sequence.shadow is None else 0)
        self.want_logits |= sequence.shadow is not None

    def read(self, at: int, sequence: Sequence, start: int, n_tokens: int) -> None:
        """Ask for what the group wants of prompt positions [start, start + n_tokens), which begin at token
        `at`.
        """
        group = sequence.group
        stop = min(start + n_tokens, len(group.prompt))
        if group.scores is not None:
            targets = group.prompt[start + 1 : stop + 1].tolist()
            self._add_span(at, sequence, start, targets, group.scores.n_top)
        elif group.hidden is not None and group.hidden.only_last:
            if stop == len(group.prompt):
                self._add_span(at + n_tokens - 1, sequence, stop - 1, [HIDDEN_ONLY], 0)
        elif group.hidden is not None:
            self._add_span(at, sequence, start, [HIDDEN_ONLY] * (stop - start), 0)

    def _add_span(self, at: int, sequence: Sequence, start: int, targets: list[int], n_top: int) -> None:
        n_rows = len(targets)
        self.spans.append(Span(sequence, start, len(self.at), n_rows))
        self.at.extend(range(at, at + n_rows))
        self.samplers.extend([None] * n_rows)
        self.targets.extend(targets)
        self.masks.extend([None] * n_rows)
        self.n_top.extend([n_top] * n_rows)

    def arguments(self) -> dict[str, Any]:
        return {
            "rows": np.array(self.at, np.int32),
            "samplers": self.samplers,
            "targets": np.array(self.targets, np.int32),
            "masks": self.masks,
            "n_top": np.array(self.n_top, np.int32),
            "want_logits": self.want_logits,
            "want_hidden": any(span.sequence.group.hidden is not None for span in self.spans),
        }


def build(chunks: Iterable[Chunk], forks: dict[Sequence, list[Sequence]], page_tokens: int) -> Batch:
    """The arrays of one step. `forks`: the completions that start with the draw of another one."""
    tokens: list[int] = []
    first_token, first_position, first_page = [0], [], [0]
    tables: list[NDArray[np.int32]] = []
    adapters: list[Adapter | None] = []
    scales: list[float] = []
    rows = Rows()
    n_pages = 0
    for sequence, n_tokens, _ in chunks:
        at, start, group = len(tokens), sequence.n_computed, sequence.group
        stop = start + n_tokens
        if n_tokens == 1 and sequence.ids and stop == sequence.n_total:
            tokens.append(sequence.ids[-1])
        else:
            tokens.extend(sequence.tokens(start, stop).tolist())
        used = (stop + page_tokens - 1) // page_tokens
        n_pages += used
        tables.append(sequence.table[:used])
        first_token.append(len(tokens))
        first_position.append(start)
        first_page.append(n_pages)
        adapters.append(group.adapter)
        scales.append(group.request.adapter_scale)
        if group.wants_reading:
            rows.read(at, sequence, start, n_tokens)
        if stop == sequence.n_total and sequence.sampler is not None:
            rows.draw(len(tokens) - 1, sequence)
            for fork in forks.get(sequence, ()):
                rows.draw(len(tokens) - 1, fork)
    arguments = {
        "token_ids": np.array(tokens, np.int32),
        "first_token": np.array(first_token, np.int32),
        "first_position": np.array(first_position, np.int32),
        "pages": np.concatenate(tables),
        "first_page": np.array(first_page, np.int32),
        "adapters": adapters if any(adapters) else [],
        "adapter_scales": np.array(scales, np.float32),
    }
    return Batch(arguments | rows.arguments(), rows.draws, rows.draw_rows, rows.spans)
