"""Bodies of /v1/chat/completions and /v1/completions: OpenAI's fields and llama.cpp's.

Types are strict (`"temperature": "0.5"` is an error that names the field) and unknown fields are ignored, as
clients expect that send what only other servers know. Null means the default. Fields that llama.cpp adds to
OpenAI's have its names, here and in its own routes (`Sampling` is shared by all of them).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from etude.serve.body import Body as Body

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = list[TokenId]
Bias = float | Literal[False]
"""False bans a token."""


def _check_biases(biases: dict[str, Any]) -> dict[str, Any]:
    """ValueError for the first value that is no bias."""
    for key, value in biases.items():
        is_number = isinstance(value, int | float) and value is not True
        if not (is_number and math.isfinite(value)):
            raise ValueError(f"the bias of {key[:40]!r} must be a number, or false")
    return biases


Biases = Annotated[
    dict[str, Any],
    AfterValidator(_check_biases),
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"anyOf": [{"type": "number"}, {"const": False}]}}
    ),
]

Prompts = str | list[int | str | list[int | str]]
"""Text, token ids, both mixed, or a list of such prompts."""

MAX_STOPS = 256
"""Of stop strings, each of which is looked for at every token of an answer."""

MAX_LOGPROBS = 20
"""OpenAI's limit of top_logprobs; n_probs of llama.cpp has none."""


class Chain(Body):
    """llama.cpp's sampler chain. What is left out is as the server was started."""

    temperature: Annotated[float, Field(ge=0, le=1e6)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    typical_p: Probability | None = None
    top_n_sigma: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=1e6)] | None = None
    dynatemp_exponent: Positive | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Positive | None = None
    mirostat_eta: Positive | None = None
    samplers: list[str] | str | None = None
    min_keep: Count | None = None


class Repetition(Body):
    """Penalties and DRY."""

    repeat_penalty: Positive | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=1e6)] | None = None
    dry_base: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    dry_sequence_breakers: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None


class AdapterScale(Body):
    """id: llama.cpp's, the place among the adapters; or, of ours, the name."""

    id: Count | None = None
    name: str | None = None
    scale: Annotated[float, Field(ge=-1e3, le=1e3)] = 1.0


class Sampling(Chain, Repetition):
    """Of which model or adapter, how to draw tokens and when to stop; shared by all routes that generate."""

    model: str | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    logit_bias: Biases | list[tuple[int | str, Bias]] | None = None
    n_predict: Annotated[int, Field(ge=-2, lt=2**31)] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    post_sampling_probs: bool | None = None
    lora: list[AdapterScale] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None


class StreamOptions(Body):
    include_usage: bool | None = None


class JsonSchemaFormat(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """schema beside json_object is llama.cpp's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")


class ContentPart(Body):
    type: str
    text: str | None = None


class FunctionCall(Body):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    """One message as OpenAI has it. reasoning_content: what an assistant thought (DeepSeek, llama.cpp);
    `reasoning` is another name of it."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Body):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class Answering(Sampling):
    """What both kinds of completions take. logprobs_mode: raw_logprobs are the model's own,
    processed_logprobs those of the distribution that was sampled from. return_token_ids and the two after it
    are vLLM's. verbose: llama.cpp's word for what helps to find out why, null is as
    the server was started."""

    n: Annotated[int, Field(ge=1, le=2**16)] | None = None
    n_cmpl: Annotated[int, Field(ge=1, le=2**16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=2**16)] | bool | None = None
    timings_per_token: bool | None = None
    cache_prompt: bool | None = None
    verbose: bool | None = None
    user: str | None = None


class ChatRequest(Answering):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=2**16)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_format: Literal["none", "deepseek", "auto"] | None = None
    reasoning_effort: str | None = None
    reasoning_budget_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    thinking_budget_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_progress: bool | None = None


class CompletionRequest(Answering):
    """POST /v1/completions. prompt: text, token ids, both mixed, or a list of such prompts."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=2**16)] | bool | None = None
    suffix: str | None = None
    return_progress: bool | None = None
    best_of: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    response_format: ResponseFormat | None = None
    add_special_tokens: bool | None = None
