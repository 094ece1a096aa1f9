"""POST /v1/messages, /v1/messages/count_tokens: Anthropic's API, for its clients and for agents made for it.

A message is made of blocks: thinking, text, tool_use. A stream is message_start; for each block
content_block_start, its deltas, content_block_stop; then message_delta with why it ended and what it cost;
message_stop. The whole message is what the stream's events add up to.

`signature` of a thinking block is a digest of its text: clients keep only thoughts that are signed. It is not
checked when they come back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.serve.anthropic_request import chat_request
from etude.serve.chat import ChatWork, answer_chat, count_prompt
from etude.serve.errors import ApiError
from etude.serve.generation import Delta, Generation
from etude.serve.openai_json import new_item_id
from etude.serve.operations import Operation
from etude.serve.segments import Segment, Segments, Step, n_thought
from etude.serve.server import server_of
from etude.serve.sse import JsonResponse, encode, event
from etude.serve.types_anthropic import CountTokensRequest, MessagesRequest


async def messages(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    asked = await server.body(request, MessagesRequest)
    hidden = asked.thinking is not None and asked.thinking.display == "omitted"
    work = ChatWork(await asyncio.to_thread(chat_request, asked))
    return await answer_chat(
        request, server, work, lambda work, generation: MessageAnswer(work, generation, hidden)
    )


async def count_tokens(request: HttpRequest) -> Response:
    """How many tokens the conversation has, with everything that the template adds."""
    server = server_of(request)
    asked = await server.body(request, CountTokensRequest)
    work = ChatWork(await asyncio.to_thread(chat_request, asked))
    return JsonResponse({"input_tokens": await count_prompt(server, work)})


class MessageAnswer:
    """One message. hidden: its thoughts are not shown."""

    def __init__(self, work: ChatWork, generation: Generation, hidden: bool = False) -> None:
        self._generation = generation
        self._hidden = hidden
        self._parser = work.parser(generation.model)
        self._segments = Segments()
        self.message: dict[str, Any] = {
            "id": new_item_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": generation.model.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    async def whole(self) -> dict[str, Any]:
        """The message, when it is complete."""
        async for _ in self._events():
            pass
        return self.message

    async def events(self) -> AsyncIterator[bytes]:
        """The same, as it grows."""
        async for each in self._events():
            yield event(each, each["type"])

    def failure(self, error: ApiError) -> bytes:
        """The event of an error."""
        return event(error.as_anthropic_json(), "error")

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        async for delta in self._generation.deltas():
            if "usage" not in self.message:  # with the first delta it is known what was in the cache
                self.message["usage"] = self._usage() | {"output_tokens": 0}
                yield {"type": "message_start", "message": {**self.message, "content": []}}
            ended = delta.finish is not None
            part = self._parser.push(delta.text, ended=ended)
            for step in self._segments.push(part.deltas, ended=ended):
                for each in self._block_events(step):
                    yield each
            if ended:
                self._end(delta)
        reason = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        yield {"type": "message_delta", "delta": reason, "usage": self.message["usage"]}
        yield {"type": "message_stop"}

    def _block_events(self, step: Step) -> list[dict[str, Any]]:
        segment = step.segment
        at = {"index": segment.index}
        if step.what == "add":
            return [at | each for each in self._deltas(segment, step.text)]
        if step.what == "begin":
            begun = {"type": "content_block_start", "content_block": self._block(segment, begun=True)}
            return [at | begun, *([{"type": "ping"}] if segment.index == 0 else [])]
        self.message["content"].append(self._block(segment))
        signed = [_delta("signature", "signature", _signature(segment))] if segment.kind == "thought" else []
        return [at | each for each in [*signed, {"type": "content_block_stop"}]]

    def _deltas(self, segment: Segment, text: str) -> list[dict[str, Any]]:
        if segment.kind == "text":
            return [_delta("text", "text", text)]
        if segment.kind == "call":
            return [_delta("input_json", "partial_json", text)]
        return [] if self._hidden else [_delta("thinking", "thinking", text)]

    def _block(self, segment: Segment, begun: bool = False) -> dict[str, Any]:
        """The content block; begun: as it is told of before it has anything in it."""
        if segment.kind == "text":
            return {"type": "text", "text": "" if begun else segment.text}
        if segment.kind == "call":
            arguments = {} if begun else _arguments(segment.text)
            return {"type": "tool_use", "id": segment.call_id, "name": segment.name, "input": arguments}
        thought = "" if begun or self._hidden else segment.text
        return {"type": "thinking", "thinking": thought, "signature": "" if begun else _signature(segment)}

    def _end(self, delta: Delta) -> None:
        """Why it ended, and what it cost."""
        [request], [writing] = self._generation.requests, self._generation.writings
        if writing.stop_string is not None:
            self.message |= {"stop_reason": "stop_sequence", "stop_sequence": writing.stop_string}
        elif delta.finish in ("eos", "stop"):
            self.message["stop_reason"] = "tool_use" if self._segments.has_calls else "end_turn"
        else:
            most = request.params.max_tokens
            is_full = delta.finish == "length" and (most is None or writing.n_tokens < most)
            self.message["stop_reason"] = "model_context_window_exceeded" if is_full else "max_tokens"
        self.message["usage"] = self._usage()
        if self._segments.thoughts and delta.completion is not None:
            model = self._generation.model
            thought = n_thought(model.engine.tokenizer, delta.completion.token_ids, model.tags)
            self.message["usage"]["output_tokens_details"] = {"thinking_tokens": thought}

    def _usage(self) -> dict[str, Any]:
        """Tokens; what was found in the cache counts apart."""
        generation = self._generation
        return {
            "input_tokens": generation.n_prompt - generation.n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": generation.n_cached,
            "output_tokens": generation.n_predicted,
        }


def _delta(kind: str, field: str, text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": {"type": f"{kind}_delta", field: text}}


def _signature(segment: Segment) -> str:
    return hashlib.sha256(segment.text.encode("utf-8", "surrogatepass")).hexdigest()


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call. What is no JSON object, because the model broke it or was cut off, is kept as
    text in one."""
    try:
        value = json.loads(text or "{}", strict=False)
        encode(value)  # not every value that Python reads is one of JSON
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


ROUTES = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
OPERATIONS = (
    Operation("post", "/v1/messages", "Answer a conversation (Anthropic)", MessagesRequest, streams=True),
    Operation("post", "/v1/messages/count_tokens", "Count its tokens (Anthropic)", CountTokensRequest),
)
