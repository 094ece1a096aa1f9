"""reference_quants against the `gguf` package bit for bit, and against values worked out by hand."""

from __future__ import annotations

import sys

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from etude.kernels import reference_quants
from etude.kernels.reference_quants import READABLE_TYPES, dequantize, quantize
from etude.model.quants import GGMLType, block_bytes, block_size, row_bytes
from tests.kernels.quant_blocks import SPECIAL_HALVES, adversarial, plausible

READABLE = [GGMLType(type) for type in sorted(READABLE_TYPES)]
OWN = [type for type in READABLE if not type.name.startswith(("IQ1", "IQ2", "IQ3", "TQ"))]
WRITABLE = [GGMLType.F32, GGMLType.F16, GGMLType.Q8_0, GGMLType.BF16]


def by_gguf(data: NDArray[np.uint8], type: GGMLType) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(data, gguf.GGMLQuantizationType(type)))


def assert_same_bits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_all_types_of_the_issue_are_readable() -> None:
    wanted = (
        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 "
        "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S"
    )
    assert set(wanted.split()) <= {type.name for type in READABLE}


def test_type_ids_and_sizes_are_those_of_ggml() -> None:
    for theirs in gguf.GGMLQuantizationType:
        ours = GGMLType[theirs.name]
        assert ours == theirs
        assert (block_size(ours), block_bytes(ours)) == gguf.GGML_QUANT_SIZES[theirs]


@pytest.mark.parametrize("type", READABLE, ids=lambda type: type.name)
def test_random_bytes_equal_gguf(type: GGMLType) -> None:
    rows, inputs = 33, 5 * 256
    data = np.random.default_rng(type).integers(0, 256, (rows, row_bytes(type, inputs)), dtype=np.uint8)
    assert_same_bits(dequantize(type, data, (rows, inputs)), by_gguf(data, type))


@pytest.mark.parametrize("type", READABLE, ids=lambda type: type.name)
def test_adversarial_bytes_equal_gguf(type: GGMLType) -> None:
    data = adversarial(type)
    assert_same_bits(dequantize(type, data, (len(data), block_size(type))), by_gguf(data, type))


@pytest.mark.parametrize("type", [GGMLType.F16, GGMLType.BF16], ids=lambda type: type.name)
def test_every_half(type: GGMLType) -> None:
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    assert_same_bits(dequantize(type, data, (1 << 16,)), by_gguf(data, type))


def test_every_scale_of_mxfp4() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (256, 16), dtype=np.uint8)
    data = np.concatenate([np.arange(256, dtype=np.uint8)[:, None], codes], axis=1)
    values = dequantize(GGMLType.MXFP4, data, (256, 32))
    assert_same_bits(values, by_gguf(data, GGMLType.MXFP4))
    assert not np.any(np.isnan(values)), "the scale 255 is NaN for OCP, but not for ggml"


@pytest.mark.parametrize("type", OWN, ids=lambda type: type.name)
def test_pieces_of_the_work_do_not_show(type: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = plausible(np.random.default_rng(type), type, 7, 512)
    whole = dequantize(type, data, (7, 512))
    monkeypatch.setattr(reference_quants, "BLOCKS_AT_ONCE", {1: 100, 32: 5, 256: 3})
    assert_same_bits(dequantize(type, data, (7, 512)), whole)
    assert np.all(np.isfinite(whole))
    assert 0.001 < whole.std() < 1


def halves(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def test_q4_0_by_hand() -> None:
    """Byte j: low nibble is value j, high nibble value j + 16, both less 8."""
    data = np.frombuffer(halves(0.5) + bytes([0xF0]) + bytes([0x88]) * 15, np.uint8)
    expected = np.zeros(32, np.float32)
    expected[0], expected[16] = -4.0, 3.5
    assert_same_bits(dequantize(GGMLType.Q4_0, data, (32,)), expected)


def test_q5_1_by_hand() -> None:
    """Bit j of the four bytes after the scales adds 16 to value j."""
    data = np.frombuffer(halves(2, -1) + bytes([1, 0, 0, 128]) + bytes([3] + [0] * 15), np.uint8)
    expected = np.full(32, -1.0, np.float32)
    expected[0], expected[31] = 2 * 19 - 1, 2 * 16 - 1
    assert_same_bits(dequantize(GGMLType.Q5_1, data, (32,)), expected)


def test_q6_k_by_hand() -> None:
    """Value 5: low bits in byte 5, high bits in the lowest of byte 128 + 5, the first of 16 signed scales."""
    block = np.zeros(210, np.uint8)
    block[5], block[128 + 5] = 0x07, 0x03
    block[192:208] = np.array([-3, *[1] * 15], np.int8).view(np.uint8)
    block[208:] = np.frombuffer(halves(0.25), np.uint8)
    expected = np.full(256, 0.25 * -32, np.float32)
    expected[:16] = 0.25 * -3 * -32
    expected[5] = 0.25 * -3 * (7 + 3 * 16 - 32)
    assert_same_bits(dequantize(GGMLType.Q6_K, block, (256,)), expected)


def test_q4_k_by_hand() -> None:
    """Fifth of eight scales: low bits of byte 8, its two high bits the top of byte 0; the min likewise."""
    block = np.zeros(144, np.uint8)
    block[:4] = np.frombuffer(halves(1, 0.5), np.uint8)
    scales = block[4:16]
    scales[0], scales[4], scales[8] = 0b10_000001, 0b01_000010, 0x35
    block[16 + 64 : 16 + 96] = 9  # values 128 to 159, low nibbles
    expected = np.zeros(256, np.float32)
    expected[:32] = -0.5 * 2
    expected[128:160] = (0x20 + 5) * 9 - 0.5 * (0x10 + 3)
    assert_same_bits(dequantize(GGMLType.Q4_K, block, (256,)), expected)


def test_three_axes() -> None:
    data = plausible(np.random.default_rng(0), GGMLType.Q8_0, 6, 64)
    flat = dequantize(GGMLType.Q8_0, data, (6, 64))
    np.testing.assert_array_equal(
        dequantize(GGMLType.Q8_0, data.reshape(-1), (2, 3, 64)), flat.reshape(2, 3, 64)
    )


@pytest.mark.parametrize(
    ("type", "size_bytes", "shape", "message"),
    [
        (GGMLType.Q4_0, 18, (1, 33), "multiple of 32"),
        (GGMLType.Q4_K, 144, (8, 32), "multiple of 256"),
        (GGMLType.Q4_0, 17, (1, 32), "takes 18 bytes, got 17"),
        (GGMLType.F32, 8, (1, 1), "takes 4 bytes, got 8"),
        (GGMLType.IQ2_XS, 73, (1, 256), "takes 74 bytes"),
        (GGMLType.F32, 4, (), "shape"),
        (GGMLType.I32, 4, (1,), "type 26 cannot be dequantised: readable are F32, F16, Q4_0"),
        (GGMLType.F32, 4, (1 << 62, 1 << 62), "takes"),
    ],
)
def test_what_does_not_fit_is_refused(
    type: GGMLType, size_bytes: int, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dequantize(type, np.zeros(size_bytes, np.uint8), shape)


def test_missing_gguf_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="reading IQ3_S takes the package gguf: pip install gguf"):
        dequantize(GGMLType.IQ3_S, np.zeros(110, np.uint8), (1, 256))


# ── quantize ──


def gguf_bytes(values: NDArray[np.float32], type: GGMLType) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType(type))).view(np.uint8)


