"""POST /v1/chat/completions: a conversation in, the assistant's message out, whole or streamed.

    ChatWork(asked) → make(model): prompt and Request → Generation → deltas → ReplyParser → Answer: JSON

Anthropic's messages and OpenAI's responses are such work too, with an Answer of their own.

The order of a stream is what OpenAI's and llama.cpp's clients rely on: first the role, with content null and
no text; then text, thoughts, calls and their logprobs; then an empty delta with the finish_reason; then, if
asked for, usage with no choices; then [DONE].
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.model.tool_calls import ToolCallDelta
from etude.records import Grammar, Request
from etude.serve.errors import ApiError
from etude.serve.generation import Delta, Generation
from etude.serve.models import ServedModel
from etude.serve.native_answer import explanation
from etude.serve.openai_json import (
    MAX_PROMPT_LOGPROBS,
    drawn_ids,
    drawn_logprobs,
    envelope,
    finish_reason,
    prompt_rows,
)
from etude.serve.operations import Operation
from etude.serve.parse import Part, Reply, ReplyParser
from etude.serve.prompts import (
    ChatPrompt,
    chat_prompt,
    chat_variables,
    check_characters,
    check_length,
    continues_last,
    given_prompt,
    messages_of,
)
from etude.serve.sampling import engine_request, grammar_of, params_of
from etude.serve.server import Server, server_of
from etude.serve.sse import DONE, EventStream, JsonResponse, error_event, event, until_gone
from etude.serve.tools import call_grammar, free_grammar, offered, prepared, special_ids, thought_budget
from etude.serve.types_openai import MAX_LOGPROBS, ChatRequest


class ChatWork:
    """One chat request on its way: what was asked, and what became of it. ids: the prompt's tokens, where the
    client gives them itself; no template is then looked at. Other routes that answer conversations make one
    of their own requests."""

    def __init__(self, asked: ChatRequest, ids: Sequence[int] | None = None) -> None:
        self.asked = asked
        self.n_top = _n_top(asked)
        self.tools = offered(asked)
        self.n_prompt_top = _n_prompt_top(asked)
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
        grammar, n, scores = self._grammar(model), asked.n or asked.n_cmpl or 1, self.n_prompt_top
        return [engine_request(asked, model, prompt.ids, params, n, grammar, prompt_logprobs=scores)]

    def _grammar(self, model: ServedModel) -> Grammar | None:
        """What the reply is held to: a form of its own, calls of tools, thoughts of a bounded length."""
        asked, opened, budget = self.asked, self.prompt.opened, thought_budget(self.asked, model)
        form = grammar_of(
            asked,
            asked.response_format,
            tags=model.own_tags,
            opened=opened,
            special=special_ids(model.engine.tokenizer, None, model.own_tags),
            budget=budget,
        )
        calls = call_grammar(asked, model, self.tools, opened, budget)
        if form is not None and calls is not None:
            raise ApiError(
                400, "an answer cannot have a form of its own and call tools", param="response_format"
            )
        return form or calls or free_grammar(model, self.tools, opened, budget)

    def render(self, model: ServedModel) -> ChatPrompt:
        """The conversation as the model reads it."""
        asked = self.asked
        if self._ids is not None:
            return given_prompt(model, self._ids)
        said = messages_of(asked.messages)
        engine, n_said = model.engine, sum(len(message.content) for message in said)
        check_characters(n_said, engine.tokenizer, engine.context, "messages")
        messages, tools = prepared(model, said, self.tools)
        return chat_prompt(
            model,
            messages,
            tools=tools,
            variables=chat_variables(asked, model),
            generation_prompt=asked.add_generation_prompt is not False,
            continues=continues_last(asked, model),
        )

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


def _n_prompt_top(asked: ChatRequest) -> int | None:
    """The same of the prompt, in vLLM's form."""
    if asked.prompt_logprobs is None or asked.prompt_logprobs is False:
        return None
    if asked.stream:
        raise ApiError(
            400, "logprobs of the prompt come with the whole answer: leave out stream", param="stream"
        )
    return min(int(asked.prompt_logprobs), MAX_PROMPT_LOGPROBS)


class Answer(Protocol):
    """What becomes of a ChatWork, in the words of one API: read whole, or as events, once."""

    async def whole(self) -> dict[str, Any]: ...

    def events(self) -> AsyncIterator[bytes]: ...

    def failure(self, error: ApiError) -> bytes:
        """The event that ends a stream which cannot go on."""


