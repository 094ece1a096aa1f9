"""A request of OpenAI's responses API → the same as a chat request, which the rest of the server knows.

Items in a row that are the assistant's (what it thought, what it said, its calls) are one message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from etude.serve.errors import ApiError
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
from etude.serve.types_responses import (
    AllowedTools,
    FunctionCallItem,
    FunctionChoice,
    FunctionOutputItem,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
    ResponseConversation,
    ResponsesRequest,
    TextPart,
)

Choice = Literal["none", "auto", "required"] | NamedTool
SAME = ("stream", "timings_per_token", "return_progress", "reasoning_budget_tokens", "user")
LOGPROBS = "message.output_text.logprobs"


def chat_request(asked: ResponseConversation) -> ChatRequest:
    """The request as the chat route would have got it. ApiError 400 for what this server does not do."""
    tools, choice = _tools(asked)
    fields: dict[str, Any] = {
        "model": asked.model,
        "messages": _messages(asked),
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "response_format": _response_format(asked),
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "chat_template_kwargs": asked.chat_template_kwargs,
    }
    if isinstance(asked, ResponsesRequest):
        if asked.top_logprobs or LOGPROBS in (asked.include or ()):
            fields |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
        fields |= {name: getattr(asked, name) for name in (*Sampling.model_fields, *SAME)}
        fields["max_tokens"] = asked.max_output_tokens
    return ChatRequest.model_construct(**fields)


def _messages(asked: ResponseConversation) -> list[ChatMessage]:
    messages = [ChatMessage(role="system", content=asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*messages, ChatMessage(role="user", content=asked.input)]
    said: list[Item] = []  # by the assistant, one after another
    for item in asked.input:
        if isinstance(item, FunctionOutputItem):
            messages += _said(said)
            messages.append(ChatMessage(role="tool", tool_call_id=item.call_id, content=_text(item.output)))
        elif isinstance(item, MessageItem) and item.role != "assistant":
            messages += _said(said)
            messages.append(ChatMessage(role=item.role, content=_text(item.content)))
        else:
            if said and isinstance(item, ReasoningItem) and not isinstance(said[-1], ReasoningItem):
                messages += _said(said)  # thoughts after something else are those of a new message
            said.append(item)
    return messages + _said(said)


def _said(items: list[Item]) -> list[ChatMessage]:
    """One message of what the assistant thought, said and called; the items are taken."""
    if not items:
        return []
    thoughts = [
        _text(item.content or item.summary or []) for item in items if isinstance(item, ReasoningItem)
    ]
    texts = [_text(item.content) for item in items if isinstance(item, MessageItem)]
    calls = [
        ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
        for item in items
        if isinstance(item, FunctionCallItem)
    ]
    items.clear()
    return [
        ChatMessage(
            role="assistant",
            content="\n".join(filter(None, texts)),
            reasoning_content="\n".join(filter(None, thoughts)) or None,
            tool_calls=calls or None,
        )
    ]


def _text(content: str | Sequence[Part]) -> str:
    """Parts stand in lines of their own, as those of chat messages do."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _tools(asked: ResponseConversation) -> tuple[list[Tool], Choice | None]:
    """(functions that may be called, OpenAI's tool_choice of chat)"""
    choice = asked.tool_choice
    offered = [tool for tool in asked.tools or () if tool.type == "function"]
    if isinstance(choice, AllowedTools):
        names = {tool.name for tool in choice.tools if tool.type == "function"}
        offered = [tool for tool in offered if tool.name in names]
    tools = [
        Tool(
            function=Function(
                name=_name(tool.name, at),
                description=tool.description,
                parameters=tool.parameters,
                strict=tool.strict,
            )
        )
        for at, tool in enumerate(offered)
    ]
    mode = choice.mode if isinstance(choice, AllowedTools) else choice
    if not tools and (mode == "required" or isinstance(mode, FunctionChoice)):
        raise ApiError(400, "tool_choice asks for a call, but there are no functions", param="tool_choice")
    if isinstance(mode, FunctionChoice):
        return tools, NamedTool(function=NamedFunction(name=mode.name))
    return tools, mode


def _name(name: str | None, at: int) -> str:
    if not name:
        raise ApiError(400, f"'tools[{at}].name' is required", param=f"tools[{at}].name")
    return name


def _response_format(asked: ResponseConversation) -> ResponseFormat | None:
    form = asked.text.format if asked.text else None
    if form is None:
        return None
    inner = JsonSchemaFormat.model_construct(name=form.name, schema_=form.schema_, strict=form.strict)
    if form.type == "json_schema" and form.schema_ is None:
        raise ApiError(400, "'text.format.schema' is required", param="text.format.schema")
    return ResponseFormat.model_construct(
        type=form.type, json_schema=inner if form.type == "json_schema" else None
    )
