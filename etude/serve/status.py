"""GET /health, /v1/models: whether the server lives, and what it can be asked for."""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from etude.model.family import ModelConfig, layer_slots, slot_shape
from etude.model.names import LAYER_BIASES
from etude.serve.errors import ApiError
from etude.serve.models import ModelSpec, ServedModel
from etude.serve.operations import Operation
from etude.serve.server import Server, server_of
from etude.serve.sse import JsonResponse

SENTENCEPIECE, BPE = 1, 2
"""llama.cpp's numbers of kinds of vocabularies."""


async def health(request: Request) -> Response:
    """Open to everybody. A model that is not loaded is loaded by the first request that needs it; only the
    first of all is waited for."""
    if server_of(request).loading:
        raise ApiError(503, "Loading model")
    return JsonResponse({"status": "ok"})


async def models(request: Request) -> Response:
    """OpenAI's list, with llama.cpp's and vLLM's additions; what is known of loaded models only is absent for
    those that never were."""
    server = server_of(request)
    data = [model_json(server, spec) for spec in server.pool.specs]
    data += [adapter_json(served, name) for served in server.pool.all_loaded for name in served.adapters]
    return JsonResponse(
        {"object": "list", "data": data, "models": [_listed(server, spec) for spec in server.pool.specs]}
    )


async def model(request: Request) -> Response:
    """One of them. A 404 for a name that none has, even where a single model serves any name."""
    server = server_of(request)
    name = request.path_params["name"]
    for served in server.pool.all_loaded:
        if name in served.adapters:
            return JsonResponse(adapter_json(served, name))
    spec = server.pool.named(name)
    return JsonResponse(model_json(server, spec))


def model_json(server: Server, spec: ModelSpec) -> dict[str, Any]:
    """An entry of the list."""
    served = server.pool.loaded(spec.name)
    entry: dict[str, Any] = {
        "id": spec.name,
        "object": "model",
        "created": int(server.started_at) if served is None else served.loaded_at,
        "owned_by": "etude",
        "aliases": [spec.name, *spec.aliases],
        "tags": list(spec.tags),
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "status": {"value": "unloaded" if served is None else "loaded"},
    }
    if served is not None:
        entry |= {"max_model_len": served.engine.context, "meta": meta(served)}
    elif spec.name in server.known_meta:
        entry["meta"] = server.known_meta[spec.name]
    return entry


def adapter_json(served: ServedModel, name: str) -> dict[str, Any]:
    """An adapter, which is asked for as if it were a model; `parent` is the one it changes."""
    return {
        "id": name,
        "object": "model",
        "created": served.loaded_at,
        "owned_by": "etude",
        "parent": served.name,
        "root": served.adapters[name].path.name,
        "max_model_len": served.engine.context,
    }


def meta(model: ServedModel) -> dict[str, Any]:
    """llama.cpp's facts of a model."""
    engine = model.engine
    return {
        "vocab_type": SENTENCEPIECE
        if engine.tokenizer.metadata.get("tokenizer.ggml.model") == "llama"
        else BPE,
        "n_vocab": engine.tokenizer.n_vocab,
        "n_ctx": engine.context,
        "n_ctx_train": engine.config.context_length,
        "n_embd": engine.config.d_model,
        "n_params": n_parameters(engine.config),
        "size": engine.weight_bytes,
        "ftype": "/".join(engine.weight_types),
        "weights_version": engine.weights_version,
        "adapters": list(engine.adapters),
    }


def n_parameters(config: ModelConfig) -> int:
    """Numbers in matrices and norms, without biases."""
    slots = [slot for slot in layer_slots(config) if slot not in LAYER_BIASES]
    layer = sum(math.prod(slot_shape(config, slot)) for slot in slots)
    tables = 1 if config.tied_embeddings else 2
    return config.n_layers * layer + (tables * config.n_vocab + 1) * config.d_model


def _listed(server: Server, spec: ModelSpec) -> dict[str, Any]:
    """As Ollama's clients read it, with llama.cpp's empty texts for what only Ollama has."""
    served = server.pool.loaded(spec.name)
    family = "" if served is None else served.engine.config.architecture
    size = "" if served is None else f"{n_parameters(served.engine.config) / 1e6:.0f}M"
    level = "" if served is None else "/".join(served.engine.weight_types)
    details = {"parent_model": "", "format": "gguf", "family": family, "families": [family]}
    return {
        "name": spec.name,
        "model": spec.name,
        "modified_at": "",
        "size": "",
        "digest": "",
        "type": "model",
        "description": "",
        "tags": list(spec.tags),
        "capabilities": ["completion"],
        "parameters": "",
        "details": details | {"parameter_size": size, "quantization_level": level},
    }


ROUTES = [
    Route("/health", health),
    Route("/v1/health", health),
    Route("/liveness", health),
    Route("/v1/models", models),
    Route("/models", models),
    Route("/v1/models/{name:path}", model),
]
OPERATIONS = (
    Operation("get", "/health", "Whether the server lives", public=True),
    Operation("get", "/v1/models", "The models"),
    Operation("get", "/v1/models/{name:path}", "One model"),
)
