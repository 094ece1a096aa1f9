"""Fields of a request → SamplingParams and Grammar, over what the server was started with.

Null and absent fields are the server's defaults. Values that switch something off (`dry_multiplier` 0 beside
a `dry_base`) are no error here as they are on a command line: llama.cpp's clients send all they know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from etude.engine.sampling import MAX_BIAS, MIN_TEMPERATURE
from etude.model.thinking import ThinkingTags
from etude.model.tokenizer import Tokenizer
from etude.model.tool_grammar import response_grammar
from etude.records import (
    DEFAULT_SAMPLERS,
    Dry,
    DynamicTemperature,
    EtudeError,
    Grammar,
    Mirostat,
    Penalties,
    Request,
    SamplingParams,
    Xtc,
)
from etude.serve.models import ServedModel
from etude.serve.types_openai import AdapterScale, Answering, ResponseFormat, Sampling

PLAIN = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "min_keep", "ignore_eos",
)  # fmt: skip
LETTERS = dict(
    e="penalties",
    d="dry",
    s="top_n_sigma",
    k="top_k",
    y="typ_p",
    p="top_p",
    m="min_p",
    x="xtc",
    t="temperature",
)
SAMPLERS = tuple(LETTERS.values())
ALIASES = {
    "temp": "temperature",
    "typ": "typ_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
    "nucleus": "top_p",
}


def params_of(
    asked: Sampling,
    defaults: SamplingParams,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    logprobs: int = 0,
) -> SamplingParams:
    """The parameters of a request. max_tokens: what the route's own field says; `n_predict` goes before it.

    -1 is no limit, of tokens as of the seed. EtudeError for what the engine would not take either.
    """
    given: dict[str, Any] = {name: value for name in PLAIN if (value := getattr(asked, name)) is not None}
    if given.get("top_k", 0) < 0:
        given["top_k"] = 0
    if given.get("top_n_sigma", 1.0) <= 0:
        given["top_n_sigma"] = -1.0
    for name, value in (
        ("seed", _seed(asked.seed)),
        ("stop", _stops(asked.stop)),
        ("samplers", _samplers(asked)),
    ):
        if value is not None:
            given[name] = value
    limit = asked.n_predict if asked.n_predict is not None else max_tokens
    if limit is not None:
        given["max_tokens"] = None if limit < 0 else limit
    if asked.stop_token_ids is not None:
        given["stop_token_ids"] = tuple(asked.stop_token_ids)
    if asked.logit_bias is not None:
        given["logit_bias"] = biases_of(asked.logit_bias, tokenizer)
    params = replace(
        defaults,
        **given,
        penalties=_penalties(asked, defaults.penalties),
        dry=_dry(asked, defaults.dry),
        xtc=_xtc(asked, defaults.xtc),
        dynamic_temperature=_dynamic(asked, defaults.dynamic_temperature),
        mirostat=_mirostat(asked, defaults.mirostat),
        logprobs=logprobs,
    )
    return _without_idle_samplers(params)


OFF: dict[str, tuple[str, Any]] = {
    "top_k": ("top_k", 0), "top_p": ("top_p", 1.0), "min_p": ("min_p", 0.0), "typ_p": ("typical_p", 1.0),
    "top_n_sigma": ("top_n_sigma", -1.0), "penalties": ("penalties", None), "dry": ("dry", None),
    "xtc": ("xtc", None), "temperature": ("temperature", 1.0),
}  # fmt: skip
"""Sampler → its field, and the value that switches it off."""


def _without_idle_samplers(params: SamplingParams) -> SamplingParams:
    """With settings switched off that would have no effect: clients send them, the engine refuses them."""
    greedy = params.temperature < MIN_TEMPERATURE
    if params.mirostat is not None and not greedy:
        idle = [name for name in OFF if name != "temperature"]
        off = {OFF[name][0]: OFF[name][1] for name in idle}
        off |= {"samplers": DEFAULT_SAMPLERS, "dynamic_temperature": None, "min_keep": 0}
        return replace(params, **off)
    off = {field: value for name, (field, value) in OFF.items() if name not in params.samplers}
    if greedy and "temperature" in params.samplers:
        off["temperature"] = 0.0
    if greedy or "temperature" not in params.samplers:
        off["dynamic_temperature"] = None
    params = replace(params, **off, mirostat=None)
    keeps = params.typical_p < 1 or params.top_p < 1 or params.min_p > 0 or params.xtc is not None
    return params if keeps else replace(params, min_keep=0)


def _seed(seed: int | None) -> int | None:
    return None if seed is None or seed == -1 else seed % 2**64


def _stops(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """None without any: the server's own hold."""
    return tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if text) or None


