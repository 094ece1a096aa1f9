"""What the sampler does where arithmetic gets hard: infinite, equal, huge, broken and forbidden logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels._native import Breakers, Sampler, score, top_logprobs

BAD_LOGITS, NOTHING_ALLOWED = -1, -2
CHAINS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.5},
    {"top_p": 0.999999},
    {"min_p": 0.1},
    {"typical_p": 0.5},
    {"top_n_sigma": 1.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.001},
    {"temperature": 1.0, "dynamic_range": 1.0},
    {"mirostat": 1},
    {"mirostat": 2},
    {"repeat_penalty": 1.3, "frequency_penalty": 1.0, "penalty_last_n": -1},
    {"dry_multiplier": 1.0, "dry_allowed_length": 1},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
]
every_chain = pytest.mark.parametrize("chain", CHAINS, ids=str)
lengths = pytest.mark.parametrize("n_vocab", [1, 2, 15, 17, 1000, 1025, 5003])


def mask_of(ids: list[int], n_vocab: int) -> NDArray[np.uint32]:
    words = np.zeros((n_vocab + 31) // 32, np.uint32)
    for token_id in ids:
        words[token_id // 32] |= np.uint32(1 << (token_id % 32))
    return words


def sampler_of(chain: dict[str, Any], n_vocab: int) -> Sampler:
    """With a history, so that penalties and DRY act."""
    sampler = Sampler(n_vocab, 9, 0, **chain)
    sampler.accept_prompt((np.arange(30) % 3 % n_vocab).astype(np.int32))
    return sampler


@every_chain
@lengths
def test_one_possible_token_is_drawn_with_certainty(chain: dict[str, Any], n_vocab: int) -> None:
    for only in {0, n_vocab - 1, n_vocab // 2}:
        row = np.full(n_vocab, -np.inf, np.float32)
        row[only] = -4.0
        assert sampler_of(chain, n_vocab).sample(row) == (only, 0.0, 0.0, 0.0)


@every_chain
def test_all_possible_but_one_allowed(chain: dict[str, Any]) -> None:
    row = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for only in (0, 31, 32, 999):
        token_id, logprob, raw, entropy = sampler_of(chain, 1000).sample(row, mask_of([only], 1000))
        assert (token_id, logprob) == (only, 0.0)
        assert (token_id, raw, raw, entropy) == score(row, only)


@every_chain
def test_nothing_allowed(chain: dict[str, Any]) -> None:
    row = np.zeros(100, np.float32)
    for result in (
        sampler_of(chain, 100).sample(row, mask_of([], 100)),
        sampler_of(chain, 100).sample(np.full(100, -np.inf, np.float32)),
        sampler_of(chain | {"logit_bias": [(7, -math.inf)]}, 100).sample(row, mask_of([7], 100)),
    ):
        assert result[0] == NOTHING_ALLOWED
        assert all(math.isnan(x) for x in result[1:])


@every_chain
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@lengths
def test_broken_logits_are_reported(chain: dict[str, Any], bad: float, n_vocab: int) -> None:
    for place in {0, n_vocab - 1, n_vocab // 2}:
        row = np.zeros(n_vocab, np.float32)
        row[place] = bad
        assert sampler_of(chain, n_vocab).sample(row)[0] == BAD_LOGITS
        assert sampler_of(chain, n_vocab).sample(row, mask_of([0], n_vocab))[0] == BAD_LOGITS
        assert score(row, 0)[0] == BAD_LOGITS
        assert top_logprobs(row, 1)[0].tolist() == [-1]


@every_chain
def test_equal_logits(chain: dict[str, Any]) -> None:
    n_vocab = 4099
    for level in (0.0, -1e30, 1e30):
        row = np.full(n_vocab, np.float32(level))
        token_id, logprob, raw, entropy = sampler_of(chain, n_vocab).sample(row)
        assert 0 <= token_id < n_vocab
        assert raw == pytest.approx(-math.log(n_vocab), rel=1e-5)
        assert entropy == pytest.approx(math.log(n_vocab), rel=1e-5)
        assert raw - 1e-4 <= logprob <= 0 or "repeat_penalty" in chain or "dry_multiplier" in chain


@every_chain
def test_huge_differences(chain: dict[str, Any]) -> None:
    # nothing but the two best has a probability
    row = np.full(1000, -1e30, np.float32)
    row[[400, 900]] = 1e30
    token_id, logprob, raw, entropy = sampler_of(chain, 1000).sample(row)
    assert token_id in (400, 900)
    assert logprob in (0.0, pytest.approx(-math.log(2)))
    assert (raw, entropy) == (pytest.approx(-math.log(2)), pytest.approx(math.log(2)))


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    row = np.array([1.0, 3.0, 2.999, -math.inf], np.float32)
    for position in range(20):
        assert Sampler(4, 1, 0, temperature=temperature).sample(row, None, position)[:2] == (1, 0.0)
    tie = np.array([3.0, 1.0, 3.0], np.float32)
    drawn = {Sampler(3, 1, 0, temperature=temperature).sample(tie, None, i)[0] for i in range(40)}
    assert drawn == {0, 2}


def test_huge_temperature_is_nearly_uniform() -> None:
    row = np.array([-50.0, 0.0, 50.0, -math.inf], np.float32)
    ids, logprobs = Sampler(4, 1, 0, temperature=1e30).distribution(row)
    assert ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(logprobs, -math.log(3), rtol=1e-6)


def test_greedy_takes_the_first_of_equals_and_keeps_raw_values() -> None:
    row = np.array([0.0, 2.0, 1.0, 2.0], np.float32)
    token_id, logprob, raw, entropy = Sampler(4, 1, 0, temperature=0.0).sample(row)
    p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    assert (token_id, logprob) == (1, 0.0)
    assert raw == pytest.approx(math.log(p[1]))
    assert entropy == pytest.approx(-(p * np.log(p)).sum())


def test_bias_and_penalties_change_the_drawn_but_not_the_raw_distribution() -> None:
    row = np.array([1.0, 0.5, 0.0, -1.0], np.float32)
    sampler = Sampler(4, 1, 0, logit_bias=[(3, 5.0), (0, -math.inf)], presence_penalty=2.0)
    sampler.accept_prompt(np.array([3], np.int32))
    ids, logprobs = sampler.distribution(row)
    tilted = np.array([0.5, 0.0, 2.0])
    assert ids.tolist() == [1, 2, 3]
    np.testing.assert_allclose(logprobs, tilted - np.log(np.exp(tilted).sum()), rtol=1e-6)
    token_id, _, raw, entropy = sampler.sample(row)
    assert (raw, entropy) == score(row, token_id)[2:]


def test_bias_that_overflows_is_reported() -> None:
    row = np.full(3, 3e38, np.float32)
    assert Sampler(3, 1, 0, logit_bias=[(1, 3e38)]).sample(row)[0] == BAD_LOGITS


def test_penalties_of_the_last_n_tokens_only() -> None:
    row = np.zeros(4, np.float32)
    sampler = Sampler(4, 1, 0, presence_penalty=1.0, penalty_last_n=2)
    for history, punished in (([0], {0}), ([0, 1], {0, 1}), ([2], {1, 2}), ([2], {2}), ([2, 3], {2, 3})):
        sampler.accept_prompt(np.array(history, np.int32))
        _, logprobs = sampler.distribution(row)
        assert set(np.flatnonzero(logprobs < logprobs.max()).tolist()) == punished


def test_dry_of_a_very_long_repetition_stays_finite() -> None:
    row = np.zeros(3, np.float32)
    for base, logprob in (
        (2.0, pytest.approx(-(2.0**127), rel=1e-3)),
        (1.0, pytest.approx(-0.5 - math.log(2 + math.exp(-0.5)), rel=1e-5)),
    ):
        sampler = Sampler(3, 1, 0, dry_multiplier=0.5, dry_base=base)
        sampler.accept_prompt(np.zeros(3000, np.int32))
        ids, logprobs = sampler.distribution(row)
        assert ids.tolist() == [0, 1, 2]
        assert logprobs[0] == logprob
        assert logprobs[1] == logprobs[2] > -1


def test_a_mask_longer_than_needed_is_fine_and_a_shorter_one_is_not() -> None:
    row = np.zeros(33, np.float32)
    sampler = Sampler(33, 1, 0)
    assert sampler.sample(row, mask_of([32], 200))[0] == 32
    with pytest.raises(ValueError, match="mask"):
        sampler.sample(row, mask_of([0], 32))
    with pytest.raises(ValueError, match="n_vocab"):
        sampler.sample(row[:32].copy())


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="top_q"):
        Sampler(4, 1, 0, top_q=1)
    with pytest.raises(ValueError, match="unknown sampler infill"):
        Sampler(4, 1, 0, samplers=["infill"])
    with pytest.raises(ValueError, match="at least one token"):
        Breakers([[]])
    with pytest.raises(ValueError, match="token id 4 is outside 0 to 3"):
        Sampler(4, 1, 0).accept(4)
    with pytest.raises(ValueError, match="token id -1"):
        Sampler(4, 1, 0).accept_prompt(np.array([0, -1], np.int32))


@pytest.mark.parametrize("n_vocab", [1, 7, 1000, 49152])
def test_top_logprobs_equal_a_sort(n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    row = np.round(rng.normal(size=n_vocab) * 3, 1).astype(np.float32)  # ties: smaller ids first
    row[rng.random(n_vocab) < 0.2] = -np.inf
    row[0] = 1.0
    raw = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    order = np.lexsort((np.arange(n_vocab), -row))
    for n in (1, 5, 20, 200):
        ids, logprobs = top_logprobs(row, n)
        wanted = [int(i) for i in order[:n] if np.isfinite(row[i])]
        assert ids.tolist() == wanted + [-1] * (n - len(wanted))
        np.testing.assert_allclose(logprobs[: len(wanted)], raw[wanted], atol=2e-6)
        assert np.all(logprobs[len(wanted) :] == -np.inf)


def test_score_equals_log_softmax() -> None:
    rng = np.random.default_rng(1)
    for n_vocab in (1, 33, 49152):
        row = (rng.normal(size=n_vocab) * 5).astype(np.float32)
        raw = row.astype(np.float64) - row.max()
        raw -= np.log(np.exp(raw).sum())
        for token_id in {0, n_vocab - 1, n_vocab // 3}:
            got_id, logprob, raw_logprob, entropy = score(row, token_id)
            assert (got_id, logprob) == (token_id, raw_logprob)
            assert logprob == pytest.approx(raw[token_id], abs=1e-6)
            assert entropy == pytest.approx(-(np.exp(raw) * raw).sum(), abs=3e-6)
