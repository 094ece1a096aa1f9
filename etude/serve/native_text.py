"""llama.cpp's routes around text: POST /tokenize, /detokenize, /apply-template, and counting of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.model.tokenizer import Tokenizer
from etude.serve.chat import ChatWork
from etude.serve.errors import ApiError
from etude.serve.native_answer import shown_text
from etude.serve.native_route import native_route
from etude.serve.operations import Operation
from etude.serve.server import server_of
from etude.serve.sse import JsonResponse
from etude.serve.tokens import conversation_tokens
from etude.serve.types_native import DetokenizeRequest, TemplateRequest, TokenizeRequest
from etude.serve.types_openai import ChatRequest


async def tokenize(request: HttpRequest) -> Response:
    """{"tokens": [ids]}, or with their pieces; no content gives none."""
    server = server_of(request)
    asked = await server.body(request, TokenizeRequest)
    async with server.model(asked.model) as model:
        if asked.messages is not None or asked.prompt is not None:
            return await conversation_tokens(model, asked)
        tokenizer = model.engine.tokenizer
        ids = await asyncio.to_thread(
            mixed_ids,
            asked.content or "",
            tokenizer,
            bool(asked.add_special) and asked.content is not None,
            asked.parse_special is not False,
        )
    if not asked.with_pieces:
        return JsonResponse({"tokens": ids})
    return JsonResponse({"tokens": [{"id": token, "piece": piece_of(tokenizer, token)} for token in ids]})


def mixed_ids(
    content: str | Sequence[int | str], tokenizer: Tokenizer, add_special: bool, parse_special: bool
) -> list[int]:
    """The ids of text, or of texts with ids between them. BOS comes before the first, if that is text."""
    items = [content] if isinstance(content, str) else content
    ids: list[int] = []
    for at, item in enumerate(items):
        if isinstance(item, str):
            ids += tokenizer.encode(item, add_special=add_special and at == 0, parse_special=parse_special)
        else:
            check_id(item, tokenizer, "content")
            ids.append(item)
    return ids


def check_id(token: int, tokenizer: Tokenizer, field: str) -> None:
    """ApiError 400 for an id that the model has not."""
    if not 0 <= token < tokenizer.n_vocab:
        known = f"the model's ids are 0 to {tokenizer.n_vocab - 1}"
        raise ApiError(400, f"{field} has token id {token}; {known}", param=field)


def piece_of(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """The text of a token, or its bytes where they are none. Control tokens are shown."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(request: HttpRequest) -> Response:
    """{"content": text}"""
    server = server_of(request)
    asked = await server.body(request, DetokenizeRequest)
    async with server.model(asked.model) as model:
        tokenizer = model.engine.tokenizer
    for token in asked.tokens or ():
        check_id(token, tokenizer, "tokens")
    return JsonResponse({"content": shown_text(tokenizer, asked.tokens or ())})


async def apply_template(request: HttpRequest) -> Response:
    """{"prompt": what /v1/chat/completions would have the model read}"""
    prompt = await _rendered(request, TemplateRequest)
    return JsonResponse({"prompt": prompt.text})


async def input_tokens(request: HttpRequest) -> Response:
    """How many tokens a conversation has."""
    prompt = await _rendered(request, ChatRequest)
    return JsonResponse({"input_tokens": len(prompt.ids), "object": "response.input_tokens"})


async def _rendered(request: HttpRequest, kind: type[ChatRequest]) -> Any:
    server = server_of(request)
    work = ChatWork(await server.body(request, kind))
    async with server.model(work.asked.model) as model:
        return await asyncio.to_thread(work.render, model)


COUNTING = ("/v1/chat/completions/input_tokens", "/chat/completions/input_tokens")
ROUTES = [
    native_route("/tokenize", tokenize),
    native_route("/detokenize", detokenize),
    native_route("/apply-template", apply_template),
    *(native_route(path, input_tokens) for path in COUNTING),
]
OPERATIONS = (
    Operation("post", "/tokenize", "Text to token ids", TokenizeRequest),
    Operation("post", "/detokenize", "Token ids to text", DetokenizeRequest),
    Operation("post", "/apply-template", "The prompt of a conversation", TemplateRequest),
    Operation("post", COUNTING[0], "How many tokens a conversation has", ChatRequest),
)
