"""Bodies of /v1/responses and /v1/responses/input_tokens: OpenAI's fields, and llama.cpp's beside them.

Strict as types_openai.py is. The server keeps no responses, so that what relies on kept ones is refused:
`store`, `previous_response_id`, `conversation`, `background`, items that refer to others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from etude.serve.types_openai import MAX_LOGPROBS, Body, Sampling, StreamOptions

TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")
ITEMS = ("message", "function_call", "function_call_output", "reasoning")


class TextPart(Body):
    """Text, whoever said it."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: str


def _is_text(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(kind, str) and kind not in TEXTS:
        raise PydanticCustomError(
            "unreadable", "{kind} is not supported: this server reads text only", {"kind": kind}
        )
    return value


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type"), BeforeValidator(_is_text)]


class MessageItem(Body):
    """Said by anyone; `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class FunctionCallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(min_length=1)]
    arguments: str


class FunctionOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]


class ReasoningItem(Body):
    """What a model thought: `content`, or a summary of it. Encrypted thoughts are passed over."""

    type: Literal["reasoning"]
    summary: list[Part] | None = None
    content: list[Part] | None = None


def _kind(value: Any) -> str:
    given = value.get("type", "message") if isinstance(value, Mapping) else getattr(value, "type", None)
    return given if isinstance(given, str) else "message"


def _is_item(value: Any) -> Any:
    kind = _kind(value)
    if kind == "item_reference":
        raise PydanticCustomError(
            "reference", "this server keeps no items: send the item itself instead of a reference"
        )
    if kind not in ITEMS:
        raise PydanticCustomError("item", "items of type {kind} are not supported", {"kind": kind})
    return value


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
    BeforeValidator(_is_item),
]


class OfferedTool(Body):
    """A function. Tools of other types are what OpenAI runs itself: agents offer them to every server, and a
    model here is not told of them."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Body):
    type: Literal["function"]
    name: str


class AllowedTool(Body):
    type: str
    name: str | None = None


class AllowedTools(Body):
    """Of the tools, only these."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


class TextForm(Body):
    """text.format: as response_format, but flat."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: TextForm | None = None
    verbosity: str | None = None


class ReasoningConfig(Body):
    """effort: given to the template, if it reads one; "none" switches thinking off. Thoughts are given out as
    they are: there is no summary of them."""

    effort: str | None = None
    summary: str | None = None


def _only(allowed: tuple[Any, ...], text: str) -> BeforeValidator:
    """Refuses with `text` what is none of these."""

    def check(value: Any) -> Any:
        if not any(value is each or value == each for each in allowed):
            raise PydanticCustomError("not_here", "{text}", {"text": text})
        return value

    return BeforeValidator(check)


NOT_KEPT = _only((None,), "this server keeps no responses; send the conversation so far as input")
NOT_CUT = _only((None, "disabled"), "input that is too long is refused, not cut")
NOT_STORED = _only(
    (None, False), "this server keeps no responses; leave it out, and send the conversation as input"
)
NOT_AWAY = _only((None, False), "an answer comes while its client waits for it")
NO_PROMPTS = _only((None,), "this server keeps no prompts; use instructions and input")


class ResponseConversation(Body):
    """What both routes take. input: text, or items."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Annotated[Literal["disabled"] | None, NOT_CUT] = None
    previous_response_id: Annotated[None, NOT_KEPT] = None
    conversation: Annotated[None, NOT_KEPT] = None
    chat_template_kwargs: dict[str, Any] | None = None


class InputTokensRequest(ResponseConversation):
    """POST /v1/responses/input_tokens."""


class ResponsesRequest(ResponseConversation, Sampling):
    """POST /v1/responses. include: what is not known is passed over. top_logprobs: alternatives per token;
    with any, logprobs of the text are given whether or not `include` names them."""

    max_output_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: Annotated[Literal[False] | None, NOT_STORED] = None
    background: Annotated[Literal[False] | None, NOT_AWAY] = None
    prompt: Annotated[None, NO_PROMPTS] = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    reasoning_budget_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
