"""/v1/messages: what Anthropic's clients send and read, whole and streamed; and the `anthropic` package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from starlette.testclient import TestClient

from tests.serve.live import CONTEXT, app_of, client_of, live_of, load_large
from tests.serve.test_tools import TEMPLATE
from tests.terminal.tiny import OPENING, write_tiny

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "seed": 5}
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "d",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome"]}},
        "required": ["city"],
    },
}
CALL: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "max_tokens": 150,
}
KEY = "a key"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = write_tiny(tmp_path_factory.mktemp("models") / "tools.gguf", TEMPLATE)
    with client_of(path, load=load_large) as client:
        yield client


@pytest.fixture(scope="module")
def thinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Its template opens the thoughts; token 260 closes them."""
    with client_of(write_tiny(tmp_path_factory.mktemp("models") / "thinks.gguf", OPENING)) as client:
        yield client


def ask(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/v1/messages", json=HELLO | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(client: TestClient, **fields: Any) -> list[Any]:
    answer = client.post("/v1/messages", json=HELLO | fields | {"stream": True})
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def added_up(events: list[Any]) -> Any:
    """The message that the events of a stream describe, as Anthropic's documentation says how."""
    message: Any = None
    for event in events:
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(dict(event["content_block"]))
            arguments = ""
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(message["content"]) - 1
            [(field, text)] = [pair for pair in event["delta"].items() if pair[0] != "type"]
            assert event["delta"]["type"].removesuffix("_delta") in (field, "input_json")
            if field == "partial_json":
                arguments += text
            else:
                message["content"][-1][field] += text
        elif event["type"] == "content_block_stop" and message["content"][-1]["type"] == "tool_use":
            message["content"][-1]["input"] = json.loads(arguments)
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def same(whole: Any, streamed: Any) -> bool:
    """But for ids and for what the second request found in the cache."""

    def shown(message: Any) -> Any:
        blocks = [{**block, "id": ""} if "id" in block else block for block in message["content"]]
        usage = message["usage"]
        n_read = usage["input_tokens"] + usage["cache_read_input_tokens"]
        return {**message, "id": "", "content": blocks, "usage": (n_read, usage["output_tokens"])}

    return bool(shown(whole) == shown(streamed))


def prompt_of(client: TestClient, **fields: Any) -> int:
    body = {name: value for name, value in (HELLO | fields).items() if name not in ("max_tokens", "seed")}
    answer = client.post("/v1/messages/count_tokens", json=body)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["input_tokens"]
    return int(answer.json()["input_tokens"])


def test_a_message_has_what_clients_read(client: TestClient) -> None:
    message = ask(client)
    assert message["id"].startswith("msg_") and message["model"] == "tiny"
    assert (message["type"], message["role"]) == ("message", "assistant")
    [block] = message["content"]
    assert block["type"] == "text" and block["text"]
    assert message["stop_reason"] == "max_tokens" and message["stop_sequence"] is None
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt_of(client)
    assert usage["output_tokens"] == 12 and usage["cache_creation_input_tokens"] == 0
    assert "timings" not in message


def test_a_stream_adds_up_to_the_message(client: TestClient) -> None:
    events = stream(client)
    types = [event["type"] for event in events]
    n_deltas = types.count("content_block_delta")
    assert types == [
        "message_start", "content_block_start", "ping", *["content_block_delta"] * n_deltas,
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    start = events[0]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] > 0
    assert same(ask(client), added_up(events))


def test_what_was_found_in_the_cache_counts_apart(tiny: Path) -> None:
    long = [{"role": "user", "content": "a text that fills more than one page of the cache " * 2}]
    with client_of(tiny) as client:
        first, second = (ask(client, messages=long)["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] == 0 and second["cache_read_input_tokens"] >= 64
    assert first["input_tokens"] == second["input_tokens"] + second["cache_read_input_tokens"]


def test_a_stop_sequence_is_named(client: TestClient) -> None:
    text = ask(client, max_tokens=40)["content"][0]["text"]
    end = text[6:8]
    for fields in ({"stop_sequences": ["never", end]}, {"stop": end}):
        message = ask(client, max_tokens=40, **fields)
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", end)
        assert message["content"][0]["text"] == text[: text.index(end)]


def test_a_full_context_is_told_from_a_limit(client: TestClient) -> None:
    message = ask(client, max_tokens=10 * CONTEXT, ignore_eos=True)
    assert message["stop_reason"] == "model_context_window_exceeded"


def test_the_system_message_has_two_forms(client: TestClient) -> None:
    blocks = [
        {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "kind."},
    ]
    plain = prompt_of(client)
    assert prompt_of(client, system="Be\nkind.") == prompt_of(client, system=blocks) > plain
    as_message = [{"role": "system", "content": "Be\nkind."}, *HELLO["messages"]]
    assert prompt_of(client, messages=as_message) == prompt_of(client, system="Be\nkind.")


def test_a_stamp_does_not_hide_the_prompt_from_the_cache(tiny: Path) -> None:
    head = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch={};You are an agent."
    with client_of(tiny) as client:
        usages = [ask(client, system=head.format(stamp))["usage"] for stamp in ("a5145", "b5ef1")]
    assert usages[1]["cache_read_input_tokens"] >= 96


def test_a_stream_says_at_its_beginning_what_was_in_the_cache(tiny: Path) -> None:
    long = [{"role": "user", "content": "a text that fills more than one page of the cache " * 2}]
    with client_of(tiny) as client:
        ask(client, messages=long)
        first = stream(client, messages=long)[0]["message"]["usage"]
    assert first["cache_read_input_tokens"] >= 64 and first["output_tokens"] == 0


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_of_a_tool(tools: TestClient, choice: dict[str, Any]) -> None:
    fields = CALL | {"tool_choice": choice | {"disable_parallel_tool_use": True}}
    message = ask(tools, **fields)
    [call] = message["content"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert call["id"] and message["stop_reason"] == "tool_use"
    events = stream(tools, **fields)
    [start] = [event for event in events if event["type"] == "content_block_start"]
    assert start["content_block"]["input"] == {}
    assert same(message, added_up(events))


def test_auto_and_none_leave_the_model_free(tools: TestClient) -> None:
    free = ask(tools, tools=[TOOL], tool_choice={"type": "auto"})
    assert [block["type"] for block in free["content"]] == ["text"]
    hidden = {"tools": [TOOL], "tool_choice": {"type": "none"}}
    assert prompt_of(tools, **hidden) == prompt_of(tools) < prompt_of(tools, tools=[TOOL])
    other = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}
    refused = tools.post("/v1/messages", json=HELLO | other)
    assert refused.status_code == 400 and "'other'" in refused.json()["error"]["message"]


def test_a_conversation_with_results(tools: TestClient) -> None:
    def turns(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
        use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
        return [
            *HELLO["messages"],
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": list(blocks)},
        ]

    result = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}
    in_blocks = result | {"content": [{"type": "text", "text": "sunny"}]}
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "sunny"}}
    plain = prompt_of(tools, messages=turns(result))
    assert prompt_of(tools, messages=turns(in_blocks)) == plain
    assert prompt_of(tools, messages=turns(result | {"content": [document]})) == plain
    assert prompt_of(tools, messages=turns(result | {"is_error": True})) == plain + len("Error: ")
    assert prompt_of(tools, messages=turns(result, {"type": "text", "text": "and?"})) > plain
    assert ask(tools, messages=turns(result))["content"][0]["type"] == "text"
    empty = {"type": "tool_result", "tool_use_id": "t1"}
    assert prompt_of(tools, messages=turns(empty)) == plain - len("sunny")


def test_thoughts_are_blocks_of_their_own(thinks: TestClient) -> None:
    """The model of noise does not end its thoughts, unless a bias does it at once."""
    message = ask(thinks, logit_bias={"260": False})
    [block] = message["content"]
    assert block["type"] == "thinking" and block["thinking"] and block["signature"]
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == 12
    events = stream(thinks, logit_bias={"260": False})
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert deltas[-1] == {"type": "signature_delta", "signature": block["signature"]}
    assert same(message, added_up(events))
    hidden = ask(thinks, logit_bias={"260": False}, thinking={"type": "adaptive", "display": "omitted"})
    assert hidden["content"] == [{**block, "thinking": ""}]
    answered = ask(thinks, logit_bias={"260": 6.0}, max_tokens=60)
    assert [each["type"] for each in answered["content"]] == ["thinking", "text"]
    assert 0 < answered["usage"]["output_tokens_details"]["thinking_tokens"] < 60


def test_a_budget_closes_the_thoughts(thinks: TestClient) -> None:
    message = ask(thinks, thinking={"type": "enabled", "budget_tokens": 5}, max_tokens=40)
    assert [each["type"] for each in message["content"]] == ["thinking", "text"]
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == 6  # with the tag


def test_thoughts_of_before_are_read(tmp_path: Path) -> None:
    template = OPENING.replace("message['content']", "(message.reasoning_content or '') + message['content']")
    with client_of(write_tiny(tmp_path / "thinks.gguf", template)) as client:
        thought = {"type": "thinking", "thinking": "hm, hm", "signature": "x"}
        redacted = {"type": "redacted_thinking", "data": "x"}
        text = {"type": "text", "text": "Yes."}
        counts = [
            prompt_of(
                client,
                messages=[*HELLO["messages"], {"role": "assistant", "content": blocks}, *HELLO["messages"]],
            )
            for blocks in ([text], [redacted, text], [thought, text])
        ]
    assert counts[0] == counts[1] == counts[2] - len("hm, hm")


def test_thinking_is_a_variable_of_the_template(tmp_path: Path) -> None:
    template = OPENING.replace("<think>", "{{ '' if enable_thinking is false else '<think>' }}").replace(
        "{{ '<|im_start|>assistant\\n{{ '' if enable_thinking is false else '<think>' }}\\n' }}",
        "{{ '<|im_start|>assistant\\n' ~ ('' if enable_thinking is false else '<think>') }}",
    )
    with client_of(write_tiny(tmp_path / "thinks.gguf", template)) as client:
        usual = prompt_of(client)
        assert prompt_of(client, thinking={"type": "adaptive"}) == usual
        assert prompt_of(client, thinking={"type": "disabled"}) == usual - 1


def test_the_form_of_an_answer(client: TestClient) -> None:
    form = {"format": {"type": "json_schema", "schema": {"const": "foo"}}}
    message = ask(client, output_config=form)
    assert message["content"][0]["text"].strip() == '"foo"' and message["stop_reason"] == "end_turn"


def test_an_empty_conversation_and_no_limit(client: TestClient) -> None:
    assert ask(client, messages=[])["type"] == "message"
    without = {name: value for name, value in HELLO.items() if name != "max_tokens"}
    answer = client.post("/v1/messages", json=without | {"n_predict": 3})
    assert answer.json()["usage"]["output_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "status", "kind", "text"),
    [
        ({"messages": None}, 400, "invalid_request_error", "messages"),
        ({"max_tokens": "9"}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400,
         "invalid_request_error", "image input is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x", "input": {}}]}]}, 400,
         "invalid_request_error", "messages[0].content[0].tool_use.name"),
        ({"messages": [{"role": "user", "content": "x" * 3 * CONTEXT}]}, 400, "invalid_request_error",
         "prompt is too long: "),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400, "invalid_request_error",
         "tools[0]: tools of type web_search_20250305"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "there are no tools"),
        ({"n_predict": 10**10}, 400, "invalid_request_error", "n_predict"),
    ],
)  # fmt: skip
def test_errors_have_anthropics_shape(
    client: TestClient, fields: dict[str, Any], status: int, kind: str, text: str
) -> None:
    for more in ({}, {"stream": True}):
        answer = client.post("/v1/messages", json=HELLO | fields | more)
        assert answer.status_code == status, answer.text
        body = answer.json()
        assert body["type"] == "error" and body["error"]["type"] == kind
        assert text in body["error"]["message"]


