"""Tools in real chat templates: which format a template teaches, and calls rendered by it, read back."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from etude.model.chat import ChatTemplate
from etude.model.tool_calls import parse_message
from etude.model.tool_formats import FORMATS, GENERIC, tool_format_of
from etude.model.tool_prompt import tool_prompt_of
from etude.records import EtudeError, Message

STORED = Path(__file__).parents[1] / "data" / "peers" / "chat_templates.json.gz"
SOURCES: dict[str, str] = json.loads(gzip.decompress(STORED.read_bytes()))["templates"]

FORMAT_OF = {
    "ByteDance-Seed-OSS": "seed",
    "GLM-4.6": "generic",
    "HuggingFaceTB-SmolLM3-3B": "generic",
    "LFM2.5-8B-A1B": "lfm2",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-args",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "parameters",
    "Qwen3.5-4B": "parameters",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-r1",
    "deepseek-ai-DeepSeek-V3.1": "deepseek-v3.1",
    "google-gemma-2-2b-it": "generic",
    "ibm-granite-granite-4.0": "hermes",
    "llama-cpp-deepseek-r1": "deepseek-r1",
    "meta-llama-Llama-3.1-8B-Instruct": "llama",
    "meta-llama-Llama-3.2-3B-Instruct": "llama",
    "microsoft-Phi-3.5-mini-instruct": "generic",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-args",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral-args",
}
ANSWER_BEGINS = (
    "<|im_start|>assistant\n", "<|im_start|>assistant", "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|start_of_role|>assistant<|end_of_role|>", "[/INST]", "<｜Assistant｜>", "<start_of_turn>model\n",
    "<seed:bos>assistant\n", "<|assistant|>\n",
)  # fmt: skip
ENDS = ("<|im_end|>", "<|eot_id|>", "</s>", "<｜end▁of▁sentence｜>", "<end_of_turn>", "<seed:eos>",
        "<|end_of_text|>", "<|end|>\n")  # fmt: skip
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
ARGUMENTS: dict[str, Any] = {"city": 'Zürich "x" {</tool_call>\n}', "days": 3}
EVERY_TEMPLATE = pytest.mark.parametrize("name", [name for name in FORMAT_OF if name != "GLM-4.6"])


def template(name: str) -> ChatTemplate:
    return ChatTemplate(SOURCES[name], {"bos_token": "<s>", "eos_token": "</s>"})


def called(*calls: tuple[str, dict[str, Any]], content: str = "") -> Message:
    """An assistant's message as a client sends it back."""
    return Message(
        "assistant",
        content,
        tool_calls=tuple(
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for i, (name, arguments) in enumerate(calls)
        ),
    )


def answer_in(rendered: str) -> str:
    """The last message of the assistant in a rendering."""
    begin = max(rendered.rfind(text) + len(text) for text in ANSWER_BEGINS if text in rendered)
    answer = rendered[begin:].rstrip("\n")
    for end in ENDS:
        answer = answer.removesuffix(end)
    return answer


def test_all_stored_templates_are_expected() -> None:
    assert {name: tool_format_of(source).name for name, source in SOURCES.items()} == FORMAT_OF
    assert tool_format_of("") == GENERIC
    assert tool_format_of("```tool_code\n").name == "tool-code"


@pytest.mark.parametrize("name", ChatTemplate.names())
def test_builtin_templates_know_no_tools(name: str) -> None:
    prompt = tool_prompt_of(ChatTemplate.builtin(name))
    assert (prompt.format, prompt.tools, prompt.calls) == (GENERIC, False, None)


@EVERY_TEMPLATE
def test_a_call_rendered_by_the_template_is_read_back(name: str) -> None:
    prompt = tool_prompt_of(template(name))
    messages, tools = prompt.prepare([Message("user", "Hi"), called(("get_weather", ARGUMENTS))], TOOLS)
    rendered = template(name).render(messages, tools=tools, add_generation_prompt=False)
    message = parse_message(answer_in(rendered), format=prompt.format, tools=TOOLS)
    assert [(call.name, json.loads(call.arguments)) for call in message.tool_calls] == [
        ("get_weather", ARGUMENTS)
    ]
    assert message.content.replace("<think>", "").replace("</think>", "").strip() == ""


@EVERY_TEMPLATE
def test_parallel_calls_are_read_back(name: str) -> None:
    if "meta-llama" in name:
        pytest.skip("the template allows one call in a message")
    prompt = tool_prompt_of(template(name))
    both = called(("get_weather", ARGUMENTS), ("get_weather", {"city": "Bern"}), content="Let me look.")
    messages, tools = prompt.prepare([Message("user", "Hi"), both], TOOLS)
    rendered = template(name).render(messages, tools=tools, add_generation_prompt=False)
    message = parse_message(rendered.rpartition("Hi")[2], format=prompt.format, tools=TOOLS)
    if prompt.format.bare:  # stands after the content
        message = parse_message(
            answer_in(rendered).removeprefix("Let me look.\n"), format=GENERIC, tools=TOOLS
        )
    found = [json.loads(call.arguments) for call in message.tool_calls]
    assert found == [ARGUMENTS, {"city": "Bern"}]


