"""Bodies of llama.cpp's own routes, under its names, and of /v1/embeddings.

As in types_openai.py types are strict and unknown fields are ignored, with two exceptions that llama.cpp
makes and its clients rely on: a sampler's value outside of its range counts as the nearest inside, and whole
numbers may be written as 40.0.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, model_validator

from etude.serve.types_openai import Body, ChatRequest, Count, Sampling
from etude.serve.types_tokens import ConversationTokens

Milliseconds = Annotated[int, Field(ge=-1, lt=2**62)]
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6), "top_k": (0, 2**31 - 1), "top_p": (0, 1), "min_p": (0, 1), "typical_p": (0, 1),
    "xtc_probability": (0, 1), "xtc_threshold": (0, 1), "mirostat": (0, 2),
}  # fmt: skip
"""Of the samplers that llama.cpp brings into range instead of refusing."""


class PromptObject(Body):
    """{"prompt_string": …}: llama.cpp's form of a prompt with pictures."""

    prompt_string: str | list[int | str]
    multimodal_data: list[str] | None = None


NativePrompts = str | PromptObject | list[int | str | PromptObject | list[int | str]]


class Predicting(Sampling):
    """What /completion and /infill take. id_slot is a wish; cache_prompt, n_cache_reuse and n_discard say how
    llama.cpp treats its slots, and change no answer here."""

    model: str | None = None
    stream: bool | None = None
    n_cmpl: Annotated[int, Field(ge=1, le=2**16)] | None = None
    n: Annotated[int, Field(ge=1, le=2**16)] | None = None
    max_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    n_probs: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    id_slot: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    cache_prompt: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    response_fields: list[str] | None = None
    t_max_predict_ms: Milliseconds | None = None
    n_indent: Count | None = None
    n_keep: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    n_discard: Count | None = None
    n_cache_reuse: Count | None = None
    sse_ping_interval: Annotated[int, Field(ge=-1, lt=2**31)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_range(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        changed: dict[str, Any] = {
            name: _whole(value) for name, value in given.items() if type(value) is float
        }
        if isinstance(given.get("logit_bias"), list):  # a validator that runs before has left JSON behind
            changed["logit_bias"] = [
                tuple(pair) if isinstance(pair, list) else pair for pair in given["logit_bias"]
            ]
        for name, (least, most) in RANGES.items():
            value = changed.get(name, given.get(name))
            if isinstance(value, int | float) and not isinstance(value, bool):
                changed[name] = min(max(value, least), most)
        return {**given, **changed}


def _whole(value: float) -> float | int:
    """40.0 → 40: a number for fields of both kinds."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


class NativeRequest(Predicting):
    """POST /completion. prompt: text, token ids, both mixed, an object, or a list of such prompts."""

    prompt: NativePrompts


class InfillExtra(Body):
    text: str
    filename: str | None = None


class InfillRequest(Predicting):
    """POST /infill: what is between prefix and suffix. prompt: how it begins."""

    input_prefix: str
    input_suffix: str
    input_extra: list[InfillExtra] | None = None
    prompt: str | None = None


class TokenizeRequest(ConversationTokens):
    """POST /tokenize. content: text, or text and ids mixed; or what vLLM has in its place."""

    content: str | list[int | str] | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    model: str | None = None


class DetokenizeRequest(Body):
    """POST /detokenize."""

    tokens: list[int] | None = None
    model: str | None = None


class TemplateRequest(ChatRequest):
    """POST /apply-template: a conversation, as /v1/chat/completions takes it."""


class SlotRequest(Body):
    """POST /slots/N?action=save or restore. filename: a plain name, without folders."""

    filename: str


class EmbeddingContent(Body):
    type: str
    text: str | None = None


class EmbeddingObject(Body):
    """One text to embed, in parts."""

    content: list[EmbeddingContent]


EmbeddingItem = str | PromptObject | EmbeddingObject
EmbeddingInput = EmbeddingItem | list[int | EmbeddingItem | list[int | str]]
"""Text, ids, both mixed, objects, or a list of such."""


class EmbeddingRequest(Body):
    """POST /v1/embeddings, of OpenAI; input takes what llama.cpp's does."""

    input: EmbeddingInput
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    user: str | None = None


class NativeEmbeddingRequest(Body):
    """POST /embedding. input, or content: the texts.

    embd_normalize: -1 not at all, 0 the largest is 32760, 1 taxicab, 2 Euclidean, else that norm.
    """

    input: EmbeddingInput | None = None
    content: NativePrompts | None = None
    embd_normalize: Annotated[int, Field(ge=-1, le=1000)] | None = None
    pooling: Literal["mean", "last", "none"] | None = None
    model: str | None = None


class LoraScale(Body):
    id: Count
    scale: Annotated[float, Field(ge=-1e3, le=1e3)] = 0.0


class LoraScales(RootModel[list[LoraScale]]):
    """POST /lora-adapters: those that requests run with from now on; what is not listed has a scale of 0."""
