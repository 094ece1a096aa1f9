"""Tools in a conversation: calls that a grammar forces out of a model of noise, read, streamed, sent back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.live import client_of, events, load_large
from tests.terminal.tiny import CHATML, write_tiny

PATH = "/v1/chat/completions"
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}"
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tool(name: str, city: str, **more: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": [city]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": "d", "parameters": parameters} | more,
    }


ASK = {
    "messages": [{"role": "user", "content": "weather?"}],
    "tools": [tool("weather", "Rome"), tool("time", "Oslo")],
    "max_tokens": 150,
    "seed": 3,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(
        write_tiny(tmp_path_factory.mktemp("models") / "tools.gguf", TEMPLATE), load=load_large
    ) as client:
        yield client


def ask(client: TestClient, **fields: Any) -> Any:
    answer = client.post(PATH, json=ASK | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_a_call_that_is_required(client: TestClient) -> None:
    choice = ask(client, tool_choice="required", parallel_tool_calls=False)
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["type"] == "function" and call["id"]
    city = {"weather": "Rome", "time": "Oslo"}[call["function"]["name"]]
    assert json.loads(call["function"]["arguments"]) == {"city": city}


@pytest.mark.parametrize("name", ["weather", "time"])
def test_a_call_that_is_named(client: TestClient, name: str) -> None:
    chosen = {"type": "function", "function": {"name": name}}
    choice = ask(client, tool_choice=chosen, parallel_tool_calls=False)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == [name]


def test_a_call_streamed(client: TestClient) -> None:
    """Id and name come once; the arguments add up to those of the whole answer."""
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    whole = ask(client, **fields)["message"]["tool_calls"][0]["function"]
    answer = client.post(PATH, json=ASK | fields | {"stream": True})
    choices = [chunk["choices"][0] for chunk in events(answer.text)]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert {call["index"] for call in calls} == {0}
    assert [call["function"]["name"] for call in calls if "name" in call["function"]] == [whole["name"]]
    assert [call["type"] for call in calls if "id" in call] == ["function"]
    assert "".join(call["function"]["arguments"] for call in calls) == whole["arguments"]


def test_without_a_choice_the_model_may_say_what_it_likes(client: TestClient) -> None:
    for fields in ({}, {"tool_choice": "auto"}, {"tools": [tool("weather", "Rome", strict=True)]}):
        choice = ask(client, **fields, max_tokens=20)
        assert choice["message"]["content"] and choice["finish_reason"] == "length"


def test_none_hides_the_tools(client: TestClient) -> None:
    hidden = client.post(PATH, json=ASK | {"tool_choice": "none", "max_tokens": 1}).json()
    shown = client.post(PATH, json=ASK | {"max_tokens": 1}).json()
    assert hidden["usage"]["prompt_tokens"] < 60 < shown["usage"]["prompt_tokens"]


def test_a_conversation_with_calls_and_results(client: TestClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *ASK["messages"],  # a list of objects
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = client.post(PATH, json=ASK | {"messages": messages, "max_tokens": 1, "return_token_ids": True})
    assert answer.status_code == 200, answer.text
    ids = answer.json()["prompt_token_ids"]
    text = bytes(token - 3 for token in ids if 3 <= token < 259).decode()
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in text and "sunny" in text


def test_what_cannot_be_called(client: TestClient) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    refused = client.post(PATH, json=ASK | {"tool_choice": other})
    assert refused.status_code == 400 and "other" in refused.json()["error"]["message"]
    both = client.post(
        PATH, json=ASK | {"tool_choice": "required", "response_format": {"type": "json_object"}}
    )
    assert both.status_code == 400


def test_a_template_without_tools_is_told_of_them_in_words(tmp_path: Path) -> None:
    with client_of(write_tiny(tmp_path / "plain.gguf", CHATML), load=load_large) as client:
        fields = ASK | {"tools": [tool("w", "R")], "tool_choice": "required", "parallel_tool_calls": False}
        answer = client.post(PATH, json=fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "w"
