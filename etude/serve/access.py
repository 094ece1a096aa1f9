"""Who may ask: API keys, the separate admin keys, and an id for every request.

Plain ASGI, so that streams pass through untouched. Keys are compared in constant time, all of them each time:
how long a refusal takes says nothing about any.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from etude.serve.errors import ApiError
from etude.serve.settings import ServeSettings

PAGES = ("", "/", "/index.html", "/favicon.ico", "/favicon.svg")
PUBLIC = frozenset({"/health", "/v1/health", "/liveness", "/openapi.json", *PAGES})
PUBLIC_FILES = "/assets/"
MAX_ID = 128


def is_public(path: str) -> bool:
    """Whether no key is asked for: the pages come without one, and ask their user for it."""
    return path in PUBLIC or path.startswith(PUBLIC_FILES)


def key_of(headers: Headers) -> str | None:
    """What the client shows: `Authorization: Bearer KEY`, or Anthropic's `X-Api-Key: KEY`."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def is_one_of(key: str | None, keys: tuple[str, ...]) -> bool:
    """Whether a key is valid, in constant time."""
    shown = (key or "").encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(shown, valid.encode()) for valid in keys]
    return any(matches) and key is not None


def check_admin(request: Request, settings: ServeSettings) -> None:
    """ApiError unless the request shows an admin key: 401 without any key, 403 with one that is none, or
    where the server has none. Routes that change it ask here themselves, so that no spelling of a path goes
    around it."""
    if not settings.admin_keys:
        raise ApiError(
            403,
            "this route changes the server, and only an admin key opens it: start it with --admin-key-file "
            "or the variable ETUDE_ADMIN_KEY",
            code="no_admin_key",
        )
    key = key_of(request.headers)
    if is_one_of(key, settings.admin_keys):
        return
    if key is None:
        raise ApiError(401, "this route needs the admin key", code="invalid_api_key")
    raise ApiError(403, "this key is not the admin key, which this route needs", code="invalid_api_key")


class KeyCheck:
    """Lets a request through that shows an API key or an admin key, or answers 401."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await refused.response(scope["path"])(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        settings = self._settings
        path = scope["path"].removeprefix(settings.prefix)
        key = key_of(Headers(scope=scope))
        valid = settings.api_keys + settings.admin_keys
        if not settings.api_keys or is_public(path) or is_one_of(key, valid):
            return None
        return ApiError(401, "Invalid API Key", code="invalid_api_key")


class RequestIds:
    """Gives every answer an X-Request-Id: the client's own, if it sent one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        usable = 0 < len(given) <= MAX_ID and given.isprintable() and given.isascii()
        identity = given if usable else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = identity

        async def send_with_id(message: Message | dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = identity
            await send(message)

        await self._app(scope, receive, send_with_id)
