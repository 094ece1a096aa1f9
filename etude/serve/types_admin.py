"""Bodies of the routes that change a running server, under vLLM's and prime-rl's names where there are
some."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from etude.serve.types_openai import Body

Version = Annotated[int, Field(ge=1, lt=2**63)]
"""0 is the weights of the file that the server was started with."""


class PauseRequest(Body):
    """POST /pause; the body may be absent, and `mode` may stand in the address (?mode=keep) instead."""

    mode: Literal["abort", "wait", "keep"] | None = None


class WeightsUpdate(Body):
    """POST /update_weights. weight_dir: a plain name in the folder of --weights-dir: a Hugging Face folder
    with safetensors, or a GGUF file. version: None is one more than now. running: what becomes of requests
    that run: they "continue" with the new weights, or the change waits for them, or aborts them."""

    weight_dir: Annotated[str, Field(min_length=1)]
    version: Version | None = None
    model: str | None = None
    running: Literal["continue", "wait", "abort"] = "continue"


class AdapterLoad(Body):
    """POST /v1/load_lora_adapter. lora_path: a plain name in the folder of --lora-dir: a PEFT folder or a
    GGUF adapter. load_inplace false: one that is loaded already is not replaced. version: what answers
    carry."""

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]
    lora_path: Annotated[str, Field(min_length=1)]
    load_inplace: bool | None = None
    version: Version | None = None
    model: str | None = None


class AdapterUnload(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1)]
    model: str | None = None
