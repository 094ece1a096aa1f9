"""The decoder step: equal to transformers and to the numpy specification, and the same bits however the work
is cut (prefill, chunks, tokens, batches, threads, pages). test_every_path.py runs this on every path.

Equalities of bits hold per path; between paths, and to the specification, a tolerance is stated.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels import reference
from etude.model.quants import GGMLType
from tests.kernels.native_model import (
    Run,
    Seq,
    expected,
    fixture,
    mean_kl,
    native,
    quantized,
    random_ids,
    random_model,
    same_bits,
)
from tests.model.tiny_models import NAMES

F32 = NDArray[np.float32]
CACHES = (("f32", "f32"), ("f16", "bf16"), ("q8_0", "q8_0"))

each_family = pytest.mark.parametrize("name", NAMES)


@cache
def model_of(name: str, type: GGMLType = GGMLType.F32) -> Any:
    return native(*fixture(name), type)


@cache
def long_model(window: int = 0, softcap: float = 0.0) -> Any:
    """One layer is enough to see which keys a query reads; heads of 24 leave a tail in every vector."""
    hyper, weights = random_model(
        n_layers=1, n_heads=6, n_kv_heads=2, head_dim=24, d_model=40, d_ff=72, rope_half=8,
        windows=np.array([window], np.int32), attention_softcap=softcap,
    )  # fmt: skip
    return hyper, weights, native(hyper, weights)


# --- equal to others --------------------------------------------------------------------------------------


@each_family
def test_logits_equal_those_of_transformers(name: str) -> None:
    peer = expected(name)
    for row, ids in enumerate(peer["ids_ST"]):
        logits_TV = Run(model_of(name)).logits(ids)
        np.testing.assert_allclose(logits_TV[-1], peer["last_logits_SV"][row], atol=1e-4)
        if row == 0:
            np.testing.assert_allclose(logits_TV, peer["logits_TV"], atol=1e-4)


@each_family
def test_logits_equal_those_of_the_specification(name: str) -> None:
    hyper, weights = fixture(name)
    ids = expected(name)["ids_ST"][0]
    exact = reference.decoder_logits(ids, weights, hyper)
    np.testing.assert_allclose(Run(model_of(name)).logits(ids), exact, atol=3e-5)


@each_family
def test_int8_logits_equal_those_of_the_specification(name: str) -> None:
    """Q8_0 weights, int8 activations, in 32 sequences of four tokens.

    An input next to a tie may get the neighbouring code, and all that follows in that sequence then differs
    by as much as int8 differs from f32; most sequences have no such input.
    """
    hyper, weights = fixture(name)
    ids = expected(name)["ids_ST"].reshape(32, 4)
    rounded = quantized(weights, GGMLType.Q8_0)
    arithmetic = reference.Arithmetic(product=reference.matmul_int8)
    exact = [reference.decoder_logits(row, rounded, hyper, arithmetic) for row in ids]
    got = Run(model_of(name, GGMLType.Q8_0)).step([Seq(row, 0, [i]) for i, row in enumerate(ids)]).logits
    errors = np.array([np.abs(got[4 * i : 4 * i + 4] - exact[i]).max() for i in range(32)])
    assert (errors < 1e-5).sum() >= 20, np.sort(errors)
    assert mean_kl(np.concatenate(exact), got) < 1e-4


@each_family
@pytest.mark.parametrize("type", [GGMLType.BF16, GGMLType.F16, GGMLType.Q8_0], ids=lambda type: type.name)
def test_rounded_weights_stay_near_f32(name: str, type: GGMLType) -> None:
    exact = expected(name)["logits_TV"]
    logits = Run(model_of(name, type), types=("f16", "f16")).logits(expected(name)["ids_ST"][0])
    assert mean_kl(exact, logits) < (1e-4 if type == GGMLType.F16 else 1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")},
        {"extra": ("attn_q_bias", "attn_k_bias", "attn_v_bias", "attn_output_bias"), "own_head": True},
        {"head_dim": 20, "rope_half": 3, "n_heads": 6, "n_kv_heads": 2, "d_model": 36, "d_ff": 44},
        {"n_heads": 1, "n_kv_heads": 1, "head_dim": 2, "rope_half": 1, "d_model": 1, "d_ff": 1, "n_vocab": 1},
        {"attention_softcap": 2.0, "logit_softcap": 1.5, "attention_scale": 1.0, "embedding_scale": 3.0},
        {"activation": "gelu_tanh", "n_layers": 3, "windows": np.array([5, 0, 40], np.int32)},
        {"n_heads": 10, "n_kv_heads": 1, "rope_scales": np.array([1.3], np.float32)},
    ],
    ids=["norms", "biases", "odd sizes", "ones", "soft caps", "windows", "one key head"],
)
def test_every_switch_equals_the_specification(changes: dict[str, Any]) -> None:
    hyper, weights = random_model(**changes)
    ids = random_ids(75, n_vocab=hyper.n_vocab)
    exact = reference.decoder_logits(ids, weights, hyper)
    got = Run(native(hyper, weights)).logits(ids, chunks=(40, 1, 1))
    np.testing.assert_allclose(got, exact, atol=1e-4 * max(1.0, np.abs(exact).max()))


@pytest.mark.parametrize("window", [0, 1, 31, 33, 256, 300])
@pytest.mark.parametrize("softcap", [0.0, 1.0])
def test_long_contexts_equal_the_specification(window: int, softcap: float) -> None:
    hyper, weights, model = long_model(window, softcap)
    ids = random_ids(800)
    exact = reference.decoder_logits(ids, weights, hyper)
    np.testing.assert_allclose(Run(model).logits(ids), exact, atol=1e-4)


# --- the same bits ----------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.Q8_0], ids=lambda type: type.name)
def test_prefill_chunks_and_single_tokens_give_the_same_bits(name: str, type: GGMLType) -> None:
    model, ids = model_of(name, type), expected(name)["ids_ST"][0]
    for types in CACHES:
        whole = Run(model, types=types).logits(ids)
        for chunks in ([1] * len(ids), [7, 32, 1], [33, 30], [2] * 31):
            assert same_bits(Run(model, types=types).logits(ids, chunks=chunks), whole), (types, chunks)


@each_family
@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.Q8_0], ids=lambda type: type.name)
def test_a_batch_equals_its_sequences_alone_on_any_number_of_threads(name: str, type: GGMLType) -> None:
    """One step prefills a prompt, goes on with a half-read one, and decodes three others."""
    model, (a, b) = model_of(name, type), expected(name)["ids_ST"]
    alone_a, alone_b = Run(model).logits(a), Run(model).logits(b)
    for threads in (1, 2, 3):
        run = Run(model, threads=threads)
        tables = [run.pages(64, 2 * i) for i in range(5)]
        for i, length in enumerate((0, 40, 63, 17, 32)):
            if length:
                run.step([Seq((a, b)[i % 2][:length], 0, tables[i])], rows=[])
        seqs = [Seq(a, 0, tables[0]), Seq(b[40:], 40, tables[1]), Seq(a[63:], 63, tables[2]),
                Seq(b[17:18], 17, tables[3]), Seq(a[32:33], 32, tables[4])]  # fmt: skip
        got = run.step(seqs).logits
        parts = [alone_a, alone_b[40:], alone_a[63:], alone_b[17:18], alone_a[32:33]]
        assert same_bits(got, np.concatenate(parts)), threads


@pytest.mark.parametrize("name", ["gemma3", "llama", "qwen3_tied"])
def test_pages_of_any_size_in_any_order_give_the_same_bits(name: str) -> None:
    model, ids = model_of(name, GGMLType.Q8_0), expected(name)["ids_ST"][0]
    for types in CACHES:
        whole = Run(model, types=types).logits(ids)
        for page_tokens in (64, 96, 128, 4096):
            run = Run(model, types=types, page_tokens=page_tokens, n_pages=2)
            assert same_bits(run.logits(ids, chunks=(5, 40)), whole)
        scattered = Run(model, types=types).logits(ids, pages=[41, 3], chunks=(5, 40))
        assert same_bits(scattered, whole)


@pytest.mark.parametrize("window", [0, 100, 300])
def test_long_contexts_give_the_same_bits_however_they_are_cut(window: int) -> None:
    """Splits of 256 keys: one thread does all of them, several do one each, or a batch leaves no need to."""
    _, _, model = long_model(window)
    ids = random_ids(700)
    whole = Run(model, threads=1).logits(ids)
    pieces = [250, 1, 1, 1, 1, 1, 1, 1, 1, 250, 1, 1, 1, 1, 30, 1]
    for threads in (1, 2, 3, 5):
        assert same_bits(Run(model, threads=threads).logits(ids, chunks=pieces), whole), threads
    for page_tokens in (64, 256, 1024):
        assert same_bits(Run(model, page_tokens=page_tokens).logits(ids, chunks=pieces), whole)


@pytest.mark.parametrize("window", [0, 100])
def test_a_shared_prompt_equals_private_copies(window: int) -> None:
    """Nine samples of one prompt of 291 tokens: its nine whole pages by reference, the tenth copied."""
    _, _, model = long_model(window)
    prompt, tails = random_ids(291), random_ids(9 * 60, seed=1).reshape(9, 60)
    for types in CACHES:
        shared = Run(model, types=types, threads=2)
        common = shared.pages(291)
        shared.step([Seq(prompt, 0, common)], rows=[])
        tables = []
        for i in range(9):
            own = np.arange(20 + 3 * i, 23 + 3 * i, dtype=np.int32)
            shared.cache.copy_page(int(common[9]), int(own[0]))
            tables.append(np.concatenate([common[:9], own]))
        private = [Run(model, types=types) for _ in range(9)]
        table = private[0].pages(351)
        for run in private:
            run.step([Seq(prompt, 0, table)], rows=[])
        for t in range(60):
            together = shared.step([Seq(tails[i, t : t + 1], 291 + t, tables[i]) for i in range(9)]).logits
            i, first = t % 9, max(0, t - 8)  # its turn comes every nine tokens: first what it has not seen
            if t:
                private[i].step([Seq(tails[i, first:t], 291 + first, table)], rows=[])
            alone = private[i].step([Seq(tails[i, t : t + 1], 291 + t, table)]).logits
            assert same_bits(alone[0], together[i]), (types, t, i)


def test_what_lies_in_unused_cells_does_not_matter() -> None:
    """Pages come back from other sequences, which may have diverged: NaN in a cell not yet written must not
    come out."""
    for types in (*CACHES, ("f16", "f16")):
        for name in ("gemma3", "llama"):
            ids = expected(name)["ids_ST"][0][:40]
            clean = Run(model_of(name), types=types)
            dirty = Run(model_of(name), types=types)
            for page in range(dirty.cache.n_pages):
                dirty.cache.import_page(page, b"\xff" * dirty.cache.page_bytes)
            for chunks in ((), (33, 1)):
                assert same_bits(dirty.logits(ids, chunks=chunks), clean.logits(ids, chunks=chunks)), types
