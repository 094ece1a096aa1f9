"""Token ids in and out: what a trainer needs to score what was sampled, on the routes that trainers use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.serve.types_tokens import Generated
from tests.serve.live import CONTEXT, client_of, events
from tests.terminal.tiny import OPENING, write_tiny

GENERATE, TOKENS, CHAT = "/inference/v1/generate", "/v1/chat/completions/tokens", "/v1/chat/completions"
IDS = [100, 101, 102]  # "abc"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "seed": 3}
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def ask(client: TestClient, path: str, body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sampled(client: TestClient, **params: Any) -> Any:
    """A group of four from /inference/v1/generate."""
    drawing = {"n": 4, "max_tokens": 12, "logprobs": 0, "seed": 5, **params}
    return ask(client, GENERATE, {"token_ids": IDS, "sampling_params": drawing, "return_token_ids": True})


def test_logprobs_of_a_group_are_the_learners(client: TestClient, tiny: Path) -> None:
    """The exact check: what the server says of the tokens it drew is what scoring them says."""
    answer = sampled(client)
    with Engine.load(tiny, context=CONTEXT) as engine:
        for choice in answer["choices"]:
            ids = [*answer["prompt_token_ids"], *choice["token_ids"]]
            scores = engine.score(ids)[len(IDS) :]
            entries = choice["logprobs"]["content"]
            assert [entry["logprob"] for entry in entries] == list(scores)
            assert [entry["raw_logprob"] for entry in entries] == list(scores)
            assert [entry["token"] for entry in entries] == [f"token_id:{at}" for at in choice["token_ids"]]
            assert choice["weight_versions"] == [{"version": "0", "start": 0, "end": len(scores)}]
    assert len({tuple(choice["token_ids"]) for choice in answer["choices"]}) == 4
    assert answer["weights_versions"] == [0]


def test_plain_sampling_unless_told_otherwise(tiny: Path) -> None:
    """The server's own defaults are for chat: a trainer's rollouts are never truncated by accident."""
    with client_of(tiny) as client:
        said = sampled(client)
        told = sampled(client, temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
        assert [each["token_ids"] for each in said["choices"]] == [
            each["token_ids"] for each in told["choices"]
        ]
        cold = sampled(client, temperature=0.5, top_k=3, logprobs=3)["choices"][0]
        for entry in cold["logprobs"]["content"]:
            assert len(entry["top_logprobs"]) == 3
            raw = {top["token_id"]: top["logprob"] for top in entry["top_logprobs"]}
            total = math.log(sum(math.exp(value / 0.5) for value in raw.values()))
            assert entry["raw_logprob"] == raw[entry["token_id"]]
            assert math.isclose(entry["logprob"], entry["raw_logprob"] / 0.5 - total, abs_tol=1e-4)


def test_the_answer_is_the_documents(client: TestClient) -> None:
    for params in ({}, {"logprobs": 2, "prompt_logprobs": 1}, {"max_tokens": 0}):
        body = {"token_ids": IDS, "sampling_params": {"max_tokens": 3, **params}, "request_id": "mine"}
        answer = Generated.model_validate(ask(client, GENERATE, body))
        assert answer.request_id == "mine" and answer.model == "tiny" and answer.prompt_token_ids is None
    document = client.get("/openapi.json").json()
    answer = document["paths"][GENERATE]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/Generated"}
    assert "weight_versions" in document["components"]["schemas"]["GeneratedChoice"]["properties"]


def test_a_stream_of_ids_is_the_whole_answer(client: TestClient) -> None:
    body = {"token_ids": IDS, "sampling_params": {"n": 3, "max_tokens": 9, "seed": 1, "logprobs": 1}}
    whole = ask(client, GENERATE, body)
    more = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    chunks = events(client.post(GENERATE, json=body | more).text)
    for chunk in chunks:
        Generated.model_validate(chunk)
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [IDS] + [None] * (len(chunks) - 1)
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["weights_versions"] == [0]
    for choice in whole["choices"]:
        own = [each for chunk in chunks[:-1] for each in chunk["choices"] if each["index"] == choice["index"]]
        assert [token for each in own for token in each["token_ids"]] == choice["token_ids"]
        assert [entry for each in own for entry in each["logprobs"]["content"]] == choice["logprobs"][
            "content"
        ]
        assert (
            own[-1]["finish_reason"] == "length" and own[-1]["weight_versions"] == choice["weight_versions"]
        )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [9999]}, "9999"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"token_ids": "abc"}, "token_ids"),
        ({"features": {"mm_hashes": {}}}, "text only"),
        ({"sampling_params": {"min_tokens": 4}}, "min_tokens"),
        ({"sampling_params": {"allowed_token_ids": [1]}}, "allowed_token_ids"),
        ({"sampling_params": {"temperature": "hot"}}, "temperature"),
        ({"sampling_params": {"prompt_logprobs": 1}, "stream": True}, "stream"),
        ({"sampling_params": {"stop_token_ids": [77777]}}, "77777"),
    ],
)
def test_what_cannot_be_generated(client: TestClient, fields: dict[str, Any], said: str) -> None:
    answer = client.post(GENERATE, json={"token_ids": IDS, **fields})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text


def test_ids_beyond_the_context(client: TestClient) -> None:
    """What verifiers reads as an overlong prompt."""
    for path, body in ((GENERATE, {"token_ids": IDS * 100}), (TOKENS, HELLO | {"tokens": IDS * 100})):
        answer = client.post(path, json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
        assert "maximum context length" in error["message"]


def test_stop_tokens_and_strings_stay_in_the_ids(client: TestClient) -> None:
    free = sampled(client, n=1)["choices"][0]["token_ids"]
    stopped = sampled(client, n=1, stop_token_ids=[free[5]])["choices"][0]
    at = free.index(free[5])
    assert stopped["token_ids"] == free[: at + 1] and stopped["finish_reason"] == "stop"


# ── chats by ids ──


def test_a_chat_by_its_own_ids_is_the_chat(client: TestClient) -> None:
    """First turn by messages, second by ids: what verifiers does."""
    fields = HELLO | PLAIN | {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    first = ask(client, CHAT, fields)
    ids = first["prompt_token_ids"]
    again = ask(client, TOKENS, fields | {"tokens": ids})
    changed = ("id", "created", "timings", "usage")
    assert {k: v for k, v in again.items() if k not in changed} == {
        k: v for k, v in first.items() if k not in changed
    }
    [choice] = again["choices"]
    entries = choice["logprobs"]["content"]
    assert [entry["id"] for entry in entries] == choice["token_ids"]
    longer = [*ids, *choice["token_ids"], *IDS]
    assert ask(client, TOKENS, fields | {"tokens": longer})["prompt_token_ids"] == longer
    other = {"messages": [{"role": "tool", "content": "no template could render this"}], "tokens": ids}
    assert ask(client, TOKENS, fields | other)["choices"] == first["choices"]
    for tokens in ([9999], [], None):
        assert client.post(TOKENS, json=HELLO | {"tokens": tokens}).status_code == 400
    assert client.post(TOKENS, json=HELLO).json()["error"]["param"] == "tokens"


def test_thoughts_that_the_ids_have_opened(tmp_path: Path) -> None:
    """Whether a reply begins inside thoughts is read off the ids."""
    with client_of(write_tiny(tmp_path / "tiny.gguf", OPENING)) as client:
        ids = ask(client, "/tokenize", {"messages": HELLO["messages"]})["tokens"]
        [choice] = ask(client, TOKENS, HELLO | {"tokens": ids})["choices"]
        assert choice["message"]["reasoning_content"] and not choice["message"]["content"]
        [choice] = ask(client, TOKENS, HELLO | {"tokens": IDS})["choices"]
        assert "reasoning_content" not in choice["message"]


def test_a_streamed_chat_has_ids_too(client: TestClient) -> None:
    fields = HELLO | PLAIN | {"logprobs": True, "top_logprobs": 0, "return_token_ids": True, "n": 2}
    whole = ask(client, CHAT, fields)
    chunks = events(client.post(CHAT, json=fields | {"stream": True}).text)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    for choice in whole["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert [token for each in own for token in each.get("token_ids", [])] == choice["token_ids"]
        spans = [each["weight_versions"] for each in own if "weight_versions" in each]
        assert spans == [choice["weight_versions"]]
    assert chunks[-1]["weights_versions"] == [0]


def test_processed_alternatives_are_those_that_could_be_drawn(client: TestClient) -> None:
    """The token and its alternatives are of one distribution, here of two tokens."""
    narrow = {
        "temperature": 0.7,
        "top_k": 2,
        "top_p": 1.0,
        "min_p": 0.0,
        "logprobs_mode": "processed_logprobs",
    }
    [chat] = ask(client, CHAT, HELLO | narrow | {"logprobs": True, "top_logprobs": 4})["choices"]
    for entry in chat["logprobs"]["content"]:
        top = {each["id"]: each["logprob"] for each in entry["top_logprobs"]}
        assert len(top) == 2 and sum(map(math.exp, top.values())) == pytest.approx(1, abs=1e-4)
        assert top[entry["id"]] == pytest.approx(entry["logprob"], abs=1e-4)
    text = {"prompt": IDS, "max_tokens": 5, "seed": 3, "logprobs": 4} | narrow
    [choice] = ask(client, "/v1/completions", text)["choices"]
    for top in choice["logprobs"]["top_logprobs"]:
        assert len(top) <= 2 and sum(map(math.exp, top.values())) == pytest.approx(1, abs=1e-4)


def test_tokens_named_by_id_and_both_kinds_of_logprobs(client: TestClient) -> None:
    cold = {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    fields = HELLO | cold | {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}
    raw = ask(client, CHAT, fields)["choices"][0]["logprobs"]["content"]
    drawn = ask(client, CHAT, fields | {"logprobs_mode": "processed_logprobs"})["choices"][0]["logprobs"][
        "content"
    ]
    for one, other in zip(raw, drawn, strict=True):
        assert one["token"] == other["token"] == f"token_id:{one['id']}"
        assert [top["token"] for top in one["top_logprobs"]] == [
            f"token_id:{top['id']}" for top in one["top_logprobs"]
        ]
    assert [one["logprob"] for one in raw] != [other["logprob"] for other in drawn]
    text = {
        "prompt": IDS,
        "max_tokens": 5,
        "seed": 3,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
        **cold,
    }
    [choice] = ask(client, "/v1/completions", text | {"return_token_ids": True, "echo": True})["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in IDS + choice["token_ids"]]
    assert all(key.startswith("token_id:") for top in choice["logprobs"]["top_logprobs"][1:] for key in top)
    chunks = events(client.post("/v1/completions", json=text | {"stream": True}).text)
    names = [name for chunk in chunks for name in chunk["choices"][0]["logprobs"]["tokens"]]
    assert names == choice["logprobs"]["tokens"][3:]


def test_the_logprobs_of_a_prompt_given_as_ids(client: TestClient, tiny: Path) -> None:
    """What prime-rl asks of a teacher: prompt_logprobs true, one token."""
    body = HELLO | {"tokens": IDS, "max_tokens": 1, "prompt_logprobs": True}
    rows = ask(client, TOKENS, body)["prompt_logprobs"]
    with Engine.load(tiny, context=CONTEXT) as engine:
        expected = engine.score(IDS)
    assert rows[0] is None
    assert [next(iter(row.values()))["logprob"] for row in rows[1:]] == list(expected[1:])
    assert client.post(TOKENS, json=body | {"stream": True}).status_code == 400


def test_the_tokens_of_a_conversation_as_vllm_says_them(client: TestClient) -> None:
    turns = [*HELLO["messages"], {"role": "assistant", "content": "hello"}]
    opened = ask(client, "/tokenize", {"model": "tiny", "messages": turns[:1]})
    closed = ask(client, "/tokenize", {"messages": turns, "add_generation_prompt": False})
    assert opened["count"] == len(opened["tokens"]) and opened["max_model_len"] == CONTEXT
    assert closed["tokens"][: len(opened["tokens"])] == opened["tokens"]
    text = bytes(token - 3 for token in closed["tokens"] if 3 <= token < 259).decode()
    assert text.endswith("hello\n")
    assert opened["tokens"] == ask(client, CHAT, HELLO | {"return_token_ids": True})["prompt_token_ids"]
    assert ask(client, "/tokenize", {"prompt": "abc"}) == {
        "tokens": IDS,
        "count": 3,
        "max_model_len": CONTEXT,
    }
    assert ask(client, "/tokenize", {"content": "abc"}) == {"tokens": IDS}
    assert client.get("/liveness").status_code == 200
