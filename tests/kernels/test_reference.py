"""The numpy specification against definitions written out with loops and Python's own mathematics."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from etude.kernels import reference as ref

F32 = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- operators --------------------------------------------------------------------------------------------


def test_rms_norm_by_hand() -> None:
    x = np.array([[3.0, 4.0]], np.float32)
    expected = np.array([[3.0, 4.0]]) / math.sqrt(12.5 + 1e-5) * np.array([2.0, -1.0])
    np.testing.assert_allclose(ref.rms_norm(x, np.array([2.0, -1.0], np.float32), 1e-5), expected, rtol=1e-6)
    assert np.isfinite(ref.rms_norm(np.zeros((1, 4), np.float32), np.ones(4, np.float32), 1e-6)).all()


def test_rope_is_a_rotation_of_pairs() -> None:
    x_THD, positions = normal(5, 2, 8), np.array([0, 1, 2, 100, 5000], np.int32)
    inv_freqs = np.array([1.0, 0.1, 0.01, 0.001], np.float32)
    got = ref.rope(x_THD, *ref.rope_angles(positions, inv_freqs, 1.5))
    for t, position in enumerate(positions):
        for pair in range(4):
            angle = float(position) * float(inv_freqs[pair])
            z = (x_THD[t, :, pair] + 1j * x_THD[t, :, pair + 4]) * np.exp(1j * angle) * 1.5
            np.testing.assert_allclose(got[t, :, pair], z.real, atol=2e-3 if position > 200 else 1e-5)
            np.testing.assert_allclose(got[t, :, pair + 4], z.imag, atol=2e-3 if position > 200 else 1e-5)


def test_rope_keeps_values_beyond_its_dimension_and_relative_positions() -> None:
    q, k = normal(1, 1, 12), normal(1, 1, 12, seed=1)
    inv_freqs = np.array([1.0, 0.3, 0.01], np.float32)

    def rotated(x: F32, position: int) -> F32:
        return ref.rope(x, *ref.rope_angles(np.array([position], np.int32), inv_freqs, 1.0))

    np.testing.assert_array_equal(rotated(q, 9)[..., 6:], q[..., 6:])
    products = [float((rotated(q, p + 3) * rotated(k, p)).sum()) for p in (0, 7, 40)]
    np.testing.assert_allclose(products, products[0], atol=1e-4)


def test_activations_by_definition() -> None:
    x = np.array([-1000.0, -88.0, -1.0, -1e-8, 0.0, 1e-8, 0.5, 1.0, 30.0, 1000.0], np.float32)
    silu = [v / (1 + math.exp(-v)) if v > -700 else 0.0 for v in x.tolist()]
    gelu = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    np.testing.assert_allclose(ref.silu(x), silu, rtol=2e-6, atol=1e-30)
    np.testing.assert_allclose(ref.gelu_tanh(x), gelu, rtol=2e-6, atol=1e-7)


# --- quantisation -----------------------------------------------------------------------------------------


def test_quantised_activations_by_hand() -> None:
    x = np.zeros((1, 40), np.float32)
    x[0, :5] = [127.0, -127.0, 0.5, 1.5, -2.5]  # scale 1: ties go to the even code
    x[0, 32:35] = [-254.0, 3.0, 2.9]  # second block, shorter than 32: scale 2
    codes, scales = ref.quantize_activations(x)
    assert codes.shape == (1, 64) and codes.dtype == np.int8
    assert codes[0, :5].tolist() == [127, -127, 0, 2, -2]
    assert codes[0, 32:36].tolist() == [-127, 2, 1, 0]
    assert scales.tolist() == [[1.0, 2.0]]


def test_zero_and_tiny_blocks_quantise() -> None:
    x = np.zeros((3, 32), np.float32)
    x[1] = np.float32(1e-30)
    x[2] = np.float32(1e38)
    codes, scales = ref.quantize_activations(x)
    assert codes[0].tolist() == [0] * 32 and scales[0, 0] == 0
    assert codes[1].tolist() == codes[2].tolist() == [127] * 32
    np.testing.assert_allclose(codes * np.repeat(scales, 32, 1), x, rtol=1e-6)


def test_scales_have_22_bits_and_blocks_below_1e_30_count_as_zero() -> None:
    x = normal(64, 32) * np.float32(3.7)
    x[0] = np.nextafter(np.float32(1e-30), np.float32(0))
    codes, scales = ref.quantize_activations(x)
    assert not (scales.view(np.uint32) & 3).any()
    np.testing.assert_allclose(scales[1:, 0], np.abs(x[1:]).max(-1) / 127, rtol=2.0**-21)
    assert not codes[0].any() and scales[0, 0] == 0


def test_a_block_with_an_outlier_is_encoded_twice() -> None:
    x = normal(1, 32 * 20)
    x[0, 70] = 40.0
    assert np.flatnonzero(ref.outlier_blocks(x)[0]).tolist() == [2]
    codes, scales = ref.quantize_activations(x)
    once = codes * np.repeat(scales.astype(np.float64), 32, axis=1)
    error_once, error = np.abs(once - x)[0], np.abs(ref.encode_activations(x) - x)[0]
    np.testing.assert_array_equal(np.delete(error, slice(64, 96)), np.delete(error_once, slice(64, 96)))
    assert error_once[64:96].max() > 0.1
    assert error[64:96].max() <= error_once[64:96].max() / 127 * 0.51


def test_an_outlier_is_seven_times_the_root_mean_square_of_its_row() -> None:
    x = np.zeros((2, 4096), np.float32)
    x[:, ::2], x[:, 1::2] = 1, -1
    x[0, 5], x[1, 5] = 7.03, 7.05  # seven root mean squares are 7.041
    assert not ref.outlier_blocks(x)[0].any()
    assert np.flatnonzero(ref.outlier_blocks(x)[1]).tolist() == [0]
    assert not ref.outlier_blocks(np.zeros((1, 33), np.float32)).any()


@given(st.integers(1, 100), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_quantisation_error_is_half_a_step(k: int, seed: int, size: float) -> None:
    x = normal(2, k, seed=seed) * np.float32(size)
    codes, scales = ref.quantize_activations(x)
    steps = np.repeat(scales, ref.BLOCK, axis=1)
    error = np.abs((codes * steps)[:, :k] - x)
    assert (error <= steps[:, :k] * 0.501).all()
    assert not codes[:, k:].any() and np.abs(codes).max() <= 127


def test_int8_product_sums_blocks_of_integer_products() -> None:
    x_TK, w_NK = normal(3, 70), np.round(normal(5, 70, seed=1) * 20).astype(np.float32)
    codes, scales = ref.quantize_activations(x_TK)
    expected = np.zeros((3, 5))
    for block in range(3):
        columns = slice(32 * block, min(32 * block + 32, 70))
        integers = codes[:, columns].astype(np.int64) @ w_NK[:, columns].astype(np.int64).T
        expected += scales[:, block : block + 1].astype(np.float64) * integers
    np.testing.assert_allclose(ref.matmul_int8(x_TK, w_NK), expected, rtol=1e-4, atol=1e-4)


def test_cache_rounding() -> None:
    x = normal(4, 2, 16)
    assert ref.CACHE_ROUNDING["f32"](x) is x
    np.testing.assert_array_equal(ref.round_f16(x), x.astype(np.float16))
    ties = np.array([1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -1.0 - 2.0**-8, np.inf, 3.3895314e38], np.float32)
    assert ref.round_bf16(ties).tolist() == [
        1.0,
        1.0 + 2.0**-6,
        -1.0,
        np.inf,
        float(np.float32(3.3895314e38)),
    ]
    assert np.isnan(ref.round_bf16(np.array([np.nan], np.float32))).all()
    assert (np.abs(ref.round_q8(x) - x) <= np.abs(x).max(-1, keepdims=True) / 127 * 0.501).all()
    assert not ref.round_q8(np.zeros((1, 1, 4), np.float32)).any()


# --- attention --------------------------------------------------------------------------------------------


def attention_by_loops(
    q: F32, k: F32, v: F32, positions: Any, scale: float, softcap: float, window: int
) -> Any:
    out = np.zeros(q.shape)
    for t, position in enumerate(positions):
        first = max(0, position - window + 1) if window else 0
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            scores = [scale * float(q[t, h] @ k[s, g]) for s in range(first, position + 1)]
            scores = [softcap * math.tanh(s / softcap) if softcap else s for s in scores]
            weights = np.exp(np.array(scores) - max(scores))
            out[t, h] = (weights / weights.sum()) @ v[first : position + 1, g]
    return out


@pytest.mark.parametrize("window", [0, 1, 8, 33, 1000])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_attention_equals_loops_and_its_online_form(
    heads: tuple[int, int], softcap: float, window: int
) -> None:
    positions = np.array([0, 1, 31, 32, 63, 64, 98], np.int32)
    q, k, v = normal(7, heads[0], 8), normal(99, heads[1], 8, seed=1), normal(99, heads[1], 8, seed=2)
    expected = attention_by_loops(q * 3, k, v, positions, 0.35, softcap, window)
    plain = ref.attention(q * 3, k, v, positions, 0.35, softcap, window)
    online = ref.attention_online(q * 3, k, v, positions, 0.35, softcap, window)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    np.testing.assert_allclose(online, expected, atol=1e-5)


def test_online_attention_survives_scores_that_grow_and_fall() -> None:
    k = np.zeros((128, 1, 4), np.float32)
    k[:, 0, 0] = np.repeat([-300.0, 300.0, 0.0, 299.0], 32)
    v = normal(128, 1, 4)
    q = np.ones((1, 1, 4), np.float32)
    arguments = (q, k, v, np.array([127], np.int32), 1.0)
    np.testing.assert_allclose(ref.attention_online(*arguments), ref.attention(*arguments), atol=1e-6)


# --- distributions ----------------------------------------------------------------------------------------


def test_distributions_by_definition() -> None:
    logits = np.array(
        [[0.0, 1.0, 2.0, -np.inf], [1e4, 1e4, -1e4, 0.0], [5.0, -np.inf, -np.inf, -np.inf]], np.float32
    )
    probabilities = [
        [math.exp(x - 2) / (1 + math.exp(-1) + math.exp(-2)) for x in (0, 1, 2)],
        [0.5, 0.5],
        [1.0],
    ]
    expected = [-sum(p * math.log(p) for p in row) for row in probabilities]
    np.testing.assert_allclose(ref.entropy(logits), expected, atol=1e-6)
    np.testing.assert_allclose(ref.logsumexp(logits), [2.407606, 1e4 + math.log(2), 5.0], rtol=1e-6)
    np.testing.assert_allclose(np.exp(ref.log_softmax(logits)).sum(-1), 1.0, rtol=1e-6)


# --- the decoder ------------------------------------------------------------------------------------------


def tiny(**changes: Any) -> tuple[ref.Hyperparameters, dict[tuple[str, int], F32]]:
    hyper = ref.Hyperparameters(
        n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24, n_vocab=11, norm_eps=1e-5,
        attention_scale=8**-0.5, embedding_scale=1.0, logit_softcap=0.0, attention_softcap=0.0,
        activation="silu", windows=np.zeros(2, np.int32), rope_of_layer=np.zeros(2, np.int32),
        inv_freqs=np.array([[1, 0.1, 0.01, 0.001]], np.float32), rope_scales=np.ones(1, np.float32),
    )  # fmt: skip
    shapes = {
        "attn_q": (32, 16), "attn_k": (16, 16), "attn_v": (16, 16), "attn_output": (16, 32),
        "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24), "attn_norm": (16,), "ffn_norm": (16,),
    }  # fmt: skip
    weights = {("token_embd", -1): normal(11, 16), ("output_norm", -1): np.ones(16, np.float32)}
    for layer in range(2):
        weights |= {
            (slot, layer): normal(*shape, seed=layer) * np.float32(0.25) for slot, shape in shapes.items()
        }
    return dataclasses.replace(hyper, **changes), weights


IDS = np.array([1, 5, 3, 9, 0, 10, 2, 2], np.int32)


def test_a_token_sees_only_the_tokens_before_it() -> None:
    hyper, weights = tiny()
    whole = ref.decoder_logits(IDS, weights, hyper)
    np.testing.assert_allclose(ref.decoder_logits(IDS[:5], weights, hyper), whole[:5], atol=1e-5)
    changed = IDS.copy()
    changed[5] = 4
    np.testing.assert_allclose(ref.decoder_logits(changed, weights, hyper)[:5], whole[:5], atol=1e-5)
    assert np.abs(ref.decoder_logits(changed, weights, hyper)[5:] - whole[5:]).max() > 0.01


def test_a_window_of_one_layer_forgets() -> None:
    hyper, weights = tiny(n_layers=1, windows=np.array([3], np.int32))
    changed = IDS.copy()
    changed[0] = 7
    difference = np.abs(ref.decoder_logits(changed, weights, hyper) - ref.decoder_logits(IDS, weights, hyper))
    assert (difference[:3].max(axis=1) > 1e-3).all() and difference[3:].max() < 1e-5


def test_head_softcap_and_embedding_scale() -> None:
    hyper, weights = tiny()
    plain = ref.decoder_logits(IDS, weights, hyper)
    capped = ref.decoder_logits(IDS, weights, dataclasses.replace(hyper, logit_softcap=2.0))
    np.testing.assert_allclose(capped, 2 * np.tanh(plain / 2), atol=1e-6)
    own_head = weights | {("output", -1): normal(11, 16, seed=9)}
    hidden = ref.decoder_hidden(IDS, weights, hyper)
    np.testing.assert_array_equal(ref.decoder_logits(IDS, own_head, hyper), hidden @ own_head["output", -1].T)
    doubled = weights | {("token_embd", -1): weights["token_embd", -1] * 2}
    scaled = dataclasses.replace(hyper, embedding_scale=2.0)
    np.testing.assert_array_equal(
        ref.decoder_hidden(IDS, weights, scaled), ref.decoder_hidden(IDS, doubled, hyper)
    )


def test_cache_types_and_int8_products_stay_near_f32() -> None:
    hyper, weights = tiny()
    plain = ref.decoder_logits(IDS, weights, hyper)
    for name, tolerance in (("f16", 0.01), ("bf16", 0.1), ("q8_0", 0.1)):
        rounding = ref.CACHE_ROUNDING[name]
        rounded = ref.decoder_logits(IDS, weights, hyper, ref.Arithmetic(round_k=rounding, round_v=rounding))
        assert 0 < np.abs(rounded - plain).max() < tolerance
    int8 = ref.decoder_logits(IDS, weights, hyper, ref.Arithmetic(product=ref.matmul_int8))
    assert 0 < np.abs(int8 - plain).max() < 0.3
