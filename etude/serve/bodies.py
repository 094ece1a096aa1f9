"""Bodies of requests, as they come: each of bounded size, and all that are being read together too.

A body is refused as soon as it is known to be too large, by what it announces or by what arrived; what a
client sends after that is not kept. A client that sends nothing for a while is not waited for.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from etude.serve.errors import ApiError, ClientGone

AT_ONCE = 4
"""Bodies of the largest size that may be on their way."""


class Bodies:
    """limit: bytes of one. idle_s: how long a client may be silent."""

    def __init__(self, limit: int, idle_s: float) -> None:
        self._limit = limit
        self._idle_s = idle_s
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The whole body. ApiError 413 for one that is too large, 429 while others fill the room for all, 408
        for one that does not come."""
        announced = request.headers.get("content-length", "0")
        size = int(announced) if announced.isdecimal() and len(announced) < 16 else 0
        held = 0
        chunks: list[bytes] = []
        n_bytes = 0
        try:
            held = self._hold(size)
            stream = aiter(request.stream())
            while True:
                async with asyncio.timeout(self._idle_s):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return b"".join(chunks)
                n_bytes += len(chunk)
                if n_bytes > held:
                    held += self._hold(n_bytes, held)
                chunks.append(chunk)
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise ApiError(408, f"nothing came of the body for {self._idle_s:g} s") from None
        finally:
            self._held -= held

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
