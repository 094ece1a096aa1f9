"""/v1/responses: what OpenAI's clients send and read, whole and streamed; and the `openai` package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from tests.serve.live import CONTEXT, app_of, client_of, live_of, load_large
from tests.serve.test_tools import TEMPLATE
from tests.terminal.tiny import OPENING, write_tiny

HELLO: dict[str, Any] = {"input": "hello", "max_output_tokens": 12, "seed": 5}
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]},
}
CALL: dict[str, Any] = {
    "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 150,
}  # fmt: skip
PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = write_tiny(tmp_path_factory.mktemp("models") / "tools.gguf", TEMPLATE)
    with client_of(path, load=load_large) as client:
        yield client


@pytest.fixture(scope="module")
def thinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(write_tiny(tmp_path_factory.mktemp("models") / "thinks.gguf", OPENING)) as client:
        yield client


def ask(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/v1/responses", json=HELLO | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(client: TestClient, **fields: Any) -> list[Any]:
    """The events; each is named and numbered."""
    answer = client.post("/v1/responses", json=HELLO | fields | {"stream": True})
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def types(events: list[Any]) -> list[str]:
    """Their types, several deltas in a row as one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def items_of(events: list[Any]) -> list[Any]:
    """The items that the events add up to, which each event must fit."""
    items: list[Any] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if "output_index" in event:
            at = event["output_index"]
            assert at == len(items) - (kind != "output_item.added")
            assert event.get("item_id", items[at]["id"] if kind != "output_item.added" else None) in (
                None, items[at]["id"] if at < len(items) else None,
            )  # fmt: skip
        if kind == "output_item.added":
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
        elif kind == "content_part.added":
            assert event["part"]["type"] == PARTS[items[-1]["type"]] and event["part"]["text"] == ""
            items[-1]["content"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            part = items[-1]["content"][event["content_index"]]
            part["text"] += event["delta"]
            if kind == "output_text.delta":
                part["logprobs"] = part["logprobs"] + event["logprobs"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert items[-1]["content"][event["content_index"]]["text"] == event["text"]
        elif kind == "content_part.done":
            assert items[-1]["content"][event["content_index"]] == event["part"]
        elif kind == "function_call_arguments.delta":
            items[-1]["arguments"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert items[-1]["arguments"] == event["arguments"]
        elif kind == "output_item.done":
            assert items[-1] | {"status": event["item"]["status"]} == event["item"]
            items[-1] = event["item"]
    return items


def shown(items: list[Any]) -> list[Any]:
    """Without ids, which are drawn."""
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]


def count(client: TestClient, **fields: Any) -> int:
    answer = client.post("/v1/responses/input_tokens", json=HELLO | fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "response.input_tokens"
    return int(answer.json()["input_tokens"])


def test_a_response_has_what_clients_read(client: TestClient) -> None:
    response = ask(client, instructions="Be kind.", metadata={"a": "b"}, temperature=0.5)
    assert response["id"].startswith("resp_") and response["object"] == "response"
    assert response["model"] == "tiny" and response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"} and response["error"] is None
    [item] = response["output"]
    assert item["id"].startswith("msg_") and (item["type"], item["role"]) == ("message", "assistant")
    assert item["status"] == "incomplete"
    [part] = item["content"]
    assert part["type"] == "output_text" and part["text"] and part["annotations"] == []
    usage = response["usage"]
    assert usage["output_tokens"] == 12 and usage["total_tokens"] == usage["input_tokens"] + 12
    assert usage["input_tokens_details"]["cached_tokens"] >= 0
    assert usage["output_tokens_details"]["reasoning_tokens"] == 0
    assert usage["input_tokens"] == count(client, instructions="Be kind.")
    asked = {"instructions": "Be kind.", "metadata": {"a": "b"}, "temperature": 0.5, "max_output_tokens": 12}
    assert response | asked == response and response["store"] is False
    assert response["timings"]["predicted_n"] == 12


def test_a_stream_adds_up_to_the_response(client: TestClient) -> None:
    events = stream(client)
    assert types(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    first, last = events[0]["response"], events[-1]["response"]
    assert first["id"] == last["id"] and first["status"] == "in_progress" and first["output"] == []
    assert items_of(events) == last["output"]
    assert shown(last["output"]) == shown(ask(client)["output"])
    assert events[-1]["timings"]["predicted_n"] == 12


def test_an_answer_that_ends_is_complete(client: TestClient) -> None:
    form = {
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": "foo"}, "strict": True}}
    }
    response = ask(client, **form)
    assert response["status"] == "completed" and response["incomplete_details"] is None
    assert response["completed_at"] >= response["created_at"]
    assert response["output"][0]["content"][0]["text"].strip() == '"foo"'
    assert response["output"][0]["status"] == "completed" and response["text"] == form["text"]
    events = stream(client, **form)
    assert events[-1]["type"] == "response.completed" and items_of(events) == events[-1]["response"]["output"]
    loose = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=60)
    assert loose["output"][0]["content"][0]["text"].lstrip().startswith("{")


def test_thoughts_are_items_of_their_own(thinks: TestClient) -> None:
    fields = {"reasoning_budget_tokens": 5, "max_output_tokens": 30}
    response = ask(thinks, **fields)
    thought, message = response["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == [] and thought["id"].startswith("rs_")
    assert thought["content"][0]["type"] == "reasoning_text" and thought["content"][0]["text"]
    assert (thought["status"], message["status"]) == ("completed", "incomplete")
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 6
    events = stream(thinks, **fields)
    assert types(events)[2:10] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done", "output_item.added", "content_part.added",
    ]  # fmt: skip
    assert shown(items_of(events)) == shown(response["output"])


def test_logprobs_are_those_of_the_tokens_of_the_text(client: TestClient, thinks: TestClient) -> None:
    """Neither thoughts nor the tags around them are text. A chat gives those of all tokens."""
    asked = {"messages": [{"role": "user", "content": HELLO["input"]}], "seed": HELLO["seed"]}
    for each, n_text, fields in ((client, 12, {}), (thinks, 24, {"reasoning_budget_tokens": 5})):
        n_tokens = 12 if each is client else 30
        wanted = {"top_logprobs": 2, "max_output_tokens": n_tokens, **fields}
        response = ask(each, **wanted)
        part = response["output"][-1]["content"][0]
        chat = asked | fields | {"max_tokens": n_tokens, "logprobs": True, "top_logprobs": 2}
        [choice] = each.post("/v1/chat/completions", json=chat).json()["choices"]
        every = choice["logprobs"]["content"]
        assert part["logprobs"] == every[-n_text:] and response["top_logprobs"] == 2
        assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
        written = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"])
        assert written.decode("utf-8", "replace") == part["text"]
        events = stream(each, **wanted)
        assert shown(items_of(events)) == shown(response["output"])
        [done] = [event for event in events if event["type"] == "response.output_text.done"]
        assert done["logprobs"] == part["logprobs"]


def test_logprobs_can_be_included_without_alternatives(client: TestClient) -> None:
    [item] = ask(client, include=["message.output_text.logprobs"])["output"]
    entries = item["content"][0]["logprobs"]
    assert len(entries) == 12 and all(entry["top_logprobs"] == [] for entry in entries)
    [item] = ask(client, top_logprobs=0)["output"]
    assert item["content"][0]["logprobs"] == []


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "name": "weather"},
     {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}],
)  # fmt: skip
def test_a_call_of_a_function(tools: TestClient, choice: Any) -> None:
    other = TOOL | {"name": "other"}
    offered = [other, TOOL] if isinstance(choice, dict) else [TOOL]
    fields = CALL | {"tools": offered, "tool_choice": choice}
    response = ask(tools, **fields)
    [call] = response["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "weather",
        {"city": "Rome"},
    )
    assert call["id"].startswith("fc_") and call["call_id"] and call["status"] == "completed"
    assert response["status"] == "completed" and response["tools"][-1]["name"] == "weather"
    events = stream(tools, **fields)
    assert types(events)[2:] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert shown(items_of(events)) == shown(response["output"])


