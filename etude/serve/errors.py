"""What a client is told when its request cannot be served, in the shape that OpenAI's clients read.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "temperature", "code": "…"}}

`code` is OpenAI's word where clients branch on it (context_length_exceeded, model_not_found …), else the
status, as llama.cpp has it. Below /v1/messages the shape is Anthropic's:

    {"type": "error", "error": {"type": "invalid_request_error", "message": "…"}}

No traceback ever leaves: what is no ApiError and no EtudeError is a bug, logged here and answered with 500.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from etude.records import EtudeError

log = logging.getLogger("etude.serve")
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""llama.cpp's names of what went wrong."""
MAX_PROBLEMS = 1000
CONTEXT_EXCEEDED = "context_length_exceeded"


ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_TYPES = {413: "request_too_large", 500: "api_error", 501: "api_error", 503: "overloaded_error"}


class ClientGone(Exception):
    """The client has hung up: nobody wants the answer any more."""


class ApiError(Exception):
    """An answer that is an error. type None: by the status. extra: further fields of the error object.
    retry_after_s: when to come again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type or TYPES.get(status, "invalid_request_error")
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.extra = dict(extra or {})

    def as_json(self) -> dict[str, Any]:
        """The body."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code if self.code is not None else self.status,
        }
        return {"error": error | self.extra}

    def as_anthropic_json(self) -> dict[str, Any]:
        """The body for clients of Anthropic's API, with the words that they look for."""
        type, message = ANTHROPIC_TYPES.get(self.status, self.type), self.message
        if self.code == CONTEXT_EXCEEDED:
            type = "invalid_request_error"
            message = "prompt is too long: {n_prompt_tokens} tokens > {n_ctx} maximum".format(**self.extra)
        return {"type": "error", "error": {"type": type, "message": message}}

    def response(self, path: str = "") -> Response:
        """The whole answer, in the shape that clients of the path read."""
        body = self.as_anthropic_json() if ANTHROPIC_PATH in path else self.as_json()
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(body, self.status, headers)


def context_exceeded(n_prompt: int, context: int, param: str = "prompt", *, least: bool = False) -> ApiError:
    """A prompt that does not fit: OpenAI's code, llama.cpp's type and counts. least: it has more than
    that."""
    shown = f"at least {n_prompt}" if least else f"{n_prompt}"
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens; your prompt has {shown} tokens, which "
        f"exceeds the available context size: shorten it, or start the server with a larger -c",
        type="exceed_context_size_error",
        param=param,
        code=CONTEXT_EXCEEDED,
        extra={"n_prompt_tokens": n_prompt, "n_ctx": context},
    )


def from_exception(error: BaseException) -> ApiError:
    """The answer to whatever was raised while a request was served."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EtudeError):
        return ApiError(400, str(error))
    if isinstance(error, ValidationError):
        return from_validation(error)
    if isinstance(error, ClientGone):
        return ApiError(499, "the client has hung up")  # nobody reads it
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    log.error("a bug: a request ended with %s", type(error).__name__, exc_info=error)
    return ApiError(500, "internal error of the server; its log says more")


def from_validation(error: ValidationError) -> ApiError:
    """A 400 that names the first field that is wrong."""
    if error.error_count() > MAX_PROBLEMS:  # telling them takes a minute for a million
        return ApiError(400, f"the body has {error.error_count()} wrong fields")
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    alike = [problem for problem in problems if problem["loc"][:1] == first["loc"][:1]]
    # of the types of a union, the one that was meant
    deepest = max(alike, key=lambda problem: len(problem["loc"]))
    field = _path(deepest["loc"])
    if deepest["type"] == "missing":
        return ApiError(400, f"{field!r} is required", param=field)
    texts = {problem["msg"] for problem in alike if _path(problem["loc"]) == field}
    text = f"{field}: {'; '.join(sorted(texts))}" if field else first["msg"]
    return ApiError(400, text, param=field or None)


def _path(location: tuple[int | str, ...]) -> str:
    """('messages', 0, 'content', 'list[Part]', 1, 'Text', 'text') → messages[0].content[1].text: without the
    names of a union's types.

    >>> _path(("messages", 0, "content"))
    'messages[0].content'
    """
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in ("str", "int", "float", "bool"):
            text += f".{part}" if text else part
    return text


async def answer_error(request: Request, error: Exception) -> Response:
    """The exception handler of the application."""
    return from_exception(error).response(request.url.path)
