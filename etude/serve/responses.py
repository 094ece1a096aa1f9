"""POST /v1/responses: OpenAI's responses API, without what needs a server that keeps them.

A response is made of items: reasoning, message, function_call. A stream is response.created and in_progress;
for each item output_item.added, its parts and their deltas, output_item.done; then response.completed, or
response.incomplete where a limit ended it. Events are numbered. The response is what the stream's items are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.serve.chat import ChatWork, answer_chat, count_prompt
from etude.serve.errors import ApiError
from etude.serve.generation import Delta, Generation
from etude.serve.openai_json import logprobs_of, new_item_id, token_entries
from etude.serve.operations import Operation
from etude.serve.response_items import Items, TextTokens
from etude.serve.responses_request import chat_request
from etude.serve.segments import Segments, Step, n_thought
from etude.serve.server import server_of
from etude.serve.sse import JsonResponse, event
from etude.serve.types_openai import ChatRequest
from etude.serve.types_responses import InputTokensRequest, ResponsesRequest


async def responses(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    asked = await server.body(request, ResponsesRequest)
    work = ChatWork(await asyncio.to_thread(chat_request, asked))
    return await answer_chat(
        request, server, work, lambda work, generation: ResponseAnswer(asked, work, generation)
    )


async def input_tokens(request: HttpRequest) -> Response:
    """How many tokens the conversation has, with everything that the template adds."""
    server = server_of(request)
    asked = await server.body(request, InputTokensRequest)
    work = ChatWork(await asyncio.to_thread(chat_request, asked))
    return JsonResponse({"object": "response.input_tokens", "input_tokens": await count_prompt(server, work)})


class ResponseAnswer:
    """One response."""

    def __init__(self, asked: ResponsesRequest, work: ChatWork, generation: Generation) -> None:
        self._asked = asked
        self._work = work
        self._tokens = None if work.n_top is None else TextTokens()
        self._generation = generation
        self._parser = work.parser(generation.model)
        self._segments = Segments()
        self._items = Items()
        self._n_events = 0
        self.response = _opening(asked, work.asked, generation)

    async def whole(self) -> dict[str, Any]:
        """The response, when it is complete."""
        async for _ in self._events():
            pass
        return self.response | {"timings": self._generation.timings()}

    async def events(self) -> AsyncIterator[bytes]:
        """The same, as it grows."""
        async for each in self._events():
            yield self._numbered(each)

    def failure(self, error: ApiError) -> bytes:
        """The event of a response that cannot go on."""
        reason = {"code": "server_error", "message": error.message}
        failed = self.response | {"status": "failed", "output": self._items.done, "error": reason}
        return self._numbered({"type": "response.failed", "response": failed})

    def _numbered(self, each: dict[str, Any]) -> bytes:
        numbered = {**each, "sequence_number": self._n_events}
        self._n_events += 1
        return event(numbered, each["type"])

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        yield {"type": "response.created", "response": self.response}
        yield {"type": "response.in_progress", "response": self.response}
        async for delta in self._generation.deltas():
            for each in self._of(delta):
                yield each
        ended = f"response.{self.response['status']}"
        yield {"type": ended, "response": self.response, "timings": self._generation.timings()}

    def _of(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """The events that a delta makes, with llama.cpp's progress and timings if asked for."""
        timed = bool(self._asked.timings_per_token)
        for reading in delta.readings:
            timings = {"timings": reading.timings()} if timed else {}
            told = {"prompt_progress": reading.progress(), **timings}
            yield {"type": "response.in_progress", "response": self.response, **told}
        is_cut = delta.finish not in (None, "eos", "stop")
        for step in self._steps(delta):
            is_last = step.segment is self._segments.all[-1]
            writes = self._tokens is not None and step.what == "add" and step.segment.kind == "text"
            logprobs = self._tokens.wrote(step.text) if writes and self._tokens is not None else ()
            for each in self._items.events(step, is_cut=is_cut and is_last, logprobs=logprobs):
                shows = timed and each["type"].endswith(".delta")
                yield {**each, "timings": self._generation.timings()} if shows else each
        if delta.finish is not None:
            self._end(delta, is_cut)

    def _steps(self, delta: Delta) -> Iterator[Step]:
        """How the reply grows by a delta; where logprobs are asked for token by token."""
        text, ended = delta.text, delta.finish is not None
        if self._tokens is not None:
            tokenizer, logprobs = (
                self._generation.model.engine.tokenizer,
                logprobs_of(self._work.asked, delta),
            )
            entries = token_entries(tokenizer, delta.token_ids, logprobs, delta.top_logprobs)
            for piece, entry in zip(delta.pieces, entries, strict=True):
                self._tokens.take(entry)
                yield from self._segments.push(self._parser.push(piece).deltas)
            text = text[sum(map(len, delta.pieces)) :]
        yield from self._segments.push(self._parser.push(text, ended=ended).deltas, ended=ended)

    def _end(self, delta: Delta, is_cut: bool) -> None:
        """Why it ended, and what it cost."""
        assert delta.completion is not None
        generation, n_thoughts = self._generation, 0
        if self._segments.thoughts:
            model = generation.model
            n_thoughts = n_thought(model.engine.tokenizer, delta.completion.token_ids, model.tags)
        self.response = self.response | {
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "completed_at": None if is_cut else int(time.time()),
            "output": self._items.done,
            "usage": {
                "input_tokens": generation.n_prompt,
                "input_tokens_details": {"cached_tokens": generation.n_cached, "cache_write_tokens": 0},
                "output_tokens": generation.n_predicted,
                "output_tokens_details": {"reasoning_tokens": n_thoughts},
                "total_tokens": generation.n_prompt + generation.n_predicted,
            },
        }


def _opening(asked: ResponsesRequest, chat: ChatRequest, generation: Generation) -> dict[str, Any]:
    """The response before anything was answered: what was asked, as it is understood here."""
    [request] = generation.requests
    form = asked.text.format if asked.text else None
    reasoning = asked.reasoning
    return {
        "id": new_item_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": request.params.max_tokens,
        "metadata": asked.metadata or {},
        "model": generation.model.name,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "store": False,
        "temperature": request.params.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tool_choice": _shown(asked.tool_choice),
        "tools": [
            {"type": "function", "strict": None, **tool.function.model_dump()} for tool in chat.tools or ()
        ],
        "top_logprobs": chat.top_logprobs or 0,
        "top_p": request.params.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": asked.user,
    }


def _shown(choice: Any) -> Any:
    """tool_choice as it was asked for."""
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return choice.model_dump(exclude_none=True)


PATHS = ("/v1/responses", "/responses")
ROUTES = [
    *(Route(path, responses, methods=["POST"]) for path in PATHS),
    *(Route(f"{path}/input_tokens", input_tokens, methods=["POST"]) for path in PATHS),
]
OPERATIONS = (
    Operation("post", "/v1/responses", "Answer a conversation (responses)", ResponsesRequest, streams=True),
    Operation("post", "/v1/responses/input_tokens", "Count its tokens (responses)", InputTokensRequest),
)
