"""Packed products, type by type, on the instruction-set path of this process (test_every_path.py forces the
others): unpacked weights bit for bit, products against float64, and no influence of batch, rows or threads.

What a product is held against: the float64 product of the dequantised weights with the inputs as they are
encoded (`reference.encode_activations` for integer formats, bf16 for bf16, the inputs themselves for f32 and
f16). That leaves the kernel only the rounding of its f32 sums.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels import _native, reference
from etude.kernels.reference_quants import dequantize
from etude.model.quants import GGMLType, block_bytes, block_size, row_bytes
from tests.kernels.native_model import same_bits
from tests.kernels.quant_blocks import HALF_OFFSETS, adversarial, plausible

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

NAMES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4"
TYPES = [GGMLType[name] for name in NAMES.split()]
FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
WIDTHS = (32, 64, 96, 576, 640, 2880, 4096)
K_QUANT_WIDTHS = (256, 512, 768, 2560, 4096)
TOLERANCE = 1e-5
"""Of a row's largest output: f32 sums of up to 4096 products."""

each_type = pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)


def widths(type: GGMLType) -> tuple[int, ...]:
    return K_QUANT_WIDTHS if block_size(type) == 256 else WIDTHS


def weights(type: GGMLType, n: int, k: int, seed: int = 0) -> tuple[U8, F64]:
    """(bytes of the rows (n, row_bytes), values (n, k))."""
    data = plausible(np.random.default_rng([seed, type, n, k]), type, n, k).reshape(n, -1)
    return data, dequantize(type, data.reshape(-1), (n, k)).astype(np.float64)


def inputs(t: int, k: int, seed: int = 1) -> F32:
    """Rows as a model has them: noise, then a few with outliers, one of zeros, sizes apart by 1000."""
    rng = np.random.default_rng([seed, t, k])
    x_TK = rng.standard_normal((t, k)) * 10 ** rng.uniform(-1.5, 1.5, (t, 1))
    x_TK[::3, rng.integers(0, k, 2)] *= 60
    x_TK[5::13] = 0
    return np.ascontiguousarray(x_TK, np.float32)


def encoded(type: GGMLType, x_TK: F32) -> F64:
    if type == GGMLType.BF16:
        return reference.round_bf16(x_TK).astype(np.float64)
    return x_TK.astype(np.float64) if type in FLOATS else reference.encode_activations(x_TK)


def multiply(type: GGMLType, data: U8, x_TK: F32, threads: int = 1) -> F32:
    n, k = len(data), x_TK.shape[1]
    return _native.matmul(int(type), np.ascontiguousarray(data).reshape(-1), n, k, x_TK, threads)


def worst_error(got_TN: F32, exact_TN: F64) -> float:
    """Largest error as a share of the largest output of its row; a row of exact zeros must be zeros."""
    largest = np.abs(exact_TN).max(axis=1, keepdims=True)
    assert not got_TN[largest[:, 0] == 0].any()
    return float((np.abs(got_TN - exact_TN) / np.maximum(largest, 1e-300)).max())


# --- weights ----------------------------------------------------------------------------------------------


def assert_same_weights(type: GGMLType, data: U8, n: int, k: int) -> None:
    """All bits equal; where the value is NaN (not its sign or payload) both must be."""
    with np.errstate(all="ignore"):
        expected = dequantize(type, data, (n, k))
    got = _native.pack_dequantize(int(type), data, n, k)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(nan, np.isnan(got))
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@each_type
def test_unpacked_weights_have_the_bits_of_the_specification(type: GGMLType) -> None:
    for k in widths(type):
        n = 33 if k < 1000 else 5
        assert_same_weights(type, weights(type, n, k)[0].reshape(-1), n, k)


@each_type
def test_adversarial_weights_have_the_bits_of_the_specification(type: GGMLType) -> None:
    blocks = adversarial(type)
    assert_same_weights(type, blocks.reshape(-1), len(blocks), block_size(type))
    assert_same_weights(type, blocks.reshape(-1), 1, len(blocks) * block_size(type))
    assert_same_weights(type, blocks[:48].reshape(-1), 3, 16 * block_size(type))


@pytest.mark.parametrize("type", [GGMLType.F16, GGMLType.BF16], ids=lambda type: type.name)
def test_every_half_unpacks(type: GGMLType) -> None:
    assert_same_weights(type, np.arange(1 << 16, dtype=np.uint16).view(np.uint8), 256, 256)


def test_every_exponent_of_mxfp4_unpacks_and_multiplies() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (256, 16), dtype=np.uint8)
    data = np.concatenate([np.arange(256, dtype=np.uint8)[:, None], codes], axis=1)
    assert_same_weights(GGMLType.MXFP4, data.reshape(-1), 256, 32)
    x_TK = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    finite = data[:240]  # above, sums leave f32
    exact = encoded(GGMLType.MXFP4, x_TK) @ dequantize(GGMLType.MXFP4, finite.reshape(-1), (240, 32)).T
    got = multiply(GGMLType.MXFP4, finite, x_TK)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-44)


