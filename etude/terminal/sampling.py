"""Flags of sampling and form -> SamplingParams and Grammar; a flag whose switch is off is an error."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude.records import (
    Dry,
    DynamicTemperature,
    Grammar,
    Mirostat,
    Penalties,
    SamplingParams,
    Xtc,
)
from etude.terminal.answer import Manner
from etude.terminal.escapes import unescape
from etude.terminal.flags import SAMPLER_LETTERS
from etude.terminal.options import Options, UsageError, nearest

# llama.cpp also takes these spellings of its samplers, and any with dashes or without separators
_ALIASES = {
    "temp": "temperature",
    "typ": "typ_p",
    "typical": "typ_p",
    "typicalp": "typ_p",
    "nucleus": "top_p",
}
_NOT_HERE = {"infill": "i", "adaptive_p": "a"}

# values that switch a sampler off: for those that --samplers or --mirostat leave out
_OFF = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical": 1.0, "top_n_sigma": -1.0}

# flags that act through one sampler of the chain: without it in --samplers they would do nothing
_FLAGS_OF = {
    "penalties": ("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"),
    "dry": ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breaker"),
    "top_n_sigma": ("top_n_sigma",),
    "top_k": ("top_k",),
    "typ_p": ("typical",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc": ("xtc_probability", "xtc_threshold"),
    "temperature": ("temp", "dynatemp_range", "dynatemp_exp"),
}
_SAMPLER_OF = {key: name for name, keys in _FLAGS_OF.items() for key in keys}


def sampling_params(options: Options, *, logprobs: int = 0) -> SamplingParams:
    """The SamplingParams that the flags ask for. Without a seed the engine picks one."""
    samplers = _samplers(options)
    mirostat = _mirostat(options)
    active = ("temperature",) if mirostat else samplers
    values: dict[str, Any] = {
        key: options[key] if _SAMPLER_OF[key] in active else off for key, off in _OFF.items()
    }
    return SamplingParams(
        temperature=values["temp"],
        top_k=values["top_k"],
        top_p=values["top_p"],
        min_p=values["min_p"],
        typical_p=values["typical"],
        top_n_sigma=values["top_n_sigma"],
        penalties=_penalties(options),
        dry=_dry(options),
        xtc=_xtc(options),
        mirostat=mirostat,
        dynamic_temperature=_dynamic_temperature(options),
        logit_bias=logit_bias(options["logit_bias"]),
        ignore_eos=options["ignore_eos"],
        samplers=samplers,
        max_tokens=None if options["predict"] < 0 else options["predict"],
        stop=tuple(unescape(text) if options["escape"] else text for text in options["reverse_prompt"]),
        logprobs=logprobs,
        seed=None if options["seed"] == -1 else options["seed"],
    )


def manner_of(
    options: Options, *, n_prompt: int, context: int, seed_offset: int = 0, logprobs: int = 0
) -> Manner:
    """How to answer a prompt of `n_prompt` tokens. A seed that was given moves on by `seed_offset`."""
    params = sampling_params(options, logprobs=logprobs)
    if params.seed is not None:
        params = replace(params, seed=params.seed + seed_offset)
    if options["predict"] == -2:
        params = replace(params, max_tokens=context - n_prompt)
    form = grammar(options)
    if form is not None and options["reasoning_budget"] >= 0:
        raise options.error(
            "reasoning_budget", "works without a grammar only, which leaves no room for thinking"
        )
    return Manner(
        params=params,
        grammar=form,
        special=options["special"],
        budget=options["reasoning_budget"],
        budget_message=options["reasoning_budget_message"],
    )


def grammar(options: Options) -> Grammar | None:
    """The one form that the answer must have, or None."""
    kinds = {
        "grammar": ("gbnf", False),
        "grammar_file": ("gbnf", True),
        "json_schema": ("json_schema", False),
        "json_schema_file": ("json_schema", True),
        "regex": ("regex", False),
        "lark_file": ("lark", True),
    }
    given = [key for key in kinds if options[key] is not None]
    if not given:
        return None
    if len(given) > 1:
        raise options.error(
            given[1], f"an answer has one form, and {options.written[given[0]]} gave it already"
        )
    kind, in_file = kinds[given[0]]
    source = read_text(options, given[0]) if in_file else options[given[0]]
    return Grammar(kind, source)  # type: ignore[arg-type]  # a kind of the table above


def read_text(options: Options, key: str) -> str:
    """The text of the file that a flag names."""
    try:
        return Path(options[key]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise options.error(key, f"cannot read {options[key]!r}: {reason}") from None


def logit_bias(entries: tuple[str, ...]) -> dict[int, float]:
    """'15043+1', '15043-inf' -> {15043: …}.

    >>> logit_bias(("15043+1", "7-inf"))
    {15043: 1.0, 7: -inf}
    """
    biases: dict[int, float] = {}
    for entry in entries:
        match = re.fullmatch(r"(\d{1,9})([+-])(\d+(?:\.\d*)?|\.\d+|inf)", entry.strip())
        if not match:
            raise UsageError(
                f"--logit-bias: got {entry!r}, allowed is ID+BIAS or ID-BIAS, such as 15043+1 or 15043-inf"
            )
        size = math.inf if match[3] == "inf" else float(match[3])
        biases[int(match[1])] = size if match[2] == "+" else -size
    if math.inf in biases.values():
        raise UsageError("--logit-bias: +inf would leave one token only; use a large number such as +100")
    return biases


def _samplers(options: Options) -> tuple[str, ...]:
    if options.given("samplers") and options.given("sampler_seq"):
        raise options.error("sampler_seq", "the chain was given already with --samplers")
    if options.given("sampler_seq"):
        names = tuple(_by_letter(options, letter) for letter in options["sampler_seq"])
    else:
        names = tuple(_by_name(options, name) for name in options["samplers"].split(";") if name.strip())
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise options.error("samplers", f"{twice[0]} stands twice in the chain")
    for name, keys in _FLAGS_OF.items():
        if name not in names:
            options.refuse_without_effect(keys, f"no effect, because the chain of samplers is without {name}")
    return names


def _by_letter(options: Options, letter: str) -> str:
    for name, known in SAMPLER_LETTERS.items():
        if letter == known:
            return name
    allowed = ", ".join(f"{letter} {name}" for name, letter in SAMPLER_LETTERS.items())
    raise options.error("sampler_seq", f"{letter!r} is no sampler; allowed are {allowed}")


def _by_name(options: Options, written: str) -> str:
    name = written.strip().lower().replace("-", "_")
    squeezed = {known.replace("_", ""): known for known in SAMPLER_LETTERS}
    found = name if name in SAMPLER_LETTERS else _ALIASES.get(name) or squeezed.get(name)
    if found:
        return found
    if name in _NOT_HERE:
        raise options.error("samplers", f"there is no sampler {name}; leave it out")
    allowed = ", ".join(SAMPLER_LETTERS)
    raise options.error(
        "samplers", f"{written!r} is no sampler{nearest(name, list(SAMPLER_LETTERS))}; allowed are {allowed}"
    )


def _penalties(options: Options) -> Penalties | None:
    strengths = options["repeat_penalty"], options["frequency_penalty"], options["presence_penalty"]
    if strengths == (1.0, 0.0, 0.0):
        options.refuse_without_effect(
            ("repeat_last_n",),
            "no effect without --repeat-penalty, --presence-penalty or --frequency-penalty",
        )
        return None
    if options["repeat_last_n"] == 0:
        raise options.error("repeat_last_n", "0 would switch the penalties off; leave them out")
    return Penalties(*strengths, last_n=options["repeat_last_n"])


def _dry(options: Options) -> Dry | None:
    if options["dry_multiplier"] == 0:
        options.refuse_without_effect(_FLAGS_OF["dry"][1:], "no effect without --dry-multiplier above 0")
        return None
    if options["dry_penalty_last_n"] == 0:
        raise options.error("dry_penalty_last_n", "0 would switch DRY off; leave it out")
    breakers = options["dry_sequence_breaker"]
    texts = {} if not breakers else {"sequence_breakers": () if breakers[-1] == "none" else breakers}
    return Dry(
        multiplier=options["dry_multiplier"],
        base=options["dry_base"],
        allowed_length=options["dry_allowed_length"],
        last_n=options["dry_penalty_last_n"],
        **texts,
    )


def _xtc(options: Options) -> Xtc | None:
    if options["xtc_probability"] == 0:
        options.refuse_without_effect(("xtc_threshold",), "no effect without --xtc-probability above 0")
        return None
    return Xtc(options["xtc_probability"], options["xtc_threshold"])


def _dynamic_temperature(options: Options) -> DynamicTemperature | None:
    if options["dynatemp_range"] == 0:
        options.refuse_without_effect(("dynatemp_exp",), "no effect without --dynatemp-range above 0")
        return None
    return DynamicTemperature(options["dynatemp_range"], options["dynatemp_exp"])


def _mirostat(options: Options) -> Mirostat | None:
    version = options["mirostat"]
    if version == 0:
        options.refuse_without_effect(("mirostat_lr", "mirostat_ent"), "no effect without --mirostat 1 or 2")
        return None
    chain = [key for name, keys in _FLAGS_OF.items() if name != "temperature" for key in keys]
    text = "no effect with --mirostat, which replaces the chain of samplers"
    options.refuse_without_effect([*chain, "dynatemp_range", "samplers", "sampler_seq"], text)
    return Mirostat(version, tau=options["mirostat_ent"], eta=options["mirostat_lr"])
