"""A server for tests: the application with a tiny model, in this process, or behind a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.serve.app import create_app
from etude.serve.models import Loader, ModelDefaults, ModelPool, ModelSpec
from etude.serve.server import Server
from etude.serve.settings import ServeSettings

CONTEXT = 256
SMALL = 8192  # bytes of a socket's buffers: a reader that is slow is noticed soon


def load(spec: ModelSpec) -> Engine:
    """An engine with room for a few contexts."""
    return Engine.load(spec.path, context=CONTEXT, threads=1, cache_tokens=16 * CONTEXT)


def load_large(spec: ModelSpec) -> Engine:
    """One for long prompts, beyond what the model was made for."""
    return Engine.load(spec.path, context=8 * CONTEXT, threads=1, cache_tokens=32 * CONTEXT)


def app_of(
    path: Path, defaults: ModelDefaults | None = None, load: Loader = load, **settings: Any
) -> Starlette:
    """The application with one model, called tiny."""
    pool = ModelPool([ModelSpec("tiny", path, ("small",))], load, defaults)
    return create_app(replace(ServeSettings(), **settings), pool)


@contextlib.contextmanager
def client_of(
    path: Path, defaults: ModelDefaults | None = None, load: Loader = load, **settings: Any
) -> Iterator[TestClient]:
    """A client of it without a socket. Errors of the server are answers, as they are for real clients."""
    app = app_of(path, defaults, load, **settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@dataclass
class Live:
    """A server behind a socket."""

    port: int
    server: Server
    connections: contextlib.ExitStack

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def drawn(self) -> int:
        """Tokens that its engines have written."""
        return sum(model.engine.counters.drawn_tokens for model in self.server.pool.all_loaded)

    def post(self, path: str, body: Any) -> socket.socket:
        """Send a request; the answer is to be read from the socket, or not."""
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
        )
        connection = socket.socket()
        connection.settimeout(30)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        connection.connect(("127.0.0.1", self.port))
        self.connections.callback(connection.close)
        connection.sendall(head.encode() + b"\r\n\r\n" + raw)
        return connection


@contextlib.contextmanager
def live_of(app: Starlette) -> Iterator[Live]:
    """The application behind a free port, in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        until(lambda: server.started)
        with contextlib.ExitStack() as connections:
            yield Live(listening.getsockname()[1], app.state.server, connections)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that happens elsewhere."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def events(text: str) -> list[Any]:
    """The JSON of a stream of events, without its [DONE], which must be its last."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
