"""What is no request is answered with 4xx in OpenAI's shape, never with 5xx; keys open what they should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.serve.access import is_one_of
from tests.serve.live import CONTEXT, client_of

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
DEEP = b"[" * 50_000


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"messages":"\xff"}', DEEP, b'{"a":' + DEEP, b"{}",
     b'{"messages":[{"role":"user","content":"\\ud800"}]}', b'{"messages":NaN}', b'{"messages":1e999}',
     b'{"messages":' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_bytes_that_are_no_request(client: TestClient, raw: bytes) -> None:
    answer = client.post(CHAT, content=raw)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"top_p": 1.5}, "top_p"),
        ({"messages": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [123]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"response_format": {"type": "sound"}}, "response_format.type"),
        ({"stream": "yes"}, "stream"),
        ({"tool_choice": "maybe"}, "tool_choice"),
    ],
)
def test_the_field_that_is_wrong_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    error = client.post(CHAT, json=HELLO | fields).json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param


def test_whole_numbers_may_be_written_with_a_point(client: TestClient) -> None:
    raw = b'{"messages":[{"role":"user","content":"2.0"}],"max_tokens":2.0,"top_k":4e1,"n":%s}'
    answer = client.post(CHAT, content=raw % b"1.0").json()
    assert answer["usage"]["completion_tokens"] == 2
    for wrong in (b"1.5", b"1.0e400", b"1" * 5000, b'"1.0"'):
        error = client.post(CHAT, content=raw % wrong)
        assert error.status_code == 400, error.text


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "root ::= this is (not valid GBNF"},
        {"response_format": {"type": "json_object", "schema": {"type": "hiccup"}}},
        {"response_format": {"type": "json_object", "schema": {"type": 123}}},
        {"response_format": {"type": "json_schema"}},
        {"grammar": 'root ::= "a"', "json_schema": {}},
        {"stop": [""] * 3, "grammar": "x"},
        {"samplers": ["temperature"], "mirostat": 2, "lora": [{"id": 7, "scale": 1}]},
        {"chat_template_kwargs": {"enable_thinking": "yes"}},
    ],
)
def test_what_the_engine_refuses(client: TestClient, fields: dict[str, Any]) -> None:
    for limit in ({}, {"max_tokens": 0}):
        answer = client.post(CHAT, json=HELLO | fields | limit)
        assert answer.status_code == 400, answer.text
    streamed = client.post(CHAT, json=HELLO | fields | {"stream": True})
    assert streamed.status_code == 400 and streamed.json()["error"]["message"]


def test_a_prompt_larger_than_the_context(client: TestClient) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 2 * CONTEXT}]}
    for body in (long, long | {"stream": True}):
        answer = client.post(CHAT, json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
        assert error["type"] == "exceed_context_size_error" and error["n_ctx"] == CONTEXT
        assert error["n_prompt_tokens"] > 2 * CONTEXT
    exact = client.post("/v1/completions", json={"prompt": "x" * CONTEXT, "max_tokens": 0})
    assert exact.status_code == 200
    assert client.post("/v1/completions", json={"prompt": "x" * CONTEXT}).status_code == 400


def test_paths_and_methods_that_are_not_there(client: TestClient) -> None:
    assert client.get("/nothing").json()["error"]["code"] == 404
    assert client.get(CHAT).status_code == 405
    assert client.get("/v1/models/none").json()["error"]["code"] == "model_not_found"


def test_bodies_over_the_limit(tiny: Path) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    with client_of(tiny, max_body_bytes=5000) as client:
        assert client.post(CHAT, content=b"x" * 5001).status_code == 413
        assert client.post(CHAT, content=chunks()).status_code == 413  # of no announced length
        assert client.post(CHAT, content=b"x" * 5000).status_code == 400
        assert client.post(CHAT, json=HELLO).status_code == 200


def test_keys(tiny: Path) -> None:
    with client_of(tiny, api_keys=("first", "second")) as client:
        for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "first"}, {"X-Api-Key": ""},
                        {"Authorization": "Bearer "}, {"X-Api-Key": "firs"}):  # fmt: skip
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
        for headers in ({"Authorization": "Bearer first"}, {"X-Api-Key": "second"}):
            assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}


def test_keys_are_compared_whole() -> None:
    assert is_one_of("é", ("é", "b")) and not is_one_of("e", ("é",))
    assert not is_one_of(None, ("a",)) and not is_one_of("", ("a",)) and not is_one_of("a", ())


def test_other_origins_are_not_let_in_unless_asked(tiny: Path) -> None:
    ask = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
    with client_of(tiny, api_keys=("k",)) as client:
        assert "access-control-allow-origin" not in client.get("/health", headers=ask).headers
    with client_of(tiny, api_keys=("k",), cors_origins=("http://page",)) as client:
        ask["Access-Control-Request-Headers"] = "authorization"
        allowed = client.options(CHAT, headers=ask)
        assert allowed.status_code == 200 and allowed.headers["vary"] == "Origin"
        assert allowed.headers["access-control-allow-origin"] == "http://page"
        assert allowed.headers["access-control-allow-headers"] == "authorization"
        assert "access-control-allow-credentials" not in allowed.headers
        refused = client.post(CHAT, json=HELLO, headers={"Origin": "http://page"})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "http://page"
        other = client.options(CHAT, headers=ask | {"Origin": "http://other"})
        assert other.status_code == 200 and "access-control-allow-origin" not in other.headers
        answer = client.get("/health", headers={"Origin": "http://other"})
        assert "access-control-allow-origin" not in answer.headers
        assert client.options(CHAT).status_code == 401  # no question of a browser


@pytest.mark.parametrize(
    ("origins", "credentials", "origin", "answered"),
    [
        (("*",), False, "http://page", "*"),
        (("*",), True, "http://page", "http://page"),
        (("localhost",), False, "http://localhost:3000", "http://localhost:3000"),
        (("localhost",), False, "http://[::1]", "http://[::1]"),
        (("localhost",), True, "http://localhost.evil.com", None),
        (("localhost", "http://page"), False, "http://page", "http://page"),
        (("http://page",), True, "http://page:80", None),
    ],
)
def test_origins(
    tiny: Path, origins: tuple[str, ...], credentials: bool, origin: str, answered: str | None
) -> None:
    with client_of(tiny, cors_origins=origins, cors_credentials=credentials) as client:
        headers = client.get("/health", headers={"Origin": origin}).headers
    assert headers.get("access-control-allow-origin") == answered
    expected = "true" if credentials and answered else None
    assert headers.get("access-control-allow-credentials") == expected


def test_every_answer_has_an_id(client: TestClient) -> None:
    assert client.get("/health").headers["x-request-id"].startswith("req-")
    assert client.get("/health", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    assert client.get("/health", headers={"X-Request-Id": "x" * 500}).headers["x-request-id"] != "x" * 500


def test_the_document_describes_the_routes(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    chat = document["paths"][CHAT]["post"]
    name = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema = document["components"]["schemas"][name]
    assert "messages" in schema["required"] and "temperature" in schema["properties"]
    references = set(part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:])
    assert references <= set(document["components"]["schemas"])
    assert {"/health", "/v1/models", "/v1/completions", "/v1/embeddings"} <= set(document["paths"])
