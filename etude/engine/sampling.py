"""SamplingParams -> native samplers: every value is checked, and a setting without effect is an error.

The chain itself is native (kernels/sampler.h; its specification is kernels/reference_sampler.py). Here is
what it needs of a vocabulary: end-of-generation ids for `ignore_eos`, token sequences of DRY's breakers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from etude.kernels._native import Breakers, Sampler
from etude.records import DEFAULT_SAMPLERS, Dry, EtudeError, SamplingParams

MAX_TEMPERATURE, MIN_TEMPERATURE = 1e6, 1e-6
MAX_BIAS = 1e6
MAX_BREAKER_BYTES, MAX_BREAKER_TAIL = 40, 20  # llama.cpp's; they bound the search for breakers


class Vocabulary(Protocol):
    """What samplers need of a tokenizer."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def eog_ids(self) -> frozenset[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...


class SamplerFactory:
    """Makes the native sampler of each completion. n_vocab: logits of the model, which may be more than the
    tokenizer's tokens. Any thread may call it.
    """

    def __init__(self, vocabulary: Vocabulary, n_vocab: int) -> None:
        self._vocabulary = vocabulary
        self._n_vocab = n_vocab
        self._breakers: dict[tuple[str, ...], Breakers] = {}
        self._latest: tuple[SamplingParams, dict[str, Any]] | None = None

    def __call__(
        self, params: SamplingParams, seed: int, index: int, prompt_ids: NDArray[np.int32]
    ) -> Sampler:
        """The sampler of completion `index`, having seen the prompt. EtudeError: a parameter is wrong."""
        latest = self._latest
        if latest is None or latest[0] is not params:  # the completions of a request share their params
            check_params(params, self._n_vocab, self._vocabulary.eog_ids)
            latest = self._latest = params, self._chain(params)
        sampler = Sampler(self._n_vocab, seed, index, **latest[1])
        if sampler.reads_history:
            sampler.accept_prompt(prompt_ids)
        return sampler

    def _chain(self, params: SamplingParams) -> dict[str, Any]:
        """Checked parameters under the native names."""
        bias = {token_id: float(value) for token_id, value in params.logit_bias.items()}
        if params.ignore_eos:
            bias |= dict.fromkeys(self._vocabulary.eog_ids, -math.inf)
        chain: dict[str, Any] = {
            "samplers": params.samplers,
            "temperature": params.temperature,
            "top_k": min(params.top_k, self._n_vocab),
            "top_p": params.top_p,
            "min_p": params.min_p,
            "typical_p": params.typical_p,
            "top_n_sigma": params.top_n_sigma,
            "min_keep": min(params.min_keep, self._n_vocab),
            "logit_bias": sorted(bias.items()),
        }
        if params.dry is not None:
            chain["dry_breakers"] = self._dry_breakers(params.dry.sequence_breakers)
        return chain | _settings_of_records(params)

    def _dry_breakers(self, texts: tuple[str, ...]) -> Breakers:
        if texts not in self._breakers:
            sequences = (sequence for text in texts for sequence in breaker_sequences(self._vocabulary, text))
            self._breakers[texts] = Breakers(list(sequences))
        return self._breakers[texts]


def _settings_of_records(params: SamplingParams) -> dict[str, float]:
    """The parameters that come in records of their own, under the native names."""
    settings: dict[str, float] = {}
    if (penalties := params.penalties) is not None:
        settings["repeat_penalty"] = penalties.repeat
        settings["frequency_penalty"] = penalties.frequency
        settings["presence_penalty"] = penalties.presence
        settings["penalty_last_n"] = penalties.last_n
    if (dry := params.dry) is not None:
        settings["dry_multiplier"] = dry.multiplier
        settings["dry_base"] = dry.base
        settings["dry_allowed_length"] = dry.allowed_length
        settings["dry_last_n"] = dry.last_n
    if (xtc := params.xtc) is not None:
        settings["xtc_probability"] = xtc.probability
        settings["xtc_threshold"] = xtc.threshold
    if (dynamic := params.dynamic_temperature) is not None:
        settings["dynamic_range"] = dynamic.range
        settings["dynamic_exponent"] = dynamic.exponent
    if (mirostat := params.mirostat) is not None:
        settings["mirostat"] = mirostat.version
        settings["mirostat_tau"] = mirostat.tau
        settings["mirostat_eta"] = mirostat.eta
    return settings


