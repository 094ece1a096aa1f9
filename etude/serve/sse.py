"""Server-sent events: `data: …\\n\\n` as they come, and what happens when the client goes or stops reading.

The events come from an asynchronous iterator that waits for nothing but the engine. While the client does not
read, nothing is taken from it; generation.py merges what arrives meanwhile, so a slow reader costs the memory
of one answer and no more. A client that has gone ends the work at once; one that reads nothing for
`write_timeout_s` counts as gone. Where nothing was said for a while, a comment keeps proxies from hanging up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from etude.serve.errors import ApiError, ClientGone, from_exception
from etude.serve.server import Server

Result = TypeVar("Result")
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def encode(value: Any) -> bytes:
    """A JSON text as bytes, compact. ValueError for NaN and infinity, which JSON has not."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def event(value: Any, name: str | None = None) -> bytes:
    """One event; name: its `event:` line.

    >>> event({"a": 1})
    b'data: {"a":1}\\n\\n'
    """
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + encode(value) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """An error after the headers have gone."""
    return event(error.as_json())


class EventStream(Response):
    """An answer of events. close: called once, however it ends. describe: how an error is put."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        *,
        write_timeout_s: float = 600.0,
        ping_interval_s: float = 30.0,
        describe: Callable[[ApiError], bytes] = error_event,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._write_timeout_s = write_timeout_s
        self._ping_interval_s = ping_interval_s
        self._describe = describe
        self._sent_at = 0.0

    @classmethod
    def of(
        cls, server: Server, events: AsyncIterator[bytes], close: Callable[[], None], **options: Any
    ) -> EventStream:
        """With the server's times, where options say no others."""
        settings = server.settings
        times = {"write_timeout_s": settings.write_timeout_s, "ping_interval_s": settings.ping_interval_s}
        return cls(events, close, **(times | options))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [
            asyncio.ensure_future(work)
            for work in (self._write(send), _disconnected(receive), self._ping(send))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._close()
            for task in tasks:
                task.cancel()
            # what a client that has gone leaves behind is no error of ours
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for chunk in self._checked():
            await self._send(send, {"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _checked(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._events:
                yield chunk
        except Exception as error:
            yield self._describe(from_exception(error))

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self._write_timeout_s):
            await send(message)
        self._sent_at = asyncio.get_running_loop().time()

    async def _ping(self, send: Send) -> None:
        """Never returns: the answer ends by its writer or by its client."""
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        while True:
            silent_s = loop.time() - self._sent_at
            if self._ping_interval_s <= 0:
                await asyncio.sleep(3600)
            elif silent_s < self._ping_interval_s:
                await asyncio.sleep(self._ping_interval_s - silent_s)
            else:
                await self._send(send, {"type": "http.response.body", "body": PING, "more_body": True})


class JsonResponse(Response):
    """A JSON answer, compact and without NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client hangs up: then ClientGone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
