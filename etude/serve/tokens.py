"""Token ids in, token ids out, for trainers of other projects: nothing that was sampled is tokenised again.

    POST /v1/chat/completions/tokens   a chat whose prompt its client rendered (prime-rl; verifiers v0)
    POST /inference/v1/generate        ids and sampling parameters (vLLM; verifiers v1)

The second samples plainly unless told otherwise, and gives both logprobs of every token: of the distribution
that was sampled from, and the model's own. Each choice says which weights drew which of its tokens.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.records import Completion, Request, SamplingParams
from etude.serve.chat import ChatWork, answer_chat
from etude.serve.errors import ApiError
from etude.serve.generation import Delta, Generation
from etude.serve.models import ServedModel
from etude.serve.openai_json import LEAST, drawn_ids, finish_reason, prompt_rows, token_by_id
from etude.serve.operations import Operation
from etude.serve.prompts import check_length, ids_of
from etude.serve.sampling import engine_request, grammar_of, params_of
from etude.serve.server import server_of
from etude.serve.sse import DONE, EventStream, JsonResponse, event, until_gone
from etude.serve.types_openai import ChatRequest
from etude.serve.types_tokens import (
    ConversationTokens,
    Generated,
    GenerateParams,
    GenerateRequest,
    TokensChatRequest,
)

NOT_THERE = (
    "min_tokens", "bad_words", "allowed_token_ids", "truncate_prompt_tokens", "structured_outputs",
    "logits_processors",
)  # fmt: skip
"""Fields of vLLM's SamplingParams that would change what is drawn, and cannot here."""


async def chat_tokens(request: HttpRequest) -> Response:
    """A chat completion of given ids; the messages are for the client's own books."""
    server = server_of(request)
    asked = await server.body(request, TokensChatRequest)
    return await answer_chat(request, server, ChatWork(asked, asked.tokens))


class GenerateWork:
    """One request on its way."""

    def __init__(self, asked: GenerateRequest) -> None:
        self.asked = asked
        self.params = params = _own_names(asked.sampling_params, asked.model)
        self.ids: tuple[int, ...] = ()
        self.identity = asked.request_id or secrets.token_hex(16)
        if asked.features or asked.content_parts:
            raise ApiError(400, "features and content_parts: this server reads text only", param="features")
        for name in NOT_THERE:
            if getattr(params, name):
                raise ApiError(400, f"sampling_params.{name}: this server cannot do that; leave it out",
                               param=f"sampling_params.{name}")  # fmt: skip
        if asked.stream and params.prompt_logprobs is not None:
            raise ApiError(
                400, "logprobs of the prompt come with the whole answer: leave out stream", param="stream"
            )

    def make(self, model: ServedModel) -> list[Request]:
        """The request for the engine."""
        params, tokenizer = self.params, model.engine.tokenizer
        self.ids = ids_of(self.asked.token_ids, tokenizer)
        drawing = params_of(
            params, SamplingParams(), tokenizer, max_tokens=params.max_tokens, logprobs=params.logprobs or 0
        )
        check_length(model, self.ids, drawing.max_tokens, "token_ids")
        form = grammar_of(params)
        scores = params.prompt_logprobs
        return [engine_request(params, model, self.ids, drawing, params.n or 1, form, prompt_logprobs=scores)]

    def choice(
        self, model: ServedModel, index: int, drawn: Delta | Completion, ended: Completion | None
    ) -> dict[str, Any]:
        """What was drawn of a choice, all of it or a piece. ended: all of it, at its end."""
        return {
            "index": index,
            "logprobs": None if self.params.logprobs is None else {"content": _entries(drawn)},
            "finish_reason": None if ended is None else finish_reason(ended.finish),
            **drawn_ids(drawn.token_ids, ended),
        }


def _own_names(params: GenerateParams, model: str | None) -> GenerateParams:
    """With vLLM's names put into ours. Its repetition penalty looks at all there is."""
    given: dict[str, Any] = {"model": model}
    if params.repetition_penalty is not None:
        given |= {"repeat_penalty": params.repetition_penalty}
    if params.repeat_last_n is None:
        given |= {"repeat_last_n": -1}
    return params.model_copy(update=given)