def breaker_sequences(vocabulary: Vocabulary, breaker: str) -> Iterator[list[int]]:
    """Token sequences that write `breaker`: each token that contains it; each that ends as it begins, and the
    tokens of the rest.

    As llama.cpp finds them (get_overlapping_token_sequences). Reads the whole vocabulary.
    """
    wanted = breaker.encode()
    for token_id in range(vocabulary.n_vocab):
        text = vocabulary.token_bytes(token_id)
        if wanted in text:
            yield [token_id]
            continue
        tails = set()
        for length in range(1, min(len(wanted), len(text) + 1)):
            if text.endswith(wanted[:length]):
                rest = wanted[length:].decode("utf-8", "ignore")
                tails.add(tuple(vocabulary.encode(rest, add_special=False)[:MAX_BREAKER_TAIL]))
        yield from ([token_id, *tail] for tail in sorted(tails))


def check_params(params: SamplingParams, n_vocab: int, eog_ids: frozenset[int]) -> None:
    """EtudeError naming the first parameter that is out of range or would have no effect."""
    _check_numbers(params)
    _check_records(params)
    _check_order(params.samplers)
    _check_effects(params)
    _check_bias(params, n_vocab, eog_ids)
    for text in params.stop:
        if not text:
            raise EtudeError("stop has an empty text, which would end every answer at once; leave it out")


def _number(name: str, value: object, least: float, most: float, allowed: str) -> None:
    """EtudeError unless `value` is a number in [least, most]."""
    if not isinstance(value, Real) or not least <= float(value) <= most:
        raise EtudeError(f"{name} is {value!r}; it must be {allowed}")


def _whole(name: str, value: object, least: int, allowed: str) -> None:
    if not isinstance(value, Integral) or not least <= int(value) < 2**31:
        raise EtudeError(f"{name} is {value!r}; it must be {allowed}")


def _check_numbers(params: SamplingParams) -> None:
    if params.temperature != 0:
        allowed = f"0 (greedy) or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}"
        _number("temperature", params.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE, allowed)
    _whole("top_k", params.top_k, 0, "a whole number of tokens, 0 for all")
    _number("top_p", params.top_p, 0, 1, "from 0 to 1 (all)")
    _number("min_p", params.min_p, 0, 1, "from 0 (all) to 1")
    _number("typical_p", params.typical_p, 0, 1, "from 0 to 1 (all)")
    _whole("min_keep", params.min_keep, 0, "a number of tokens, at least 0")
    _number("top_n_sigma", params.top_n_sigma, -1, 1e6, "a number of standard deviations, -1 or 0 for all")


def _check_records(params: SamplingParams) -> None:
    if (penalties := params.penalties) is not None:
        _number("penalties.repeat", penalties.repeat, 1e-6, 1e6, "above 0; 1 changes nothing")
        _number("penalties.frequency", penalties.frequency, -1e6, 1e6, "a finite number; 0 changes nothing")
        _number("penalties.presence", penalties.presence, -1e6, 1e6, "a finite number; 0 changes nothing")
        _whole("penalties.last_n", penalties.last_n, -1, "a number of tokens, or -1 for all")
        if penalties.last_n == 0 or (penalties.repeat, penalties.frequency, penalties.presence) == (1, 0, 0):
            raise EtudeError(f"{penalties} changes nothing; give a penalty and a last_n, or penalties=None")
    if params.dry is not None:
        _check_dry(params.dry)
    if (xtc := params.xtc) is not None:
        _number("xtc.probability", xtc.probability, 1e-12, 1, "above 0 and at most 1 (xtc=None: off)")
        _number("xtc.threshold", xtc.threshold, 0, 0.5, "from 0 to 0.5: above it, xtc never removes a token")
    if (mirostat := params.mirostat) is not None:
        if mirostat.version not in (1, 2):
            raise EtudeError(
                f"mirostat.version is {mirostat.version!r}; it must be 1 or 2 (mirostat=None: off)"
            )
        _number("mirostat.tau", mirostat.tau, 1e-6, 1e6, "a surprise in bits, above 0")
        _number("mirostat.eta", mirostat.eta, 0, 1e6, "a learning rate, at least 0")
    if (dynamic := params.dynamic_temperature) is not None:
        allowed = "above 0 (dynamic_temperature=None: off)"
        _number("dynamic_temperature.range", dynamic.range, 1e-6, MAX_TEMPERATURE, allowed)
        _number("dynamic_temperature.exponent", dynamic.exponent, 0, 1e6, "at least 0")


