"""How answers are drawn, as llama.cpp writes it: in /completion, /props and /slots.

What is shown is what the engine was told: a sampler that is switched off has the value that switches it off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etude.model.tokenizer import Tokenizer
from etude.records import Dry, DynamicTemperature, Mirostat, Penalties, Request, SamplingParams, Xtc
from etude.serve.models import ServedModel

RANDOM_SEED = 2**32 - 1
"""LLAMA_DEFAULT_SEED: a new one for each answer."""

LONG = (
    "dry_sequence_breakers", "stop", "logit_bias", "grammar", "grammar_lazy", "grammar_triggers",
    "preserved_tokens",
)  # fmt: skip
"""What /props and /slots leave out."""


@dataclass(frozen=True)
class Shown:
    """What a request asked for besides its sampling."""

    stream: bool = False
    n_probs: int = 0
    timings_per_token: bool = False
    post_sampling_probs: bool = False
    n_keep: int = 0
    n_discard: int = 0
    lora: tuple[tuple[int, float], ...] = ()
    reasoning_format: str = "none"


def generation_settings(
    params: SamplingParams, tokenizer: Tokenizer, shown: Shown, grammar: str = ""
) -> dict[str, Any]:
    """All of them. A bias of -inf is null, which is what llama.cpp's JSON makes of it."""
    dry = params.dry or Dry(multiplier=0.0)
    n_predict = -1 if params.max_tokens is None else params.max_tokens
    return {
        **_chain(params),
        **_repetition(params),
        "dry_sequence_breakers": list(dry.sequence_breakers),
        "stop": list(params.stop),
        "max_tokens": n_predict,
        "n_predict": n_predict,
        "n_keep": shown.n_keep,
        "n_discard": shown.n_discard,
        "ignore_eos": params.ignore_eos,
        "stream": shown.stream,
        "logit_bias": _biases(params, tokenizer),
        "n_probs": shown.n_probs,
        "min_keep": params.min_keep,
        "grammar": grammar,
        "grammar_lazy": False,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "chat_format": "Content-only",
        "reasoning_format": shown.reasoning_format,
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": list(params.samplers),
        "speculative.types": "none",
        "timings_per_token": shown.timings_per_token,
        "post_sampling_probs": shown.post_sampling_probs,
        "backend_sampling": False,
        "lora": [{"id": at, "scale": scale} for at, scale in shown.lora],
    }


def brief_settings(params: SamplingParams, tokenizer: Tokenizer, shown: Shown) -> dict[str, Any]:
    """Those of /props and /slots."""
    settings = generation_settings(params, tokenizer, shown)
    return {name: value for name, value in settings.items() if name not in LONG}


def settings_of_request(request: Request, model: ServedModel, shown: Shown) -> dict[str, Any]:
    """Those of a request that runs."""
    grammar = request.grammar.source if request.grammar is not None else ""
    return generation_settings(request.params, model.engine.tokenizer, shown, grammar)


def lora_of(request: Request, model: ServedModel) -> tuple[tuple[int, float], ...]:
    """(place, scale) of the adapter that a request runs with."""
    places = {name: at for at, name in enumerate(model.adapters)}
    known = request.adapter is not None and request.adapter in places
    return ((places[str(request.adapter)], request.adapter_scale),) if known else ()


def kept_tokens(model: ServedModel) -> int:
    """n_keep: of a prompt's tokens, how many a context shift keeps besides BOS; -1: all."""
    keep = model.engine.shift_keep
    return keep - model.engine.tokenizer.add_bos if keep is not None and keep > 0 else keep or 0


def sampler_settings(params: SamplingParams) -> dict[str, Any]:
    """Those that need no model: what the samplers do, and in which order."""
    return {**_chain(params), **_repetition(params), "samplers": list(params.samplers)}


def _chain(params: SamplingParams) -> dict[str, Any]:
    dynamic = params.dynamic_temperature or DynamicTemperature(0.0)
    xtc = params.xtc or Xtc(0.0)
    mirostat = params.mirostat
    off = mirostat or Mirostat(1)
    return {
        "seed": RANDOM_SEED if params.seed is None else params.seed,
        "temperature": params.temperature,
        "dynatemp_range": dynamic.range,
        "dynatemp_exponent": dynamic.exponent,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_n_sigma": params.top_n_sigma,
        "xtc_probability": xtc.probability,
        "xtc_threshold": xtc.threshold,
        "typical_p": params.typical_p,
        "mirostat": 0 if mirostat is None else mirostat.version,
        "mirostat_tau": off.tau,
        "mirostat_eta": off.eta,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
    }


def _repetition(params: SamplingParams) -> dict[str, Any]:
    penalties = params.penalties or Penalties()
    dry = params.dry or Dry(multiplier=0.0)
    return {
        "repeat_last_n": penalties.last_n,
        "repeat_penalty": penalties.repeat,
        "presence_penalty": penalties.presence,
        "frequency_penalty": penalties.frequency,
        "dry_multiplier": dry.multiplier,
        "dry_base": dry.base,
        "dry_allowed_length": dry.allowed_length,
        "dry_penalty_last_n": dry.last_n,
    }


def _biases(params: SamplingParams, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    biases: Mapping[int, float] = params.logit_bias
    if params.ignore_eos:
        biases = {**biases, **dict.fromkeys(sorted(tokenizer.eog_ids), -math.inf)}
    return [{"bias": bias if math.isfinite(bias) else None, "token": token} for token, bias in biases.items()]
