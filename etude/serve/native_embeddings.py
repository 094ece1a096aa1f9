"""POST /embedding and /embeddings: llama.cpp's own form, a list of {"index", "embedding": rows}.

There is one row, the mean of a text's hidden states or the last of them; with pooling "none" one per token.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.model.tokenizer import Tokenizer
from etude.serve.embeddings import Rows, hidden_rows
from etude.serve.errors import ApiError
from etude.serve.models import ServedModel
from etude.serve.native_route import native_route
from etude.serve.operations import Operation
from etude.serve.prompts import check_length, completion_prompts, ids_of
from etude.serve.server import Server, server_of
from etude.serve.sse import JsonResponse, until_gone
from etude.serve.types_native import EmbeddingObject, NativeEmbeddingRequest, PromptObject

MAX_INT16 = 32760.0  # llama.cpp's
EUCLIDEAN = 2


async def embeddings(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    asked = await server.body(request, NativeEmbeddingRequest)
    given = asked.input if asked.input is not None else asked.content
    if given is None:
        raise ApiError(400, '"input" or "content" must be provided')
    async with server.model(asked.model) as model:
        prompts = await asyncio.to_thread(inputs, given, model.engine.tokenizer)
        for ids in prompts:
            check_length(model, ids, 0, "input")
        rows = await until_gone(request, _all_rows(server, model, prompts))
    pooled = [pool(each, asked.pooling or "mean") for each in rows]
    if asked.pooling != "none":
        norm = EUCLIDEAN if asked.embd_normalize is None else asked.embd_normalize
        pooled = [normalized(each, norm) for each in pooled]
    return JsonResponse([{"index": at, "embedding": each.tolist()} for at, each in enumerate(pooled)])


def inputs(given: Any, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The ids of each text. An object counts as the text it holds."""
    if isinstance(given, list) and not any(isinstance(item, int) for item in given):
        prompts = [ids_of(_plain(item), tokenizer) for item in given]
    else:
        prompts = completion_prompts(_plain(given), tokenizer)
    if not prompts or not all(prompts):
        raise ApiError(400, "Input content cannot be empty", param="input")
    return prompts


def _plain(item: Any) -> Any:
    """ApiError 400 for what is no text."""
    if isinstance(item, PromptObject):
        if item.multimodal_data is not None:
            raise ApiError(400, "this server reads text only", param="input")
        return item.prompt_string
    if isinstance(item, EmbeddingObject):
        wrong = [part.type for part in item.content if part.type != "text" or part.text is None]
        if wrong:
            raise ApiError(
                400, f"input has a part of type {wrong[0]!r}; this server reads text", param="input"
            )
        return "".join(part.text or "" for part in item.content)
    return item


async def _all_rows(server: Server, model: ServedModel, prompts: list[tuple[int, ...]]) -> list[Rows]:
    with server.reserved(len(prompts)):
        rows = await asyncio.gather(*(hidden_rows(model, ids) for ids in prompts))
    server.totals.prompt_tokens += sum(map(len, prompts))
    return rows


def pool(rows_PD: Rows, pooling: str) -> Rows:
    """(1, D), or all of them."""
    if pooling == "none":
        return rows_PD
    mean_D = rows_PD[-1] if pooling == "last" else rows_PD.mean(axis=0, dtype=np.float64)
    return np.asarray(mean_D, np.float32)[None]


def normalized(rows_ND: Rows, norm: int) -> Rows:
    """Rows of that norm: -1 as they are, 0 the largest is 32760, 1 taxicab, 2 Euclidean, p the p-norm.

    >>> normalized(np.array([[3.0, -4.0]], np.float32), 2).tolist()
    [[0.6000000238418579, -0.800000011920929]]
    """
    if norm < 0:
        return rows_ND
    wide = np.abs(rows_ND.astype(np.float64))
    if norm == 0:
        size = wide.max(axis=1, keepdims=True) / MAX_INT16
    else:
        largest = np.maximum(wide.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        size = largest * ((wide / largest) ** norm).sum(axis=1, keepdims=True) ** (1 / norm)
    return np.asarray(rows_ND / np.where(size > 0, size, 1), np.float32)


PATHS = ("/embedding", "/embeddings")
ROUTES = [native_route(path, embeddings) for path in PATHS]
OPERATIONS = (Operation("post", PATHS[0], "Vectors of texts, llama.cpp's way", NativeEmbeddingRequest),)
