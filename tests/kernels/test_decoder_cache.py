"""The cache of the decoder: what its types round away, pages out and in, and the context shift."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels import _native, reference
from tests.kernels.native_model import (
    Run,
    Seq,
    expected,
    fixture,
    mean_kl,
    native,
    random_ids,
    random_model,
    same_bits,
)
from tests.model.tiny_models import NAMES

F32 = NDArray[np.float32]
ROUNDING_TYPES = ("f16", "bf16", "q8_0")


def head_parts(
    run: Run, hyper: reference.Hyperparameters, page: int, layer: int, head: int
) -> tuple[F32, F32]:
    """(K (D, page_tokens), V (page_tokens, D)) of one page of an f32 cache: the layout of cache.h."""
    dim, tokens = hyper.head_dim, run.page_tokens
    stride = -(-dim // 16) * 16
    values = np.frombuffer(run.cache.export_page(page), np.float32)
    per_head = values.reshape(hyper.n_layers, hyper.n_kv_heads, (dim + stride) * tokens)[layer, head]
    v = per_head[dim * tokens :].reshape(tokens, stride)
    return per_head[: dim * tokens].reshape(dim, tokens), v[:, :dim]


# --- types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("type", ROUNDING_TYPES)
def test_a_rounding_cache_equals_its_specification(name: str, type: str) -> None:
    """Both cut K and V to the same values; where f32 arithmetic left one next to a tie it goes the other way
    now and then, which costs a hundredth of what the rounding itself does."""
    hyper, weights = fixture(name)
    ids = expected(name)["ids_ST"][0]
    rounding = reference.CACHE_ROUNDING[type]
    how = reference.Arithmetic(round_k=rounding, round_v=rounding)
    exact = reference.decoder_logits(ids, weights, hyper, how)
    got = Run(native(hyper, weights), types=(type, type)).logits(ids)
    assert np.abs(got - exact).max() < 3e-3
    assert mean_kl(exact, got) < 5e-8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("type", "limit"), [("f16", 1e-6), ("bf16", 3e-5), ("q8_0", 3e-4)])
def test_a_rounding_cache_stays_near_f32(name: str, type: str, limit: float) -> None:
    """limit: of the mean KL of the logits. Heads here have 8 to 32 values, in real models 64 and more."""
    model, ids = native(*fixture(name)), expected(name)["ids_ST"][0]
    exact = Run(model).logits(ids)
    for types in ((type, "f32"), ("f32", type), (type, type)):
        assert 0 < mean_kl(exact, Run(model, types=types).logits(ids)) < limit, types


def test_values_beyond_a_half_saturate_to_infinity_in_f16_only() -> None:
    """A V of 1e5 has no f16; bf16 and q8_0 hold it."""
    hyper, weights = random_model(n_layers=1, extra=("attn_v_bias",))
    weights["attn_v_bias", 0][:] = 1e5
    ids = random_ids(5)
    exact = Run(native(hyper, weights)).logits(ids)
    for type in ("bf16", "q8_0"):
        np.testing.assert_allclose(
            Run(native(hyper, weights), types=(type, type)).logits(ids), exact, atol=0.5
        )
    assert not np.isfinite(Run(native(hyper, weights), types=("f32", "f16")).logits(ids)).all()


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-37, 1e-20])
def test_tiny_keys_and_values_in_q8_0(size: float) -> None:
    """Zeros and denormals have a scale that cannot be inverted."""
    hyper, weights = random_model(n_layers=1, extra=("attn_k_bias", "attn_v_bias"))
    for slot in ("attn_k", "attn_v"):
        weights[slot, 0] = np.zeros_like(weights[slot, 0])
        weights[slot + "_bias", 0][:] = size
    ids = random_ids(40)
    exact = Run(native(hyper, weights)).logits(ids)
    got = Run(native(hyper, weights), types=("q8_0", "q8_0")).logits(ids)
    np.testing.assert_allclose(got, exact, atol=1e-5)


# --- pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_tokens", [32, 64, 128])
@pytest.mark.parametrize("types", [("f32", "f32"), ("f16", "q8_0"), ("bf16", "f16"), ("q8_0", "q8_0")])
def test_sizes_and_round_trips_of_pages(page_tokens: int, types: tuple[str, str]) -> None:
    hyper, weights = random_model(head_dim=20, rope_half=10)
    model, ids = native(hyper, weights), random_ids(150)
    run = Run(model, types=types, page_tokens=page_tokens, n_pages=12)
    whole = run.logits(ids)
    element = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1}
    least = 2 * 2 * page_tokens * (20 * element[types[0]] + 32 * element[types[1]])
    assert run.cache.page_bytes == _native.Cache.bytes_per_page(model, page_tokens, *types)
    assert least <= run.cache.page_bytes <= least + 2 * 2 * (8 * page_tokens + 128)
    assert (run.cache.n_pages, run.cache.page_tokens) == (12, page_tokens)
    other = Run(model, types=types, page_tokens=page_tokens, n_pages=12)
    for page in run.pages(140).tolist():
        data = run.cache.export_page(page)
        assert len(data) == run.cache.page_bytes
        other.cache.import_page(11 - page, data)
    table = 11 - other.pages(150)
    assert same_bits(other.step([Seq(ids[140:], 140, table)]).logits, whole[140:])
    run.cache.copy_page(0, 8)
    run.cache.copy_page(8, 8)
    assert run.cache.export_page(8) == run.cache.export_page(0)


# --- context shift ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rope_half", [4, 12])
@pytest.mark.parametrize("type", ["f32", *ROUNDING_TYPES])
def test_a_shift_turns_the_first_layer_into_what_a_new_reading_gives(type: str, rope_half: int) -> None:
    """In the first layer K and V depend on the token and its position only, so a shifted cache must equal
    that of the shorter text: V bit for bit, K but for the rounding of two rotations (2e-5 of f32: the angle
    of position p is one f32 product, and two of them differ from that of their difference)."""
    hyper, weights = random_model(n_layers=1, head_dim=24, rope_half=rope_half, n_kv_heads=2)
    model, ids = native(hyper, weights), random_ids(150)
    for keep, discard, length in ((0, 1, 150), (4, 32, 150), (33, 64, 150), (40, 50, 90), (0, 90, 96)):
        run, fresh = Run(model, types=(type, "f32")), Run(model, types=(type, "f32"))
        run.step([Seq(ids[:length], 0, run.pages(length))], rows=[])
        shared = keep // 32  # whole pages that stay where they are
        target = np.concatenate([run.pages(32 * shared), run.pages(length - discard - 32 * shared, first=20)])
        run.cache.shift(model, run.pages(length), target, length, keep, discard)
        short = np.concatenate([ids[:keep], ids[keep + discard : length]])
        more = random_ids(3, seed=5)
        after = run.step([Seq(more, len(short), target_of(run, target, len(short) + 3))]).logits
        exact = fresh.logits(np.concatenate([short, more]))[-3:]
        limit = {"f32": 1e-4, "f16": 1e-2, "bf16": 0.1, "q8_0": 0.3}[type]  # of logits around 10
        np.testing.assert_allclose(after, exact, atol=limit)
        if type == "f32":
            assert_same_cells(run, target, fresh, hyper, len(short))


def target_of(run: Run, table: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """The table with as many more pages as `length` tokens need."""
    missing = len(run.pages(length)) - len(table)
    return np.concatenate([table, run.pages(32 * missing, first=40)])


def assert_same_cells(
    run: Run, table: NDArray[np.int32], fresh: Run, hyper: reference.Hyperparameters, length: int
) -> None:
    for head in range(hyper.n_kv_heads):
        for i in range(len(run.pages(length))):
            used = min(32, length - 32 * i)
            k, v = head_parts(run, hyper, int(table[i]), 0, head)
            new_k, new_v = head_parts(fresh, hyper, i, 0, head)
            np.testing.assert_allclose(k[:, :used], new_k[:, :used], atol=2e-5)
            assert same_bits(np.ascontiguousarray(v[:used]), np.ascontiguousarray(new_v[:used]))


def test_a_shift_uses_each_layers_own_rope_and_leaves_its_magnitude() -> None:
    """Two tables, one of them scaled as YaRN does: K of the second layer, by hand from its own old values."""
    inv_freqs = np.array([[1.0, 0.1, 0.01, 0.001], [0.5, 0.2, 0.03, 0.004]], np.float32)
    hyper, weights = random_model(
        head_dim=8, inv_freqs=inv_freqs, rope_scales=np.array([1.0, 1.4], np.float32),
        rope_of_layer=np.array([1, 0], np.int32),
    )  # fmt: skip
    model = native(hyper, weights)
    run = Run(model)
    run.step([Seq(random_ids(64), 0, [0, 1])], rows=[])
    run.cache.shift(model, np.array([0, 1], np.int32), np.array([5, 6], np.int32), 64, 2, 7)
    for layer, table in ((0, 1), (1, 0)):
        old = np.concatenate([head_parts(run, hyper, page, layer, 1)[0].T for page in (0, 1)])
        new = np.concatenate([head_parts(run, hyper, page, layer, 1)[0].T for page in (5, 6)])
        angles = -7.0 * inv_freqs[table].astype(np.float64)
        pairs = (old[9:, :4] + 1j * old[9:, 4:]) * np.exp(1j * angles)
        np.testing.assert_allclose(new[2:57], np.concatenate([pairs.real, pairs.imag], 1), atol=1e-5)
        np.testing.assert_array_equal(new[:2], old[:2])


# --- refusals ---------------------------------------------------------------------------------------------


def test_bad_arguments() -> None:
    model = native(*random_model())
    other = native(*random_model(n_layers=1))
    run = Run(model, n_pages=4)
    cache, three = run.cache, np.arange(3, dtype=np.int32)
    bad: list[tuple[Any, tuple[Any, ...], str]] = [
        (_native.Cache, (model, 0, 32, "f32", "f32"), "n_pages = 0"),
        (_native.Cache, (model, -1, 32, "f32", "f32"), "n_pages = -1"),
        (_native.Cache, (model, 1, 33, "f32", "f32"), "multiple of 32"),
        (_native.Cache, (model, 1, 16, "f32", "f32"), "page_tokens = 16"),
        (_native.Cache, (model, 1, 0, "f32", "f32"), "page_tokens = 0"),
        (_native.Cache, (model, 1, 32, "q4_0", "f32"), "q4_0"),
        (_native.Cache.bytes_per_page, (model, 0, "f32", "f32"), "page_tokens = 0"),
        (_native.Cache.bytes_per_page, (model, -32, "f32", "f32"), "page_tokens = -32"),
        (cache.copy_page, (0, 4), "page = 4"),
        (cache.copy_page, (-1, 0), "page = -1"),
        (cache.export_page, (4,), "page"),
        (cache.export_page, (-1,), "page"),
        (cache.import_page, (0, b"x"), "page"),
        (cache.import_page, (4, bytes(cache.page_bytes)), "page"),
        (cache.shift, (model, three, three, 96, 0, 0), "discard"),
        (cache.shift, (model, three, three, 96, -1, 1), "keep"),
        (cache.shift, (model, three, three, 96, 90, 7), "keep"),
        (cache.shift, (model, three, three, 96, 2**31 - 1, 2**31 - 1), "keep"),
        (cache.shift, (model, three, three, 97, 0, 1), "too short"),
        (cache.shift, (model, three, three[:2], 96, 0, 1), "too short"),
        (cache.shift, (model, three + 2, three, 96, 0, 1), "page = 4"),
        (cache.shift, (model, three, three - 1, 96, 0, 1), "page = -1"),
        (cache.shift, (other, three, three, 96, 0, 1), "another shape"),
    ]
    for function, arguments, text in bad:
        with pytest.raises(ValueError, match=re.escape(text)):
            function(*arguments)
    assert run.step([Seq([1], 0, [0])]).logits.shape == (1, 101), "it still works"


def test_a_cache_of_another_model_is_refused() -> None:
    model = native(*random_model())
    for changes in ({"n_layers": 1}, {"n_kv_heads": 4}, {"head_dim": 64}):
        cache = _native.Cache(native(*random_model(**changes)), 4, 32, "f32", "f32")
        with pytest.raises(ValueError, match="cache"):
            _native.Decoder(model, cache, _native.Pool(1))
