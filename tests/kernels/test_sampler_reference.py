"""The native chain equals its numpy specification for any settings, order, history, mask and odd logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from etude.kernels._native import Breakers, Sampler, philox
from etude.kernels.reference_sampler import DEFAULT_STEPS, sampled_distribution

SEED, INDEX = 77, 3
LEAST = 1e-12  # below, float32 logits of a token far from the rest decide nothing


def xtc_chance(position: int) -> float:
    """The uniform number that the native sampler compares with xtc's probability."""
    words = philox(SEED, INDEX, position)
    return ((words[2] << 32 | words[3]) >> 11) / 2**53


@st.composite
def rows(draw: st.DrawFn) -> NDArray[np.float32]:
    """Logits: normal, flat, peaked, few distinct values, with tokens that cannot be drawn."""
    n_vocab = draw(st.sampled_from([1, 2, 16, 100, 1031, 4096]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = rng.normal(size=n_vocab) * draw(st.sampled_from([0.3, 2.0, 6.0]))
    if draw(st.booleans()):
        row = np.round(row)  # many ties
    if draw(st.booleans()):
        row[rng.random(n_vocab) < 0.3] = -np.inf
        row[rng.integers(n_vocab)] = 1.0
    return row.astype(np.float32)


def odd(least: float, most: float) -> st.SearchStrategy[float]:
    """Numbers that are no sums of probabilities of ties, so that float32 and float64 decide the same."""
    return st.integers(1, 997).map(lambda k: least + (most - least) * (k + 0.271828) / 1000)


CHAINS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.just(0.0) | odd(0.2, 3.0),
    "dynamic_range": st.just(0.0) | odd(0.1, 2.0),
    "dynamic_exponent": odd(0.5, 2.0),
    "top_k": st.sampled_from([0, 1, 2, 40, 300, 10**6]),
    "top_p": odd(0.02, 1.0),
    "min_p": odd(0.0005, 0.7),
    "typical_p": odd(0.05, 1.0),
    "top_n_sigma": odd(0.05, 3.0),
    "min_keep": st.sampled_from([0, 1, 5, 50]),
    "xtc_probability": odd(0.0, 1.0),
    "xtc_threshold": odd(0.001, 0.5),
    "repeat_penalty": odd(0.7, 1.8),
    "frequency_penalty": odd(-1.0, 2.0),
    "presence_penalty": odd(-1.0, 2.0),
    "penalty_last_n": st.sampled_from([-1, 1, 5, 64]),
    "dry_multiplier": odd(0.1, 2.0),
    "dry_base": odd(1.0, 2.0),
    "dry_allowed_length": st.integers(0, 4),
    "dry_last_n": st.sampled_from([-1, 4, 30]),
    "dry_breakers": st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=2),
}


def native_distribution(row: NDArray[np.float32], chain: dict[str, Any], **call: Any) -> NDArray[np.float64]:
    """Probabilities (V,) by the native sampler; the token that it draws has its logprob."""
    kwargs = chain | ({"dry_breakers": Breakers(chain["dry_breakers"])} if "dry_breakers" in chain else {})
    sampler = Sampler(len(row), SEED, INDEX, samplers=call["steps"], **kwargs)
    sampler.accept_prompt(np.array(call["history"], np.int32))
    untouched = row.copy()
    ids, logprobs = sampler.distribution(row, call["words"], call["position"])
    token_id, logprob, _, _ = sampler.sample(row, call["words"], call["position"])
    assert logprob == dict(zip(ids.tolist(), logprobs.tolist(), strict=True))[token_id]
    np.testing.assert_array_equal(row, untouched)
    p_V = np.zeros(len(row))
    p_V[ids] = np.exp(logprobs.astype(np.float64))
    return p_V


def is_near_a_threshold(row: NDArray[np.float32], chain: dict[str, Any], **call: Any) -> bool:
    """Whether the specification itself changes its mind when the logits move by float32 rounding."""
    rng = np.random.default_rng(0)
    first = sampled_distribution(row, chain, **call)
    for _ in range(4):
        moved = row + rng.normal(size=len(row)).astype(np.float32) * np.float32(2e-6)
        if np.abs(sampled_distribution(moved, chain, **call) - first).max() > 1e-4:
            return True
    return False


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_native_equals_reference(data: st.DataObject) -> None:
    row = data.draw(rows())
    steps = data.draw(st.permutations(DEFAULT_STEPS)) if data.draw(st.booleans()) else list(DEFAULT_STEPS)
    chain = {name: data.draw(CHAINS[name]) for name in data.draw(st.sets(st.sampled_from(sorted(CHAINS))))}
    few = min(6, len(row)) - 1
    history = data.draw(st.lists(st.integers(0, few), max_size=40))
    position = data.draw(st.integers(0, 2**40))
    allowed_V, words = None, None
    if data.draw(st.booleans()):
        allowed_V = np.random.default_rng(data.draw(st.integers(0, 99))).random(len(row)) < 0.5
        allowed_V[int(np.argmax(row))] = True
        words = np.frombuffer(
            np.packbits(allowed_V, bitorder="little").tobytes() + bytes(4), np.uint32, (len(row) + 31) // 32
        )
    wanted = {"steps": steps, "history": history, "allowed_V": allowed_V, "chance": xtc_chance(position)}
    p_V = native_distribution(row, chain, steps=steps, history=history, words=words, position=position)
    reference_V = sampled_distribution(row, chain, **wanted)
    close = np.allclose(p_V, reference_V, atol=1e-5, rtol=1e-4)
    assert close or is_near_a_threshold(row, chain, **wanted)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(row=rows(), version=st.sampled_from([1, 2]), tau=odd(0.1, 8.0), temperature=odd(0.3, 2.0))
def test_mirostat_truncates_as_the_reference(
    row: NDArray[np.float32], version: int, tau: float, temperature: float
) -> None:
    chain = {"mirostat": version, "mirostat_tau": tau, "temperature": temperature}
    p_V = native_distribution(row, chain, steps=list(DEFAULT_STEPS), history=[], words=None, position=0)
    reference_V = sampled_distribution(row, chain)
    close = np.allclose(p_V, reference_V, atol=1e-5, rtol=1e-4)
    assert close or is_near_a_threshold(row, chain)


def test_mirostat_moves_its_bound_towards_the_target() -> None:
    # mu starts at 2 tau and loses eta * (surprise - tau) at every token drawn; prompt tokens leave it alone
    rng = np.random.default_rng(5)
    row = (rng.normal(size=500) * 2).astype(np.float32)
    for version in (1, 2):
        sampler = Sampler(500, 1, 0, mirostat=version, mirostat_tau=3.0, mirostat_eta=0.3)
        sampler.accept_prompt(np.arange(20, dtype=np.int32))
        mu = 6.0
        for position in range(40):
            ids, logprobs = sampler.distribution(row, None, position)
            chain = {"mirostat": version, "mirostat_tau": mu / 2}
            reference_V = sampled_distribution(row, chain)
            np.testing.assert_array_equal(ids, np.flatnonzero(reference_V))
            np.testing.assert_allclose(np.exp(logprobs), reference_V[ids], rtol=1e-4)
            token_id, logprob, _, _ = sampler.sample(row, None, position)
            sampler.accept(token_id)
            mu -= 0.3 * (-logprob / np.log(2) - 3.0)
        assert mu != 6.0
