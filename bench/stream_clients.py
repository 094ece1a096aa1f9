"""Streaming clients of one server, in a process of their own: tokens per second, and how long the first took.

    python bench/stream_clients.py PORT --clients 32 --requests 2 --tokens 64 --seed 1

Each client sends its requests one after the other, each over a new connection, and reads events until the
server closes. Cheap on purpose, as it shares the processor with the server: bytes are looked at for the first
`data:` and, at the end, for the number of tokens in the timings that both servers send. Prints one line of
JSON: tokens, seconds, first_s (a number per request).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass, field

HOST = "127.0.0.1"
TAIL = 8192  # bytes at the end of an answer that hold its timings
WORDS = (
    "the river ran past the old mill while a child counted boats and the miller spoke of rain , bread , "
    "taxes , a wedding in May , two lost sheep , the price of salt and a letter from far away"
).split()
TIMEOUT_S = 900


@dataclass
class Told:
    """What the clients found."""

    tokens: int = 0
    first_s: list[float] = field(default_factory=list)


def prompt_of(number: int, n_words: int) -> str:
    """A prompt that begins like no other, so that no server finds it in its cache."""
    turned = [WORDS[(number * 7 + at * (1 + number % 5)) % len(WORDS)] for at in range(n_words)]
    return f"{number} " + " ".join(turned)


def request_of(prompt: str, n_tokens: int) -> bytes:
    """A streaming completion, sampled as both servers do by default."""
    body = {
        "prompt": prompt, "max_tokens": n_tokens, "stream": True, "ignore_eos": True, "temperature": 0.8,
        "top_k": 40, "top_p": 0.95, "min_p": 0.05,
    }  # fmt: skip
    raw = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


class Reader(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._began_s = 0.0
        self._tail = b""
        self.first_s = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._began_s = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.first_s:
            self._tail += data
            if b"data: " in self._tail:
                self.first_s = time.perf_counter() - self._began_s
        elif len(data) >= TAIL:
            self._tail = data
        else:
            self._tail = (
                self._tail[len(data) - TAIL :] + data if len(self._tail) >= TAIL else self._tail + data
            )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def n_tokens(self) -> int:
        """Of the answer. RuntimeError for one that is not whole."""
        counts = re.findall(rb'"predicted_n": ?(\d+)', self._tail)
        if b"[DONE]" not in self._tail or not counts:
            raise RuntimeError(f"no whole answer: {self._tail[-400:]!r}")
        return int(counts[-1])


async def client(port: int, requests: list[bytes], told: Told) -> None:
    """Requests one after the other."""
    loop = asyncio.get_running_loop()
    for request in requests:
        transport, reader = await loop.create_connection(lambda request=request: Reader(request), HOST, port)
        try:
            await asyncio.wait_for(reader.done, TIMEOUT_S)
        finally:
            transport.close()
        told.tokens += reader.n_tokens()
        told.first_s.append(reader.first_s)


async def measure(args: argparse.Namespace) -> dict[str, object]:
    """All clients at once."""
    told = Told()
    first = args.seed * args.clients * args.requests
    numbers = range(first, first + args.clients * args.requests)
    bodies = [request_of(prompt_of(number, args.words), args.tokens) for number in numbers]
    began = time.perf_counter()
    work = (client(args.port, bodies[at :: args.clients], told) for at in range(args.clients))
    await asyncio.gather(*work)
    return {"tokens": told.tokens, "seconds": time.perf_counter() - began, "first_s": told.first_s}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, required=True, help="streams at once")
    parser.add_argument("--requests", type=int, default=2, help="of each client, one after the other")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--words", type=int, default=80, help="of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other prompts")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
