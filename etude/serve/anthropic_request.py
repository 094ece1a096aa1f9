"""A request of Anthropic's API → the same as a chat request of OpenAI's, which the rest of the server knows.

system → a system message; tool_use → tool_calls; tool_result → a message of role "tool", where it stands
among the blocks; thinking → reasoning_content. `thinking` and `effort` become what the model's template
understands, and are passed over where it understands nothing of the kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from etude.serve.errors import ApiError
from etude.serve.types_anthropic import (
    AnthropicConversation,
    AnthropicTool,
    Block,
    DocumentBlock,
    InputMessage,
    MessagesRequest,
    OneToolChoice,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from etude.serve.types_openai import (
    ChatMessage,
    ChatRequest,
    Function,
    FunctionCall,
    JsonSchemaFormat,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    Sampling,
    Tool,
    ToolCall,
)

Choice = Literal["none", "auto", "required"] | NamedTool
BILLING = "x-anthropic-billing-header:"
STAMP = re.compile(r"(?<=\bcch=)\w{5}(?=;)")
"""Claude Code's system message begins with a header whose stamp changes with every request: left as it is,
nothing after it would ever be found in the cache (llama.cpp does the same)."""


def chat_request(asked: AnthropicConversation) -> ChatRequest:
    """The request as the chat route would have got it. ApiError 400 for what contradicts itself."""
    choice, parallel = _tool_choice(asked)
    output, thinking = asked.output_config, asked.thinking
    fields: dict[str, Any] = {
        "model": asked.model,
        "messages": [*_system(asked), *(each for one in asked.messages for each in _messages(one))],
        "tools": [_tool(tool) for tool in asked.tools] if asked.tools else None,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "response_format": _response_format(asked),
        "reasoning_effort": output.effort if output else None,
        "chat_template_kwargs": _variables(asked),
        "reasoning_budget_tokens": thinking.budget_tokens if thinking else None,
    }
    if isinstance(asked, MessagesRequest):
        fields |= {name: getattr(asked, name) for name in Sampling.model_fields}
        fields |= {"max_tokens": asked.max_tokens, "stream": asked.stream, "return_progress": asked.stream}
        fields["stop"] = _stops(asked)
    return ChatRequest.model_construct(**fields)


def _system(asked: AnthropicConversation) -> list[ChatMessage]:
    if asked.system is None:
        return []
    texts = [asked.system] if isinstance(asked.system, str) else [block.text for block in asked.system]
    return [ChatMessage(role="system", content="\n".join(map(_without_stamp, texts)))]


def _without_stamp(text: str) -> str:
    return STAMP.sub("fffff", text, count=1) if text.startswith(BILLING) else text


def _messages(message: InputMessage) -> list[ChatMessage]:
    """One message of Anthropic's is several of OpenAI's where it has results of tools."""
    if isinstance(message.content, str):
        return [ChatMessage(role=message.role, content=message.content)]
    found: list[ChatMessage] = []
    own: list[Block] = []
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            found += _message(message.role, own)
            own = []
            found.append(ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=_result(block)))
        else:
            own.append(block)
    return found + _message(message.role, own)


def _message(role: str, blocks: Sequence[Block]) -> list[ChatMessage]:
    if not blocks:
        return []
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
    text = _text([block for block in blocks if isinstance(block, TextBlock | DocumentBlock)])
    thought = "\n".join(thoughts) if thoughts else None
    return [ChatMessage(role=role, content=text, reasoning_content=thought, tool_calls=calls or None)]


def _call(block: ToolUseBlock) -> ToolCall:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments))


def _text(blocks: Sequence[TextBlock | DocumentBlock]) -> str:
    """Blocks stand in lines of their own, as the parts of OpenAI's messages do; a document with its title."""
    texts = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        else:
            texts.append("\n".join(filter(None, (block.title, block.context, block.source.data))))
    return "\n".join(texts)


def _result(block: ToolResultBlock) -> str:
    """What a tool said; that it failed is said in words, unless it says so itself."""
    text = block.content if isinstance(block.content, str) else _text(block.content or ())
    if block.is_error and not text.lower().startswith("error"):
        return f"Error: {text}" if text else "Error"
    return text


def _tool(tool: AnthropicTool) -> Tool:
    function = Function(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return Tool(function=function)


def _tool_choice(asked: AnthropicConversation) -> tuple[Choice | None, bool | None]:
    """(OpenAI's tool_choice, parallel_tool_calls)"""
    choice = asked.tool_choice
    if choice is None:
        return None, None
    if choice.type in ("any", "tool") and not asked.tools:
        raise ApiError(400, f"tool_choice is {choice.type!r}, but there are no tools", param="tool_choice")
    parallel = None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    if isinstance(choice, OneToolChoice):
        return NamedTool(function=NamedFunction(name=choice.name)), parallel
    words: dict[str, Choice] = {"auto": "auto", "any": "required", "none": "none"}
    return words[choice.type], parallel


def _response_format(asked: AnthropicConversation) -> ResponseFormat | None:
    if asked.output_config is None or asked.output_config.format is None:
        return None
    schema = JsonSchemaFormat.model_construct(schema_=asked.output_config.format.schema_)
    return ResponseFormat.model_construct(type="json_schema", json_schema=schema)


def _variables(asked: AnthropicConversation) -> dict[str, Any] | None:
    """Of the template. Without `thinking` the model does as the server was started."""
    given = asked.chat_template_kwargs
    if asked.thinking is None:
        return given
    return {"enable_thinking": asked.thinking.type != "disabled", **(given or {})}


def _stops(asked: MessagesRequest) -> list[str] | None:
    """Anthropic's stop_sequences and llama.cpp's stop."""
    own = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return [*own, *(asked.stop_sequences or ())] or None
