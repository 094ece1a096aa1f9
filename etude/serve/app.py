"""The application: all routes, and what stands before them: keys, CORS, request ids, errors as JSON.

A route module has ROUTES, a list of Route, and OPERATIONS, what the OpenAPI document says of them; it is in
ROUTE_MODULES and nowhere else. Paths that need no key are access.PUBLIC.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount

from etude.serve import (
    admin,
    anthropic,
    chat,
    completions,
    conversations,
    embeddings,
    lora_adapters,
    metrics,
    native_completion,
    native_embeddings,
    native_infill,
    native_text,
    openapi,
    pages,
    properties,
    responses,
    runs,
    slots,
    status,
    tokens,
)
from etude.serve.access import KeyCheck, RequestIds
from etude.serve.cors import Cors
from etude.serve.errors import ApiError, ClientGone, answer_error
from etude.serve.models import ModelPool
from etude.serve.origin import OwnPages
from etude.serve.server import Server
from etude.serve.settings import ServeSettings

ROUTE_MODULES = (
    status, chat, responses, anthropic, completions, embeddings, native_text, native_completion, properties,
    runs, tokens, admin, conversations, pages, native_embeddings, native_infill, slots, metrics,
    lora_adapters,
)  # fmt: skip
IDLE_CHECK_S = 1.0


def create_app(settings: ServeSettings, pool: ModelPool) -> Starlette:
    """The server as an ASGI application. It closes the pool at its end."""
    server = Server(settings, pool)
    pool.before_unload = functools.partial(properties.remember, server)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watcher = asyncio.create_task(_unload_idle(pool))
        try:
            yield
        finally:
            watcher.cancel()
            await pool.close()
            server.close()

    routes: list[BaseRoute] = [route for module in ROUTE_MODULES for route in module.ROUTES]
    operations = [operation for module in ROUTE_MODULES for operation in module.OPERATIONS]
    routes.append(openapi.route(operations, settings.prefix))
    if settings.prefix:
        routes = [Mount(settings.prefix, routes=routes)]
    errors = (Exception, ApiError, ValueError, HTTPException, ClientGone)
    app = Starlette(
        routes=routes,
        middleware=_middleware(settings),
        exception_handlers={kind: answer_error for kind in errors},
        lifespan=lifespan,
    )
    app.state.server = server
    return app


def _middleware(settings: ServeSettings) -> list[Middleware]:
    middleware = [Middleware(RequestIds)]
    if settings.cors_origins:
        middleware.append(Middleware(Cors, settings=settings))
    middleware.append(Middleware(OwnPages, settings=settings))
    middleware.append(Middleware(KeyCheck, settings=settings))
    return middleware


async def _unload_idle(pool: ModelPool) -> None:
    while pool.idle_s is not None:
        await asyncio.sleep(min(IDLE_CHECK_S, pool.idle_s))
        await pool.unload_idle()
