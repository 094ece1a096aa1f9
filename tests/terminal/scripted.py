"""An engine that says what it is told to, one token a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etude.engine.core import Counters
from etude.records import Completion, EtudeError, Event, Finish, FinishedEvent, Request


class ScriptedEngine:
    """`script(request)` gives the ids of a request's answer. Ends at `end_ids`, and at max_tokens."""

    def __init__(
        self, script: Callable[[Request], Sequence[int]], end_ids: Iterable[int], context: int = 512
    ) -> None:
        self.requests: list[Request] = []
        self.aborted: list[int] = []
        self.counters = Counters(0, 0, 0, 0, 0)
        self.context = context
        self._script = script
        self._end_ids = frozenset(end_ids)
        self._running: dict[tuple[int, int], list[int]] = {}
        self._said: dict[tuple[int, int], list[int]] = {}
        self._ended: list[Event] = []

    def submit(self, request: Request) -> int:
        if len(request.prompt_ids) >= self.context:
            raise EtudeError("the prompt is too long")
        number = len(self.requests)
        self.requests.append(request)
        for index in range(request.n):
            self._running[number, index] = list(self._script(request))
            self._said[number, index] = []
        return number

    def step(self) -> list[Event]:
        events, self._ended = self._ended, []
        for (number, index), left in list(self._running.items()):
            request = self.requests[number]
            token = left.pop(0)
            said = self._said[number, index]
            said.append(token)
            finish: Finish | None = None
            if token in self._end_ids and not request.params.ignore_eos:
                finish = "eos"
            elif not left or len(said) == request.params.max_tokens:
                finish = "length"
            if finish:
                del self._running[number, index]
            events.append(self._event(number, index, (token,), finish))
        return events

    def abort(self, request_id: int) -> None:
        self.aborted.append(request_id)
        for number, index in [key for key in self._running if key[0] == request_id]:
            del self._running[number, index]
            self._ended.append(self._event(number, index, (), "abort"))

    def load_weights(self, tensors: Any, version: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._running.clear()

    def _event(self, number: int, index: int, ids: tuple[int, ...], finish: Finish | None) -> Event:
        zeros = (0.0,) * len(ids)
        if finish is None:
            return Event(number, index, ids, zeros, zeros, zeros)
        said = tuple(self._said[number, index])
        scores = (0.0,) * len(said)
        seed = self.requests[number].params.seed
        text = bytes(token % 256 for token in said).decode("latin-1")
        completion = Completion(text, said, scores, scores, scores, finish, 0, 1234 if seed is None else seed)
        return FinishedEvent(number, index, ids, zeros, zeros, zeros, (), finish, completion)
