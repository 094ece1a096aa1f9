"""POST /v1/embeddings: one vector of length 1 per text, pooled as the server was started (--pooling)."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.serve.errors import ApiError
from etude.serve.models import ServedModel
from etude.serve.operations import Operation
from etude.serve.server import server_of
from etude.serve.sse import JsonResponse, until_gone
from etude.serve.types_native import EmbeddingRequest
from etude.serve.vectors import EUCLIDEAN, Rows, hidden_rows, inputs, normalized, pool


async def embeddings(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    asked = await server.body(request, EmbeddingRequest)
    async with server.model(asked.model) as model:
        pooling = _checked(asked, model)
        prompts = await asyncio.to_thread(inputs, asked.input, model)
        rows = await until_gone(request, hidden_rows(server, model, prompts))
        name = model.name
    found = [normalized(pool(each, pooling), EUCLIDEAN)[0] for each in rows]
    n_tokens = sum(map(len, prompts))
    data = [
        {"object": "embedding", "index": at, **_written(vector_D, asked.encoding_format)}
        for at, vector_D in enumerate(found)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JsonResponse({"object": "list", "data": data, "model": name, "usage": usage})


def _checked(asked: EmbeddingRequest, model: ServedModel) -> str:
    """How to pool. ApiError 400 for vectors that there are not."""
    width, pooling = model.engine.config.d_model, model.defaults.pooling
    if asked.dimensions not in (None, width):
        raise ApiError(400, f"dimensions: this model has {width}", param="dimensions")
    if pooling == "none":
        raise ApiError(400, "with --pooling none a text has no vector of its own: use /embedding, or another")
    return pooling


def _written(vector_D: Rows, form: str | None) -> dict[str, Any]:
    if form == "base64":
        coded = base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
        return {"embedding": coded, "encoding_format": form}
    return {"embedding": vector_D.tolist()}


ROUTES = [Route("/v1/embeddings", embeddings, methods=["POST"])]
OPERATIONS = (Operation("post", "/v1/embeddings", "Vectors of texts", EmbeddingRequest),)
