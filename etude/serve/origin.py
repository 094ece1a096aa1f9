"""Keeps other web pages away from /api/, which holds what users wrote and what runs did.

A server on loopback without keys trusts whoever reaches it, and a browser reaches it for any page that it
shows. Two ways are closed here that CORS leaves open: a page of another site that sends a form or a beacon
(a change must be JSON, which needs a preflight that fails), and a site whose name was pointed at 127.0.0.1
while its page was open (DNS rebinding: without keys, the Host must be an address or a name of this machine).
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from etude.serve.errors import ApiError
from etude.serve.settings import ServeSettings

CHANGES = ("POST", "PUT", "PATCH")
PRIVATE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""Of every answer: nothing between server and page keeps it."""


class OwnPages:
    """Refuses requests to /api/ that no page of this server has sent."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings
        own = {"localhost", socket.gethostname(), *(host.strip() for host in settings.host.split(","))}
        given = {urlsplit(origin).hostname or "" for origin in settings.cors_origins}
        self._names = {name.lower() for name in own | given}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(self._settings.prefix) if scope["type"] == "http" else ""
        if not path.startswith("/api/"):
            await self._app(scope, receive, send)
            return

        async def send_privately(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *PRIVATE]
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        if refused is None:
            await self._app(scope, receive, send_privately)
        else:
            await refused.response()(scope, receive, send_privately)

    def _refusal(self, method: str, headers: Headers) -> ApiError | None:
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method in CHANGES and media != "application/json":
            return ApiError(415, f"the body is {media or 'of no type'}; it must be application/json")
        settings = self._settings
        if settings.api_keys or "*" in settings.cors_origins or self._is_ours(headers.get("host", "")):
            return None
        return ApiError(
            403,
            f"the server was asked as {headers.get('host')!r}, which is no name of this machine; behind a "
            "proxy start it with --api-key, or with --cors-origins and the address of its pages",
        )

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this machine.

        >>> pages = OwnPages(lambda *_: None, ServeSettings())
        >>> [pages._is_ours(host) for host in ("127.0.0.1:80", "[::1]:80", "localhost", "x.example:80", "")]
        [True, True, True, False, False]
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.lower() in self._names or name.lower().endswith(".localhost"):
            return bool(name)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
