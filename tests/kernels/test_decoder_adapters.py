"""LoRA adapters in the decoder step: beside the base weights, several in one batch, never touching others."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels import _native, reference
from etude.model.quants import GGMLType
from tests.kernels.native_model import (
    Run,
    Seq,
    Weights,
    expected,
    fixture,
    native,
    random_ids,
    random_model,
    same_bits,
)
from tests.model.tiny_models import NAMES

F32 = NDArray[np.float32]
Pairs = dict[tuple[str, int], tuple[F32, F32]]
SLOTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


def random_pairs(weights: Weights, rank: int, seed: int = 0, slots: tuple[str, ...] = SLOTS) -> Pairs:
    rng = np.random.default_rng(seed)
    pairs = {}
    for (slot, layer), values in sorted(weights.items()):
        if slot in slots:
            n, k = values.shape
            a, b = rng.normal(size=(rank, k)) / k**0.5, rng.normal(size=(n, rank)) * 0.3 / rank**0.5
            pairs[slot, layer] = (a.astype(np.float32), b.astype(np.float32))
    return pairs


def adapter_of(model: Any, pairs: Pairs, scale: float = 1.0) -> Any:
    adapter = _native.Adapter(model, scale)
    for (slot, layer), (a, b) in pairs.items():
        adapter.set(slot, layer, a, b)
    return adapter


def merged(weights: Weights, pairs: Pairs, scale: float) -> Weights:
    deltas = {place: np.float32(scale) * (b @ a) for place, (a, b) in pairs.items()}
    return {place: values + deltas[place] if place in deltas else values for place, values in weights.items()}


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_equals_merged_weights(name: str) -> None:
    hyper, weights = fixture(name)
    model, ids = native(hyper, weights), expected(name)["ids_ST"][0]
    pairs = random_pairs(weights, rank=5)
    adapter = adapter_of(model, pairs, scale=2.0)
    got = Run(model).logits(ids, adapter=adapter, scale=0.4)
    exact = reference.decoder_logits(ids, merged(weights, pairs, 0.8), hyper)
    np.testing.assert_allclose(got, exact, atol=1e-4)
    how = reference.Arithmetic(adapter=pairs, adapter_scale=0.8)
    np.testing.assert_allclose(got, reference.decoder_logits(ids, weights, hyper, how), atol=5e-5)
    assert np.abs(got - Run(model).logits(ids)).max() > 0.05


@pytest.mark.parametrize("rank", [1, 16, 31, 32, 33, 100])
def test_ranks(rank: int) -> None:
    hyper, weights = random_model(head_dim=20, rope_half=10, d_model=36, d_ff=44)
    model, ids = native(hyper, weights), random_ids(20)
    pairs = random_pairs(weights, rank)
    got = Run(model).logits(ids, adapter=adapter_of(model, pairs))
    how = reference.Arithmetic(adapter=pairs)
    np.testing.assert_allclose(got, reference.decoder_logits(ids, weights, hyper, how), atol=5e-4)


@pytest.mark.parametrize("slot", SLOTS)
def test_each_slot_by_itself(slot: str) -> None:
    hyper, weights = random_model(own_head=True)
    model, ids = native(hyper, weights), random_ids(20)
    pairs = random_pairs(weights, 4, slots=(slot,))
    got = Run(model).logits(ids, adapter=adapter_of(model, pairs))
    how = reference.Arithmetic(adapter=pairs)
    np.testing.assert_allclose(got, reference.decoder_logits(ids, weights, hyper, how), atol=5e-4)
    assert np.abs(got - Run(model).logits(ids)).max() > 0.05


@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_the_head_of_tied_weights(softcap: float) -> None:
    """The embedding stays as it is. More rows than logits are held at a time: the rounds cut the adapters."""
    hyper, weights = random_model(n_layers=1, n_vocab=200_000, d_model=32, d_ff=32, logit_softcap=softcap)
    model, ids = native(hyper, weights), random_ids(150)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 0.5, size).astype(np.float32) for size in ((5, 32), (200_000, 5)))
    adapter = adapter_of(model, {("output", -1): (a, b)})
    run = Run(model, n_pages=10)
    seqs = [Seq(ids[:70], 0, run.pages(70)), Seq(ids[70:], 0, run.pages(80, first=3), adapter, 0.5)]
    got = run.step(seqs).logits
    how = reference.Arithmetic(adapter={("output", -1): (a, b)}, adapter_scale=0.5)
    bare = reference.decoder_logits(ids[:70], weights, hyper)
    np.testing.assert_allclose(got[:70], bare, atol=2e-4)
    np.testing.assert_allclose(got[70:], reference.decoder_logits(ids[70:], weights, hyper, how), atol=2e-4)


@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.Q8_0, GGMLType.BF16], ids=lambda type: type.name)
def test_no_effect_is_the_base_bit_for_bit(type: GGMLType) -> None:
    """Scale 0, zeros in b, an adapter without pairs: as if there were none, with any type below."""
    hyper, weights = random_model()
    model, ids = native(hyper, weights, type), random_ids(40)
    base = Run(model).logits(ids)
    pairs = random_pairs(weights, 4)
    silent = {place: (a, np.zeros_like(b)) for place, (a, b) in pairs.items()}
    assert same_bits(Run(model).logits(ids, adapter=adapter_of(model, pairs), scale=0.0), base)
    assert same_bits(Run(model).logits(ids, adapter=adapter_of(model, silent)), base)
    assert same_bits(Run(model).logits(ids, adapter=_native.Adapter(model, 1.0)), base)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.Q8_0], ids=lambda type: type.name)
def test_several_adapters_in_one_batch_equal_each_alone(type: GGMLType, threads: int) -> None:
    """Prefills and single tokens, two adapters at three scales and none, neighbours with the same one; more
    query heads than key heads, so that the products of a layer differ in width. Only one adapts the head."""
    hyper, weights = random_model(
        n_heads=12, n_kv_heads=1, head_dim=32, d_model=96, d_ff=160, n_layers=4, own_head=True
    )
    model = native(hyper, weights, type)
    one = adapter_of(model, random_pairs(weights, 40), 1.0)
    two = adapter_of(model, random_pairs(weights, 4, 1, ("attn_q", "attn_k", "ffn_up", "ffn_down")), 0.5)
    kinds = [
        (one, 1.0),
        (None, 1.0),
        (two, 1.0),
        (two, 1.0),
        (two, 3.0),
        (one, 1.0),
        (None, 0.0),
        (one, -1.0),
    ]
    lengths = [40, 30, 1, 1, 40, 40, 20, 40]
    texts = [random_ids(40, seed) for seed in range(8)]
    alone = [
        Run(model).logits(text, adapter=adapter, scale=scale)
        for text, (adapter, scale) in zip(texts, kinds, strict=True)
    ]
    for _ in range(8):  # a race would not show every time
        run = Run(model, threads=threads)
        seqs = []
        for i, (text, length, (adapter, scale)) in enumerate(zip(texts, lengths, kinds, strict=True)):
            pages, before = run.pages(40, first=2 * i), 40 - length
            if before:
                run.step([Seq(text[:before], 0, pages, adapter, scale)], rows=[])
            seqs.append(Seq(text[before:], before, pages, adapter, scale))
        whole = np.concatenate([part[40 - n :] for part, n in zip(alone, lengths, strict=True)])
        assert same_bits(run.step(seqs).logits, whole)


def test_a_larger_adapter_after_a_longer_batch() -> None:
    """Buffers grow for tokens and for rank apart: a short step with a large rank after a long one."""
    hyper, weights = random_model(d_model=96, d_ff=1024)
    model = native(hyper, weights)
    small, large = random_pairs(weights, 8), random_pairs(weights, 300, 1)
    run = Run(model)
    run.logits(random_ids(120), adapter=adapter_of(model, small))
    got = run.logits(random_ids(50), adapter=adapter_of(model, large))
    assert same_bits(got, Run(model).logits(random_ids(50), adapter=adapter_of(model, large)))


def test_an_adapter_can_change_between_steps() -> None:
    hyper, weights = random_model()
    model, ids = native(hyper, weights), random_ids(12)
    adapter, run = adapter_of(model, random_pairs(weights, 4)), Run(model)
    first = run.logits(ids, adapter=adapter)
    for (slot, layer), (a, b) in random_pairs(weights, 4, seed=3).items():
        adapter.set(slot, layer, a, b)
    second = run.logits(ids, adapter=adapter)
    assert same_bits(
        second, Run(model).logits(ids, adapter=adapter_of(model, random_pairs(weights, 4, seed=3)))
    )
    assert not same_bits(first, second)


def test_bad_arguments() -> None:
    _, weights = random_model()
    model = native(*random_model())
    adapter = _native.Adapter(model, 1.0)
    good_a, good_b = random_pairs(weights, 4)["attn_k", 0]
    for slot, layer, a, b, text in (
        ("attn_k", 2, good_a, good_b, "no matrix attn_k in layer 2"),
        ("attn_k", -1, good_a, good_b, "attn_k in layer -1"),
        ("token_embd", -1, good_a, good_b, "no adapter for token_embd"),
        ("output", -1, good_a, good_b, "adapter for output in layer -1"),
        ("output", 0, good_a, good_b, "no matrix output in layer 0"),
        ("attn_norm", 0, good_a, good_b, "attn_norm"),
        ("attn_k", 0, good_a[:, :-1].copy(), good_b, "expected inputs 64"),
        ("attn_k", 0, good_a, good_b[:-1].copy(), "outputs 64"),
        ("attn_k", 0, good_a[:3].copy(), good_b, "(rank, k)"),
        ("attn_k", 0, good_a[0], good_b, "(rank, k)"),
        ("attn_k", 0, np.zeros((0, 64), np.float32), np.zeros((64, 0), np.float32), "rank"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            adapter.set(slot, layer, a, b)
    run = Run(model)
    seq = Seq([1, 2], 0, [0], adapter)
    for adapters, scales in (([adapter] * 2, [1.0]), ([adapter], []), ([adapter], [1.0, 1.0])):
        with pytest.raises(ValueError, match="adapter"):
            run.step([seq], adapters=adapters, adapter_scales=np.array(scales, np.float32))


@pytest.mark.parametrize("changes", [{}, {"n_layers": 1}, {"d_model": 32}])
def test_an_adapter_of_another_model_is_refused(changes: dict[str, Any]) -> None:
    model, (_, weights) = native(*random_model()), random_model(**changes)
    foreign = adapter_of(native(*random_model(**changes)), random_pairs(weights, 4))
    with pytest.raises(ValueError, match="adapter"):
        Run(model).logits([1, 2], adapter=foreign)