def test_weights_at_an_odd_address() -> None:
    data, _ = weights(GGMLType.Q4_K, 17, 512)
    shifted = np.zeros(data.size + 1, np.uint8)[1:]
    shifted[:] = data.reshape(-1)
    x_TK = inputs(3, 512)
    got = _native.matmul(int(GGMLType.Q4_K), shifted, 17, 512, x_TK, 1)
    assert same_bits(got, multiply(GGMLType.Q4_K, data, x_TK))


# --- activations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [32, 576, 4096])
def test_encoded_activations_have_the_bits_of_the_specification(k: int) -> None:
    for row in inputs(14, k):
        codes, scales = _native.encode_i8(row)
        expected_codes, expected_scales = reference.quantize_activations(row[None])
        np.testing.assert_array_equal(codes, expected_codes[0])
        np.testing.assert_array_equal(scales.view(np.uint32), expected_scales[0].view(np.uint32))


def test_activations_at_the_edges() -> None:
    tiny, huge = np.float32(1e-30), np.float32(1e33)
    smaller = np.nextafter(tiny, np.float32(0))
    rows = np.zeros((8, 32), np.float32)
    rows[0] = tiny
    rows[1] = smaller  # counts as zero
    rows[2] = np.float32(1e-40)  # denormal
    rows[3, ::2], rows[3, 1::2] = huge, -huge
    rows[4, 7] = -1e9
    rows[5] = -np.arange(32)
    rows[6] = np.float32(0.49999997) * np.arange(-16, 16)
    for row in rows:
        codes, scales = _native.encode_i8(row)
        expected_codes, expected_scales = reference.quantize_activations(row[None])
        np.testing.assert_array_equal(codes, expected_codes[0])
        np.testing.assert_array_equal(scales.view(np.uint32), expected_scales[0].view(np.uint32))
    assert _native.encode_i8(rows[3])[0].tolist() == [127, -127] * 16, "never -128"
    assert not _native.encode_i8(rows[1])[0].any() and not _native.encode_i8(rows[1])[1].any()


# --- products ---------------------------------------------------------------------------------------------


@each_type
def test_products_equal_float64(type: GGMLType) -> None:
    for k in widths(type):
        n, t = (33, 21) if k < 1000 else (19, 9)
        data, w_NK = weights(type, n, k)
        x_TK = inputs(t, k)
        error = worst_error(multiply(type, data, x_TK, 2), encoded(type, x_TK) @ w_NK.T)
        assert error < TOLERANCE, (k, error)


@each_type
def test_products_stay_near_unencoded_inputs(type: GGMLType) -> None:
    """NMSE < 5e-4, also for inputs made to be hard: heavy tails, and a spike just too small for a second
    pass in every block."""
    k = 2560 if block_size(type) == 256 else 2880
    rng = np.random.default_rng(type)
    data, w_NK = weights(type, 64, k)
    spikes = rng.standard_normal((4, k)) * 0.1
    spikes[:, ::64] = 5.0
    for x in (rng.standard_normal((4, k)), rng.standard_t(2, (4, k)), spikes, inputs(4, k)[1:3]):
        x_TK = np.ascontiguousarray(x, np.float32)
        exact = x_TK.astype(np.float64) @ w_NK.T
        error = ((multiply(type, data, x_TK) - exact) ** 2).sum() / (exact**2).sum()
        assert error < 5e-4, error


@each_type
def test_any_number_of_columns_rows_and_threads_gives_the_same_bits(type: GGMLType) -> None:
    """t 1 to 70 and around 128 (where the kernel changes its way), n 1 to 33, threads 1 to 3; and each row of
    the batch alone."""
    k = 256 if block_size(type) == 256 else 96
    data, w_NK = weights(type, 33, k)
    x_TK = inputs(139, k)
    whole = multiply(type, data, x_TK)
    assert worst_error(whole, encoded(type, x_TK) @ w_NK.T) < TOLERANCE
    for t in (*range(1, 71), *range(126, 140)):
        assert same_bits(multiply(type, data, x_TK[:t], 1 + t % 3), whole[:t]), t
        assert same_bits(multiply(type, data, x_TK[t - 1 : t]), whole[t - 1 : t]), t
    for n in range(1, 34):
        got = multiply(type, data[:n], x_TK[: n % 6 + 1], 1 + n % 3)
        assert same_bits(got, np.ascontiguousarray(whole[: n % 6 + 1, :n])), n


