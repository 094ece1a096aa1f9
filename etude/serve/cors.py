"""Which web pages of other hosts may ask: CORS, as llama-server answers it.

A browser shows a page the answer of another host only if that host names the page's origin, and asks before
requests that a form could not send (the preflight, an OPTIONS request). Allowed are the origins that the
server was started with; "*" is any, "localhost" any page of this machine, whatever its port. Without
credentials "*" is answered as such, so that no browser adds cookies or passwords that a proxy before this
server may trust; with them the origin is repeated, as the rules want it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from etude.serve.settings import ServeSettings

METHODS = "GET, POST, DELETE, OPTIONS"
"""What the API's routes take; those of the chat page are for its own pages."""
SHOWN = "X-Request-Id"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_AGE_S = 600


class Cors:
    """Answers preflights, and adds to other answers whom they may be shown to."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._origins = settings.cors_origins
        self._credentials = settings.cors_credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        allowed = self._allowance(origin)
        asked = headers.get("access-control-request-method")
        if scope["method"] == "OPTIONS" and asked is not None:
            answer = Response()
            if allowed:
                answer.raw_headers += [*allowed, *_preflight(headers)]
            await answer(scope, receive, send)
            return

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *allowed]
            await send(message)

        await self._app(scope, receive, send_with_origin)

    def _allowance(self, origin: str) -> list[tuple[bytes, bytes]]:
        """The headers that let a page of this origin in; none for others."""
        is_any = "*" in self._origins
        if not (is_any or origin in self._origins or ("localhost" in self._origins and is_local(origin))):
            return []
        repeated = origin if self._credentials or not is_any else "*"
        found = {"Access-Control-Allow-Origin": repeated, "Access-Control-Expose-Headers": SHOWN}
        if self._credentials:
            found["Access-Control-Allow-Credentials"] = "true"
        if repeated != "*":
            found["Vary"] = "Origin"
        return _raw(found)


def is_local(origin: str) -> bool:
    """Whether a page lies on this machine.

    >>> [is_local(each) for each in ("http://localhost:80", "https://[::1]", "http://localhost.no", "null")]
    [True, True, False, False]
    """
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.hostname in LOCAL_HOSTS
    except ValueError:
        return False


def _preflight(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that the page wants to send are named, since "*" does not mean Authorization."""
    found = {"Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": str(MAX_AGE_S)}
    found["Access-Control-Allow-Headers"] = headers.get("access-control-request-headers", "*")
    return _raw(found)


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """In the case that programs expect which compare names as they are written."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