def _samplers(asked: Sampling) -> tuple[str, ...] | None:
    if asked.samplers is None:
        return None
    if isinstance(asked.samplers, str):
        names = [LETTERS.get(letter) for letter in asked.samplers]
    else:
        names = [_sampler(written) for written in asked.samplers]
    known = [name for name in names if name is not None]
    return tuple(dict.fromkeys(known))


def _sampler(written: str) -> str | None:
    """llama.cpp passes over names that it does not know, and over samplers that were not built."""
    name = written.lower().replace("-", "_")
    return name if name in SAMPLERS else ALIASES.get(name)


def biases_of(given: dict[str, Any] | list[tuple[int | str, Any]], tokenizer: Tokenizer) -> dict[int, float]:
    """{"15043": 1, " word": false}, [[15043, 1], [" word", false]] → {id: bias}; false is -inf. Ids that the
    vocabulary has not are passed over."""
    items: Iterable[tuple[int | str, Any]] = given.items() if isinstance(given, dict) else given
    biases: dict[int, float] = {}
    for key, value in items:
        bias = -math.inf if value is False else min(max(float(value), -MAX_BIAS), MAX_BIAS)
        if isinstance(key, int) or key.lstrip("-").isdecimal():
            ids = [int(key)]
        else:
            ids = tokenizer.encode(key, add_special=False)
        biases |= {token: bias for token in ids if 0 <= token < tokenizer.n_vocab}
    return biases


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _penalties(asked: Sampling, default: Penalties | None) -> Penalties | None:
    own = default or Penalties()
    penalties = Penalties(
        _or(asked.repeat_penalty, own.repeat),
        _or(asked.frequency_penalty, own.frequency),
        _or(asked.presence_penalty, own.presence),
        _or(asked.repeat_last_n, own.last_n),
    )
    strengths = penalties.repeat, penalties.frequency, penalties.presence
    return None if strengths == (1.0, 0.0, 0.0) or penalties.last_n == 0 else penalties


def _dry(asked: Sampling, default: Dry | None) -> Dry | None:
    own = default or Dry(multiplier=0.0)
    breakers = asked.dry_sequence_breakers
    dry = Dry(
        _or(asked.dry_multiplier, own.multiplier),
        max(_or(asked.dry_base, own.base), 1.0),
        _or(asked.dry_allowed_length, own.allowed_length),
        _or(asked.dry_penalty_last_n, own.last_n),
        own.sequence_breakers if breakers is None else tuple(breakers),
    )
    return None if dry.multiplier < 1e-6 or dry.last_n == 0 else dry


def _xtc(asked: Sampling, default: Xtc | None) -> Xtc | None:
    own = default or Xtc(0.0)
    xtc = Xtc(_or(asked.xtc_probability, own.probability), _or(asked.xtc_threshold, own.threshold))
    return xtc if xtc.probability > 1e-12 and xtc.threshold <= 0.5 else None  # above it removes nothing


def _dynamic(asked: Sampling, default: DynamicTemperature | None) -> DynamicTemperature | None:
    own = default or DynamicTemperature(0.0)
    dynamic = DynamicTemperature(
        _or(asked.dynatemp_range, own.range), _or(asked.dynatemp_exponent, own.exponent)
    )
    return dynamic if dynamic.range >= 1e-6 else None


def _mirostat(asked: Sampling, default: Mirostat | None) -> Mirostat | None:
    version = _or(asked.mirostat, default.version if default else 0)
    if not version:
        return None
    own = default or Mirostat(version)
    return Mirostat(version, _or(asked.mirostat_tau, own.tau), _or(asked.mirostat_eta, own.eta))


