"""llama.cpp's routes around text: /tokenize, /detokenize, /apply-template."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.model.chat import ChatTemplate
from etude.serve.models import ModelDefaults
from tests.serve.live import client_of


def post(client: TestClient, path: str, **fields: Any) -> Any:
    answer = client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(client: TestClient, **fields: Any) -> Any:
    return post(client, "/tokenize", **fields)["tokens"]


def test_tokens_go_there_and_back(client: TestClient) -> None:
    ids = ids_of(client, content="What is 媽 🤗?")
    assert post(client, "/detokenize", tokens=ids) == {"content": "What is 媽 🤗?"}
    assert ids_of(client) == [] and post(client, "/detokenize") == {"content": ""}


def test_special_tokens_parse_unless_it_is_said_otherwise(client: TestClient) -> None:
    assert ids_of(client, content="<|im_end|>") == [2]
    as_text = ids_of(client, content="<|im_end|>", parse_special=False)
    assert len(as_text) == 10 and 2 not in as_text
    assert post(client, "/detokenize", tokens=[2, 100]) == {"content": "<|im_end|>a"}


def test_text_and_ids_may_be_mixed(client: TestClient) -> None:
    assert ids_of(client, content=["a", 2, "b"]) == [100, 2, 101]


def test_pieces_are_text_or_bytes(client: TestClient) -> None:
    pieces = ids_of(client, content="aé", with_pieces=True)
    assert pieces[0] == {"id": 100, "piece": "a"}
    assert [each["piece"] for each in pieces[1:]] == [[0xC3], [0xA9]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": 5}),
        ("/tokenize", {"content": ["a", 10**6]}),
        ("/tokenize", {"content": "a", "with_pieces": "yes"}),
        ("/detokenize", {"tokens": "abc"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/apply-template", {"messages": []}),
    ],
)
def test_a_refusal_has_llama_cpps_form(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "type"}
    assert error["code"] == 400 and error["type"] == "invalid_request_error"


def test_the_template_is_applied_as_for_an_answer(client: TestClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    prompt = post(client, "/apply-template", messages=messages)["prompt"]
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    bare = post(client, "/apply-template", messages=messages, add_generation_prompt=False)["prompt"]
    assert bare == "<|im_start|>user\nhi<|im_end|>\n"
    asked = {"messages": messages, "max_tokens": 1, "return_token_ids": True}
    read = client.post("/v1/chat/completions", json=asked).json()["prompt_token_ids"]
    for path in ("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"):
        assert post(client, path, messages=messages)["input_tokens"] == len(read)


def test_an_answer_that_has_begun_ends_the_prompt(client: TestClient) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    prompt = post(client, "/apply-template", messages=messages)["prompt"]
    assert prompt.endswith("<|im_start|>assistant\nWell")


TEMPLATE = (
    "{{ messages[0]['content'] }}|{{ date_string }}|{{ datetime }}|{{ functions }}|"
    "{% if enable_thinking %}<think>{% endif %}"
)


def test_what_every_template_may_read(tiny: Path) -> None:
    now = datetime.datetime.now()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    with client_of(tiny, ModelDefaults(template=ChatTemplate(TEMPLATE))) as client:
        prompt = post(client, "/apply-template", **asked)["prompt"]
        assert prompt == f"hi|{now:%d %b %Y}|{now:%b %d %Y}|[]|<think>"
        kwargs = {"date_string": "then", "enable_thinking": False}
        prompt = post(client, "/apply-template", chat_template_kwargs=kwargs, **asked)["prompt"]
        assert prompt == f"hi|then|{now:%b %d %Y}|[]|"
        asked |= {"tools": [tool], "reasoning_effort": "none"}
        prompt = post(client, "/apply-template", tool_choice="none", **asked)["prompt"]
        assert '"name": "f"' in prompt and not prompt.endswith("<think>")


def test_a_given_template_knows_the_models_tokens(tiny: Path) -> None:
    template = ChatTemplate("{{ bos_token + messages[0].content + eos_token }}")
    with client_of(tiny, ModelDefaults(template=template)) as client:
        answer = client.post("/apply-template", json={"messages": [{"role": "user", "content": "hi"}]})
    assert answer.json() == {"prompt": "<|im_start|>hi<|im_end|>"}
