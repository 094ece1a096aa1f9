"""The functions a request offers: how the template is told, what form a call must have, how it is read.

What a template can do with tools is found by trying it (model/tool_prompt.py), once per model. A grammar
holds the reply to a call where one is required, or named; with "auto" only where a function is `strict` or
calls may not be parallel: free text needs none, and is then not slowed down by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etude.model.thinking import ThinkingTags
from etude.model.tokenizer import Tokenizer
from etude.model.tool_formats import ToolFormat
from etude.model.tool_grammar import thought_grammar, tool_grammar
from etude.records import EtudeError, Grammar, Message
from etude.serve.models import ServedModel
from etude.serve.types_openai import ChatRequest, NamedTool

NO_TOOLS: list[dict[str, Any]] = []


def offered(asked: ChatRequest) -> list[dict[str, Any]]:
    """The tools that a reply may call, as OpenAI describes them."""
    if not asked.tools or asked.tool_choice == "none":
        return NO_TOOLS
    return [tool.model_dump(exclude_none=True) for tool in asked.tools]


def prepared(
    model: ServedModel, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[Sequence[Message], Sequence[Mapping[str, Any]] | None]:
    """Messages and tools as the model's template renders them."""
    if not tools and not any(message.tool_calls or message.role == "tool" for message in messages):
        return messages, None
    return model.tool_prompt.prepare(messages, tools)


def call_grammar(
    asked: ChatRequest,
    model: ServedModel,
    tools: Sequence[Mapping[str, Any]],
    opened: bool,
    budget: int | None = None,
) -> Grammar | None:
    """What the reply is held to, None: nothing. budget: most tokens of thoughts. EtudeError for a tool_choice
    that names none of the tools."""
    if not tools:
        return None
    choice = asked.tool_choice or "auto"
    parallel = asked.parallel_tool_calls is not False
    strict = any(tool["function"].get("strict") for tool in tools)
    if choice == "auto" and parallel and not strict:
        return None
    tags = model.own_tags
    return tool_grammar(
        tools,
        model.tool_prompt.format,
        choice=choice.function.name if isinstance(choice, NamedTool) else choice,
        parallel=parallel,
        tags=tags,
        thinking_open=opened,
        special_ids=special_ids(model.engine.tokenizer, model.tool_prompt.format, tags),
        budget=budget,
    )


def thought_budget(asked: ChatRequest, model: ServedModel) -> int | None:
    """Most tokens of thoughts, None: no limit, or a model that has none. EtudeError beside a grammar of the
    client's own, which holds the thoughts too."""
    names = ("reasoning_budget_tokens", "thinking_budget_tokens")  # llama.cpp has both
    budget = next((value for name in names if (value := getattr(asked, name)) is not None), -1)
    if budget < 0 or model.own_tags is None:
        return None
    if asked.grammar or asked.json_schema is not None:
        raise EtudeError("a budget of thoughts has no effect beside a grammar or json_schema: leave one out")
    return budget


def free_grammar(
    model: ServedModel, tools: Sequence[Mapping[str, Any]], opened: bool, budget: int | None
) -> Grammar | None:
    """What closes the thoughts after `budget` tokens, and leaves all else free."""
    if budget is None or model.own_tags is None:
        return None
    format = model.tool_prompt.format if tools else None
    ids = special_ids(model.engine.tokenizer, format, model.own_tags)
    return thought_grammar(budget, model.own_tags, thinking_open=opened, special_ids=ids)


def special_ids(tokenizer: Tokenizer, format: ToolFormat | None, tags: ThinkingTags | None) -> dict[str, int]:
    """The tags that are tokens which plain text cannot spell: control tokens, and for llguidance every added
    token that looks like a tag."""
    texts = [text for pair in format.tags for text in pair] if format else []
    if format:
        texts += [format.call_open, format.call_close, format.before_name, format.after_name, format.id_mark]
    texts += [tags.open, tags.close] if tags else []
    found: dict[str, int] = {}
    for text in filter(None, (each.strip() for each in texts)):
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        looks_special = text.startswith("<") and text.endswith(">")
        if len(ids) == 1 and (looks_special or tokenizer.is_control(ids[0])):
            found[text] = ids[0]
    return found
