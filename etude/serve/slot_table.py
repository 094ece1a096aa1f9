"""Numbers for what runs, as llama.cpp's slots have them.

The engine has no slots: prefixes are found whoever computed them, and any completion may run in any step. But
clients watch slots, and name them to save a prompt's cache. So each completion that the engine can write at
once gets a number, the lowest that is free or the one that was wished for, and keeps it to its end; others
wait, as they do in the engine. A slot remembers what it wrote last.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etude.records import SamplingParams
from etude.serve.generation import Generation

NO_SLOT = -1


@dataclass(frozen=True)
class Written:
    """What a slot wrote last. n_tokens: of prompt and answer, but for the last, which was never computed;
    ids: they themselves, where somebody may ask for them."""

    task: int
    params: SamplingParams
    n_tokens: int
    ids: NDArray[np.int32] | None = None
    adapter: str | None = None


@dataclass
class Holder:
    """A completion that runs, or waits. wished: the slot it would like."""

    task: int
    generation: Generation
    choice: int
    wished: int | None = None

    @property
    def has_ended(self) -> bool:
        return self.generation.closed or self.generation.writings[self.choice].completion is not None

    def written(self, with_ids: bool) -> Written:
        """What became of it."""
        generation, completion = self.generation, self.generation.writings[self.choice].completion
        request = generation.requests[self.choice // generation.n]
        answer = completion.token_ids[:-1] if completion is not None else ()
        ids = np.array((*request.prompt_ids, *answer), np.int32) if with_ids else None
        n_tokens = len(request.prompt_ids) + len(answer)
        return Written(self.task, request.params, n_tokens, ids, request.adapter)


@dataclass
class Slot:
    """holder: None, or what runs; last: what ran before."""

    holder: Holder | None = None
    last: Written | None = None


class SlotTable:
    """The slots of one model. keeps_ids: what they wrote may be saved or erased."""

    def __init__(self, n_slots: int, *, keeps_ids: bool = False) -> None:
        self.slots = [Slot() for _ in range(n_slots)]
        self._keeps_ids = keeps_ids
        self._waiting: deque[Holder] = deque()
        self._numbers: dict[tuple[int, int], int] = {}

    def add(self, task: int, generation: Generation, wished: int | None = None) -> None:
        """All choices of a generation, which has just begun."""
        for choice in range(generation.n_choices):
            self._waiting.append(Holder(task, generation, choice, wished))
        self.settle()

    def remove(self, generation: Generation) -> None:
        """A generation has been closed."""
        self._waiting = deque(each for each in self._waiting if each.generation is not generation)
        self.settle()
        for choice in range(generation.n_choices):
            self._numbers.pop((id(generation), choice), None)

    def settle(self) -> None:
        """Free the slots of what has ended, and give them to what waits."""
        for slot in self.slots:
            if slot.holder is not None and slot.holder.has_ended:
                slot.last, slot.holder = slot.holder.written(self._keeps_ids), None
        while self._waiting:
            number = self._free(self._waiting[0].wished)
            if number is None:
                return
            holder = self._waiting.popleft()
            if not holder.has_ended:
                self.slots[number].holder = holder
                self._numbers[id(holder.generation), holder.choice] = number

    def _free(self, wished: int | None) -> int | None:
        if wished is not None and 0 <= wished < len(self.slots) and self.slots[wished].holder is None:
            return wished
        return next((at for at, slot in enumerate(self.slots) if slot.holder is None), None)

    def number(self, generation: Generation, choice: int) -> int:
        """The slot of a choice, -1 while it waits for one."""
        key = id(generation), choice
        if key not in self._numbers:
            self.settle()
        return self._numbers.get(key, NO_SLOT)

    @property
    def n_busy(self) -> int:
        self.settle()
        return sum(slot.holder is not None for slot in self.slots)

    @property
    def n_waiting(self) -> int:
        self.settle()
        return len(self._waiting)
