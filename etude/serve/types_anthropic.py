"""Bodies of /v1/messages and /v1/messages/count_tokens: Anthropic's fields, and llama.cpp's beside them.

Strict as types_openai.py is; what only Anthropic's own service knows (`cache_control`, `metadata`,
`service_tier`) is passed over. A block that a model of text cannot read is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from etude.serve.types_openai import Body, Sampling

READABLE = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "document")


class TextBlock(Body):
    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Body):
    """Thoughts that only Anthropic can read: passed over."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Any]


class PlainText(Body):
    type: Literal["text"]
    data: str


class DocumentBlock(Body):
    """A file of text."""

    type: Literal["document"]
    source: PlainText
    title: str | None = None
    context: str | None = None


def _is_readable(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(kind, str) and kind not in READABLE:
        raise PydanticCustomError(
            "unreadable", "{kind} input is not supported: this server reads text only", {"kind": kind}
        )
    return value


ResultBlock = Annotated[TextBlock | DocumentBlock, Field(discriminator="type")]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Annotated[ResultBlock, BeforeValidator(_is_readable)]] | None = None
    is_error: bool | None = None


Block = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock | DocumentBlock,
    Field(discriminator="type"),
]


class InputMessage(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[Annotated[Block, BeforeValidator(_is_readable)]]


def _is_own_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(kind, str) and kind != "custom":
        raise PydanticCustomError(
            "hosted_tool",
            "tools of type {kind} are known to Anthropic's models only; describe a tool by its input_schema",
            {"kind": kind},
        )
    return value


class AnthropicTool(Body):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = None


class AnyToolChoice(Body):
    """auto: as the model likes; any: it must call one; none: it cannot."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class OneToolChoice(Body):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """budget_tokens: the thoughts are closed after so many. display "omitted": the blocks come without
    their text."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonOutput(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: str | None = None
    format: JsonOutput | None = None


class AnthropicConversation(Body):
    """What both routes take. `model` may be left out, as with llama.cpp; so may messages be empty."""

    model: str | None = None
    messages: list[InputMessage]
    system: str | list[TextBlock] | None = None
    tools: list[Annotated[AnthropicTool, BeforeValidator(_is_own_tool)]] | None = None
    tool_choice: Annotated[AnyToolChoice | OneToolChoice, Field(discriminator="type")] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CountTokensRequest(AnthropicConversation):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(AnthropicConversation, Sampling):
    """POST /v1/messages. max_tokens: Anthropic requires it; here it may be left out."""

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
