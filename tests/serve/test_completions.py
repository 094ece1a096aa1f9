"""/v1/completions and /v1/embeddings: prompts in all shapes, echo, logprobs of prompts, vectors."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.serve.models import ModelDefaults
from tests.serve.live import client_of, events


def complete(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/v1/completions", json={"max_tokens": 6, "seed": 1, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


IDS = [100, 101, 102]  # "abc"


@pytest.mark.parametrize("prompt", ["abc", IDS, [100, "bc"], ["a", 101, "c"], [IDS], ["abc"]])
def test_prompts_in_all_shapes(client: TestClient, prompt: Any) -> None:
    answer = complete(client, prompt=prompt, return_token_ids=True)
    [choice] = answer["choices"]
    assert choice["prompt_token_ids"] == IDS and len(choice["token_ids"]) == 6
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["usage"]["prompt_tokens"] == 3


def test_several_prompts_are_several_choices(client: TestClient) -> None:
    answer = complete(client, prompt=["a", "bc"], n=2, return_token_ids=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [len(choice["prompt_token_ids"]) for choice in answer["choices"]] == [1, 1, 2, 2]
    assert answer["usage"] | {"prompt_tokens_details": 0} == {
        "prompt_tokens": 3, "completion_tokens": 24, "total_tokens": 27, "prompt_tokens_details": 0,
    }  # fmt: skip
    alone = complete(client, prompt="bc", n=2)
    assert [each["text"] for each in alone["choices"]] == [each["text"] for each in answer["choices"][2:]]


def test_a_stream_says_what_the_whole_answer_says(client: TestClient) -> None:
    fields = {"prompt": ["a", "bc"], "n": 2, "logprobs": 1, "max_tokens": 6, "seed": 1}
    whole = complete(client, **fields)
    answer = client.post("/v1/completions", json={**fields, "stream": True})
    chunks = events(answer.text)
    for choice in whole["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert own[-1]["finish_reason"] == "length" and own[-1]["text"] == ""
        assert all(each["finish_reason"] is None for each in own[:-1])
        for name in ("tokens", "token_logprobs", "top_logprobs", "content"):
            assert [item for each in own for item in each["logprobs"][name]] == choice["logprobs"][name]


def test_echo_scores_the_prompt(client: TestClient, tiny: Path) -> None:
    """Nothing is written; the logprobs are those of `Engine.score`."""
    choice = complete(client, prompt="abc", echo=True, logprobs=2, max_tokens=0)["choices"][0]
    with Engine.load(tiny, context=64) as engine:
        expected = engine.score(IDS)
    logprobs = choice["logprobs"]
    assert choice["text"] == "abc" and logprobs["tokens"] == ["a", "b", "c"]
    assert logprobs["token_logprobs"] == list(expected) and logprobs["token_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 2] and logprobs["top_logprobs"][0] is None
    assert all(len(top) == 2 for top in logprobs["top_logprobs"][1:])


def test_echo_with_an_answer_has_both(client: TestClient) -> None:
    choice = complete(client, prompt="abc", echo=True, logprobs=1)["choices"][0]
    plain = complete(client, prompt="abc", logprobs=1)["choices"][0]
    assert choice["text"] == "abc" + plain["text"]
    assert choice["logprobs"]["token_logprobs"][3:] == plain["logprobs"]["token_logprobs"]
    assert complete(client, prompt=IDS, echo=True, max_tokens=0)["choices"][0]["text"] == "abc"


def test_prompt_logprobs_in_the_form_of_vllm(client: TestClient) -> None:
    choice = complete(client, prompt=IDS, prompt_logprobs=1, max_tokens=1)["choices"][0]
    rows = choice["prompt_logprobs"]
    assert rows[0] is None and "101" in rows[1] and "102" in rows[2]
    assert rows[1]["101"]["decoded_token"] == "b" and rows[1]["101"]["logprob"] < 0


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ""},
        {"prompt": [9999]},
        {"prompt": [-1]},
        {"prompt": "a", "suffix": "b"},
        {"prompt": "a", "best_of": 3},
        {"prompt": "a", "echo": True, "logprobs": 1, "stream": True},
        {"prompt": None},
        {},
    ],
)
def test_what_cannot_be_is_refused(client: TestClient, fields: dict[str, Any]) -> None:
    answer = client.post("/v1/completions", json=fields)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_embeddings_are_means_of_length_one(client: TestClient, tiny: Path) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["abc", [100]]}).json()
    with Engine.load(tiny, context=64) as engine:
        rows = [engine.embed(IDS), engine.embed([100])]
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    for entry, row in zip(answer["data"], rows, strict=True):
        np.testing.assert_allclose(entry["embedding"], row / np.linalg.norm(row), atol=1e-6)
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    coded = client.post("/v1/embeddings", json={"input": "abc", "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    assert vector.tolist() == answer["data"][0]["embedding"]
    objects = [{"prompt_string": "abc"}, {"content": [{"type": "text", "text": "a"}]}]  # [100] is "a"
    same = client.post("/v1/embeddings", json={"input": objects}).json()
    assert [entry["embedding"] for entry in same["data"]] == [entry["embedding"] for entry in answer["data"]]
    assert client.post("/v1/embeddings", json={"input": "abc", "dimensions": 7}).status_code == 400
    for mixed in ([{"prompt_string": "a"}, 1], [1, {"prompt_string": ["b"]}, [2]]):
        assert client.post("/v1/embeddings", json={"input": mixed}).status_code == 400
    assert client.post("/v1/embeddings", json={"input": "a" * 500}).status_code == 400


def test_embeddings_are_pooled_as_the_server_was_started(tiny: Path) -> None:
    with Engine.load(tiny, context=64) as engine:
        rows = engine.embed(IDS, pooling="none")
    with client_of(tiny, ModelDefaults(pooling="last")) as client:
        [entry] = client.post("/v1/embeddings", json={"input": [IDS]}).json()["data"]
        np.testing.assert_allclose(entry["embedding"], rows[-1] / np.linalg.norm(rows[-1]), atol=1e-6)
        [entry] = client.post("/embedding", json={"input": [IDS], "pooling": "none"}).json()
        np.testing.assert_allclose(entry["embedding"], rows, rtol=1e-6)
    with client_of(tiny, ModelDefaults(pooling="none")) as client:
        refused = client.post("/v1/embeddings", json={"input": "abc"})
        assert refused.status_code == 400 and "--pooling" in refused.json()["error"]["message"]
        assert len(client.post("/embedding", json={"input": [IDS]}).json()[0]["embedding"]) == len(rows)
