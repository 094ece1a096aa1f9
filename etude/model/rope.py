"""Rotary position embedding: from a model's settings to the frequencies the native step rotates with.

A head of `dim` values is rotated in pairs (i, i + dim/2), i in [0, dim/2), at position p by the angle p w_i:

    plain     w_i = base^(-2i/dim)                                                   arXiv:2104.09864
    factors   w_i = base^(-2i/dim) / f_i        llama3's long context; GGUF's tensor rope_freqs.weight is f
    linear    w_i = s * plain, s = 1/factor                                          arXiv:2306.15595
    YaRN      w_i = s * plain * (1 - m_i) + plain * m_i                              arXiv:2309.00071, eq. 23
              m_i = ext_factor * (1 - ramp_i)
              ramp_i = clip((i - low) / max(high - low, 0.001), 0, 1)
              low, high = floor(d(beta_fast)), ceil(d(beta_slow)) within [0, dim - 1]
              d(r) = dim * ln(original_context / (2 pi r)) / (2 ln base)
              and cos, sin are multiplied by `magnitude` = 1 + 0.1 ln(factor)

All of it is one formula over one record, `RopeTable`, so a new model is data. Where the two peers differ:

- llama.cpp multiplies the angle up pair by pair in f32, transformers rounds base^x and its inverse to f32; we
  compute in f64 and round w once. The three agree to about 1e-7 of the angle.
- llama.cpp ignores a file's `rope.scaling.yarn_beta_fast`, `yarn_beta_slow`, `yarn_ext_factor` and
  `yarn_attn_factor` for these families although its converter writes them; transformers uses them in
  config.json, and so do we.
- llama.cpp ignores --yarn-attn-factor while YaRN is on; here it multiplies the magnitude.
- YaRN's `truncate: false` (no floor and ceil) exists in config.json only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from etude.model.fields import Fields
from etude.records import EtudeError

MAX_CONTEXT = 2**30
_MIN_BASE, _MAX_BASE = 1.001, 1e15
_MIN_FACTOR, _MAX_FACTOR = 1e-4, 1e6


@dataclass(frozen=True)
class RopeTable:
    """What one row of frequencies is made from; see the module's formulas.

    freq_scale: s = 1/factor. ext_factor: 0 is no YaRN. freq_factors: f, empty for ones. magnitude: factor on
    cos, sin.
    """

    dim: int
    base: float
    freq_scale: float = 1.0
    freq_factors: tuple[float, ...] = ()
    ext_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context: int = 0
    truncate: bool = True
    magnitude: float = 1.0


@dataclass(frozen=True)
class RopeOverrides:
    """llama.cpp's --rope-* and --yarn-* flags; None is not given.

    rope_scale N is freq_scale 1/N. A flag that would change nothing is an error, see `with_overrides`.
    """

    rope_scaling: Literal["none", "linear", "yarn"] | None = None
    rope_scale: float | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None


def inv_freqs(table: RopeTable) -> NDArray[np.float32]:
    """The frequencies w, (dim / 2,), in radians per position.

    >>> inv_freqs(RopeTable(dim=4, base=10000.0)).tolist()
    [1.0, 0.009999999776482582]
    """
    index = np.arange(table.dim // 2, dtype=np.float64)
    plain = table.base ** (-2.0 * index / table.dim)
    if table.freq_factors:
        plain = plain / np.asarray(table.freq_factors, np.float64)
    if table.ext_factor == 0.0:
        return (plain * table.freq_scale).astype(np.float32)
    low, high = _yarn_range(table)
    ramp = np.clip((index - low) / max(high - low, 0.001), 0.0, 1.0)
    mix = (1.0 - ramp) * table.ext_factor
    return (plain * table.freq_scale * (1.0 - mix) + plain * mix).astype(np.float32)


def _yarn_range(table: RopeTable) -> tuple[float, float]:
    """(low, high): pairs below low turn often enough to keep their frequency, pairs above high are
    interpolated."""

    def pair_of(rotations: float) -> float:
        turns = table.original_context / (rotations * 2.0 * math.pi)
        return table.dim * math.log(turns) / (2.0 * math.log(table.base))

    low, high = pair_of(table.beta_fast), pair_of(table.beta_slow)
    if table.truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0.0), min(high, table.dim - 1.0)


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """1 + 0.1 mscale ln(factor), and 1 for factor <= 1: transformers' get_mscale; arXiv:2309.00071, eq. 22.

    >>> round(yarn_magnitude(4.0), 6)
    1.138629
    """
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def llama3_factors(
    dim: int, base: float, factor: float, low: float, high: float, original_context: int
) -> tuple[float, ...]:
    """Llama 3.1's frequency factors f_i, what GGUF stores as rope_freqs.weight.

    With the wavelength l_i = 2 pi base^(2i/dim) and c = original_context: f = 1 where l < c / high, f =
    factor where l > c / low, and 1/f = (1 - t)/factor + t, t = (c/l - low) / (high - low), between
    (transformers, _compute_llama3_parameters).
    """
    wavelength = 2.0 * math.pi * base ** (2.0 * np.arange(dim // 2, dtype=np.float64) / dim)
    smooth = (original_context / wavelength - low) / (high - low)
    with np.errstate(divide="ignore"):
        between = 1.0 / ((1.0 - smooth) / factor + smooth)
    factors = np.where(wavelength > original_context / low, factor, between)
    return tuple(float(f) for f in np.where(wavelength < original_context / high, 1.0, factors))


def table_from_gguf(
    fields: Fields, dim: int, context_length: int, freq_factors: NDArray[np.float32] | None
) -> RopeTable:
    """The table of a GGUF file's full-attention layers, by the rules of llama.cpp's load_hparams."""
    kind = fields.choice("rope.scaling.type", ("none", "linear", "yarn"), "linear")
    factor_key = "rope.scaling.factor" if "rope.scaling.factor" in fields else "rope.scale_linear"
    factor = fields.number(factor_key, 0.0, _MAX_FACTOR, 0.0)
    if kind == "none" or factor == 0.0:
        factor = 1.0
    table = RopeTable(
        dim=dim,
        base=fields.number("rope.freq_base", _MIN_BASE, _MAX_BASE, 10000.0),
        freq_scale=1.0 / _bounded_factor(fields, factor_key, factor),
        freq_factors=_checked_factors(fields, dim, freq_factors),
        original_context=fields.integer(
            "rope.scaling.original_context_length", 1, MAX_CONTEXT, context_length
        ),
        magnitude=fields.number("rope.scaling.attn_factor", 1e-3, 1e3, 1.0),
    )
    if kind != "yarn":
        return table
    magnitude = fields.number("rope.scaling.yarn_attn_factor", 1e-3, 1e3, yarn_magnitude(factor))
    ext_factor = fields.number("rope.scaling.yarn_ext_factor", -1.0, 1e3, 1.0)
    return replace(
        table,
        ext_factor=1.0 if ext_factor < 0 else ext_factor,
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
        magnitude=table.magnitude * magnitude,
    )


def table_from_hf(fields: Fields, dim: int, base: float, context_length: int) -> RopeTable:
    """The table of one `rope_scaling` / `rope_parameters` object of config.json (transformers'
    modeling_rope_utils).

    `base` and `context_length` (max_position_embeddings) are used where the object does not say.
    """
    base = fields.number("rope_theta", _MIN_BASE, _MAX_BASE, base)
    if fields.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
        raise fields.error(
            "partial_rotary_factor", "1: models that rotate only a part of each head are not supported"
        )
    kind_key = "rope_type" if "rope_type" in fields else "type"
    kind = fields.choice(kind_key, ("default", "linear", "llama3", "yarn"), "default")
    original = fields.integer("original_max_position_embeddings", 1, MAX_CONTEXT, context_length)
    if kind == "default":
        return RopeTable(dim, base, original_context=original)
    default_factor = context_length / original if kind == "yarn" else None
    factor = _bounded_factor(
        fields, "factor", fields.number("factor", _MIN_FACTOR, _MAX_FACTOR, default_factor)
    )
    if kind == "linear":
        return RopeTable(dim, base, freq_scale=1.0 / factor, original_context=original)
    if kind == "llama3":
        low = fields.number("low_freq_factor", 1e-3, 1e6)
        high = fields.number("high_freq_factor", 1e-3, 1e6)
        if high <= low:
            raise fields.error("high_freq_factor", f"a number greater than low_freq_factor ({low:g})")
        factors = llama3_factors(dim, base, factor, low, high, original)
        return RopeTable(dim, base, freq_factors=factors, original_context=original)
    return _yarn_from_hf(
        fields, RopeTable(dim, base, freq_scale=1.0 / factor, original_context=original), factor
    )


def _yarn_from_hf(fields: Fields, table: RopeTable, factor: float) -> RopeTable:
    mscale = fields.number("mscale", 0.0, 1e3, 0.0)
    mscale_all = fields.number("mscale_all_dim", 0.0, 1e3, 0.0)
    magnitude = yarn_magnitude(factor)
    if mscale and mscale_all:
        magnitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    return replace(
        table,
        ext_factor=1.0,
        beta_fast=fields.number("beta_fast", 0.0, 1e6, 32.0) or 32.0,
        beta_slow=fields.number("beta_slow", 0.0, 1e6, 1.0) or 1.0,
        truncate=fields.flag("truncate", True),
        magnitude=fields.number("attention_factor", 1e-3, 1e3, magnitude),
    )


def _bounded_factor(fields: Fields, key: str, factor: float) -> float:
    if not _MIN_FACTOR <= factor <= _MAX_FACTOR:
        raise fields.error(key, f"a number from {_MIN_FACTOR:g} to {_MAX_FACTOR:g}")
    return factor


def _checked_factors(fields: Fields, dim: int, factors: NDArray[np.float32] | None) -> tuple[float, ...]:
    if factors is None:
        return ()
    if factors.shape != (dim // 2,):
        raise EtudeError(
            f"{fields.source}: rope_freqs.weight has shape {factors.shape}; it must be ({dim // 2},)"
        )
    if not bool(np.all(np.isfinite(factors) & (factors >= 1e-6))):
        raise EtudeError(f"{fields.source}: rope_freqs.weight has values that are not finite and positive")
    return tuple(float(f) for f in factors)


def with_overrides(table: RopeTable, given: RopeOverrides) -> RopeTable:
    """The table after llama.cpp's flags, by llama_context's rules; EtudeError for a flag without effect.

    `none` switches interpolation off; `linear` and `yarn` take their factor from rope_scale, rope_freq_scale
    or the model; an ext_factor other than 0 is YaRN whatever the scaling says. freq_factors (llama3) always
    stay.
    """
    _check_values(given)
    trained_yarn = table.ext_factor != 0.0
    freq_scale = _override_scale(table, given)
    is_yarn = given.rope_scaling == "yarn" or (given.rope_scaling is None and trained_yarn)
    trained_ext = table.ext_factor if trained_yarn else 1.0
    ext_factor = given.yarn_ext_factor
    if ext_factor is None:
        ext_factor = trained_ext if is_yarn else 0.0
    result = replace(
        table,
        base=table.base if given.rope_freq_base is None else given.rope_freq_base,
        freq_scale=freq_scale,
        ext_factor=ext_factor,
        beta_fast=table.beta_fast if given.yarn_beta_fast is None else given.yarn_beta_fast,
        beta_slow=table.beta_slow if given.yarn_beta_slow is None else given.yarn_beta_slow,
        original_context=table.original_context if given.yarn_orig_ctx is None else given.yarn_orig_ctx,
    )
    _check_effect(result, given)
    changed_kind = trained_yarn != (ext_factor != 0.0) or freq_scale != table.freq_scale
    magnitude = table.magnitude
    if changed_kind:
        magnitude = yarn_magnitude(1.0 / freq_scale) if ext_factor != 0.0 else 1.0
    attn_factor = 1.0 if given.yarn_attn_factor is None else given.yarn_attn_factor
    return replace(result, magnitude=magnitude * attn_factor)


def _override_scale(table: RopeTable, given: RopeOverrides) -> float:
    if given.rope_scale is not None and given.rope_freq_scale is not None:
        raise EtudeError(
            "--rope-scale and --rope-freq-scale say the same thing (one is 1 / the other); give only one"
        )
    freq_scale = table.freq_scale
    if given.rope_scale is not None:
        freq_scale = 1.0 / given.rope_scale
    elif given.rope_freq_scale is not None:
        freq_scale = given.rope_freq_scale
    if given.rope_scaling != "none":
        return freq_scale
    if given.rope_scale is not None or given.rope_freq_scale is not None:
        raise EtudeError("--rope-scaling none takes no --rope-scale or --rope-freq-scale; drop one of them")
    return 1.0


def _check_values(given: RopeOverrides) -> None:
    if given.rope_scaling not in (None, "none", "linear", "yarn"):
        raise EtudeError(f"--rope-scaling {given.rope_scaling}: allowed are none, linear, yarn")
    limits = {
        "rope_scale": (_MIN_FACTOR, _MAX_FACTOR),
        "rope_freq_base": (_MIN_BASE, _MAX_BASE),
        "rope_freq_scale": (1 / _MAX_FACTOR, 1 / _MIN_FACTOR),
        "yarn_orig_ctx": (1, MAX_CONTEXT),
        "yarn_ext_factor": (0.0, 1e3),
        "yarn_attn_factor": (1e-3, 1e3),
        "yarn_beta_slow": (1e-3, 1e6),
        "yarn_beta_fast": (1e-3, 1e6),
    }
    for name, (low, high) in limits.items():
        value = vars(given)[name]
        if value is not None and not low <= value <= high:
            raise EtudeError(
                f"--{name.replace('_', '-')} {value}: allowed is a number from {low:g} to {high:g}"
            )


def _check_effect(result: RopeTable, given: RopeOverrides) -> None:
    yarn = {
        "yarn_orig_ctx": given.yarn_orig_ctx,
        "yarn_ext_factor": given.yarn_ext_factor,
        "yarn_beta_slow": given.yarn_beta_slow,
        "yarn_beta_fast": given.yarn_beta_fast,
    }
    written = [name for name, value in yarn.items() if value is not None]
    if result.freq_scale == 1.0:
        written += ["rope_scaling"] if given.rope_scaling in ("linear", "yarn") else []
        problem, remedy = "with a scaling factor of 1", "give --rope-scale too"
    elif result.ext_factor == 0.0:
        written = [name for name in written if name != "yarn_ext_factor"]
        problem, remedy = "without YaRN", "add --rope-scaling yarn"
    else:
        return
    if written:
        raise EtudeError(f"--{written[-1].replace('_', '-')} has no effect {problem}; {remedy}")
