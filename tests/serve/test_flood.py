"""Far too much at once: streams, bodies, programs in templates. The server stays up, others do not notice."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.model import sandbox
from etude.serve import bodies
from etude.serve.bodies import AT_ONCE
from etude.serve.errors import ApiError
from tests.serve.live import Live, app_of, client_of, live_of, until
from tests.terminal.tiny import CHATML, write_tiny

PATH, CHAT = "/v1/completions", "/v1/chat/completions"
MEGABYTE = 1 << 20
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    text = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) * 1024


async def streamed(live: Live, body: dict[str, Any]) -> bytes:
    """The whole answer of a stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    raw = json.dumps(body | {"stream": True}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n\r\n"
    try:
        writer.write(head.encode() + raw)
        return await reader.read()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def text_of(answer: bytes) -> str:
    events = [json.loads(line) for line in re.findall(rb"data: (\{.*\})", answer)]
    return "".join(event["choices"][0]["text"] for event in events)


def test_two_hundred_streams_at_once(tiny: Path) -> None:
    """Each says what it says alone, though they do not all fit into the cache, and a third of all clients
    goes away in the middle."""
    bodies = [
        {"prompt": f"{at % 7}", "max_tokens": 24, "seed": at % 7, "ignore_eos": True} for at in range(200)
    ]

    async def ask_all(live: Live) -> list[bytes]:
        going = [asyncio.ensure_future(streamed(live, body | {"max_tokens": 250})) for body in bodies[:100]]
        staying = [asyncio.ensure_future(streamed(live, body)) for body in bodies]
        await asyncio.sleep(0.2)
        for task in going:
            task.cancel()
        return list(await asyncio.gather(*staying))

    with live_of(app_of(tiny)) as live:
        alone = [text_of(asyncio.run(streamed(live, body))) for body in bodies[:7]]
        answers = asyncio.run(ask_all(live))
        assert [text_of(answer) for answer in answers] == [alone[at % 7] for at in range(200)]
        assert all(b"data: [DONE]" in answer for answer in answers)
        until(lambda: not live.server.active and live.server.n_running == 0)
        assert live.server.totals.refused == 0


# ── bodies ──


def post_head(live: Live, length: int | None) -> socket.socket:
    """A connection on which the body is still to come; length None: in chunks."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{size}\r\n\r\n".encode())
    return connection


def send_and_read(connection: socket.socket, piece: bytes, times: int) -> bytes:
    """The beginning of the answer; the server may stop reading, and close, before all is sent."""
    with closing(connection):
        try:
            for _ in range(times):
                connection.sendall(piece)
        except OSError:
            pass
        try:
            return connection.recv(4096)
        except ConnectionResetError:
            return b"reset"


def test_bodies_of_a_hundred_megabytes(tiny: Path) -> None:
    """Refused when announced, and cut off when not; memory does not grow with them."""
    with live_of(app_of(tiny, max_body_bytes=4 * MEGABYTE)) as live:
        answer_of(live, HELLO)
        before = peak_bytes()
        for _ in range(3):
            assert b" 413 " in send_and_read(post_head(live, 100 * MEGABYTE), b"", 0)
        chunk = f"{MEGABYTE:x}\r\n".encode() + b"x" * MEGABYTE + b"\r\n"
        for _ in range(3):
            assert send_and_read(post_head(live, None), chunk, 100).split(b"\r\n")[0] in (
                b"HTTP/1.1 413 Request Entity Too Large", b"HTTP/1.1 413 Content Too Large", b"reset",
            )  # fmt: skip
        assert peak_bytes() - before < 40 * MEGABYTE
        assert answer_of(live, HELLO)["choices"]


def answer_of(live: Live, body: Any, path: str = CHAT) -> Any:
    request = urllib.request.Request(live.url + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_large_bodies_together_have_a_limit_too(tiny: Path) -> None:
    """Small requests get through meanwhile, and so do large ones when others have gone."""
    with live_of(app_of(tiny, max_body_bytes=MEGABYTE)) as live:
        waiting = [post_head(live, MEGABYTE) for _ in range(AT_ONCE)]
        until(lambda: live.server.bodies._held == AT_ONCE * MEGABYTE)
        with closing(post_head(live, 1000)) as refused:
            said = refused.recv(4096)
            assert b" 429 " in said and b"retry-after: 1" in said.lower()
        waiting.pop().close()
        until(lambda: live.server.bodies._held < AT_ONCE * MEGABYTE)
        assert answer_of(live, HELLO)["choices"]
        for connection in waiting:
            connection.close()
        until(lambda: live.server.bodies._held == 0)


def test_a_body_that_does_not_come(tiny: Path) -> None:
    with live_of(app_of(tiny, write_timeout_s=0.2)) as live:
        with closing(post_head(live, 1000)) as silent:
            assert b" 408 " in silent.recv(4096)
        until(lambda: live.server.bodies._held == 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["x"] * 100_000},
        {"stop": "x" * 100_000},
        {"dry_multiplier": 1, "dry_sequence_breakers": ["x" * 8] * 100_000},
        {"logit_bias": {str(at): 1 for at in range(200_000)}},
        {"logit_bias": [["word", 1]] * 20_000},
        {"samplers": ["temperature"] * 100_000},
        {"messages": [{"role": "user", "content": "x"}] * 50_000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 50_000}]},
        {"messages": [{"role": "user", "content": "x" * 4_000_000}]},
        {"messages": [{"role": "user", "content": "ab " * 1_000_000}]},
        {"messages": [{"role": "user", "content": "\u6f22" * 500_000}]},
        {"tools": [{"type": "function", "function": {"name": "f" * 60_000}}] * 20},
        {"tools": [{"type": "function", "function": {"name": f"f{at}"}} for at in range(2000)]},
        {"lora": [{"id": 0}] * 90_000},
        {"messages": [{"role": "tool", "content": "x" * 300}] * 90_000},
        {"messages": [{}] * 300_000},
        {"logit_bias": {str(at): "x" for at in range(100_000)}},
        {"json_schema": {"enum": [f"value {at}" for at in range(20_000)]}},
        {"grammar": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000},
        {"grammar": 'root ::= ("a"{1,1000}){1,1000}'},
    ],
    ids=lambda fields: "-".join(fields),
)  # fmt: skip
def test_requests_that_are_too_much(client: TestClient, fields: dict[str, Any]) -> None:
    """Answered or refused, in bounded time; never a failure of the server."""
    began = time.monotonic()
    answer = client.post(CHAT, json=HELLO | fields)
    assert answer.status_code in (200, 400, 413), answer.text[:300]
    assert time.monotonic() - began < 60
    assert client.post(CHAT, json=HELLO).status_code == 200


def amounts(text: str) -> tuple[int, int]:
    """(lists and objects, commas) of JSON, character by character."""
    containers = commas = 0
    in_text = is_escaped = False
    for character in text:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character == '"':
            in_text = not in_text
        elif not in_text:
            containers += character in "[{"
            commas += character == ","
    return containers, commas


def random_json(draw: random.Random, depth: int = 0) -> Any:
    """Texts full of what is counted outside of them."""
    text = "".join(draw.choices('\\"[{,}a\u20ac', k=draw.randrange(9)))
    kind = draw.random() if depth < 5 else 0
    if kind < 0.4:
        return text
    inner = [random_json(draw, depth + 1) for _ in range(draw.randrange(5))]
    return inner if kind < 0.7 else {f"{text}{at}": each for at, each in enumerate(inner)}


def test_what_a_body_holds_is_counted_whatever_its_texts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    for _ in range(500):
        monkeypatch.setattr(bodies, "PIECE", draw.choice([1, 2, 3, 5, 50]))
        text = json.dumps(random_json(draw), ensure_ascii=False)
        containers, commas = amounts(text)
        monkeypatch.setattr(bodies, "MAX_VALUES", containers + commas)
        bodies.check_amount(text.encode(), containers)
        if containers:
            with pytest.raises(ApiError):
                bodies.check_amount(text.encode(), containers - 1)
            monkeypatch.setattr(bodies, "MAX_VALUES", containers + commas - 1)
            with pytest.raises(ApiError):
                bodies.check_amount(text.encode(), containers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": [[]] * 300_000}),
        (PATH, {"prompt": [1.0] * 2_100_000}),
        (CHAT, HELLO | {"lora": [{}] * 300_000}),
        (CHAT, HELLO | {"unknown": [[]] * 300_000}),
    ],
    ids=["lists", "numbers", "objects", "what nobody reads"],
)
def test_bodies_that_hold_too_much(client: TestClient, path: str, body: dict[str, Any]) -> None:
    """They would keep the server busy for seconds; they are not looked at."""
    answer = client.post(path, json=body)
    assert answer.status_code == 413 and "the body has more than" in answer.json()["error"]["message"]


def test_an_export_may_hold_more(client: TestClient) -> None:
    message = {"role": "user", "content": "x", "parent": None, "tokens": [{}] * 150_000}
    client.base_url = "http://localhost"
    made = client.post("/api/conversations", json={}).json()
    answer = client.post(f"/api/conversations/{made['id']}/messages", json=message)
    assert answer.status_code == 200, answer.text[:200]


# ── templates ──


def loops(names: str, over: str, inside: str = "") -> str:
    """One loop in another."""
    opened = "".join(f"{{% for {name} in {over} %}}" for name in names)
    return opened + inside + "{% endfor %}" * len(names)


BOMBS = {
    "endless": loops("abcd", "range(9999)"),
    "doubling": "{% set ns = namespace(t='x') %}" + loops("a", "range(99)", "{% set ns.t = ns.t ~ ns.t %}"),
    "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "of messages": loops("abc", "messages", "{{ a.content }}"),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A shorter limit, so that the test does not take it."""
    monkeypatch.setattr(sandbox, "TIME_LIMIT_S", 0.2)
    yield


@pytest.mark.parametrize("name", BOMBS)
def test_template_bombs(name: str, tmp_path: Path, quick: None) -> None:
    """Eight at once are refused, and other requests are answered meanwhile."""
    model = write_tiny(tmp_path / "tiny.gguf", BOMBS[name] + CHATML)
    many = {"messages": [{"role": "user", "content": "x" * 100}] * 300, "max_tokens": 2}
    statuses: list[int] = []
    with client_of(model) as client:
        threads = [
            threading.Thread(target=lambda: statuses.append(client.post(CHAT, json=many).status_code))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        assert client.post(PATH, json={"prompt": "a", "max_tokens": 2}).status_code == 200
        for thread in threads:
            thread.join(60)
        assert statuses == [400] * 8
        assert client.get("/health").status_code == 200
