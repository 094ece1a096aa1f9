"""Routes for a trainer that changes the server while it runs: pause, weights, LoRA adapters.

All of them need the admin key. Weights and adapters are named plainly, in folders given at the start, and are
read and checked whole before anything changes: what cannot be used leaves the server as it was. Nothing
computed with old weights is used with new ones, and every answer says which wrote it.
"""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.serve.access import check_admin
from etude.serve.errors import ApiError
from etude.serve.folders import named_in
from etude.serve.models import Adapter, ServedModel
from etude.serve.operations import Operation
from etude.serve.pausing import is_paused, pause, resume
from etude.serve.server import Server, server_of
from etude.serve.sse import JsonResponse
from etude.serve.types_admin import AdapterLoad, AdapterUnload, PauseRequest, WeightsUpdate


def admin_of(request: HttpRequest) -> Server:
    """The server, for whoever shows its admin key. ApiError 401 or 403."""
    server = server_of(request)
    check_admin(request, server.settings)
    return server


async def pause_route(request: HttpRequest) -> Response:
    """POST /pause: answered when nothing is drawn any more."""
    server = admin_of(request)
    async with server.bodies.reading(request) as raw:
        asked = PauseRequest.model_validate_json(raw) if raw.strip() else PauseRequest()
    mode = PauseRequest.model_validate({"mode": request.query_params.get("mode")}).mode
    if mode is not None and asked.mode not in (None, mode):
        raise ApiError(400, f"mode is {asked.mode!r} in the body and {mode!r} in the address", param="mode")
    await pause(server, mode or asked.mode or "abort")
    return JsonResponse({"status": "paused"})


async def resume_route(request: HttpRequest) -> Response:
    """POST /resume. No error where there is no pause."""
    resume(admin_of(request))
    return JsonResponse({"status": "resumed"})


async def is_paused_route(request: HttpRequest) -> Response:
    """GET /is_paused."""
    return JsonResponse({"is_paused": is_paused(admin_of(request))})


async def update_weights(request: HttpRequest) -> Response:
    """POST /update_weights: answered when the new weights are in use."""
    server = admin_of(request)
    asked = await server.body(request, WeightsUpdate)
    path = named_in(server.settings.weights_folder, asked.weight_dir, "weight_dir", "--weights-dir")
    async with server.changing, server.model(asked.model) as model:
        engine = model.engine
        version = engine.weights_version + 1 if asked.version is None else asked.version
        was_paused = is_paused(server)
        try:
            if asked.running != "continue":
                await pause(server, asked.running)
            # what a keeping pause has stopped, and what runs, goes on with the new weights
            await asyncio.to_thread(partial(engine.load_weights_from, path, version, running="continue"))
            model.changed = True
        finally:
            if asked.running != "continue" and not was_paused:
                resume(server)
        return JsonResponse({"status": "ok", "model": model.name, "weights_version": version})


async def load_adapter(request: HttpRequest) -> Response:
    """POST /v1/load_lora_adapter: requests that run with one of the same name keep the old one."""
    server = admin_of(request)
    asked = await server.body(request, AdapterLoad)
    name = asked.lora_name
    path = named_in(server.settings.adapters_folder, asked.lora_path, "lora_path", "--lora-dir")
    if any(name in (spec.name, *spec.aliases) for spec in server.pool.specs):
        raise ApiError(400, f"lora_name: {name!r} is the name of a model", param="lora_name")
    async with server.changing, server.model(asked.model) as model:
        if asked.load_inplace is False and name in model.adapters:
            raise ApiError(400, f"lora_name: {name!r} is loaded; load_inplace is false", param="lora_name")
        await asyncio.to_thread(model.engine.load_adapter, name, path, asked.version)
        scale = model.adapters[name].scale if name in model.adapters else 0.0  # only where it is asked for
        model.adapters[name] = Adapter(name, path, scale)
        model.changed = True
        return adapters_json(model)


async def unload_adapter(request: HttpRequest) -> Response:
    """POST /v1/unload_lora_adapter: requests that run with it keep it to their end."""
    server = admin_of(request)
    asked = await server.body(request, AdapterUnload)
    async with server.changing, server.model(asked.model or asked.lora_name) as model:
        if asked.lora_name not in model.adapters:
            known = ", ".join(map(repr, model.adapters)) or "none"
            raise ApiError(404, f"lora_name: {asked.lora_name!r} is not loaded; loaded are: {known}")
        await asyncio.to_thread(model.engine.unload_adapter, asked.lora_name)
        del model.adapters[asked.lora_name]
        return adapters_json(model)


def adapters_json(model: ServedModel) -> Response:
    """What there is now."""
    return JsonResponse({"status": "ok", "model": model.name, "adapters": list(model.adapters)})


ROUTES = [
    Route("/pause", pause_route, methods=["POST"]),
    Route("/resume", resume_route, methods=["POST"]),
    Route("/is_paused", is_paused_route),
    Route("/update_weights", update_weights, methods=["POST"]),
    *(
        Route(prefix + path, handler, methods=["POST"])
        for prefix in ("/v1", "")
        for path, handler in (("/load_lora_adapter", load_adapter), ("/unload_lora_adapter", unload_adapter))
    ),
]


OPERATIONS = (
    Operation("post", "/pause", "Stop drawing tokens (admin key)", PauseRequest, query=("mode",)),
    Operation("post", "/resume", "Go on (admin key)"),
    Operation("get", "/is_paused", "Whether a pause holds (admin key)"),
    Operation("post", "/update_weights", "Take weights from a folder (admin key)", WeightsUpdate),
    Operation("post", "/v1/load_lora_adapter", "Load a LoRA adapter (admin key)", AdapterLoad),
    Operation("post", "/v1/unload_lora_adapter", "Forget a LoRA adapter (admin key)", AdapterUnload),
)
