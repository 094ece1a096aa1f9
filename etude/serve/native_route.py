"""Routes of llama.cpp's own: errors as it writes them, with the status as their code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from etude.serve.errors import ApiError, from_exception
from etude.serve.sse import JsonResponse, event

Handler = Callable[[HttpRequest], Awaitable[Response]]


def native_route(path: str, handler: Handler, method: str = "POST") -> Route:
    """A route whose refusals are llama.cpp's: {"error": {"code": 400, "message": …, "type": …}}."""

    async def answer(request: HttpRequest) -> Response:
        try:
            return await handler(request)
        except (ApiError, ValueError) as error:
            refusal = from_exception(error)
            return JsonResponse({"error": error_json(refusal)}, refusal.status, headers_of(refusal))

    return Route(path, answer, methods=[method])


def error_json(error: ApiError) -> dict[str, Any]:
    """The error object."""
    return {"code": error.status, "message": error.message, "type": error.type} | error.extra


def error_event(error: ApiError) -> bytes:
    """An error in the middle of a stream."""
    return event({"error": error_json(error)})


def headers_of(error: ApiError) -> dict[str, str]:
    """Retry-After, where there is one."""
    return {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}


def unsupported(message: str) -> ApiError:
    """What the server was started without."""
    return ApiError(501, message)
