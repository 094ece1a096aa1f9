"""GET /openapi.json: the API as OpenAPI 3.1, from the operations and pydantic types of the route modules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from etude.serve.operations import Operation
from etude.serve.sse import JsonResponse

REFERENCE = "#/components/schemas/{model}"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
STATUSES = {
    400: "the request is wrong: a field, a prompt that does not fit",
    401: "the key is wrong or missing",
    403: "the route is closed",
    404: "no such model",
    413: "the body is too large",
    429: "too much waits; see Retry-After",
    501: "the server was started without it",
}


def document(operations: Sequence[Operation], prefix: str = "") -> dict[str, Any]:
    """The document. Paths carry the prefix that the server was started with."""
    shown = [kind for each in operations for kind in (each.body, each.answer) if kind is not None]
    bodies: dict[str, type[BaseModel]] = {kind.__name__: kind for kind in shown}
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies.values()], ref_template=REFERENCE
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = prefix + re.sub(r"{(\w+):\w+}", r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method] = _entry(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Etude", "version": version("etude"), "description": "Language models on a CPU."},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR} | schemas.get("$defs", {}),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _entry(operation: Operation) -> dict[str, Any]:
    answer = {} if operation.answer is None else {"$ref": REFERENCE.format(model=operation.answer.__name__)}
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}}
    entry: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method}_{operation.path}").strip("_"),
        "responses": {"200": {"description": "the answer", "content": content}}
        | {str(status): {"description": text, "content": error} for status, text in STATUSES.items()},
        "security": [] if operation.public else [{"key": []}, {"header": []}],
    }
    names = re.findall(r"{(\w+)(?::\w+)?}", operation.path)
    parameters = [_parameter(name, "path") for name in names]
    parameters += [_parameter(name, "query") for name in operation.query]
    if parameters:
        entry["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": REFERENCE.format(model=operation.body.__name__)}
        entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return entry


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}


def route(operations: Sequence[Operation], prefix: str) -> Route:
    """The route that gives the document, which is made once."""
    made = document(operations, prefix)

    async def openapi(request: Request) -> Response:
        return JsonResponse(made)

    return Route("/openapi.json", openapi)
