"""GET and POST /props: what llama.cpp's clients want to know of a server before they ask it.

A model that has been put to sleep is not woken: what was known of it is answered, and that it sleeps.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.serve.models import ServedModel
from etude.serve.native_route import native_route, unsupported
from etude.serve.native_settings import Shown, brief_settings, kept_tokens
from etude.serve.openai_json import fingerprint
from etude.serve.operations import Operation
from etude.serve.server import Server, server_of
from etude.serve.sse import JsonResponse
from etude.serve.status import meta


async def props(request: HttpRequest) -> Response:
    """Of the model that ?model= names, or of the first."""
    server = server_of(request)
    name = request.query_params.get("model")
    spec = server.pool.find(name)
    served, known = server.pool.loaded(name), server.known_props.get(spec.name)
    if served is not None:
        return JsonResponse(properties(server, served))  # to ask is no use of it that would keep it awake
    if known is not None:
        return JsonResponse(known | {"is_sleeping": True})
    async with server.model(name) as model:
        return JsonResponse(properties(server, model))


def remember(server: Server, model: ServedModel) -> None:
    """A model goes to sleep."""
    server.known_props[model.name] = properties(server, model)
    server.known_meta[model.name] = meta(model)


def properties(server: Server, model: ServedModel) -> dict[str, Any]:
    """The whole object."""
    engine, settings = model.engine, server.settings
    tokenizer, template = engine.tokenizer, model.template
    shown = Shown(n_keep=kept_tokens(model), reasoning_format=model.defaults.reasoning_format)
    defaults = brief_settings(model.defaults.params, tokenizer, shown)
    return {
        "default_generation_settings": {"params": defaults, "n_ctx": engine.context},
        "total_slots": engine.max_sequences,
        "model_alias": model.name,
        "model_ftype": "/".join(engine.weight_types),
        "model_path": str(model.spec.path),
        "modalities": {"vision": False, "video": False, "audio": False},
        "media_marker": "<__media__>",
        "endpoint_slots": settings.shows_slots,
        "endpoint_props": settings.changes_props,
        "endpoint_metrics": settings.shows_metrics,
        "ui": settings.shows_pages,
        "ui_settings": {},
        "chat_template": "" if template is None else template.source,
        "chat_template_caps": _capabilities(model),
        "bos_token": _text(model, tokenizer.bos_id),
        "eos_token": _text(model, tokenizer.eos_id),
        "build_info": fingerprint(model),
        "is_sleeping": False,
        "cors_proxy_enabled": False,
    }


def _text(model: ServedModel, token: int | None) -> str:
    return "" if token is None else model.engine.tokenizer.token_text(token)


def _capabilities(model: ServedModel) -> dict[str, bool]:
    """Those that reading the template tells."""
    template = model.template
    if template is None:
        return {}
    return {
        "supports_string_content": True,
        "supports_tools": template.takes_tools,
        "supports_reasoning_effort": "reasoning_effort" in template.variables,
    }


async def change_props(request: HttpRequest) -> Response:
    """llama.cpp has the route and changes nothing; so does this."""
    server = server_of(request)
    if not server.settings.changes_props:
        raise unsupported("This server does not support changing global properties. Start it with `--props`")
    return JsonResponse({"success": True})


ROUTES = [native_route("/props", props, "GET"), native_route("/props", change_props)]
OPERATIONS = (
    Operation("get", "/props", "What the server and its model are", query=("model",)),
    Operation("post", "/props", "Nothing yet, as in llama.cpp"),
)
