"""The parallel conversion of a trainer's weights against the numpy one, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from etude.kernels import _native
from etude.kernels.reference_quants import quantize

F16, Q8_0, BF16 = 1, 8, 30


def hard_values(rows: int = 300) -> np.ndarray:
    """All magnitudes, denormal ones too; zeros of both signs; ties; blocks that are too small for a scale."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(rows, 96)) * rng.choice([1e-42, 1e-8, 1e-5, 0.02, 1, 50, 1000], size=(rows, 96))
    values[0], values[1], values[2, :32] = 0.0, -0.0, 1e-40
    values[3, :64] = np.linspace(-127, 127, 64) / 254
    values[4, :32] = np.arange(32) + 0.5
    values[5, :32] = [127.0, *np.arange(31) - 15.5]
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", [F16, Q8_0, BF16])
@pytest.mark.parametrize("rows", [1, 43, 300])
def test_it_is_the_reference(kind: int, rows: int) -> None:
    values = hard_values()[:rows]
    np.testing.assert_array_equal(_native.quantize(kind, values), quantize(kind, values).reshape(-1))


@pytest.mark.parametrize("kind", [F16, BF16])
def test_infinite_values_and_nan_stay(kind: int) -> None:
    values = np.array([[np.inf, -np.inf, np.nan, 1.0]], np.float32)
    halves = _native.quantize(kind, values).view(np.uint16)
    np.testing.assert_array_equal(halves[[0, 1, 3]], quantize(kind, values).view(np.uint16)[0, [0, 1, 3]])
    infinite = {F16: 0x7C00, BF16: 0x7F80}[kind]
    assert halves[2] & 0x7FFF > infinite


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (F16, 70000.0, "70000 does not fit F16"),
        (BF16, 3.4e38, "3.4e\\+38 does not fit BF16"),
        (Q8_0, 1e9, "got 1e\\+09"),
        (Q8_0, -np.inf, "got -inf"),
        (Q8_0, np.nan, "got nan"),
    ],
)
def test_what_does_not_fit_is_named(kind: int, value: float, message: str) -> None:
    values = hard_values()
    values[299, 95] = value
    with pytest.raises(ValueError, match=message):
        _native.quantize(kind, values)


def test_other_types_and_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="F16 \\(1\\), Q8_0 \\(8\\) and BF16 \\(30\\)"):
        _native.quantize(2, hard_values())
    with pytest.raises(ValueError, match="multiples of 32"):
        _native.quantize(Q8_0, np.zeros((2, 48), np.float32))
