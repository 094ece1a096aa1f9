"""An engine whose completions are written down: one token a step, in an order that mixes the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from etude.records import Completion, Event, FinishedEvent, Request

EOS = 1
Script = Callable[[Request, int], str]


class Codec:
    """Characters are tokens; 0 is BOS, 1 ends a turn."""

    bos_id: int | None = 0
    eog_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        return [0, *map(ord, text)]

    def encode_rendered(self, prompt: Any) -> list[int]:
        text, inside = prompt.locate(["<end>"])
        ids, at = [], 0
        while at < len(text):
            if text.startswith("<end>", at) and not inside & set(range(at + 1, at + 5)):
                ids.append(EOS)
                at += 5
            else:
                ids.append(ord(text[at]))
                at += 1
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return "".join("<end>" * special if token == EOS else chr(token) for token in ids if token > 0)


class ScriptedEngine:
    """Answers with script(request, index); the end token follows each answer that max_tokens does not cut."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: dict[int, Request] = {}
        self.open: dict[tuple[int, int], list[int]] = {}
        self.written: dict[tuple[int, int], list[int]] = {}
        self.aborted: set[int] = set()
        self.n_steps = 0
        self.before_step: Callable[[], None] = lambda: None

    def submit(self, request: Request) -> int:
        number = len(self.requests)
        self.requests[number] = request
        for index in range(request.n):
            ids = [*map(ord, self.script(request, index)), EOS]
            self.open[number, index] = ids[: request.params.max_tokens]
            self.written[number, index] = []
        return number

    def abort(self, request_id: int) -> None:
        self.aborted.add(request_id)

    def step(self) -> list[Event]:
        self.n_steps += 1
        self.before_step()
        events = []
        for key in sorted(self.open, key=lambda key: (key[1], -key[0])):
            done = self.written[key]
            if key[0] not in self.aborted:
                done.append(self.open[key][len(done)])
            if len(done) == len(self.open[key]) or key[0] in self.aborted:
                events.append(self._finished(key))
            else:
                events.append(Event(*key, (done[-1],), (-0.5,), (-0.5,), (0.1,)))
        return events

    def _finished(self, key: tuple[int, int]) -> Event:
        ids = self.written[key]
        del self.open[key]
        aborted = key[0] in self.aborted
        finish = "abort" if aborted else "eos" if ids[-1] == EOS else "length"
        text = "".join(chr(token) for token in ids if token != EOS)
        numbers = tuple(-0.5 for _ in ids)
        seed = self.requests[key[0]].params.seed or 0
        completion = Completion(text, tuple(ids), numbers, numbers, numbers, finish, 3, seed)
        return FinishedEvent(*key, (), (), (), (), finish=finish, completion=completion)
