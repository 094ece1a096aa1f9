"""GET / and the files of the pages. They load without a key, and ask their user for it.

The policy (assets.py) lets a page load nothing that is not its server's and run no script that stands in a
text, so that what a model writes cannot act, whatever the page makes of it.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from etude.serve.assets import ASK, INDEX, SAFETY, Asset
from etude.serve.errors import ApiError
from etude.serve.operations import Operation
from etude.serve.server import server_of

NOT_BUILT = (
    "<!doctype html><meta charset=utf-8><title>Etude</title><h1>The pages are not built</h1>"
    "<p>This copy of Etude has no folder etude/serve/web. In a checkout, <code>make web</code> builds it "
    "(needs node); an installed package has it. The API is there all the same: <a href=openapi.json>"
    "openapi.json</a>."
)


async def index(request: Request) -> Response:
    """The page."""
    asset = await _asset(request, INDEX)
    if asset is None:
        return Response(NOT_BUILT, 503, SAFETY | {"Cache-Control": ASK}, "text/html; charset=utf-8")
    return asset.answer(request)


async def file(request: Request) -> Response:
    """One of its files."""
    name = request.url.path.removeprefix(server_of(request).settings.prefix).removeprefix("/")
    asset = await _asset(request, name)
    if asset is None:
        raise ApiError(404, f"there is no page {name!r}")
    return asset.answer(request)


async def _asset(request: Request, name: str) -> Asset | None:
    server = server_of(request)
    if not server.settings.shows_pages:
        raise ApiError(404, "this server shows no pages: it was started with --no-ui")
    return await asyncio.to_thread(server.site.get, name)


ROUTES = [
    Route("/", index),
    Route("/index.html", index),
    Route("/favicon.ico", file),
    Route("/favicon.svg", file),
    Route("/assets/{name:path}", file),
]
OPERATIONS: tuple[Operation, ...] = ()
