"""Texts → hidden states → vectors, for the routes of embeddings.

rows (P, D) of a prompt's P tokens → pool: their mean, the last, or all → normalized (N, D)
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.model.tokenizer import Tokenizer
from etude.records import Event, FinishedEvent, Request
from etude.serve.errors import ApiError
from etude.serve.models import ServedModel
from etude.serve.prompts import check_length, completion_prompts, ids_of
from etude.serve.server import Server
from etude.serve.types_native import EmbeddingObject, PromptObject

Rows = NDArray[np.float32]
MAX_INT16 = 32760.0  # llama.cpp's
EUCLIDEAN = 2


def inputs(given: Any, model: ServedModel) -> list[tuple[int, ...]]:
    """The ids of each text. An object counts as the text it holds. ApiError 400 for what cannot be read."""
    prompts = _prompts(given, model.engine.tokenizer)
    if not prompts or not all(prompts):
        raise ApiError(400, "Input content cannot be empty", param="input")
    for ids in prompts:
        check_length(model, ids, 0, "input")
    return prompts


def _prompts(given: Any, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    holds = given if isinstance(given, list) else [given]
    has_objects = any(isinstance(item, PromptObject | EmbeddingObject) for item in holds)
    if has_objects and any(isinstance(item, int) for item in holds):
        raise ApiError(400, "a list of token ids has ids and texts in it, and no objects", param="input")
    if isinstance(given, list) and not any(isinstance(item, int) for item in given):
        return [ids_of(_plain(item), tokenizer) for item in given]
    return completion_prompts(_plain(given), tokenizer)


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


async def hidden_rows(server: Server, model: ServedModel, prompts: list[tuple[int, ...]]) -> list[Rows]:
    """Hidden states of the tokens of each prompt (P, D). Cancelling it ends the work. ApiError 429: too much
    waits."""
    with server.reserved(len(prompts)):
        rows = await asyncio.gather(*(_rows_of(model, ids) for ids in prompts))
    server.totals.prompt_tokens += sum(map(len, prompts))
    return rows


async def _rows_of(model: ServedModel, ids: tuple[int, ...]) -> Rows:
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
