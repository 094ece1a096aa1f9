"""/embedding: llama.cpp's shapes, poolings and norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from etude.engine.engine import Engine


def embed(client: TestClient, path: str = "/embedding", **fields: Any) -> Any:
    answer = client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_row_is_the_mean_of_length_one(client: TestClient) -> None:
    [entry] = embed(client, input="abc")
    [row] = entry["embedding"]
    v1 = client.post("/v1/embeddings", json={"input": "abc"}).json()["data"][0]["embedding"]
    assert entry["index"] == 0 and row == pytest.approx(v1, abs=1e-6)
    assert embed(client, "/embeddings", content="abc") == [entry]


def test_poolings_and_norms(client: TestClient, tiny: Path) -> None:
    with Engine.load(tiny, context=64) as engine:
        rows = engine.embed("abc", pooling="none")
    [entry] = embed(client, input="abc", pooling="none")
    np.testing.assert_allclose(entry["embedding"], rows, rtol=1e-6)
    [entry] = embed(client, input="abc", pooling="last", embd_normalize=-1)
    np.testing.assert_allclose(entry["embedding"], rows[-1:], rtol=1e-6)
    for norm, size in ((1, 1), (2, 1), (3, 1)):
        [entry] = embed(client, input="abc", embd_normalize=norm)
        assert np.linalg.norm(entry["embedding"][0], norm) == pytest.approx(size, rel=1e-5)
    [entry] = embed(client, input="abc", embd_normalize=0)
    assert max(map(abs, entry["embedding"][0])) == pytest.approx(32760)


@pytest.mark.parametrize(
    "given",
    [
        ["ab", "cd"],
        [[100, 101], "cd"],
        [
            {"prompt_string": "ab"},
            {"content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
        ],
    ],
)
def test_several_texts(client: TestClient, given: Any) -> None:
    alone = [embed(client, input=text)[0]["embedding"] for text in ("ab", "cd")]
    found = embed(client, input=given)
    assert [each["index"] for each in found] == [0, 1]
    assert [each["embedding"] for each in found] == alone


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input": []},
        {"input": ""},
        {"input": {"content": "text"}},
        {"input": {"content": [{"type": "image_url"}]}},
        {"input": [10**6]},
    ],
)
def test_refusals(client: TestClient, fields: Any) -> None:
    answer = client.post("/embedding", json=fields)
    assert answer.status_code == answer.json()["error"]["code"] == 400