def test_tools_that_openai_runs_are_not_offered(tools: TestClient) -> None:
    hosted = {"type": "web_search", "external_web_access": False}
    response = ask(tools, tools=[hosted, TOOL])
    assert [tool["name"] for tool in response["tools"]] == ["weather"]
    assert count(tools, tools=[hosted]) == count(tools) < count(tools, tools=[hosted, TOOL])
    assert count(tools, tools=[TOOL], tool_choice="none") == count(tools)


def test_items_are_messages(tools: TestClient) -> None:
    user = {"role": "user", "content": "hello"}
    text = {"type": "message", "role": "assistant", "status": "completed", "id": "msg_1",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]}  # fmt: skip
    call = {
        "type": "function_call",
        "call_id": "c1",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
        "id": "fc_1",
    }
    output = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
    assert count(tools, input=[user]) == count(tools)
    parts = [{"type": "input_text", "text": "hello"}]
    assert count(tools, input=[{"type": "message", "role": "user", "content": parts}]) == count(tools)
    system = [{"role": "developer", "content": "Be kind."}, user]
    assert count(tools, input=system) == count(tools, instructions="Be kind.")
    chat = {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [
                {"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
    }  # fmt: skip
    as_chat = tools.post("/v1/chat/completions/input_tokens", json=chat).json()["input_tokens"]
    assert count(tools, input=[user, text, call, output]) == as_chat
    in_parts = output | {"output": [{"type": "input_text", "text": "sunny"}]}
    assert count(tools, input=[user, text, call, in_parts]) == as_chat


def test_thoughts_of_before_are_read(tmp_path: Path) -> None:
    template = OPENING.replace("message['content']", "(message.reasoning_content or '') + message['content']")
    user = {"role": "user", "content": "hello"}
    text = {"role": "assistant", "content": "Yes."}
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }
    summary = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    with client_of(write_tiny(tmp_path / "thinks.gguf", template)) as client:
        plain = count(client, input=[user, text, user])
        assert count(client, input=[user, thought, text, user]) == plain + 2
        assert count(client, input=[user, summary, text, user]) == plain + 2
        assert count(client, input=[user, sealed, text, user]) == plain


def test_timings_and_progress_as_llama_cpp_gives_them(client: TestClient) -> None:
    events = stream(client, input="x" * 100, timings_per_token=True, return_progress=True)
    told = [event for event in events if "prompt_progress" in event]
    assert {event["type"] for event in told} == {"response.in_progress"}
    assert told[-1]["prompt_progress"]["processed"] == told[-1]["prompt_progress"]["total"]
    assert "prompt_per_second" in told[0]["timings"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert all(event["timings"]["predicted_n"] > 0 for event in deltas)
    assert not any("timings" in event for event in stream(client)[:-1])


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"input": None}, "input", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].message.content[0]", "input_image is not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "keeps no items"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].function_call.name", "required"),
        ({"input": [{"type": "computer_call"}]}, "input[0]", "computer_call are not supported"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses"),
        ({"conversation": {"id": "x"}}, "conversation", "keeps no responses"),
        ({"store": True}, "store", "keeps no responses"),
        ({"background": True}, "background", "while its client waits"),
        ({"truncation": "auto"}, "truncation", "refused, not cut"),
        ({"prompt": {"id": "x"}}, "prompt", "keeps no prompts"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"tool_choice": "required"}, "tool_choice", "no functions"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "required"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "required"),
        ({"max_output_tokens": "9"}, "max_output_tokens", "integer"),
        ({"input": "x" * 3 * CONTEXT}, "messages", "context length"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(client: TestClient, fields: dict[str, Any], param: str, text: str) -> None:
    for more in ({}, {"stream": True}):
        answer = client.post("/v1/responses", json=HELLO | fields | more)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param and text in error["message"]


def test_what_openai_sends_by_default_is_taken(client: TestClient) -> None:
    usual = {
        "store": False, "truncation": "disabled", "include": ["reasoning.encrypted_content"],
        "service_tier": "auto", "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low"}, "prompt_cache_key": "x",
        "previous_response_id": None, "user": "me", "parallel_tool_calls": True, "tool_choice": "auto",
    }  # fmt: skip
    assert ask(client, **usual)["output"] and count(client, **usual)


