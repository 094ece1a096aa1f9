"""POST /v1/chat/completions: a conversation in, the assistant's message out, whole or streamed.

    ChatWork(asked) → make(model): prompt and Request → Generation → deltas → ReplyParser → OpenAI's JSON

The order of a stream is what OpenAI's and llama.cpp's clients rely on: first the role, with content null and
no text; then text, thoughts, calls and their logprobs; then an empty delta with the finish_reason; then, if
asked for, usage with no choices; then [DONE].
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.model.tool_calls import ToolCallDelta
from etude.records import Finish, Request
from etude.serve.errors import ApiError
from etude.serve.generation import Delta, Generation
from etude.serve.models import ServedModel
from etude.serve.openai_json import delta_entries, envelope, finish_reason, token_entries
from etude.serve.operations import Operation
from etude.serve.parse import Part, Reply, ReplyParser
from etude.serve.prompts import (
    ChatPrompt,
    chat_prompt,
    chat_variables,
    check_length,
    continues_last,
    messages_of,
)
from etude.serve.sampling import engine_request, grammar_of, params_of
from etude.serve.server import Server, server_of
from etude.serve.sse import DONE, EventStream, JsonResponse, event, until_gone
from etude.serve.tools import call_grammar, offered, prepared, special_ids
from etude.serve.types_openai import MAX_LOGPROBS, ChatRequest


class ChatWork:
    """One chat request on its way: what was asked, and what became of it. ids: the prompt's tokens, where the
    client gives them itself. Other routes that answer conversations make one of their own requests."""

    def __init__(self, asked: ChatRequest, ids: Sequence[int] | None = None) -> None:
        self.asked = asked
        self.n_top = _n_top(asked)
        self.tools = offered(asked)
        self.prompt = ChatPrompt((), "", False)
        self._ids = None if ids is None else tuple(ids)

    def make(self, model: ServedModel) -> list[Request]:
        """The request for the engine. In a thread: templates and grammars take their time."""
        asked = self.asked
        self.prompt = prompt = self.render(model)
        limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        params = params_of(
            asked, model.defaults.params, model.engine.tokenizer, max_tokens=limit, logprobs=self.n_top or 0
        )
        check_length(model, prompt.ids, params.max_tokens, "messages")
        specials = special_ids(model.engine.tokenizer, None, model.own_tags)
        form = grammar_of(
            asked, asked.response_format, tags=model.own_tags, opened=prompt.opened, special=specials
        )
        calls = call_grammar(asked, model, self.tools, prompt.opened)
        if form is not None and calls is not None:
            raise ApiError(
                400, "an answer cannot have a form of its own and call tools", param="response_format"
            )
        return [engine_request(asked, model, prompt.ids, params, asked.n or asked.n_cmpl or 1, form or calls)]

    def render(self, model: ServedModel) -> ChatPrompt:
        """The conversation as the model reads it."""
        asked = self.asked
        messages, tools = prepared(model, messages_of(asked.messages), self.tools)
        prompt = chat_prompt(
            model,
            messages,
            tools=tools,
            variables=chat_variables(asked, model),
            generation_prompt=asked.add_generation_prompt is not False,
            continues=continues_last(asked, model),
        )
        return prompt if self._ids is None else replace(prompt, ids=self._ids)

    def special(self, model: ServedModel) -> bool:
        """Whether control tokens are part of the text: calls may be written with them."""
        if not self.tools:
            return False
        tokenizer = model.engine.tokenizer
        return any(map(tokenizer.is_control, special_ids(tokenizer, model.tool_prompt.format, None).values()))

    def parser(self, model: ServedModel) -> ReplyParser:
        """A new one for a choice."""
        form = self.asked.reasoning_format or model.defaults.reasoning_format
        return ReplyParser(
            None if form == "none" else model.tags,
            opened=self.prompt.opened,
            prefill=self.prompt.prefill,
            format=model.tool_prompt.format if self.tools else None,
            tools=self.tools or None,
        )


def _n_top(asked: ChatRequest) -> int | None:
    """Alternatives per token; None: no logprobs at all."""
    if asked.logprobs:
        return min(MAX_LOGPROBS if asked.top_logprobs is None else asked.top_logprobs, 1000)
    if asked.top_logprobs is not None:
        raise ApiError(400, "top_logprobs requires logprobs to be set to true", param="top_logprobs")
    return None


async def chat_completions(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    return await answer_chat(request, server, ChatWork(await server.body(request, ChatRequest)))


async def answer_chat(request: HttpRequest, server: Server, work: ChatWork) -> Response:
    """Generate and answer, as a stream if it was asked for."""
    generation = await until_gone(request, server.generate(work.asked.model, work.make, special=work.special))
    try:
        if work.asked.stream:
            return EventStream.of(server, stream(work, generation), generation.close)
        return JsonResponse(await until_gone(request, whole(work, generation)))
    except BaseException:
        generation.close()
        raise


async def whole(work: ChatWork, generation: Generation) -> dict[str, Any]:
    """The answer in one piece."""
    try:
        parsers = [work.parser(generation.model) for _ in range(generation.n_choices)]
        async for delta in generation.deltas():
            parsers[delta.choice].push(delta.text, ended=delta.finish is not None)
        choices = [_choice(work, generation, at, parser.reply) for at, parser in enumerate(parsers)]
        answer = envelope("chat.completion", "chatcmpl", generation.model)
        answer |= {"choices": choices, "usage": generation.usage(), "timings": generation.timings()}
        if work.asked.return_token_ids:
            answer["prompt_token_ids"] = list(work.prompt.ids)
        return answer
    finally:
        generation.close()


def _choice(work: ChatWork, generation: Generation, at: int, reply: Reply) -> dict[str, Any]:
    completion = generation.writings[at].completion
    assert completion is not None
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = reply.calls
    choice: dict[str, Any] = {
        "index": at,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason(completion.finish, called=bool(reply.calls)),
    }
    if work.n_top is not None:
        entries = token_entries(
            generation.model.engine.tokenizer,
            completion.token_ids,
            completion.raw_logprobs,
            completion.top_logprobs,
        )
        choice["logprobs"] = {"content": entries, "refusal": None}
    if work.asked.return_token_ids:
        choice["token_ids"] = list(completion.token_ids)
    return choice


async def stream(work: ChatWork, generation: Generation) -> AsyncIterator[bytes]:
    """The answer as events."""
    asked, model = work.asked, generation.model
    head = envelope("chat.completion.chunk", "chatcmpl", model)
    parsers = [work.parser(model) for _ in range(generation.n_choices)]
    begun = [False] * generation.n_choices

    def chunk(choices: list[dict[str, Any]], **extra: Any) -> bytes:
        return event({**head, "choices": choices, **extra})

    async for delta in generation.deltas():
        parser = parsers[delta.choice]
        if not begun[delta.choice]:
            begun[delta.choice] = True
            first = {"role": "assistant", "content": None}
            extra: dict[str, Any] = (
                {"prompt_token_ids": list(work.prompt.ids)} if asked.return_token_ids else {}
            )
            yield chunk(
                [{"index": delta.choice, "delta": first, "logprobs": None, "finish_reason": None}], **extra
            )
        part = parser.push(delta.text, ended=delta.finish is not None)
        shown = _delta_json(part)
        if shown or work.n_top is not None or asked.return_token_ids:
            choice: dict[str, Any] = {
                "index": delta.choice,
                "delta": shown,
                "logprobs": None,
                "finish_reason": None,
            }
            extra = {"timings": generation.timings()} if asked.timings_per_token else {}
            yield chunk([_with_tokens(choice, work, delta, model)], **extra)
        if delta.finish is not None:
            extra = generation.stream_extra(asked.stream_options, False)
            yield chunk([_last(delta.choice, delta.finish, parser.reply)], **extra)
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield chunk([], usage=generation.usage(), timings=generation.timings())
    yield DONE


def _delta_json(part: Part) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if part.reasoning:
        delta["reasoning_content"] = part.reasoning
    if part.content:
        delta["content"] = part.content
    if part.calls:
        delta["tool_calls"] = [_call_json(call) for call in part.calls]
    return delta


def _call_json(call: ToolCallDelta) -> dict[str, Any]:
    """Id, type and name come once, with the first piece of a call."""
    function: dict[str, Any] = {} if call.name is None else {"name": call.name}
    head = {} if call.id is None else {"id": call.id, "type": "function"}
    return {"index": call.index, **head, "function": function | {"arguments": call.arguments}}


def _with_tokens(choice: dict[str, Any], work: ChatWork, delta: Delta, model: ServedModel) -> dict[str, Any]:
    if work.n_top is not None:
        choice["logprobs"] = {"content": delta_entries(model.engine.tokenizer, delta), "refusal": None}
    if work.asked.return_token_ids:
        choice["token_ids"] = delta.token_ids
    return choice


def _last(at: int, finish: Finish, reply: Reply) -> dict[str, Any]:
    reason = finish_reason(finish, called=bool(reply.calls))
    return {"index": at, "delta": {}, "logprobs": None, "finish_reason": reason}


ROUTES = [
    Route(path, chat_completions, methods=["POST"])
    for path in ("/v1/chat/completions", "/chat/completions", "/api/chat/completions")
]
OPERATIONS = (Operation("post", "/v1/chat/completions", "Answer a conversation", ChatRequest, streams=True),)
