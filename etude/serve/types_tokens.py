"""What trainers send and get at token level: the forms of vLLM and prime-rl, which verifiers reads.

The classes of answers are only for the OpenAPI document; a test holds what is answered against them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from etude.serve.types_openai import Body, ChatMessage, ChatRequest, Sampling, StreamOptions, TokenId, Tool


class TokensChatRequest(ChatRequest):
    """POST /v1/chat/completions/tokens: a chat request, and the prompt as its client has rendered it."""

    tokens: Annotated[list[TokenId], Field(min_length=1)]


class GenerateParams(Sampling):
    """vLLM's SamplingParams, and the names of llama.cpp beside them. What is left out does nothing:
    temperature 1 and the whole vocabulary, whatever the server's own defaults are. logprobs: alternatives per
    token."""

    n: Annotated[int, Field(ge=1, le=2**16)] | None = None
    max_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=1000)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_tokens: int | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: dict[str, Any] | None = None
    logits_processors: list[Any] | None = None


class GenerateRequest(Body):
    """POST /inference/v1/generate: token ids in, token ids out. priority: lower goes first, as in vLLM.
    cache_salt changes nothing: what is cached is told apart by weights and adapter."""

    token_ids: Annotated[list[TokenId], Field(min_length=1)]
    sampling_params: GenerateParams = Field(default_factory=GenerateParams)
    request_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = None
    priority: Annotated[int, Field(gt=-(2**31), lt=2**31)] | None = None
    features: dict[str, Any] | None = None
    content_parts: list[Any] | None = None


class ConversationTokens(Body):
    """vLLM's form of POST /tokenize: messages, or a prompt."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Said(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TopToken(Said):
    """A token that could have been drawn. logprob: the model's own."""

    token: str
    token_id: int
    logprob: float


class DrawnToken(Said):
    """token: "token_id:5". logprob: of the distribution that was sampled from, which a trainer's ratio needs;
    raw_logprob: the model's own, at temperature 1."""

    token: str
    token_id: int
    logprob: float
    raw_logprob: float
    top_logprobs: list[TopToken]


class DrawnTokens(Said):
    content: list[DrawnToken]


class WeightsSpan(Said):
    """Tokens start to end, the latter not included, were drawn by this version of the weights."""

    version: str
    start: int
    end: int


class GeneratedChoice(Said):
    """finish_reason: stop, length, or abort. weight_versions: at its end."""

    index: int
    token_ids: list[int]
    logprobs: DrawnTokens | None
    finish_reason: Literal["stop", "length", "abort"] | None
    weight_versions: list[WeightsSpan] | None = None


class Generated(Said):
    """Of POST /inference/v1/generate; events of a stream have the same form, piece by piece."""

    request_id: str
    created: int
    model: str
    choices: list[GeneratedChoice]
    output_mode: Literal["tokens"] = "tokens"
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    weights_versions: list[int] | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