@each_type
@pytest.mark.parametrize("k", [6144, 6400])
def test_large_batches_of_wide_rows_equal_each_row_alone(type: GGMLType, k: int) -> None:
    data, w_NK = weights(type, 33, k)
    x_TK = inputs(130, k)
    whole = multiply(type, data, x_TK)
    assert worst_error(whole, encoded(type, x_TK) @ w_NK.T) < TOLERANCE
    for t in (0, 3, 60, 129):
        assert same_bits(multiply(type, data, x_TK[t : t + 1]), whole[t : t + 1]), t


@each_type
def test_many_tiles_on_any_number_of_threads(type: GGMLType) -> None:
    k = 256 if block_size(type) == 256 else 64
    data, w_NK = weights(type, 16 * 13 + 5, k)
    x_TK = inputs(11, k)
    one = multiply(type, data, x_TK, 1)
    assert worst_error(one, encoded(type, x_TK) @ w_NK.T) < TOLERANCE
    assert all(same_bits(multiply(type, data, x_TK, threads), one) for threads in (2, 3, 7))


# --- largest magnitudes -----------------------------------------------------------------------------------


def extreme_weights(type: GGMLType, k: int) -> U8:
    """Rows whose codes and sub-scales are all 0, all largest, or alternate; scales stay plausible."""
    data = plausible(np.random.default_rng(type), type, 8, k).reshape(8, -1, block_bytes(type))
    fixed = np.zeros(block_bytes(type), bool)
    for offset in HALF_OFFSETS.get(type, ()):
        fixed[offset : offset + 2] = True
    fixed[0] |= type == GGMLType.MXFP4
    patterns = [0x00, 0xFF, 0x7F, 0x80, 0xF0, 0x0F, 0x77, 0x88]
    for row, pattern in zip(data, patterns, strict=True):
        row[:, ~fixed] = pattern
    return data.reshape(8, -1)


@pytest.mark.parametrize("type", [type for type in TYPES if type not in FLOATS], ids=lambda type: type.name)
def test_nothing_saturates(type: GGMLType) -> None:
    k = 512
    data = extreme_weights(type, k)
    assert data.shape[1] == row_bytes(type, k)
    w_NK = dequantize(type, data.reshape(-1), (8, k)).astype(np.float64)
    x_TK = np.ones((9, k), np.float32)
    x_TK[1] = -1
    x_TK[2, ::2], x_TK[3, 1::2] = -1, -1
    x_TK[4] = np.where(w_NK[1] > 0, 1, -1)
    x_TK[5, 3] = 1e6  # one outlier above 511 ones
    x_TK[6] = np.float32(1e-40)
    x_TK[7] = 1e33
    x_TK[8, :32] = 0
    exact = encoded(type, x_TK) @ w_NK.T
    got = multiply(type, data, x_TK)
    assert worst_error(got, exact) < TOLERANCE
    same_sign = [row for row in (0, 1, 7) if np.abs(exact[row]).min() > 0]
    np.testing.assert_allclose(got[same_sign], exact[same_sign], rtol=TOLERANCE)


@each_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_visible_and_alone(type: GGMLType, bad: float) -> None:
    """Its outputs are not finite, wherever in a block it stands; the other rows keep their bits."""
    k = 256
    data, _ = weights(type, 20, k)
    x_TK = np.random.default_rng(0).standard_normal((k // 3 + 2, k)).astype(np.float32)
    clean = multiply(type, data, x_TK)
    for row in range(1, len(x_TK), 2):
        x_TK[row, 3 * (row - 1)] = bad
    got = multiply(type, data, x_TK)
    assert not np.isfinite(got[1::2]).any()
    assert same_bits(np.ascontiguousarray(got[::2]), np.ascontiguousarray(clean[::2]))


# --- refusals ---------------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    data, x_TK = np.zeros(18 * 2, np.uint8), np.zeros((1, 32), np.float32)
    assert not _native.matmul(2, data, 2, 32, x_TK, 1).any()
    for type, n, k, x, threads in (
        (2, 3, 32, x_TK, 1),  # too few bytes
        (2, 2, 31, x_TK[:, :31].copy(), 1),
        (2, 0, 32, x_TK, 1),
        (2, -1, 32, x_TK, 1),
        (2, 2, 64, x_TK, 1),
        (16, 2, 32, x_TK, 1),  # IQ2_XXS: no kernel
        (99, 2, 32, x_TK, 1),
        (2, 2, 32, x_TK[0], 1),
        (2, 2, 32, x_TK, 0),
        (2, 2, 32, x_TK, 100_000),
    ):
        with pytest.raises(ValueError):
            _native.matmul(type, data, n, k, x, threads)
    with pytest.raises(TypeError):
        _native.matmul(2, data, 2, 32, x_TK.astype(np.float64), 1)
    with pytest.raises(ValueError):
        _native.encode_i8(np.zeros(33, np.float32))
