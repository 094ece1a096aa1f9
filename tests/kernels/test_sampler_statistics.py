"""Draws follow the distribution that is claimed for them, and are independent where they must be.

Seeds are fixed, so a test that passes once passes always; the bounds are 4.5 standard deviations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels._native import Sampler, philox

BOUND = 4.5


def chi_square_z(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """How far chi-square lies from its mean, in standard deviations (Wilson and Hilferty's approximation).

    Cells with fewer than 10 expected counts are merged into one.
    """
    large = expected >= 10
    if not large.all():
        counts = np.append(counts[large], counts[~large].sum())
        expected = np.append(expected[large], expected[~large].sum())
        counts, expected = counts[expected > 0.5], expected[expected > 0.5]
    free = len(counts) - 1
    if free == 0:
        return 0.0
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * free)
    return ((chi_square / free) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def draws(sampler: Sampler, row: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    return np.array([sampler.sample(row, None, position)[0] for position in range(n)])


def row_of(n_vocab: int, spread: float = 1.5) -> NDArray[np.float32]:
    row = (np.random.default_rng(n_vocab).normal(size=n_vocab) * spread).astype(np.float32)
    row[::17] = -np.inf
    return row


def test_chi_square_rejects_a_wrong_distribution() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.1, 0.2, 0.3, 0.4])
    right = rng.multinomial(20000, p)
    assert abs(chi_square_z(right, 20000 * p)) < BOUND
    assert chi_square_z(right, 20000 * np.array([0.12, 0.2, 0.3, 0.38])) > BOUND


@pytest.mark.parametrize(
    "chain",
    [
        {}, {"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.1},
        {"typical_p": 0.7}, {"top_n_sigma": 1.0}, {"dynamic_range": 0.5, "temperature": 0.9}, {"mirostat": 1},
        {"mirostat": 2}, {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
        {"logit_bias": [(5, 2.0), (8, -math.inf)]}, {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("n_vocab", [300, 3001])
def test_draws_follow_the_distribution(chain: dict[str, Any], n_vocab: int) -> None:
    row, n = row_of(n_vocab), 10000
    sampler = Sampler(n_vocab, 1234, 0, **chain)
    ids, logprobs = sampler.distribution(row)
    p_V = np.zeros(n_vocab)
    p_V[ids] = np.exp(logprobs.astype(np.float64))
    assert p_V.sum() == pytest.approx(1, abs=1e-5)
    counts = np.bincount(draws(sampler, row, n), minlength=n_vocab)
    assert not counts[p_V == 0].any()
    assert abs(chi_square_z(counts, n * p_V)) < BOUND


def test_draws_of_the_plain_path_spread_over_the_whole_row() -> None:
    n_vocab, n = 49152, 20000
    row = row_of(n_vocab)
    counts = np.bincount(draws(Sampler(n_vocab, 7, 0), row, n), minlength=n_vocab)
    p_V = np.exp(row.astype(np.float64))
    p_V /= p_V.sum()
    for width in (64, 1000, 4096):
        edges = np.arange(0, n_vocab, width)
        assert abs(chi_square_z(np.add.reduceat(counts, edges), n * np.add.reduceat(p_V, edges))) < BOUND


def test_xtc_acts_with_its_probability_and_independently_of_the_draw() -> None:
    row, n, probability = row_of(300), 30000, 0.3
    base = {"xtc_threshold": 0.02}
    mixture = np.zeros(300)
    for share, chance in ((probability, 1.0), (1 - probability, 0.0)):
        ids, logprobs = Sampler(300, 5, 0, xtc_probability=chance, **base).distribution(row)
        mixture[ids] += share * np.exp(logprobs.astype(np.float64))
    counts = np.bincount(
        draws(Sampler(300, 5, 0, xtc_probability=probability, **base), row, n), minlength=300
    )
    assert abs(chi_square_z(counts, n * mixture)) < BOUND


def test_expected_logprob_is_minus_the_entropy() -> None:
    row, n = row_of(1000), 20000
    sampler = Sampler(1000, 3, 0)
    results = [sampler.sample(row, None, position) for position in range(n)]
    logprobs = np.array([result[1] for result in results])
    assert {result[3] for result in results} == {results[0][3]}
    assert logprobs.mean() == pytest.approx(-results[0][3], abs=BOUND * logprobs.std() / math.sqrt(n))
    np.testing.assert_array_equal(
        logprobs, np.array([result[2] for result in results])
    )  # T = 1: the raw ones


def test_same_seed_index_and_position_give_the_same_token() -> None:
    row = row_of(1000)
    for seed, index, position in ((0, 0, 0), (2**64 - 1, 2**40, 2**50), (42, 31, 7)):
        first = Sampler(1000, seed, index)
        warm = Sampler(1000, seed, index)
        draws(warm, row, 50)
        warm.accept(3)
        assert first.sample(row, None, position) == warm.sample(row, None, position)


@pytest.mark.parametrize(
    "pair",
    [
        lambda i: ((1, 0, i), (1, 1, i)),  # two completions
        lambda i: ((1, 0, i), (2, 0, i)),  # two seeds
        lambda i: ((1, 0, i), (1, 0, i + 1)),  # two positions
        lambda i: ((1, i, 5), (1, i + 1, 5)),
        lambda i: ((i, 0, 5), (i, 1, 5)),
        lambda i: ((1 << 32, 0, i), (1, 0, i)),  # both halves of the key count
        lambda i: ((1, 1 << 32, i), (1, 0, i)),
    ],
)
def test_neighbours_are_independent(pair: Any) -> None:
    row = np.log(np.array([0.1, 0.15, 0.2, 0.25, 0.3], np.float32))
    n = 20000
    table = np.zeros((5, 5), np.int64)
    for i in range(n):
        (a_seed, a_index, a_position), (b_seed, b_index, b_position) = pair(i)
        a = Sampler(5, a_seed, a_index).sample(row, None, a_position)[0]
        b = Sampler(5, b_seed, b_index).sample(row, None, b_position)[0]
        table[a, b] += 1
    p = np.exp(row.astype(np.float64))
    assert abs(chi_square_z(table.ravel(), n * np.outer(p, p).ravel())) < BOUND


def test_philox_known_answers() -> None:
    # Random123's kat_vectors: philox4x32 10 rounds, counter and key all zeros, all ones, digits of pi
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**64 - 1
    assert philox(ones, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    key = 0x299F31D0 << 32 | 0xA4093822
    high, low = 0x03707344 << 32 | 0x13198A2E, 0x85A308D3 << 32 | 0x243F6A88
    assert philox(key, high, low) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
