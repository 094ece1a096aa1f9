"""/completion: llama.cpp's fields, whole and streamed, and that they say what the engine did."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.records import SamplingParams
from etude.serve.models import ModelDefaults
from etude.serve.native_answer import whole_characters
from tests.serve.live import CONTEXT, client_of, events


def complete(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/completion", json={"prompt": "abc", "n_predict": 6, "seed": 1, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    asked = {"prompt": "abc", "n_predict": 6, "seed": 1, "stream": True, **fields}
    text = client.post("/completion", json=asked).text
    assert text.endswith("\n\n") and "[DONE]" not in text
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


def test_what_an_answer_says_of_itself(client: TestClient) -> None:
    answer = complete(client, return_tokens=True)
    with_v1 = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 6, "seed": 1}).json()
    assert answer["content"] == with_v1["choices"][0]["text"]
    assert len(answer["tokens"]) == answer["tokens_predicted"] == answer["timings"]["predicted_n"] == 6
    assert answer["tokens_evaluated"] == 3 and answer["tokens_cached"] == 8
    assert (answer["stop"], answer["stop_type"], answer["stopping_word"]) == (True, "limit", "")
    assert answer["prompt"] == "abc" and not answer["truncated"] and answer["id_slot"] == 0
    assert answer["has_new_line"] == ("\n" in answer["content"])
    assert complete(client)["tokens"] == []


def test_the_settings_are_those_that_were_used(client: TestClient) -> None:
    settings = complete(client, top_k=5, temperature=0.5, stop=["zz"], logit_bias=[[7, 1.5]])[
        "generation_settings"
    ]
    assert (settings["seed"], settings["top_k"], settings["temperature"]) == (1, 5, 0.5)
    assert settings["stop"] == ["zz"] and settings["logit_bias"] == [{"bias": 1.5, "token": 7}]
    assert settings["n_predict"] == settings["max_tokens"] == 6 and not settings["stream"]
    assert complete(client, seed=-1)["generation_settings"]["seed"] == 2**32 - 1


def test_ignored_ends_are_shown_as_biases(client: TestClient) -> None:
    settings = complete(client, ignore_eos=True)["generation_settings"]
    assert {"bias": None, "token": 2} in settings["logit_bias"]


@pytest.mark.parametrize(
    ("given", "name", "used"),
    [
        ("top_p", "top_p", 1.0),
        ("temperature", "temperature", 0.0),
        ("top_k", "top_k", 0),
        ("min_p", "min_p", 1.0),
    ],
)
def test_samplers_come_into_range(client: TestClient, given: str, name: str, used: float) -> None:
    value = {"top_p": 7.0, "temperature": -1, "top_k": -3, "min_p": 3}[given]
    assert complete(client, **{given: value})["generation_settings"][name] == used
    assert complete(client, top_k=40.0)["generation_settings"]["top_k"] == 40


def test_a_stream_has_an_event_per_token(client: TestClient) -> None:
    whole = complete(client, return_tokens=True)
    *parts, last = streamed(client, sse_ping_interval=5)
    assert [part["tokens"] for part in parts] == [[token] for token in whole["tokens"]]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["tokens_predicted"] for part in parts] == [1, 2, 3, 4, 5, 6]
    assert last["stop"] and not last["content"] and not last["tokens"]
    assert not any(part["stop"] for part in parts)
    unlike = ("content", "tokens", "timings", "generation_settings")
    assert {k: v for k, v in last.items() if k not in unlike} == {
        k: v for k, v in whole.items() if k not in unlike
    }


def test_timings_may_come_with_each_token(client: TestClient) -> None:
    *parts, _ = streamed(client, timings_per_token=True)
    assert [part["timings"]["predicted_n"] for part in parts] == [1, 2, 3, 4, 5, 6]
    assert "timings" not in streamed(client)[0]


def test_several_prompts_and_completions_are_a_list(client: TestClient) -> None:
    alone = [complete(client, prompt=prompt)["content"] for prompt in ("abc", "xy")]
    both = complete(client, prompt=["abc", {"prompt_string": "xy"}])
    assert [each["content"] for each in both] == alone and [each["index"] for each in both] == [0, 1]
    four = complete(client, prompt=["abc", [123, 124]], n_cmpl=2)
    assert [each["index"] for each in four] == [0, 1, 2, 3]
    assert [each["prompt"] for each in four] == ["abc", "abc", "xy", "xy"]
    assert [each["content"] for each in four][::2] == alone
    assert {event["index"] for event in streamed(client, prompt=["abc", "xy"])} == {0, 1}


def test_alternatives(client: TestClient, tiny: Path) -> None:
    answer = complete(client, n_probs=4, temperature=0, return_tokens=True)
    entries = answer["completion_probabilities"]
    assert [entry["id"] for entry in entries] == answer["tokens"]
    with Engine.load(tiny, context=64) as engine:
        [[same]] = engine.generate([[100, 101, 102]], max_tokens=6, temperature=0, logprobs=4)
    for entry, top in zip(entries, same.top_logprobs, strict=True):
        assert [(each["id"], each["logprob"]) for each in entry["top_logprobs"]] == list(top)
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0
        assert whole_characters(bytes(entry["bytes"])).decode("utf-8", "replace") == entry["token"]
    *parts, last = streamed(client, n_probs=4, temperature=0)
    assert [part["completion_probabilities"][0] for part in parts] == entries
    assert "completion_probabilities" not in last and "completion_probabilities" not in complete(client)


def test_a_stop_string_is_named(client: TestClient) -> None:
    grammar = 'root ::= "hello world"'
    answer = complete(client, n_predict=30, stop=["☃", "wor"], n_probs=1, grammar=grammar)
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", "wor")
    assert answer["content"] == "hello " and answer["tokens_predicted"] == 9
    assert len(answer["completion_probabilities"]) == 6


def test_the_end_of_generation(client: TestClient) -> None:
    bias = {"2": 1000}
    answer = complete(client, logit_bias=bias, return_tokens=True)
    assert (answer["stop_type"], answer["content"], answer["tokens"]) == ("eos", "", [2])
    *parts, last = streamed(client, logit_bias=bias)
    assert [part["tokens"] for part in parts] == [[2]] and last["stop_type"] == "eos"


def test_some_fields_only(client: TestClient) -> None:
    fields = ["content", "generation_settings/n_predict", "nothing", "prompt/x"]
    answer = complete(client, response_fields=fields)
    assert answer == {"content": answer["content"], "generation_settings/n_predict": 6}


def test_a_full_context_truncates(client: TestClient, tiny: Path) -> None:
    ids = [100] * (CONTEXT - 4)
    answer = complete(client, prompt=ids, n_predict=-1, ignore_eos=True)
    assert answer["tokens_predicted"] == 4 and answer["truncated"] and answer["stop_type"] == "limit"
    refused = client.post("/completion", json={"prompt": [100] * CONTEXT})
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["type"] == "exceed_context_size_error"
    assert "exceeds the available context size" in error["message"]
    assert (error["code"], error["n_prompt_tokens"], error["n_ctx"]) == (400, CONTEXT, CONTEXT)

    def shifting(spec: Any) -> Engine:
        return Engine.load(spec.path, context=64, threads=1, context_shift=True)

    with client_of(tiny, load=shifting) as other:
        answer = complete(other, prompt=[100] * 60, n_predict=20, ignore_eos=True)
        assert answer["tokens_predicted"] == 20 and answer["truncated"] and answer["stop_type"] == "limit"
        assert answer["tokens_cached"] == 60 + 20 - 31 - 1  # half of 63
        assert not complete(other, prompt=[100] * 58, n_predict=6, ignore_eos=True)["truncated"]
        refused = other.post("/completion", json={"prompt": "a", "n_keep": 5})
        assert refused.status_code == 400 and "--keep" in refused.json()["error"]["message"]


def test_no_number_of_tokens_is_the_servers(tiny: Path) -> None:
    with client_of(tiny, ModelDefaults(params=SamplingParams(max_tokens=3))) as client:
        for fields in ({}, {"n_predict": -1}, {"n_predict": None}):
            asked = {"prompt": "a", "ignore_eos": True, **fields}
            assert client.post("/completion", json=asked).json()["tokens_predicted"] == 3
        assert complete(client, max_tokens=5, n_predict=None)["tokens_predicted"] <= 5


def test_lines_may_end_an_answer(client: TestClient) -> None:
    grammar = 'root ::= "  a\\n  b\\n c" [x]*'
    asked: dict[str, Any] = {"n_predict": 40, "grammar": grammar}
    answer = complete(client, n_indent=2, **asked)
    assert (answer["content"], answer["stop_type"]) == ("  a\n  b\n ", "limit")
    assert answer["tokens_predicted"] == 10 and answer["has_new_line"]
    assert "".join(part["content"] for part in streamed(client, n_indent=2, **asked)).startswith(
        "  a\n  b\n c"
    )
    both = complete(client, n_indent=2, n_cmpl=2, **asked)
    assert [each["content"] for each in both] == ["  a\n  b\n "] * 2


def test_a_grammar_goes_before_a_schema(client: TestClient) -> None:
    fields = {"json_schema": {"type": "boolean"}, "n_predict": 12}
    assert complete(client, **fields)["content"] in ("true", "false")
    answer = complete(client, grammar='root ::= "yes"', **fields)
    assert answer["content"] == "yes" and "yes" in answer["generation_settings"]["grammar"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["AA=="]}}, "multimodal"),
        ({"prompt": "a", "samplers": ["adaptive_p"]}, "adaptive_p"),
        ({"prompt": "a", "n_predict": "5"}, "n_predict"),
        ({"prompt": "a", "n_probs": -1}, "n_probs"),
        ({"prompt": [10**7]}, "token id"),
    ],
)
def test_refusals(client: TestClient, fields: Any, word: str) -> None:
    answer = client.post("/completion", json=fields)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400 and word in error["message"]


def test_a_slot_may_be_wished_for(client: TestClient) -> None:
    assert complete(client, id_slot=5)["id_slot"] == 5
    assert complete(client, id_slot=10**6)["id_slot"] == 0
    assert all(math.isfinite(value) for value in complete(client)["timings"].values())


def test_a_long_prompt_tells_how_far_it_is(client: TestClient) -> None:
    ids = [3 + at % 250 for at in range(200)]
    parts = streamed(client, prompt=ids, return_progress=True, timings_per_token=True)
    told = [part for part in parts if "prompt_progress" in part]
    first, last = told[0]["prompt_progress"], told[-1]["prompt_progress"]
    assert first == {"total": 200, "cache": 0, "processed": 0, "time_ms": 0}
    assert last["processed"] == 200 and told == parts[: len(told)]
    assert told[0]["timings"]["prompt_n"] == told[0]["timings"]["prompt_ms"] == 0
    times = [part["timings"]["prompt_ms"] for part in parts]
    assert times == sorted(times) and times[-1] > 0 and parts[-1]["timings"]["prompt_n"] == 200
    again = streamed(client, prompt=ids, return_progress=True)
    assert again[0]["prompt_progress"]["cache"] == again[0]["prompt_progress"]["processed"] == 192
    assert again[-1]["timings"]["cache_n"] == 192 and again[-1]["timings"]["prompt_n"] == 8
    assert not any("prompt_progress" in part for part in streamed(client, prompt=ids))


def test_the_first_token_costs_no_step(client: TestClient) -> None:
    timings = complete(client, n_predict=1)["timings"]
    assert timings["predicted_n"] == 1 and timings["predicted_per_second"] == 0
    timings = complete(client, ignore_eos=True)["timings"]
    assert timings["predicted_per_second"] == pytest.approx(5e3 / timings["predicted_ms"])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_probabilities_that_were_sampled_from(client: TestClient, tiny: Path, temperature: float) -> None:
    asked = {"temperature": temperature, "top_k": 5, "n_probs": 10, "post_sampling_probs": True}
    entries = complete(client, **asked)["completion_probabilities"]
    with Engine.load(tiny, context=64) as engine:
        [[same]] = engine.generate([[100, 101, 102]], max_tokens=6, temperature=temperature, top_k=5, seed=1)
    for entry, token, logprob in zip(entries, same.token_ids, same.logprobs, strict=True):
        assert entry.keys() == {"id", "token", "bytes", "prob", "top_probs"} and entry["id"] == token
        assert entry["prob"] == pytest.approx(math.exp(logprob), abs=1e-6)
        probs = [each["prob"] for each in entry["top_probs"]]
        assert len(probs) == (1 if temperature == 0 else 5) and sum(probs) == pytest.approx(1, abs=1e-5)
        assert next(each["prob"] for each in entry["top_probs"] if each["id"] == token) == entry["prob"]
    *parts, _ = streamed(client, **asked)
    assert [part["completion_probabilities"][0] for part in parts] == entries


def test_other_routes_give_probabilities_too(client: TestClient) -> None:
    fields: dict[str, Any] = {"max_tokens": 3, "seed": 1, "top_k": 4, "post_sampling_probs": True}
    messages = [{"role": "user", "content": "hi"}]
    for path, asked in (
        ("/v1/chat/completions", {"messages": messages, "logprobs": True, "top_logprobs": 3}),
        ("/v1/completions", {"prompt": "abc", "logprobs": 3}),
    ):
        answer = client.post(path, json=fields | asked).json()
        content = answer["choices"][0]["logprobs"]["content"]
        assert all(len(entry["top_probs"]) == 3 and 0 < entry["prob"] <= 1 for entry in content)


def test_how_far_a_prompt_is_on_other_routes(client: TestClient) -> None:
    ids = [3 + at % 240 for at in range(150)]
    asked = {"prompt": ids, "max_tokens": 3, "stream": True, "return_progress": True, "echo": True}
    chunks = events(client.post("/v1/completions", json=asked).text)
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert told[0]["processed"] == told[0]["cache"] and told[-1]["processed"] == told[-1]["total"] == 150
    assert not chunks[0]["choices"][0]["text"]
    assert chunks[len(told)]["choices"][0]["text"].startswith(bytes(each - 3 for each in ids[:9]).decode())


def test_all_alternatives_of_a_few_tokens(client: TestClient) -> None:
    [entry] = complete(client, n_probs=10**6, n_predict=1)["completion_probabilities"]
    assert len(entry["top_logprobs"]) == 262
