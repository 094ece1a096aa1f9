"""Parts of OpenAI's answers that several routes share: ids, logprobs, why it ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from etude.model.tokenizer import Tokenizer
from etude.records import Finish, TopLogprobs
from etude.serve.generation import Delta
from etude.serve.models import ServedModel

BUILD = version("etude")
LEAST = -3.4028234663852886e38
"""The smallest float32: JSON has no -inf, and this is what llama.cpp writes."""


def new_id(prefix: str) -> str:
    """chatcmpl-… and the like."""
    return f"{prefix}-{secrets.token_urlsafe(24)}"


def new_item_id(prefix: str) -> str:
    """resp_…, msg_… and the like."""
    return f"{prefix}_{secrets.token_hex(24)}"


def fingerprint(model: ServedModel) -> str:
    """Changes with the program and with the weights."""
    return f"b{BUILD}-w{model.engine.weights_version}"


def envelope(object_name: str, prefix: str, model: ServedModel) -> dict[str, Any]:
    """The fields that every object of an answer has."""
    return {
        "id": new_id(prefix),
        "object": object_name,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": fingerprint(model),
    }


def finish_reason(finish: Finish, *, called: bool = False) -> str:
    """OpenAI's word: an answer that was aborted has its length for a reason."""
    if finish in ("eos", "stop"):
        return "tool_calls" if called else "stop"
    return "length"


def token_entries(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    logprobs: Iterable[float],
    tops: Sequence[TopLogprobs] = (),
) -> list[dict[str, Any]]:
    """Entries of a chat's logprobs.content. Control tokens have no text, so that the texts add up to the
    answer's."""
    entries = []
    for at, (token, logprob) in enumerate(zip(token_ids, logprobs, strict=True)):
        entry = token_entry(tokenizer, token, logprob)
        entry["top_logprobs"] = [token_entry(tokenizer, *pair) for pair in tops[at]] if tops else []
        entries.append(entry)
    return entries


def token_entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """One token; `id` is llama.cpp's. Where a character has several tokens, `token` is U+FFFD."""
    raw = b"" if tokenizer.is_control(token) else tokenizer.token_bytes(token)
    return {
        "id": token,
        "token": raw.decode("utf-8", "replace"),
        "bytes": list(raw),
        "logprob": max(logprob, LEAST),
    }


def delta_entries(tokenizer: Tokenizer, delta: Delta) -> list[dict[str, Any]]:
    """Of what a delta brings: the model's own logprobs, as OpenAI and llama.cpp give them."""
    return token_entries(tokenizer, delta.token_ids, delta.raw_logprobs, delta.top_logprobs)
