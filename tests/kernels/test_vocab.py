"""The vector passes over a row of logits equal numpy, for any length of the last vector, on every path."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels._native import vocab_mask, vocab_max, vocab_pick, vocab_select, vocab_sum_exp

LENGTHS = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 5003, 49152]


def logits(n: int, seed: int = 0) -> NDArray[np.float32]:
    """(n,) with a few -inf."""
    rng = np.random.default_rng(seed + n)
    row = (rng.normal(size=n) * 4).astype(np.float32)
    row[rng.random(n) < 0.1] = -np.inf
    row[rng.integers(n)] = 11.0
    return row


@pytest.mark.parametrize("n", LENGTHS)
def test_max(n: int) -> None:
    row = logits(n)
    assert vocab_max(row) == row.max()
    for place in {0, n - 1, n // 2}:
        for bad in (np.nan, np.inf):
            broken = row.copy()
            broken[place] = bad
            assert np.isnan(vocab_max(broken))
    assert vocab_max(np.full(n, -np.inf, np.float32)) == -np.inf
    assert vocab_max(np.full(n, np.float32(-3.4e38))) == np.float32(-3.4e38)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("inverse_temperature", [1.0, 0.01, 7.5])
def test_sum_exp(n: int, inverse_temperature: float) -> None:
    row = logits(n)
    total, weighted = vocab_sum_exp(row, row.max(), inverse_temperature)
    t = (row[np.isfinite(row)].astype(np.float64) - row.max()) * inverse_temperature
    assert total == pytest.approx(np.exp(t).sum(), rel=3e-7)
    assert weighted == pytest.approx((np.exp(t) * t).sum(), rel=1e-6, abs=1e-30)


def test_sum_exp_is_the_sum_over_blocks_of_1024() -> None:
    row = logits(5003)
    parts = [vocab_sum_exp(row[i : i + 1024], 11.0, 1.0)[0] for i in range(0, 5003, 1024)]
    assert vocab_sum_exp(row, 11.0, 1.0)[0] == sum(parts)  # to the bit


@pytest.mark.parametrize("n", [1, 16, 17, 1000])
def test_pick_is_the_inverse_of_the_running_sum(n: int) -> None:
    row = logits(n)
    p = np.exp(row.astype(np.float64) - row.max())
    running = np.cumsum(p)
    for u in np.linspace(0, 0.999, 60):
        picked = vocab_pick(row, row.max(), 1.0, u * running[-1])
        assert running[picked] >= u * running[-1] * (1 - 1e-6)
        assert picked == 0 or running[picked - 1] <= u * running[-1] * (1 + 1e-6)
        assert np.isfinite(row[picked])
    assert (
        vocab_pick(row, row.max(), 1.0, 1e9) == np.flatnonzero(p > 0)[-1]
    )  # beyond the end: the last possible


def test_pick_without_a_possible_token() -> None:
    assert vocab_pick(np.full(40, -np.inf, np.float32), 0.0, 1.0, 0.0) == -1


@pytest.mark.parametrize("n", LENGTHS)
def test_mask(n: int) -> None:
    row = logits(n)
    rng = np.random.default_rng(n)
    words = rng.integers(0, 2**32, (n + 31) // 32, dtype=np.uint32)
    words[rng.random(len(words)) < 0.3] = 0
    words[rng.random(len(words)) < 0.3] = 0xFFFFFFFF
    bits = (words[np.arange(n) // 32] >> (np.arange(n) % 32).astype(np.uint32)) & 1
    np.testing.assert_array_equal(vocab_mask(row, words), np.where(bits == 1, row, -np.inf))


@pytest.mark.parametrize("n", LENGTHS)
def test_select(n: int) -> None:
    row = logits(n)
    for threshold in (-np.inf, 0.0, 5.0, float(row.max()), 12.0):
        wanted = np.flatnonzero(row >= threshold)
        for capacity in (0, 3, n):
            found, ids = vocab_select(row, threshold, capacity)
            assert found == len(wanted)
            assert ids == wanted[:capacity].tolist()