def grammar_of(
    asked: Sampling,
    form: ResponseFormat | None = None,
    *,
    tags: ThinkingTags | None = None,
    opened: bool = False,
    special: Mapping[str, int] | None = None,
    budget: int | None = None,
) -> Grammar | None:
    """The form of the answer, None for any. tags, opened: with `response_format` thoughts may come first,
    which stay free, up to `budget` tokens; special: ids of tags that text cannot spell. EtudeError if two are
    asked for."""
    forms: list[tuple[str, Grammar]] = []
    if asked.grammar:
        forms.append(("grammar", Grammar("gbnf", asked.grammar)))
    if asked.json_schema is not None:
        forms.append(("json_schema", _schema(asked.json_schema)))
    if form is not None and form.type == "json_object":
        if form.schema_ is not None or asked.json_schema is None:
            forms.append(("response_format", _schema(form.schema_)))
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise EtudeError("response_format.json_schema is required where its type is json_schema")
        forms.append(("response_format", _schema(form.json_schema.schema_)))
    if len(forms) > 1:
        raise EtudeError(f"an answer has one form; {' and '.join(name for name, _ in forms)} ask for several")
    if not forms:
        return None
    [(name, grammar)] = forms
    schema = json.loads(grammar.source) if name == "response_format" else None
    if tags is None or not isinstance(schema, dict):
        return grammar
    wanted = {"type": "json_object", "schema": schema}
    return response_grammar(wanted, tags=tags, thinking_open=opened, special_ids=special, budget=budget)


def wants_sampled(asked: Sampling) -> bool:
    """Whether logprobs, of the tokens and of their alternatives, are to be those of the distribution that was
    sampled from: in llama.cpp's words, or in vLLM's."""
    processed = isinstance(asked, Answering) and asked.logprobs_mode == "processed_logprobs"
    return processed or bool(asked.post_sampling_probs)


def engine_request(
    asked: Sampling,
    model: ServedModel,
    ids: tuple[int, ...],
    params: SamplingParams,
    n: int = 1,
    grammar: Grammar | None = None,
    *,
    prompt_logprobs: int | None = None,
) -> Request:
    """The engine's request, with the adapter that was asked for or that the server runs with."""
    adapter, scale = _adapter(asked, model)
    sampled_top = bool(wants_sampled(asked) and params.logprobs)
    priority = asked.priority or 0
    return Request(ids, params, n, adapter, scale, grammar, priority, prompt_logprobs, sampled_top)


def _adapter(asked: Sampling, model: ServedModel) -> tuple[str | None, float]:
    """The one that `model` names, else llama.cpp's `lora`: ids are places in its list of adapters. EtudeError
    for two at once."""
    named = model.adapters.get(asked.model or "")
    if named is not None and asked.lora is None:
        return named.name, named.scale or 1.0
    if asked.lora is None:
        return model.default_adapter()
    chosen = [each for each in asked.lora if each.scale != 0]
    if len(chosen) > 1:
        raise EtudeError("lora: an answer is given with one adapter at a time; give the others a scale of 0")
    return (_lora_name(chosen[0], model), chosen[0].scale) if chosen else (None, 1.0)


def _lora_name(chosen: AdapterScale, model: ServedModel) -> str:
    names = list(model.adapters)
    if (chosen.id is None) == (chosen.name is None):
        raise EtudeError("lora: an adapter is named by its id or by its name")
    if chosen.name is not None and chosen.name in names:
        return chosen.name
    if chosen.id is not None and chosen.id < len(names):
        return names[chosen.id]
    shown = chosen.id if chosen.name is None else repr(chosen.name)
    raise EtudeError(f"lora: there is no adapter {shown}; the server has {', '.join(names) or 'none'}")


def _schema(schema: dict[str, Any] | bool | None) -> Grammar:
    """None and {} are any object, as OpenAI and llama.cpp have it."""
    return Grammar("json_schema", json.dumps({"type": "object"} if schema in (None, {}) else schema))
