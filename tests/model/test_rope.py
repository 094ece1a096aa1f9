"""Rope tables against both peers' own algorithms, transcribed; --rope-* flags against llama.cpp's rules."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from etude.model.fields import Fields
from etude.model.rope import (
    RopeOverrides,
    RopeTable,
    inv_freqs,
    llama3_factors,
    table_from_gguf,
    table_from_hf,
    with_overrides,
    yarn_magnitude,
)
from etude.records import EtudeError


def of_hf(record: dict[str, Any], dim: int = 64, base: float = 10000.0, context: int = 4096) -> RopeTable:
    return table_from_hf(Fields(record, "config.json"), dim, base, context)


def of_gguf(record: dict[str, Any], dim: int = 64, context: int = 4096) -> RopeTable:
    return table_from_gguf(Fields(record, "file"), dim, context, None)


def ggml_angles(table: RopeTable, position: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """(cos, sin, magnitude) as ggml_rope_cache_init and rope_yarn of llama.cpp compute them, with
    yarn_attn_factor as llama_context sets it: get_mscale(factor) / (1 + 0.1 ln factor)."""
    low = math.floor(_corr_dim(table, table.beta_fast)) if table.ext_factor else 0
    high = math.ceil(_corr_dim(table, table.beta_slow)) if table.ext_factor else 0
    low, high = max(0, low), min(table.dim - 1, high)
    factor = 1.0 / table.freq_scale
    attn_factor = 1.0
    if table.ext_factor:
        attn_factor = (1.0 if factor <= 1 else 0.1 * math.log(factor) + 1) / (1 + 0.1 * math.log(factor))
    theta, cosine, sine, mscale = float(position), [], [], attn_factor
    for pair in range(table.dim // 2):
        extrapolated = theta / (table.freq_factors[pair] if table.freq_factors else 1.0)
        angle = table.freq_scale * extrapolated
        mscale = attn_factor
        if table.ext_factor:
            ramp = 1 - min(1.0, max(0.0, (pair - low) / max(0.001, high - low)))
            mix = ramp * table.ext_factor
            angle = angle * (1 - mix) + extrapolated * mix
            mscale *= 1 + 0.1 * math.log(1.0 / table.freq_scale)
        cosine.append(math.cos(angle) * mscale)
        sine.append(math.sin(angle) * mscale)
        theta *= table.base ** (-2.0 / table.dim)
    return np.array(cosine), np.array(sine), mscale


def _corr_dim(table: RopeTable, rotations: float) -> float:
    ratio = table.original_context / (rotations * 2 * math.pi)
    return table.dim * math.log(ratio) / (2 * math.log(table.base))


TABLES = {
    "plain": of_gguf({"rope.freq_base": 5e5}),
    "linear": of_gguf({"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "linear, old key": of_gguf({"rope.scale_linear": 4.0}),
    "yarn": of_gguf({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
    "yarn, factor below 1": of_gguf({"rope.scaling.type": "yarn", "rope.scaling.factor": 0.5}),
    "yarn, wide": of_gguf({"rope.scaling.type": "yarn", "rope.scaling.factor": 40.0}, 128, 512),
    "factors": dataclasses.replace(of_gguf({}), freq_factors=tuple(1.0 + i / 4 for i in range(32))),
    "factors and yarn": dataclasses.replace(
        of_gguf({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}),
        freq_factors=tuple(1.0 + i / 4 for i in range(32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLES))
@pytest.mark.parametrize("position", [0, 1, 37, 900])
def test_angles_equal_ggml(name: str, position: int) -> None:
    table = TABLES[name]
    cosine, sine, mscale = ggml_angles(table, position)
    angles = inv_freqs(table).astype(np.float64) * position
    np.testing.assert_allclose(np.cos(angles) * table.magnitude, cosine, atol=1e-4)
    np.testing.assert_allclose(np.sin(angles) * table.magnitude, sine, atol=1e-4)
    assert math.isclose(table.magnitude, mscale, rel_tol=1e-6)


def test_llama3_factors_equal_the_converters() -> None:
    """Llama 3.1: generate_extra_tensors of llama.cpp's conversion/llama.py, with its numbers."""
    dim, base, factor, low, high, context = 128, 500000.0, 8.0, 1.0, 4.0, 8192
    expected = []
    for pair in range(dim // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / dim)
        if wavelength < context / high:
            expected.append(1.0)
        elif wavelength > context / low:
            expected.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            expected.append(1 / ((1 - smooth) / factor + smooth))
    got = llama3_factors(dim, base, factor, low, high, context)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert got[0] == 1.0 and got[-1] == 8.0 and 1.0 < got[32] < 8.0


def test_yarn_of_config_json() -> None:
    record = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    table = of_hf(record, 128, 1e6, 32768)
    assert table.magnitude == 0.1 * math.log(4.0) + 1.0
    frequencies, plain = inv_freqs(table), inv_freqs(RopeTable(128, 1e6))
    assert frequencies[0] == plain[0]
    np.testing.assert_allclose(frequencies[-1], plain[-1] / 4, rtol=1e-6)
    assert of_hf(record | {"attention_factor": 1.5}).magnitude == 1.5
    mscales = of_hf(record | {"mscale": 0.707, "mscale_all_dim": 1.0})
    assert mscales.magnitude == yarn_magnitude(4.0, 0.707) / yarn_magnitude(4.0, 1.0)
    exact = of_hf(record | {"truncate": False}, 128, 1e6, 32768)
    assert not np.array_equal(inv_freqs(exact), frequencies)


def test_yarn_factor_from_context_lengths() -> None:
    table = of_hf({"rope_type": "yarn", "original_max_position_embeddings": 1024}, context=4096)
    assert table.freq_scale == 1 / 4


def test_gguf_and_config_json_agree() -> None:
    yarn = {"factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0}
    hf = of_hf({"rope_type": "yarn", "original_max_position_embeddings": 2048} | yarn)
    gguf = of_gguf(
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.original_context_length": 2048,
            "rope.scaling.factor": 4.0,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        }
    )
    assert hf == gguf


# --- flags ------------------------------------------------------------------------------------------------

PLAIN = RopeTable(64, 10000.0, original_context=4096)
LINEAR = dataclasses.replace(PLAIN, freq_scale=1 / 8)
YARN = dataclasses.replace(PLAIN, freq_scale=1 / 4, ext_factor=1.0, magnitude=yarn_magnitude(4.0))


def test_no_flags_change_nothing() -> None:
    for table in (*TABLES.values(), PLAIN, LINEAR, YARN):
        assert with_overrides(table, RopeOverrides()) == table


def test_scale_flags() -> None:
    assert with_overrides(PLAIN, RopeOverrides(rope_scale=8.0)) == LINEAR
    assert with_overrides(PLAIN, RopeOverrides(rope_freq_scale=1 / 8)) == LINEAR
    assert with_overrides(PLAIN, RopeOverrides(rope_scaling="yarn", rope_scale=4.0)) == YARN
    assert with_overrides(PLAIN, RopeOverrides(yarn_ext_factor=1.0, rope_scale=4.0)) == YARN
    assert with_overrides(LINEAR, RopeOverrides(rope_scaling="none")) == PLAIN
    assert with_overrides(YARN, RopeOverrides(rope_scaling="none")) == PLAIN
    assert with_overrides(YARN, RopeOverrides(rope_scaling="linear")).magnitude == 1.0
    assert with_overrides(YARN, RopeOverrides(rope_scale=2.0)).magnitude == yarn_magnitude(2.0)
    assert with_overrides(PLAIN, RopeOverrides(rope_freq_base=5e5)).base == 5e5


def test_yarn_flags() -> None:
    given = RopeOverrides(
        rope_scaling="yarn", rope_scale=4.0, yarn_orig_ctx=2048, yarn_ext_factor=0.5, yarn_attn_factor=2.0,
        yarn_beta_slow=2.0, yarn_beta_fast=16.0,
    )  # fmt: skip
    table = with_overrides(PLAIN, given)
    assert (table.original_context, table.ext_factor, table.beta_slow, table.beta_fast) == (
        2048,
        0.5,
        2.0,
        16.0,
    )
    assert table.magnitude == 2.0 * yarn_magnitude(4.0)
    interpolation = with_overrides(YARN, RopeOverrides(yarn_ext_factor=0.0))
    assert (interpolation.freq_scale, interpolation.magnitude) == (1 / 4, 1.0)


@pytest.mark.parametrize(
    ("table", "given", "message"),
    [
        (PLAIN, RopeOverrides(rope_scaling="linear"), "--rope-scaling has no effect"),
        (PLAIN, RopeOverrides(rope_scaling="yarn"), "give --rope-scale too"),
        (PLAIN, RopeOverrides(yarn_ext_factor=1.0), "--yarn-ext-factor has no effect"),
        (LINEAR, RopeOverrides(yarn_orig_ctx=2048), "--yarn-orig-ctx has no effect without YaRN"),
        (LINEAR, RopeOverrides(yarn_beta_fast=16.0), "add --rope-scaling yarn"),
        (YARN, RopeOverrides(rope_scaling="none", rope_scale=2.0), "drop one"),
        (PLAIN, RopeOverrides(rope_scale=2.0, rope_freq_scale=0.5), "give only one"),
        (PLAIN, RopeOverrides(rope_scale=0.0), "--rope-scale 0.0: allowed"),
        (PLAIN, RopeOverrides(rope_freq_base=1.0), "--rope-freq-base 1.0: allowed"),
        (PLAIN, RopeOverrides(rope_freq_base=float("nan")), "--rope-freq-base nan: allowed"),
        (PLAIN, RopeOverrides(rope_scaling="su"), "allowed are none, linear, yarn"),
    ],
)
def test_flags_without_effect_or_sense_are_errors(
    table: RopeTable, given: RopeOverrides, message: str
) -> None:
    with pytest.raises(EtudeError, match=message):
        with_overrides(table, given)


@given(
    st.sampled_from([2, 4, 64, 128, 1024]),
    st.floats(1.001, 1e15),
    st.floats(1e-4, 1e4),
    st.floats(0.0, 2.0),
    st.floats(1e-3, 1e6),
    st.floats(1e-3, 1e6),
    st.integers(1, 2**30),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_frequencies_are_always_finite(
    dim: int, base: float, factor: float, ext: float, fast: float, slow: float, context: int, truncate: bool
) -> None:
    table = RopeTable(dim, base, 1 / factor, (), ext, fast, slow, context, truncate, yarn_magnitude(factor))
    frequencies = inv_freqs(table)
    assert frequencies.shape == (dim // 2,) and frequencies.dtype == np.float32
    assert np.isfinite(frequencies).all()