@pytest.mark.parametrize("type", WRITABLE, ids=lambda type: type.name)
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-9, 1e-3, 1.0, 300.0, 6e4])
def test_written_bytes_equal_gguf(type: GGMLType, size: float) -> None:
    values = np.random.default_rng(0).uniform(-size, size, (37, 288)).astype(np.float32)
    values[3] = 0
    values[4] = -0.0
    values[5] = size
    values[6, ::2] = 0
    np.testing.assert_array_equal(quantize(type, values), gguf_bytes(values, type))


def test_ties_round_away_from_zero() -> None:
    """Scale 1: 127 is the largest; codes of x.5 go outwards, and 0.49999997 stays 0."""
    row = np.array([127, 0.5, -0.5, 1.5, -1.5, 126.5, -126.5, 0.49999997, *[0] * 24], np.float32)
    stored = quantize(GGMLType.Q8_0, row)
    np.testing.assert_array_equal(stored[2:10].view(np.int8), [127, 1, -1, 2, -2, 127, -127, 0])
    np.testing.assert_array_equal(stored, gguf_bytes(row[None], GGMLType.Q8_0)[0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=32, max_size=32))
def test_q8_0_of_any_row_equals_gguf(row: list[float]) -> None:
    values = np.array([row], np.float32)
    np.testing.assert_array_equal(quantize(GGMLType.Q8_0, values), gguf_bytes(values, GGMLType.Q8_0))


def test_float_types_keep_what_is_not_finite() -> None:
    """Every BF16 bit pattern with rounding bits below it, so ties, infinities and all NaN."""
    patterns = np.arange(1 << 16, dtype=np.uint32) << 16
    bits = np.concatenate([patterns | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = bits.view(np.float32)
    values = values[~(np.isfinite(values) & (np.abs(values) > 3.38e38))]  # would become infinite: refused
    np.testing.assert_array_equal(quantize(GGMLType.BF16, values), gguf_bytes(values[None], GGMLType.BF16)[0])
    specials = np.array(SPECIAL_HALVES, np.uint16).view(np.float16)
    np.testing.assert_array_equal(quantize(GGMLType.F16, specials), specials.view(np.uint8))


def test_what_we_write_we_read() -> None:
    values = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    for type in WRITABLE:
        once = dequantize(type, quantize(type, values), values.shape)
        error = np.abs(once - values).max()
        assert error <= {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2}[type.name]
        if type != GGMLType.Q8_0:
            assert_same_bits(dequantize(type, quantize(type, once), values.shape), once)


@pytest.mark.parametrize(
    ("type", "value", "message"),
    [
        (GGMLType.F16, 65520.0, "65520 does not fit F16"),
        (GGMLType.F16, -1e30, "does not fit F16"),
        (GGMLType.BF16, 3.4e38, "does not fit BF16"),
        (GGMLType.F32, 1e39, "does not fit F32"),
        (GGMLType.Q8_0, np.inf, "finite"),
        (GGMLType.Q8_0, np.nan, "finite"),
        (GGMLType.Q8_0, 9e6, "finite values up to 8.3e6"),
        (GGMLType.Q4_0, 1.0, "type 2 cannot be written: allowed are F32"),
    ],
)
def test_values_without_a_place_are_refused(type: GGMLType, value: float, message: str) -> None:
    values = np.zeros((2, 32))
    values[1, 7] = value
    with pytest.raises(ValueError, match=message):
        quantize(type, values)


def test_only_whole_rows_of_floats_are_written() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        quantize(GGMLType.Q8_0, np.zeros((2, 33), np.float32))
    with pytest.raises(ValueError, match="allowed are float arrays"):
        quantize(GGMLType.F32, np.zeros((2, 32), np.int32))
