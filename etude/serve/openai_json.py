"""Parts of OpenAI's answers that several routes share: ids, logprobs, why it ended."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from etude.model.tokenizer import Tokenizer
from etude.records import Completion, Finish, TopLogprobs
from etude.serve.generation import Delta
from etude.serve.models import ServedModel
from etude.serve.sampling import wants_sampled
from etude.serve.types_openai import Answering

BUILD = version("etude")
MAX_PROMPT_LOGPROBS = 1000
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
    """OpenAI's word; vLLM's where the server ended it, as a pause or new weights may."""
    if finish == "abort":
        return "abort"
    if finish in ("eos", "stop"):
        return "tool_calls" if called else "stop"
    return "length"


def version_spans(completion: Completion) -> list[dict[str, Any]]:
    """Which weights drew which of its tokens, in vLLM's form.

    >>> version_spans(Completion("", (5, 6, 7), (), (), (), "stop", 2, 0, new_weights=((1, 3),)))
    [{'version': '2', 'start': 0, 'end': 1}, {'version': '3', 'start': 1, 'end': 3}]
    """
    starts = [(0, completion.weights_version), *completion.new_weights]
    ends = [start for start, _ in completion.new_weights] + [len(completion.token_ids)]
    return [
        {"version": str(version), "start": start, "end": end}
        for (start, version), end in zip(starts, ends, strict=True)
    ]


def token_entries(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    logprobs: Iterable[float],
    tops: Sequence[TopLogprobs] = (),
    by_id: bool = False,
) -> list[dict[str, Any]]:
    """Entries of a chat's logprobs.content. Control tokens have no text, so that the texts add up to the
    answer's. by_id: `token` is "token_id:5", as vLLM has it, instead of a text that may be that of
    several."""
    entries = []
    for at, (token, logprob) in enumerate(zip(token_ids, logprobs, strict=True)):
        entry = token_entry(tokenizer, token, logprob)
        entry["top_logprobs"] = [token_entry(tokenizer, *pair) for pair in tops[at]] if tops else []
        if by_id:
            for each in (entry, *entry["top_logprobs"]):
                each["token"] = token_by_id(each["id"])
        entries.append(entry)
    return entries


def token_by_id(token: int) -> str:
    """How vLLM writes a token that is to be told by its id."""
    return f"token_id:{token}"


def token_entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """One token; `id` is llama.cpp's. Where a character has several tokens, `token` is U+FFFD."""
    raw = b"" if tokenizer.is_control(token) else tokenizer.token_bytes(token)
    return {
        "id": token,
        "token": raw.decode("utf-8", "replace"),
        "bytes": list(raw),
        "logprob": max(logprob, LEAST),
    }


def logprobs_of(asked: Answering, drawn: Completion | Delta) -> Sequence[float]:
    """The model's own logprobs, as OpenAI and llama.cpp give them; or those that were sampled from."""
    return drawn.logprobs if wants_sampled(asked) else drawn.raw_logprobs


def as_probabilities(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of tokens with llama.cpp's `prob` and `top_probs` in place of logprobs.

    >>> as_probabilities([{"id": 5, "logprob": 0.0, "top_logprobs": [{"id": 5, "logprob": 0.0}]}])
    [{'id': 5, 'prob': 1.0, 'top_probs': [{'id': 5, 'prob': 1.0}]}]
    """
    found = []
    for entry in entries:
        kept = {key: value for key, value in entry.items() if key not in ("logprob", "top_logprobs")}
        kept["prob"] = math.exp(entry["logprob"])
        if "top_logprobs" in entry:
            kept["top_probs"] = as_probabilities(entry["top_logprobs"])
        found.append(kept)
    return found


def drawn_logprobs(tokenizer: Tokenizer, asked: Answering, drawn: Completion | Delta) -> dict[str, Any]:
    """The logprobs object of a chat's choice."""
    by_id = bool(asked.return_tokens_as_token_ids)
    logprobs = logprobs_of(asked, drawn)
    entries = token_entries(tokenizer, drawn.token_ids, logprobs, drawn.top_logprobs, by_id)
    if asked.post_sampling_probs:
        entries = as_probabilities(entries)
    return {"content": entries, "refusal": None}


def drawn_ids(token_ids: Sequence[int], completion: Completion | None) -> dict[str, Any]:
    """vLLM's fields of a choice with `return_token_ids`; at its end with the weights that drew each."""
    fields: dict[str, Any] = {"token_ids": list(token_ids)}
    return fields if completion is None else fields | {"weight_versions": version_spans(completion)}


def prompt_rows(
    tokenizer: Tokenizer, ids: Sequence[int], completion: Completion, n_top: int
) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: for each token but the first, {id: {logprob, decoded_token}} of it and
    others."""
    assert completion.prompt_logprobs is not None
    rows: list[dict[str, Any] | None] = []
    tops = completion.prompt_top_logprobs or ((),) * len(ids)
    for token, logprob, top in zip(ids, completion.prompt_logprobs, tops, strict=True):
        if logprob is None:
            rows.append(None)
            continue
        pairs = {token: logprob} | dict(top[:n_top])
        rows.append(
            {
                str(each): {"logprob": max(value, LEAST), "decoded_token": tokenizer.token_text(each)}
                for each, value in pairs.items()
            }
        )
    return rows
