"""GET and POST /lora-adapters: llama.cpp's list of adapters, and which of them requests run with.

A request may choose for itself with its field `lora`. Changing what all others run with needs the admin key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.serve.access import check_admin
from etude.serve.errors import ApiError
from etude.serve.models import ModelPool, ServedModel
from etude.serve.native_route import native_route
from etude.serve.operations import Operation
from etude.serve.server import server_of
from etude.serve.sse import JsonResponse
from etude.serve.types_native import LoraScales


async def adapters(request: HttpRequest) -> Response:
    """The adapters; an id is a place in this list."""
    async with server_of(request).model(request.query_params.get("model")) as model:
        return JsonResponse(listed(model))


def listed(model: ServedModel) -> list[dict[str, Any]]:
    """As llama.cpp lists them."""
    return [
        {
            "id": at,
            "path": str(adapter.path),
            "scale": adapter.scale,
            "task_name": "",
            "prompt_prefix": "",
        }
        for at, adapter in enumerate(model.adapters.values())
    ]


async def change(request: HttpRequest) -> Response:
    """Set scales. What runs already keeps its own."""
    server = server_of(request)
    check_admin(request, server.settings)
    asked = await server.body(request, LoraScales)
    scales = {each.id: each.scale for each in asked.root}
    async with server.model(request.query_params.get("model")) as model:
        set_scales(server.pool, model, scales)
    return JsonResponse({"success": True})


def set_scales(pool: ModelPool, model: ServedModel, scales: dict[int, float]) -> None:
    """Of one model, and of all that are loaded later. ApiError 400: there is no such adapter, or two would be
    applied."""
    n = len(model.adapters)
    unknown = [at for at in scales if at >= n]
    if unknown:
        raise ApiError(400, f"there is no adapter {unknown[0]}; the server has {n}", param="id")
    if sum(scale != 0 for scale in scales.values()) > 1:
        raise ApiError(
            400, "an answer is given with one adapter at a time; give the others a scale of 0", param="scale"
        )
    model.adapters = {
        name: replace(adapter, scale=scales.get(at, 0.0))
        for at, (name, adapter) in enumerate(model.adapters.items())
    }
    known = {adapter.name: adapter for adapter in pool.defaults.adapters}
    changed = tuple(model.adapters.get(name, adapter) for name, adapter in known.items())
    pool.defaults = replace(pool.defaults, adapters=changed)


ROUTES = [native_route("/lora-adapters", adapters, "GET"), native_route("/lora-adapters", change)]
OPERATIONS = (
    Operation("get", "/lora-adapters", "The adapters", query=("model",)),
    Operation("post", "/lora-adapters", "Which of them requests run with", LoraScales, query=("model",)),
)
