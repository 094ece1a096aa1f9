"""Chat templates: the built-in ones equal llama.cpp's; a model's own is found, compiled and rendered."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from etude.model.chat import ChatTemplate, ChatTemplateError, special_texts, template_sources
from etude.model.gguf import GGUFFile
from etude.records import Message

HELLO = [Message("user", "Hello")]
PEERS = Path(__file__).parents[1] / "data" / "peers"
REFERENCES: dict[str, Any] = json.loads(gzip.decompress((PEERS / "builtin_chats.json.gz").read_bytes()))


def chat(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]


@pytest.mark.parametrize("name", sorted({*ChatTemplate.names()} - {"r1-zero"}))
def test_builtin_templates_equal_those_of_llama_cpp(name: str) -> None:
    template = ChatTemplate.builtin(name)
    for turns, prompts in zip(REFERENCES["chats"], REFERENCES["prompts"][name], strict=True):
        for generate, prompt in zip((False, True), prompts, strict=True):
            assert template.render(chat(*turns), add_generation_prompt=generate) == prompt


def test_every_name_of_llama_cpp_that_is_stored_exists() -> None:
    assert set(REFERENCES["prompts"]) | {"r1-zero"} == set(ChatTemplate.names())


def test_the_template_of_deepseek_r1_zero_is_the_papers() -> None:
    assert ChatTemplate.builtin("r1-zero").render(chat(("user", "What is 6 * 7?"))) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with "
        "the answer. The reasoning process and answer are enclosed within <think> </think> and <answer> "
        "</answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here "
        "</answer>. User: What is 6 * 7?. Assistant:"
    )


def test_an_unknown_name_is_refused_with_the_names() -> None:
    with pytest.raises(ChatTemplateError, match=r"'chatlm'\. Names: chatml, .*r1-zero"):
        ChatTemplate.builtin("chatlm")
    with pytest.raises(ChatTemplateError):
        ChatTemplate.builtin("../templates/chatml")


def test_the_real_models(smollm2: Path, gemma3: Path) -> None:
    """SmolLM2 chats, with a system message of its own; Gemma-3-270M is a base model."""
    metadata = GGUFFile.open(smollm2).metadata
    template = ChatTemplate.from_metadata(metadata)
    assert template is not None
    assert template.render(chat(("system", "Be brief."), ("user", "Hi"))) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(HELLO).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert ChatTemplate.from_metadata(GGUFFile.open(gemma3).metadata) is None


def metadata(source: str, **others: str) -> dict[str, Any]:
    return {
        "tokenizer.chat_template": source,
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.chat_template.{name}": text for name, text in others.items()},
    }


def test_special_tokens_are_known_to_the_template() -> None:
    found = metadata("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ pad_token }}")
    template = ChatTemplate.from_metadata(found)
    assert template is not None and template.render(HELLO) == "<s>Hello</s>"
    assert special_texts(found) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_named_templates() -> None:
    found = metadata("D", tool_use="T", rag="R")
    assert template_sources(found) == {"default": "D", "tool_use": "T", "rag": "R"}
    tool_use = ChatTemplate.from_metadata(found, "tool_use")
    assert tool_use is not None and tool_use.source == "T"
    with pytest.raises(ChatTemplateError, match="no chat template 'x'; it has: default, tool_use, rag"):
        ChatTemplate.from_metadata(found, "x")
    with pytest.raises(ChatTemplateError, match="no chat template 'x'; it has: none"):
        ChatTemplate.from_metadata({}, "x")
    assert ChatTemplate.from_metadata({"tokenizer.chat_template": " "}) is None


def render(source: str, messages: list[Message] = HELLO, **variables: Any) -> str:
    return str(ChatTemplate(source).render(messages, **variables))


def test_blocks_are_trimmed_and_loop_controls_work() -> None:
    source = """{% for m in messages %}
    {% if m.role == 'skip' %}
        {% continue %}
    {% endif %}
{{ m.content }}
{% break %}
{% endfor %}
end"""
    assert render(source, chat(("skip", "a"), ("user", "b"), ("user", "c"))) == "b\nend"


def test_json_keeps_characters_and_has_the_options_of_the_hub() -> None:
    assert render('{{ {"é<": [1, none]} | tojson }}') == '{"é<": [1, null]}'
    assert render('{{ {"b": 1, "a": 2} | tojson(indent=1, sort_keys=true) }}') == '{\n "a": 2,\n "b": 1\n}'


def test_the_clock_and_generation_marks() -> None:
    assert len(render("{{ strftime_now('%d %b %Y') }}")) == 11
    assert render("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c") == "abHelloc"


def test_a_message_has_only_the_keys_it_uses() -> None:
    source = "{% for m in messages %}{{ m.keys() | list | sort | join(',') }};{% endfor %}"
    call = {"function": {"name": "f", "arguments": {}}}
    messages = [
        Message("user", "x", extra={"name": "n"}),
        Message("assistant", "y", reasoning_content="r", tool_calls=(call,)),
    ]
    assert render(source, messages) == "content,name,role;content,reasoning_content,role,tool_calls;"


def test_a_template_refuses_in_its_own_words() -> None:
    with pytest.raises(ChatTemplateError, match="Roles must alternate"):
        render("{{ raise_exception('Roles must alternate') }}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}\n{{ m }", "invalid in line 2"),
        ("{% include 'etc/passwd' %}", "failed"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[0].contents.strip() }}", "has no attribute 'contents'"),
        ("{{ nothing.x.y }}", "undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages | shuffle }}", "No filter named 'shuffle'"),
    ],
)
def test_what_fails_is_one_clear_error(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        render(source)


def test_variables_that_the_template_does_not_read_are_refused() -> None:
    template = ChatTemplate("{% if enable_thinking %}T{% endif %}{{ messages[0].content }}")
    assert template.variables == {"enable_thinking"} and not template.takes_tools
    assert template.render(HELLO, enable_thinking=True) == "THello"
    with pytest.raises(ChatTemplateError, match="no variable 'enable_thinkin'; it reads: enable_thinking"):
        template.render(HELLO, enable_thinkin=True)
    with pytest.raises(ChatTemplateError, match="no place for tools"):
        template.render(HELLO, tools=[{"name": "f"}])


def test_tools_reach_the_template() -> None:
    source = "{% if tools is none %}-{% else %}{{ tools[0].name }}{% endif %}"
    assert render(source) == "-" and render(source, tools=[{"name": "f"}]) == "f"


def test_the_tags_of_thoughts_are_the_templates() -> None:
    template = ChatTemplate(
        "{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"
    )
    assert template.tags is not None and template.tags.close == "</think>"
    assert template.opens_thinking(template.render(HELLO))
    assert not template.opens_thinking(template.render(HELLO, add_generation_prompt=False))
    assert ChatTemplate("[/THINK]").tags == ChatTemplate("[THINK][/THINK]").tags != template.tags
    assert ChatTemplate("x").tags is None and not ChatTemplate("x").opens_thinking("<think>")