# ── the anthropic package ──


@pytest.fixture(scope="module")
def package(tiny: Path) -> Iterator[anthropic.Anthropic]:
    with live_of(app_of(tiny, api_keys=(KEY,), max_queue=8)) as live:
        with anthropic.Anthropic(api_key=KEY, base_url=live.url, max_retries=0) as client:
            yield client


def test_create_and_stream(package: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {
        "model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}],
        "extra_body": {"temperature": 0},  # the package no longer has a field of its own for it
    }  # fmt: skip
    message = package.messages.create(**fields)
    [block] = message.content
    assert isinstance(block, anthropic.types.TextBlock) and message.stop_reason == "max_tokens"
    with package.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    [last] = final.content
    assert isinstance(last, anthropic.types.TextBlock) and text == block.text == last.text
    assert final.usage.output_tokens == message.usage.output_tokens == 9
    events = list(package.messages.create(**fields, stream=True))
    assert events[0].type == "message_start" and events[-1].type == "message_stop"
    assert package.messages.count_tokens(model="x", messages=fields["messages"]).input_tokens == (
        message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    )


def test_errors_are_those_that_the_package_knows(package: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {"model": "x", "max_tokens": 2}
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        package.messages.create(messages=[{"role": "user", "content": "x" * 3 * CONTEXT}], **fields)
    with pytest.raises(anthropic.AuthenticationError) as caught:
        package.with_options(api_key="wrong").messages.create(messages=HELLO["messages"], **fields)
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "Invalid API Key"},
    }


def test_a_tool_of_the_package_is_called(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tools.gguf", TEMPLATE)
    with live_of(app_of(path, load=load_large)) as live:
        with anthropic.Anthropic(api_key="any", base_url=live.url, max_retries=0) as client:
            with client.messages.stream(
                model="x", messages=HELLO["messages"], extra_body={"seed": 3}, **CALL
            ) as stream:
                message = stream.get_final_message()
    [block] = message.content
    assert isinstance(block, anthropic.types.ToolUseBlock)
    assert (block.name, block.input, message.stop_reason) == ("weather", {"city": "Rome"}, "tool_use")


def test_a_real_model_answers(smollm2: Path) -> None:
    with live_of(app_of(smollm2)) as live:
        with anthropic.Anthropic(api_key="any", base_url=live.url, max_retries=0) as client:
            message = client.messages.create(
                model="smollm2", max_tokens=24, system="Answer in one word.",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                extra_body={"temperature": 0},
            )  # fmt: skip
    [block] = message.content
    assert isinstance(block, anthropic.types.TextBlock) and "Paris" in block.text
    assert message.stop_reason == "end_turn"
