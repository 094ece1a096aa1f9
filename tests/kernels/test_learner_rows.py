"""What the learner computes natively: softmax rows against f64, their gradient, sizes that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from etude.kernels import _native
from etude.model.quants import GGMLType, row_bytes

WIDTHS = [1, 15, 16, 17, 100, 1024, 2500]


def logits_of(width: int, rows: int = 5) -> np.ndarray:
    z = np.random.default_rng(width).normal(0, 8, (rows, width)).astype(np.float32)
    z[1] += 1e4  # the peak is taken off first
    z[2, : width // 2] = -np.inf  # tokens that cannot be
    return z


@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("width", WIDTHS)
def test_softmax_rows(width: int, threads: int) -> None:
    z = logits_of(width)
    peak, total, weighted = _native.softmax_rows(z.copy(), threads)
    shifted = z.astype(np.float64) - z.max(1, keepdims=True)
    np.testing.assert_array_equal(peak, z.max(1))
    np.testing.assert_allclose(total, np.exp(shifted).sum(1), rtol=1e-6)
    terms = np.exp(shifted) * np.maximum(shifted, -1000)
    np.testing.assert_allclose(weighted, terms.sum(1), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_softmax_gradient(width: int) -> None:
    """In place, the last values of a row too, and nothing beyond it."""
    z = logits_of(width)
    room = np.full((len(z) + 1, width), 7.0, np.float32)
    room[: len(z)] = z
    factor = np.linspace(-2, 2, len(z), dtype=np.float32)
    _native.softmax_gradient(room[: len(z)], z.max(1), factor, 2)
    expected = factor[:, None] * np.exp(z.astype(np.float64) - z.max(1, keepdims=True))
    np.testing.assert_allclose(room[: len(z)], expected, rtol=1e-5, atol=1e-30)  # z - peak is rounded
    assert (room[len(z)] == 7.0).all()


def test_a_row_that_is_not_finite_shows() -> None:
    z = logits_of(100)
    z[0, 3], z[4, 99] = np.nan, np.inf
    peak = _native.softmax_rows(z, 2)[0]
    assert np.isnan(peak[[0, 4]]).all() and np.isfinite(peak[1:4]).all()


def test_sizes_that_do_not_fit() -> None:
    z = logits_of(16)
    with pytest.raises(ValueError, match="for each row"):
        _native.softmax_gradient(z, np.zeros(4, np.float32), np.zeros(5, np.float32), 1)
    raw = np.zeros(3 * row_bytes(GGMLType.Q8_0, 64), np.uint8)
    with pytest.raises(ValueError, match="bytes"):
        _native.dequantize_into(int(GGMLType.Q8_0), raw[1:], np.zeros((3, 64), np.float32), 1)
    with pytest.raises(ValueError, match="3 x 65"):
        _native.dequantize_into(int(GGMLType.Q8_0), raw, np.zeros((3, 65), np.float32), 1)
    with pytest.raises(ValueError, match="no kernel"):
        _native.dequantize_into(999, raw, np.zeros((3, 64), np.float32), 1)