async def chat_completions(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    return await answer_chat(request, server, ChatWork(await server.body(request, ChatRequest)))


async def count_prompt(server: Server, work: ChatWork) -> int:
    """Tokens of the prompt."""
    async with server.model(work.asked.model) as model:
        prompt = await asyncio.to_thread(work.render, model)
    return len(prompt.ids)


async def answer_chat(
    request: HttpRequest,
    server: Server,
    work: ChatWork,
    answer_of: Callable[[ChatWork, Generation], Answer] | None = None,
) -> Response:
    """Generate and answer, as a stream if it was asked for. answer_of: None is OpenAI's chat completions."""
    shows_reading = bool(work.asked.stream and work.asked.return_progress)
    starting = server.generate(work.asked.model, work.make, special=work.special, shows_reading=shows_reading)
    generation = await until_gone(request, starting)
    try:
        answer = ChatAnswer(work, generation, server) if answer_of is None else answer_of(work, generation)
        if work.asked.stream:
            return EventStream.of(server, answer.events(), generation.close, describe=answer.failure)
        response = JsonResponse(await until_gone(request, answer.whole()))
    except BaseException:
        generation.close()
        raise
    generation.close()
    return response


class ChatAnswer:
    """OpenAI's chat completion, of one choice or several."""

    def __init__(self, work: ChatWork, generation: Generation, server: Server) -> None:
        asked = work.asked
        self._server = server
        self._explains = server.settings.explains if asked.verbose is None else asked.verbose
        self._written = ""  # the first choice, before it is taken apart
        self._work = work
        self._generation = generation
        self._parsers = [work.parser(generation.model) for _ in range(generation.n_choices)]
        self._begun: set[int] = set()

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        work, generation = self._work, self._generation
        async for delta in generation.deltas():
            self._push(delta)
        choices = [self._choice(at, parser.reply) for at, parser in enumerate(self._parsers)]
        answer = envelope("chat.completion", "chatcmpl", generation.model)
        answer |= {"choices": choices, "usage": generation.usage(), **generation.summary()}
        if work.asked.return_token_ids:
            answer["prompt_token_ids"] = list(work.prompt.ids)
        if self._explains:
            answer["__verbose"] = self._explanation()
        if work.n_prompt_top is not None:
            first = generation.writings[0].completion
            assert first is not None
            tokenizer = generation.model.engine.tokenizer
            answer["prompt_logprobs"] = prompt_rows(tokenizer, work.prompt.ids, first, work.n_prompt_top)
        return answer

    def _push(self, delta: Delta) -> Part:
        """What a delta adds to the reply."""
        if self._explains and delta.choice == 0:
            self._written += delta.text
        return self._parsers[delta.choice].push(delta.text, ended=delta.finish is not None)

    def _explanation(self) -> dict[str, Any]:
        generation = self._generation
        slots = self._server.slots_of(generation.model)
        return explanation(self._work.asked, self._work.n_top, generation, slots, self._written)

    def _choice(self, at: int, reply: Reply) -> dict[str, Any]:
        completion = self._generation.writings[at].completion
        assert completion is not None
        message: dict[str, Any] = {
            "role": "assistant",
            "content": reply.content or (None if reply.calls else ""),
        }
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["tool_calls"] = reply.calls
        choice = _choice(at, finish_reason(completion.finish, called=bool(reply.calls)), message=message)
        if self._work.n_top is not None:
            tokenizer = self._generation.model.engine.tokenizer
            choice["logprobs"] = drawn_logprobs(tokenizer, self._work.asked, completion)
        if self._work.asked.return_token_ids:
            choice |= drawn_ids(completion.token_ids, completion)
        return choice

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        options, generation = self._work.asked.stream_options, self._generation
        head = envelope("chat.completion.chunk", "chatcmpl", generation.model)
        async for delta in generation.deltas():
            for choice, extra in self._chunks(delta):
                yield event({**head, "choices": [choice], **extra})
        if options is not None and options.include_usage:
            usage = {"usage": generation.usage(), **generation.summary()}
            yield event({**head, "choices": [], **usage})
        yield DONE

    def _chunks(self, delta: Delta) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(choice, what stands beside the choices) of each event that a delta makes."""
        asked, generation = self._work.asked, self._generation
        at, parser = delta.choice, self._parsers[delta.choice]
        timed = bool(asked.timings_per_token)
        first = {"role": "assistant", "content": None}
        for reading in delta.readings:  # as llama.cpp tells of them
            timings = {"timings": reading.timings()} if timed else {}
            yield _choice(at, delta=first), {"prompt_progress": reading.progress(), **timings}
        if not delta.token_ids and delta.finish is None:
            return
        if at not in self._begun:
            self._begun.add(at)
            prompt = {"prompt_token_ids": list(self._work.prompt.ids)} if asked.return_token_ids else {}
            yield _choice(at, delta=first), prompt
        shown = _delta_json(self._push(delta))
        if shown or self._work.n_top is not None or asked.return_token_ids:
            timings = {"timings": generation.timings()} if timed else {}
            yield self._with_tokens(_choice(at, delta=shown), delta), timings
        if delta.finish is not None:
            reason = finish_reason(delta.finish, called=bool(parser.reply.calls))
            extra = generation.stream_extra(asked.stream_options, False)
            if self._explains and at == 0:
                extra["__verbose"] = self._explanation()
            yield _choice(at, reason, delta={}), extra

    def _with_tokens(self, choice: dict[str, Any], delta: Delta) -> dict[str, Any]:
        if self._work.n_top is not None:
            tokenizer = self._generation.model.engine.tokenizer
            choice["logprobs"] = drawn_logprobs(tokenizer, self._work.asked, delta)
        if self._work.asked.return_token_ids:
            choice |= drawn_ids(delta.token_ids, delta.completion)
        return choice

    def failure(self, error: ApiError) -> bytes:
        """The event of an error."""
        return error_event(error)


def _choice(at: int, reason: str | None = None, **content: Any) -> dict[str, Any]:
    """content: the message, or its delta."""
    return {"index": at, **content, "logprobs": None, "finish_reason": reason}


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


PATHS = ("/v1/chat/completions", "/chat/completions", "/api/chat/completions")
ROUTES = [Route(path, chat_completions, methods=["POST"]) for path in PATHS]
OPERATIONS = (Operation("post", PATHS[0], "Answer a conversation", ChatRequest, streams=True),)
