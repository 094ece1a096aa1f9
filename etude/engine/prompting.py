"""What goes in and out as text: prompts to ids and requests, events to pieces of text."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from etude.engine.text import TextCutter
from etude.model.chat import ChatTemplate
from etude.model.rendered import RenderedPrompt
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError, Event, FinishedEvent, Message, Request, SamplingParams

Prompt = str | RenderedPrompt | Sequence[int] | Sequence[Message]
"""Text (special tokens in it stay text), what `ChatTemplate.render` gave, token ids, or a conversation."""

_SAMPLING = tuple(field.name for field in fields(SamplingParams))
_REQUEST = tuple(field.name for field in fields(Request) if field.name not in ("prompt_ids", "params"))


class Piece(NamedTuple):
    """Text that has become certain, and the event it came with; `event.finish` is set on the last one."""

    text: str
    event: Event


def ids_of(tokenizer: Tokenizer, chat: ChatTemplate | None, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt. EtudeError for a conversation with a base model."""
    if isinstance(prompt, RenderedPrompt):
        return tuple(tokenizer.encode_rendered(prompt))
    if isinstance(prompt, str):
        return tuple(tokenizer.encode(prompt))
    messages = [item for item in prompt if isinstance(item, Message)]
    if not messages:
        return tuple(int(item) for item in prompt if not isinstance(item, Message))
    if len(messages) < len(prompt):
        raise EtudeError("a prompt is either token ids or messages, not both")
    if chat is None:
        raise EtudeError(
            "this is a base model without a chat template: give it text to complete, not messages"
        )
    return tuple(tokenizer.encode_rendered(chat.render(messages)))


def request_of(ids: tuple[int, ...], params: SamplingParams | None, options: Mapping[str, Any]) -> Request:
    """A request, its options named as the fields of `SamplingParams` and `Request`.

    >>> request_of((1, 2), None, {"n": 4, "temperature": 0.5}).params.temperature
    0.5
    """
    for name in options:
        if name not in _SAMPLING + _REQUEST:
            close = difflib.get_close_matches(name, _SAMPLING + _REQUEST, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f": {', '.join(_SAMPLING + _REQUEST)}"
            raise EtudeError(f"{name!r} is no option of a request{hint}")
    sampling = {name: value for name, value in options.items() if name in _SAMPLING}
    others = {name: value for name, value in options.items() if name in _REQUEST}
    return Request(ids, replace(params or SamplingParams(), **sampling), **others)


class Pieces:
    """Turns the events of one request into text, each completion by itself."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self.n_open = request.n
        self._stop_ids = request.params.stop_token_ids
        self._cutters = [TextCutter(tokenizer.stream(), request.params.stop) for _ in range(request.n)]

    def of(self, event: Event) -> Piece:
        """The text that an event makes certain; the token that ends a completion has none. EtudeError if the
        engine had to end it."""
        if isinstance(event, FinishedEvent) and event.error is not None:
            raise EtudeError(event.error)
        cutter = self._cutters[event.index]
        ids = event.token_ids
        by_token = event.finish == "eos" or (event.finish == "stop" and ids[-1] in self._stop_ids)
        text = "".join([cutter.push(token) for token in (ids[:-1] if by_token else ids)])
        if event.finish is not None:
            self.n_open -= 1
            text += cutter.flush()
        return Piece(text, event)
