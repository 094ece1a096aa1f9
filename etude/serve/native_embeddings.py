"""POST /embedding and /embeddings: llama.cpp's own form, a list of {"index", "embedding": rows}.

There is one row per text, as the server was started (--pooling) or the request says; with pooling "none" one
per token.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.serve.errors import ApiError
from etude.serve.native_route import native_route
from etude.serve.operations import Operation
from etude.serve.server import server_of
from etude.serve.sse import JsonResponse, until_gone
from etude.serve.types_native import NativeEmbeddingRequest
from etude.serve.vectors import EUCLIDEAN, hidden_rows, inputs, normalized, pool


async def embeddings(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    asked = await server.body(request, NativeEmbeddingRequest)
    given = asked.input if asked.input is not None else asked.content
    if given is None:
        raise ApiError(400, '"input" or "content" must be provided')
    async with server.model(asked.model) as model:
        prompts = await asyncio.to_thread(inputs, given, model)
        rows = await until_gone(request, hidden_rows(server, model, prompts))
        pooling = asked.pooling or model.defaults.pooling
    pooled = [pool(each, pooling) for each in rows]
    if pooling != "none":
        norm = EUCLIDEAN if asked.embd_normalize is None else asked.embd_normalize
        pooled = [normalized(each, norm) for each in pooled]
    return JsonResponse([{"index": at, "embedding": each.tolist()} for at, each in enumerate(pooled)])


PATHS = ("/embedding", "/embeddings")
ROUTES = [native_route(path, embeddings) for path in PATHS]
OPERATIONS = (Operation("post", PATHS[0], "Vectors of texts, llama.cpp's way", NativeEmbeddingRequest),)