def _entries(drawn: Delta | Completion) -> list[dict[str, Any]]:
    tops = drawn.top_logprobs or ((),) * len(drawn.token_ids)
    return [
        _token(token, logprob)
        | {"raw_logprob": max(raw, LEAST), "top_logprobs": [_token(*pair) for pair in top]}
        for token, logprob, raw, top in zip(
            drawn.token_ids, drawn.logprobs, drawn.raw_logprobs, tops, strict=True
        )
    ]


def _token(token: int, logprob: float) -> dict[str, Any]:
    return {"token": token_by_id(token), "token_id": token, "logprob": max(logprob, LEAST)}


async def generate(request: HttpRequest) -> Response:
    """The handler of /inference/v1/generate."""
    server = server_of(request)
    asked = await server.body(request, GenerateRequest)
    work = GenerateWork(asked)
    if asked.priority:  # lower goes first in vLLM, higher in the engine
        work.params = work.params.model_copy(update={"priority": -asked.priority})
    generation = await until_gone(request, server.generate(asked.model, work.make))
    try:
        if asked.stream:
            return EventStream.of(server, stream(work, generation), generation.close)
        return JsonResponse(await until_gone(request, whole(work, generation)))
    except BaseException:
        generation.close()
        raise


def _head(work: GenerateWork, generation: Generation) -> dict[str, Any]:
    return {
        "request_id": work.identity,
        "created": int(time.time()),
        "model": generation.model.name,
        "output_mode": "tokens",
    }


async def whole(work: GenerateWork, generation: Generation) -> dict[str, Any]:
    """The answer in one piece."""
    try:
        found = await generation.completions()
        choices = [work.choice(generation.model, at, each, each) for at, each in enumerate(found)]
        answer = {**_head(work, generation), "choices": choices, "usage": generation.usage()}
        answer |= generation.summary()
        if work.asked.return_token_ids:
            answer["prompt_token_ids"] = list(work.ids)
        if work.params.prompt_logprobs is not None:
            tokenizer = generation.model.engine.tokenizer
            answer["prompt_logprobs"] = prompt_rows(
                tokenizer, work.ids, found[0], work.params.prompt_logprobs
            )
        return answer
    finally:
        generation.close()


async def stream(work: GenerateWork, generation: Generation) -> AsyncIterator[bytes]:
    """The answer as events."""
    head, options = _head(work, generation), work.asked.stream_options
    prompt = {"prompt_token_ids": list(work.ids)} if work.asked.return_token_ids else {}
    async for delta in generation.deltas():
        choice = work.choice(generation.model, delta.choice, delta, delta.completion)
        yield event({**head, "choices": [choice], **prompt, **generation.stream_extra(options, False)})
        prompt = {}
    if options is not None and options.include_usage:
        yield event({**head, "choices": [], "usage": generation.usage(), **generation.summary()})
    yield DONE


async def conversation_tokens(model: ServedModel, asked: ConversationTokens) -> Response:
    """vLLM's answer of /tokenize: the ids, how many, and how many there may be."""
    if asked.messages is not None:
        chat = ChatRequest(
            messages=asked.messages,
            tools=asked.tools,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=bool(asked.continue_final_message),
            chat_template_kwargs=asked.chat_template_kwargs,
        )
        ids = (await asyncio.to_thread(ChatWork(chat).render, model)).ids
    else:
        special = asked.add_special_tokens is not False
        ids = await asyncio.to_thread(ids_of, asked.prompt or "", model.engine.tokenizer, special)
    return JsonResponse({"tokens": list(ids), "count": len(ids), "max_model_len": model.engine.context})


CHAT, GENERATE = "/v1/chat/completions/tokens", "/inference/v1/generate"
ROUTES = [Route(CHAT, chat_tokens, methods=["POST"]), Route(GENERATE, generate, methods=["POST"])]
OPERATIONS = (
    Operation("post", CHAT, "Answer a conversation given as token ids", TokensChatRequest, streams=True),
    Operation("post", GENERATE, "Token ids to token ids", GenerateRequest, streams=True, answer=Generated),
)
