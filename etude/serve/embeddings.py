"""POST /v1/embeddings: one vector per text, of length 1: the mean of its last hidden states."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.records import Event, FinishedEvent, Request
from etude.serve.errors import ApiError
from etude.serve.models import ServedModel
from etude.serve.operations import Operation
from etude.serve.prompts import check_length, completion_prompts
from etude.serve.server import Server, server_of
from etude.serve.sse import JsonResponse, until_gone
from etude.serve.types_openai import EmbeddingRequest

Rows = NDArray[np.float32]


async def hidden_rows(model: ServedModel, ids: tuple[int, ...]) -> Rows:
    """Hidden states of all tokens of a prompt (P, D). Cancelling it ends the work."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Rows] = loop.create_future()

    def take(event: Event | BaseException) -> None:
        if found.done():
            return
        if isinstance(event, BaseException):
            found.set_exception(RuntimeError(f"the engine has stopped: {event}"))
        elif isinstance(event, FinishedEvent) and event.hidden is not None and event.finish != "abort":
            found.set_result(event.hidden)
        else:
            found.set_exception(ApiError(503, "the work was aborted by the server"))

    while not model.open.is_set():
        await model.open.wait()
    adapter, scale = model.default_adapter()
    request = Request(ids, adapter=adapter, adapter_scale=scale)
    running = model.engine.watch(request, partial(model.mailbox.put, take), hidden="all")
    try:
        return await found
    finally:
        model.engine.forget(running)


async def vectors(server: Server, model: ServedModel, prompts: list[tuple[int, ...]]) -> Rows:
    """The mean of each prompt's rows, scaled to length 1 (N, D)."""
    with server.reserved(len(prompts)):
        rows = await asyncio.gather(*(hidden_rows(model, ids) for ids in prompts))
    server.totals.prompt_tokens += sum(map(len, prompts))
    means = np.stack([each.mean(axis=0, dtype=np.float64) for each in rows])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.where(norms > 0, norms, 1), np.float32)


async def embeddings(request: HttpRequest) -> Response:
    """The handler."""
    server = server_of(request)
    asked = await server.body(request, EmbeddingRequest)
    async with server.model(asked.model) as model:
        prompts = await asyncio.to_thread(completion_prompts, asked.input, model.engine.tokenizer)
        for ids in prompts:
            check_length(model, ids, 0, "input")
        width = model.engine.config.d_model
        if asked.dimensions not in (None, width):
            raise ApiError(400, f"dimensions: this model has {width}", param="dimensions")
        found = await until_gone(request, vectors(server, model, prompts))
        name = model.name
    n_tokens = sum(map(len, prompts))
    data = [
        {"object": "embedding", "index": at, "embedding": _written(vector, asked.encoding_format)}
        for at, vector in enumerate(found)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JsonResponse({"object": "list", "data": data, "model": name, "usage": usage})


def _written(vector_D: Rows, form: str | None) -> Any:
    if form == "base64":
        return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
    return vector_D.tolist()


ROUTES = [Route("/v1/embeddings", embeddings, methods=["POST"])]
OPERATIONS = (Operation("post", "/v1/embeddings", "Vectors of texts", EmbeddingRequest),)