def _check_dry(dry: Dry) -> None:
    _number("dry.multiplier", dry.multiplier, 1e-6, 1e6, "above 0 (dry=None: off)")
    _number("dry.base", dry.base, 1, 1e6, "at least 1")
    _whole("dry.allowed_length", dry.allowed_length, 0, "a number of tokens, at least 0")
    _whole("dry.last_n", dry.last_n, -1, "a number of tokens, or -1 for all")
    if dry.last_n == 0:
        raise EtudeError(
            "dry.last_n is 0, which switches DRY off; give dry=None, or -1 to look at all tokens"
        )
    for text in dry.sequence_breakers:
        if not 1 <= len(text.encode()) <= MAX_BREAKER_BYTES:
            raise EtudeError(
                f"dry.sequence_breakers has {text!r}; a breaker has 1 to {MAX_BREAKER_BYTES} bytes of UTF-8"
            )


def _check_order(samplers: tuple[str, ...]) -> None:
    for name in samplers:
        if name not in DEFAULT_SAMPLERS:
            raise EtudeError(f"samplers has {name!r}; allowed are {', '.join(DEFAULT_SAMPLERS)}")
        if samplers.count(name) > 1:
            raise EtudeError(f"samplers has {name!r} twice; each may run once")


_ACTIVE: Mapping[str, Callable[[SamplingParams], bool]] = {
    "penalties": lambda p: p.penalties is not None,
    "dry": lambda p: p.dry is not None,
    "top_n_sigma": lambda p: p.top_n_sigma > 0,
    "top_k": lambda p: p.top_k > 0,
    "typ_p": lambda p: p.typical_p < 1,
    "top_p": lambda p: p.top_p < 1,
    "min_p": lambda p: p.min_p > 0,
    "xtc": lambda p: p.xtc is not None,
    "temperature": lambda p: p.temperature != 1 or p.dynamic_temperature is not None,
}
"""Sampler of the chain -> whether the parameters ask for it."""

_KEEPING = ("typ_p", "top_p", "min_p", "xtc")
"""Samplers that leave `min_keep` tokens."""


def _check_effects(params: SamplingParams) -> None:
    active = [name for name, is_active in _ACTIVE.items() if is_active(params)]
    if params.mirostat is not None:
        others = [name for name in active if name != "temperature"]
        if params.dynamic_temperature is not None:
            others.append("dynamic_temperature")
        if params.min_keep:
            others.append("min_keep")
        if others or params.samplers != DEFAULT_SAMPLERS:
            what = " and ".join(others) or "another order of samplers"
            raise EtudeError(f"mirostat replaces the chain, so {what} would have no effect; leave one out")
        if params.temperature == 0:
            raise EtudeError("mirostat would have no effect at temperature 0, which leaves one token")
        return
    for name in active:
        if name not in params.samplers:
            raise EtudeError(
                f"{name} is set and would have no effect, because samplers ("
                f"{', '.join(params.samplers) or 'empty'}) is without it; add it or leave the setting out"
            )
    if params.min_keep and not any(name in active for name in _KEEPING):
        raise EtudeError(
            f"min_keep is {params.min_keep} and would have no effect, because none of "
            f"{', '.join(_KEEPING)} is on; set one or leave min_keep out"
        )


def _check_bias(params: SamplingParams, n_vocab: int, eog_ids: frozenset[int]) -> None:
    for token_id, bias in params.logit_bias.items():
        if not isinstance(token_id, Integral) or not 0 <= token_id < n_vocab:
            raise EtudeError(f"logit_bias has token id {token_id!r}; the model's ids are 0 to {n_vocab - 1}")
        if bias != -math.inf:
            allowed = f"from {-MAX_BIAS:.0f} to {MAX_BIAS:.0f}, or -inf to forbid the token"
            _number(f"logit_bias of token {token_id}", bias, -MAX_BIAS, MAX_BIAS, allowed)
    if params.ignore_eos and not eog_ids:
        raise EtudeError("ignore_eos would have no effect: the model has no end-of-generation token")