# ── the openai package ──


class City(BaseModel):
    name: str
    is_capital: bool


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path = write_tiny(tmp_path_factory.mktemp("models") / "tools.gguf", TEMPLATE)
    with live_of(app_of(path, load=load_large)) as live:
        with openai.OpenAI(api_key="any", base_url=f"{live.url}/v1", max_retries=0) as client:
            yield client


def test_create_and_stream(package: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "gpt-4.1", "input": [{"role": "user", "content": "hi"}], "max_output_tokens": 9,
        "temperature": 0,
    }  # fmt: skip
    response = package.responses.create(**fields)
    assert response.output_text and response.status == "incomplete" and response.usage is not None
    assert response.usage.output_tokens == 9
    events = list(package.responses.create(**fields, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == response.output_text == events[-1].response.output_text
    tokens = package.responses.input_tokens.count(model="x", input="hi")
    assert tokens.input_tokens == response.usage.input_tokens


def test_logprobs_as_the_package_reads_them(package: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "x", "input": "hello", "max_output_tokens": 5, "top_logprobs": 3,
        "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    events = list(package.responses.create(**fields, extra_body={"seed": 3}, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    message = events[-1].response.output[0]
    assert message.type == "message" and message.content[0].type == "output_text"
    entries = message.content[0].logprobs
    assert entries is not None and len(entries) == 5
    assert [each.logprob for delta in deltas for each in delta.logprobs] == [each.logprob for each in entries]
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 3 for each in entries)


def test_the_stream_of_the_package_and_a_call(package: openai.OpenAI) -> None:
    with package.responses.stream(model="x", input="hello", extra_body={"seed": 3}, **CALL) as stream:
        response = stream.get_final_response()
    [call] = response.output
    assert isinstance(call, openai.types.responses.ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    turn: list[Any] = [
        {"role": "user", "content": "hello"},
        call.model_dump(exclude={"parsed_arguments"}, exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    answer = package.responses.create(model="x", input=turn, tools=[TOOL], max_output_tokens=4)
    assert answer.output[0].type == "message"


def test_errors_are_those_that_the_package_knows(package: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        package.responses.create(model="x", input="hi", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_a_real_model_answers(smollm2: Path) -> None:
    with live_of(app_of(smollm2)) as live:
        with openai.OpenAI(api_key="any", base_url=f"{live.url}/v1", max_retries=0) as client:
            response = client.responses.create(
                model="smollm2", instructions="Answer in one word.", input="What is the capital of France?",
                max_output_tokens=24, temperature=0,
            )  # fmt: skip
            assert "Paris" in response.output_text and response.status == "completed"
            parsed = client.responses.parse(
                model="smollm2",
                input="Tell me of Rome.",
                text_format=City,
                max_output_tokens=60,
                temperature=0,
            )
    assert isinstance(parsed.output_parsed, City)
