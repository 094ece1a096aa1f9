"""SamplingParams become native samplers; what is out of range or without effect is refused in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.engine.sampling import SamplerFactory, breaker_sequences, check_params
from etude.kernels.reference_sampler import sampled_distribution
from etude.model.gguf import GGUFFile
from etude.model.tokenizer import Tokenizer
from etude.records import (
    DEFAULT_SAMPLERS,
    Dry,
    DynamicTemperature,
    EtudeError,
    Mirostat,
    Penalties,
    SamplingParams,
    Xtc,
)

N_VOCAB = 320
TEXTS = ["a", "b", "\n", "ab", "b\n", ":\n", "<|", "<|e", "e", "x<", "|end|>", "|", "end|>", "nd|>"]
NO_PROMPT = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Letters:
    """A vocabulary of a few texts; encodes by the longest first."""

    eog_ids: frozenset[int] = frozenset({3, 7})
    n_vocab: int = len(TEXTS)

    def token_bytes(self, token_id: int) -> bytes:
        return TEXTS[token_id].encode()

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        assert not add_special
        assert not parse_special
        if not text:
            return []
        best = max((t for t in TEXTS if text.startswith(t)), key=len)
        return [TEXTS.index(best), *self.encode(text[len(best) :], add_special=False)]


FACTORY = SamplerFactory(Letters(), N_VOCAB)
ROW = (np.random.default_rng(2).normal(size=N_VOCAB) * 2).astype(np.float32)


def distribution(params: SamplingParams, prompt: NDArray[np.int32] = NO_PROMPT) -> NDArray[np.float64]:
    ids, logprobs = FACTORY(params, 5, 0, prompt).distribution(ROW)
    p_V = np.zeros(N_VOCAB)
    p_V[ids] = np.exp(logprobs.astype(np.float64))
    return p_V


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        (SamplingParams(), {}),
        (SamplingParams(temperature=0.0), {"temperature": 0.0}),
        (SamplingParams(temperature=0.7, top_k=20), {"temperature": 0.7, "top_k": 20}),
        (SamplingParams(top_k=10**6), {}),
        (SamplingParams(top_p=0.613, min_p=0.021), {"top_p": 0.613, "min_p": 0.021}),
        (SamplingParams(typical_p=0.613, top_n_sigma=1.13), {"typical_p": 0.613, "top_n_sigma": 1.13}),
        (SamplingParams(xtc=Xtc(1.0, 0.013)), {"xtc_probability": 1.0, "xtc_threshold": 0.013}),
        (SamplingParams(mirostat=Mirostat(1, 3.0, 0.2)), {"mirostat": 1, "mirostat_tau": 3.0}),
        (SamplingParams(mirostat=Mirostat(2), temperature=0.7), {"mirostat": 2, "temperature": 0.7}),
        (
            SamplingParams(temperature=0.9, dynamic_temperature=DynamicTemperature(0.4, 1.5)),
            {"temperature": 0.9, "dynamic_range": 0.4, "dynamic_exponent": 1.5},
        ),
        (SamplingParams(logit_bias={5: 2, 9: -math.inf}), {"logit_bias": [(5, 2.0), (9, -math.inf)]}),
        (SamplingParams(ignore_eos=True), {"logit_bias": [(3, -math.inf), (7, -math.inf)]}),
        (
            SamplingParams(penalties=Penalties(1.3, 0.2, 0.4, last_n=5)),
            {
                "repeat_penalty": 1.3,
                "frequency_penalty": 0.2,
                "presence_penalty": 0.4,
                "penalty_last_n": 5,
            },
        ),
        (
            SamplingParams(dry=Dry(0.7, 1.5, 1, 30, ("\n",))),
            {
                "dry_multiplier": 0.7,
                "dry_base": 1.5,
                "dry_allowed_length": 1,
                "dry_last_n": 30,
                "dry_breakers": [[2], [4], [5]],
            },
        ),
    ],
)
def test_every_parameter_reaches_the_chain(params: SamplingParams, settings: dict[str, Any]) -> None:
    prompt = np.array([0, 1, 8, 9, 0, 1, 4, 0, 1, 8, 9, 0, 1], np.int32)
    wanted = sampled_distribution(ROW, settings, history=prompt.tolist())
    np.testing.assert_allclose(distribution(params, prompt), wanted, atol=1e-6)
    if settings:
        assert np.abs(wanted - sampled_distribution(ROW, {})).max() > 1e-5  # it did something


def test_order_is_the_callers() -> None:
    params = SamplingParams(temperature=0.4, top_p=0.613)
    turned = replace(params, samplers=("temperature", "top_p"))
    settings = {"temperature": 0.4, "top_p": 0.613}
    np.testing.assert_allclose(distribution(params), sampled_distribution(ROW, settings), atol=1e-6)
    wanted = sampled_distribution(ROW, settings, steps=("temperature", "top_p"))
    np.testing.assert_allclose(distribution(turned), wanted, atol=1e-6)
    assert np.count_nonzero(distribution(turned)) < np.count_nonzero(distribution(params))


def test_only_penalties_and_dry_read_the_prompt() -> None:
    assert not FACTORY(SamplingParams(top_k=3), 1, 0, NO_PROMPT).reads_history
    assert FACTORY(SamplingParams(penalties=Penalties(1.1)), 1, 0, NO_PROMPT).reads_history
    assert FACTORY(SamplingParams(dry=Dry()), 1, 0, NO_PROMPT).reads_history


def test_seed_and_index_reach_the_sampler() -> None:
    def tokens(seed: int, index: int) -> list[int]:
        sampler = FACTORY(SamplingParams(), seed, index, NO_PROMPT)
        return [sampler.sample(ROW, None, position)[0] for position in range(20)]

    assert tokens(1, 0) == tokens(1, 0)
    assert len({tuple(tokens(seed, index)) for seed in (1, 2**64 - 1) for index in (0, 1, 63)}) == 6


@pytest.mark.parametrize("change", [{"top_p": 0.0}, {"min_p": 1.0}, {"typical_p": 0.0}])
def test_min_keep_leaves_so_many(change: dict[str, Any]) -> None:
    for least in (0, 1, 3, 7, 10**6):
        left = distribution(SamplingParams(min_keep=least, **change))
        assert np.count_nonzero(left) == min(max(least, 1), N_VOCAB), least


def test_breakers_are_all_ways_to_write_them() -> None:
    sequences = [[TEXTS[i] for i in ids] for ids in breaker_sequences(Letters(), "<|end|>")]
    assert sequences == [["<|", "end|>"], ["<|e", "nd|>"], ["x<", "|end|>"]]
    assert list(breaker_sequences(Letters(), "\n")) == [[2], [4], [5]]
    assert list(breaker_sequences(Letters(), "q")) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0 .greedy. or from 1e-06 to 1000000"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": -1}, "top_k is -1; .* 0 for all"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 1.01}, "top_p is 1.01; it must be from 0 to 1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"typical_p": 2}, "typical_p is 2"),
        ({"top_n_sigma": -2}, "top_n_sigma is -2"),
        ({"min_keep": -1}, "min_keep is -1; it must be a number of tokens"),
        ({"min_keep": 2, "top_k": 5}, "min_keep is 2 and would have no effect, because none of typ_p"),
        ({"min_keep": 2, "mirostat": Mirostat(2)}, "so min_keep would have no effect"),
        ({"penalties": Penalties(repeat=0)}, "penalties.repeat is 0; it must be above 0"),
        ({"penalties": Penalties(frequency=math.inf)}, "penalties.frequency is inf"),
        ({"penalties": Penalties(1.1, last_n=-2)}, "penalties.last_n is -2"),
        ({"penalties": Penalties()}, "changes nothing"),
        ({"penalties": Penalties(1.1, last_n=0)}, "changes nothing"),
        ({"dry": Dry(multiplier=0)}, "dry.multiplier is 0"),
        ({"dry": Dry(base=0.5)}, "dry.base is 0.5; it must be at least 1"),
        ({"dry": Dry(allowed_length=-1)}, "dry.allowed_length is -1"),
        ({"dry": Dry(last_n=0)}, "switches DRY off"),
        ({"dry": Dry(sequence_breakers=("",))}, "sequence_breakers has ''"),
        ({"dry": Dry(sequence_breakers=("é" * 21,))}, "1 to 40 bytes"),
        ({"xtc": Xtc(0.0)}, "xtc.probability is 0.0"),
        ({"xtc": Xtc(0.5, 0.6)}, "xtc.threshold is 0.6; .* never removes"),
        ({"mirostat": Mirostat(3)}, "mirostat.version is 3"),
        ({"mirostat": Mirostat(1, tau=0)}, "mirostat.tau is 0"),
        ({"mirostat": Mirostat(1, eta=-1)}, "mirostat.eta is -1"),
        ({"dynamic_temperature": DynamicTemperature(0)}, "dynamic_temperature.range is 0"),
        ({"dynamic_temperature": DynamicTemperature(1, -1)}, "dynamic_temperature.exponent is -1"),
        ({"samplers": ("top_q",)}, "samplers has 'top_q'; allowed are penalties, dry"),
        ({"samplers": ("top_k", "top_k")}, "'top_k' twice"),
        ({"logit_bias": {N_VOCAB: 1.0}}, "logit_bias has token id 320; the model's ids are 0 to 319"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias has token id '5'"),
        ({"logit_bias": {5: math.inf}}, "logit_bias of token 5 is inf; .* -inf to forbid"),
        ({"logit_bias": {5: math.nan}}, "logit_bias of token 5 is nan"),
        ({"stop": ("end", "")}, "stop has an empty text"),
    ],
)
def test_what_is_out_of_range_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(EtudeError, match=words):
        FACTORY(replace(SamplingParams(), **change), 1, 0, NO_PROMPT)


SETTINGS: dict[str, dict[str, Any]] = {
    "penalties": {"penalties": Penalties(1.1)},
    "dry": {"dry": Dry()},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "top_k": {"top_k": 40},
    "typ_p": {"typical_p": 0.9},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.1},
    "xtc": {"xtc": Xtc(0.5)},
    "temperature": {"temperature": 0.5},
}


@pytest.mark.parametrize("name", DEFAULT_SAMPLERS)
def test_a_setting_whose_sampler_is_not_in_the_chain_is_refused(name: str) -> None:
    chain = tuple(other for other in DEFAULT_SAMPLERS if other != name)
    with pytest.raises(EtudeError, match=f"{name} is set and would have no effect"):
        check_params(SamplingParams(samplers=chain, **SETTINGS[name]), N_VOCAB, frozenset())
    check_params(SamplingParams(samplers=chain), N_VOCAB, frozenset())
    check_params(SamplingParams(samplers=(name,), **SETTINGS[name]), N_VOCAB, frozenset())


@pytest.mark.parametrize("name", [name for name in DEFAULT_SAMPLERS if name != "temperature"])
def test_mirostat_refuses_what_it_would_ignore(name: str) -> None:
    with pytest.raises(EtudeError, match=f"mirostat replaces the chain, so {name} would have no effect"):
        check_params(SamplingParams(mirostat=Mirostat(2), **SETTINGS[name]), N_VOCAB, frozenset())


@pytest.mark.parametrize(
    "change",
    [
        {"samplers": ("top_k", "temperature")},
        {"dynamic_temperature": DynamicTemperature(0.5)},
        {"temperature": 0.0},
    ],
)
def test_mirostat_refuses_other_orders_and_greedy(change: dict[str, Any]) -> None:
    with pytest.raises(EtudeError, match="mirostat"):
        check_params(SamplingParams(mirostat=Mirostat(1), **change), N_VOCAB, frozenset())


def test_dynamic_temperature_needs_the_temperature_step() -> None:
    params = SamplingParams(dynamic_temperature=DynamicTemperature(0.5), samplers=("top_k",))
    with pytest.raises(EtudeError, match="temperature is set and would have no effect"):
        check_params(params, N_VOCAB, frozenset())


def test_ignore_eos_needs_an_end() -> None:
    check_params(SamplingParams(ignore_eos=True), N_VOCAB, frozenset({3}))
    with pytest.raises(EtudeError, match="no end-of-generation token"):
        check_params(SamplingParams(ignore_eos=True), N_VOCAB, frozenset())


def test_llama_cpp_defaults_at_temperature_0_are_fine() -> None:
    check_params(SamplingParams(temperature=0, top_k=40, top_p=0.95, min_p=0.05), N_VOCAB, frozenset())


def test_numpy_numbers_are_numbers() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3))
    np.testing.assert_allclose(
        distribution(params), distribution(SamplingParams(temperature=0.5, top_k=3)), atol=1e-6
    )


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_breakers_of_real_vocabularies(name: str, request: pytest.FixtureRequest) -> None:
    with GGUFFile.open(request.getfixturevalue(name)) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    sequences = list(breaker_sequences(tokenizer, "\n"))
    assert len(sequences) > 20
    assert all(len(ids) == 1 and b"\n" in tokenizer.token_bytes(ids[0]) for ids in sequences)
    for ids in breaker_sequences(tokenizer, "user:"):
        assert b"user:" in b"".join(map(tokenizer.token_bytes, ids))
    sampler = SamplerFactory(tokenizer, tokenizer.n_vocab)(SamplingParams(dry=Dry()), 1, 0, NO_PROMPT)
    assert sampler.reads_history