@EVERY_TEMPLATE
def test_tools_and_results_are_rendered_once(name: str) -> None:
    prompt = tool_prompt_of(template(name))
    conversation = [
        Message("user", "Hi"),
        called(("get_weather", ARGUMENTS)),
        Message("tool", "RESULT-1", extra={"tool_call_id": "call_0", "name": "get_weather"}),
        Message("assistant", "It rains."),
        Message("user", "Bye"),
    ]
    if prompt.system:
        conversation.insert(0, Message("system", "SYSTEM-1"))
    messages, tools = prompt.prepare(conversation, TOOLS)
    rendered = template(name).render(messages, tools=tools)
    assert rendered.count("RESULT-1") == 1 and rendered.count("The weather of a city.") == 1
    assert rendered.count("SYSTEM-1") == prompt.system
    assert rendered.count("It rains.") == 1 and "None" not in rendered.replace("None of", "")


def test_what_is_found_out_about_templates() -> None:
    found = {name: tool_prompt_of(template(name)) for name in FORMAT_OF}
    assert found["Qwen-Qwen3-0.6B"].calls == "text" and found["Qwen3-Coder"].calls == "object"
    assert found["meta-llama-Llama-3.2-3B-Instruct"].calls == "object"
    distilled = found["deepseek-ai-DeepSeek-R1-Distill-Llama-8B"]
    assert (
        distilled.null_content and not distilled.mixed and not distilled.tools and distilled.calls is not None
    )
    assert found["HuggingFaceTB-SmolLM3-3B"].calls is None and not found["HuggingFaceTB-SmolLM3-3B"].results
    assert not found["google-gemma-2-2b-it"].system and found["Qwen-Qwen2.5-7B-Instruct"].system


def test_a_template_without_tools() -> None:
    prompt = tool_prompt_of(template("google-gemma-2-2b-it"))
    messages, tools = prompt.prepare(
        [
            Message("user", "Hi"),
            called(("f", {"a": 1}), content="Look:"),
            Message("tool", "1", extra={"tool_call_id": "call_0"}),
            Message("tool", "2", extra={"tool_call_id": "call_1"}),
            Message("user", "Bye"),
        ],
        TOOLS,
    )
    assert tools is None and [message.role for message in messages] == ["user", "assistant", "user"]
    assert messages[0].content.startswith("You can call these tools") and messages[0].content.endswith(
        "\n\nHi"
    )
    assert messages[1] == Message("assistant", 'Look:\n{"name": "f", "arguments": {"a": 1}}')
    results = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>\n\nBye"
    assert messages[2].content == results


def test_a_system_message_is_kept_before_the_tools() -> None:
    prompt = tool_prompt_of(ChatTemplate.builtin("chatml"))
    messages, _ = prompt.prepare([Message("system", "Be brief."), Message("user", "Hi")], TOOLS)
    assert messages[0].content.startswith("Be brief.\n\nYou can call these tools") and len(messages) == 2
    assert '"name": "get_weather"' in messages[0].content
    assert prompt.prepare([Message("user", "Hi")], None) == ([Message("user", "Hi")], None)


def test_ids_get_the_length_that_the_template_asks_for() -> None:
    prompt = tool_prompt_of(template("mistralai-Mistral-Nemo-Instruct-2407"))
    answer = Message("tool", "x", extra={"tool_call_id": "call_0"})
    messages, _ = prompt.prepare([Message("user", "Hi"), called(("f", {})), answer], TOOLS)
    id = messages[1].tool_calls[0]["id"]
    assert len(id) == 9 and id.isalnum() and messages[2].extra["tool_call_id"] == id
    kept = Message("tool", "x", extra={"tool_call_id": "abcDEF123"})
    assert prompt.prepare([kept], None)[0] == [kept]


def test_arguments_that_the_model_broke_are_shown_to_it() -> None:
    broken = Message(
        "assistant", "", tool_calls=({"id": "1", "function": {"name": "f", "arguments": '{"a": 1,'}},)
    )
    for name in ("Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "google-gemma-2-2b-it"):
        messages, _ = tool_prompt_of(template(name)).prepare([Message("user", "Hi"), broken], None)
        assert '"a' in template(name).render(messages).replace("\\", "")


@pytest.mark.parametrize("call", [{}, {"function": {}}, {"function": {"name": 1}}, {"function": "f"}])
def test_what_is_no_call_is_refused(call: dict[str, Any]) -> None:
    prompt = tool_prompt_of(template("Qwen-Qwen3-0.6B"))
    with pytest.raises(EtudeError, match="a tool call has a function"):
        prompt.prepare([Message("assistant", "", tool_calls=(call,))], None)


def test_every_format_describes_itself() -> None:
    for format in (*FORMATS, GENERIC):
        example = format.written([("tool_name", '{"parameter": "value"}')])
        [call] = parse_message(example, format=format).tool_calls
        assert (call.name, json.loads(call.arguments)) == ("tool_name", {"parameter": "value"})
