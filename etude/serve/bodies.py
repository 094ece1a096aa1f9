"""Bodies of requests, as they come: each of bounded size, and all that are being read together too.

A body is refused as soon as it is known to be too large, by what it announces or by what arrived; what a
client sends after that is not kept. A client that sends nothing for a while is not waited for.

Bytes are not all: a list of a million empty lists takes a thousand times longer to check than a text of that
size, and nothing else runs meanwhile. So what a large body holds is counted before it is read as JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from etude.serve.errors import ApiError, ClientGone

AT_ONCE = 4
"""Bodies of the largest size that may be on their way."""
MAX_VALUES, MAX_CONTAINERS = 2_000_000, 100_000
"""What one may hold: so much is checked in a few tenths of a second, whatever it is."""
COUNTED, PIECE = 1 << 15, 1 << 18
"""Bytes that cannot hold too much, and bytes that are counted at once."""
OTHERS = bytes(set(range(256)) - set(b'"[{,'))


class Bodies:
    """limit: bytes of one. idle_s: how long a client may be silent."""

    def __init__(self, limit: int, idle_s: float) -> None:
        self._limit = limit
        self._idle_s = idle_s
        self._held = 0

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which has its place among all until the end of the block. ApiError 413 for one that
        is too large, 429 while others fill the room for all, 408 for one that does not come."""
        announced = request.headers.get("content-length", "0")
        size = int(announced) if announced.isdecimal() and len(announced) < 16 else 0
        held = 0
        chunks: list[bytes] = []
        n_bytes = 0
        try:
            held = self._hold(size)
            stream = aiter(request.stream())
            while True:
                chunk = await self._next(stream)
                if chunk is None:
                    break
                n_bytes += len(chunk)
                if n_bytes > held:
                    held += self._hold(n_bytes, held)
                chunks.append(chunk)
            yield b"".join(chunks)
        finally:
            self._held -= held

    async def _next(self, stream: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(stream, None)
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise ApiError(408, f"nothing came of the body for {self._idle_s:g} s") from None

    def _hold(self, size: int, held: int = 0) -> int:
        """Bytes taken for a body of `size` beyond those it has."""
        if size > self._limit:
            raise ApiError(
                413, f"the body has more than {self._limit} bytes, the most that this server takes"
            )
        more = size - held
        if self._held + more > AT_ONCE * self._limit:
            raise ApiError(
                429, "other large requests are on their way: come again later", retry_after_s=1,
                code="rate_limit_exceeded",
            )  # fmt: skip
        self._held += more
        return more


def check_amount(body: bytes, max_containers: int = MAX_CONTAINERS) -> None:
    """ApiError 413 for JSON of too many lists and objects, or too many values. In a thread: it lets others
    run between pieces. Of what is no JSON the reader says what is wrong."""
    containers = values = at = 0
    in_text = False
    while at < len(body):
        end = min(at + PIECE, len(body))
        piece = body[at:end]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # not between a backslash and what it escapes
            piece = body[at : end + 1]
        at += len(piece)
        marks = piece.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, OTHERS)
        texts = marks.split(b'"')  # by turns inside and outside of texts
        outside = b"".join(texts[in_text::2])
        in_text ^= not len(texts) % 2
        containers += outside.count(b"[") + outside.count(b"{")
        values += outside.count(b",")
        if containers > max_containers:
            raise ApiError(413, f"the body has more than {max_containers} lists and objects")
        if containers + values > MAX_VALUES:
            raise ApiError(413, f"the body has more than {MAX_VALUES} values")
