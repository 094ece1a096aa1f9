"""What a step gives back for the rows that were asked for, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from etude.kernels import _native, reference
from etude.model.quants import GGMLType
from tests.kernels.native_model import Run, Seq, native, random_ids, random_model, same_bits


def test_rows_may_repeat_and_leave_tokens_out() -> None:
    model, ids = native(*random_model(), GGMLType.Q8_0), random_ids(40)
    whole = Run(model).logits(ids)
    rows = [0, 0, 3, 17, 17, 17, 39, 39]
    out = Run(model).step([Seq(ids, 0, [0, 1])], rows=rows)
    assert same_bits(out.logits, whole[rows])
    none = Run(model).step([Seq(ids, 0, [0, 1])], rows=[])
    assert none.logits.shape == (0, 101) and none.token_ids.shape == none.logprobs.shape == (0,)


def test_targets_alternatives_and_entropies_are_those_of_the_logits() -> None:
    model, ids = native(*random_model(own_head=True)), random_ids(40)
    rows, n_top = np.repeat(np.arange(40), 2), np.arange(80) % 5
    targets = random_ids(80, seed=1)
    out = Run(model, threads=2).step(
        [Seq(ids, 0, [0, 1])], rows=rows, targets=targets, n_top=n_top.astype(np.int32)
    )
    logprobs = reference.log_softmax(out.logits)
    np.testing.assert_array_equal(out.token_ids, targets)
    np.testing.assert_allclose(out.logprobs, logprobs[np.arange(80), targets], atol=2e-6)
    np.testing.assert_array_equal(out.raw_logprobs, out.logprobs)
    np.testing.assert_allclose(out.entropies, reference.entropy(out.logits), atol=2e-6)
    assert out.top_ids.shape == out.top_logprobs.shape == (80, 4)
    for row in range(80):
        best = np.argsort(-out.logits[row], kind="stable")[: n_top[row]]
        assert out.top_ids[row].tolist() == [*best.tolist(), *[-1] * (4 - n_top[row])]
        np.testing.assert_allclose(out.top_logprobs[row, : n_top[row]], logprobs[row, best], atol=2e-6)


def test_hidden_states_are_what_the_head_multiplies() -> None:
    hyper, weights = random_model(own_head=True, d_model=36, d_ff=44)
    ids, rows = random_ids(40), [0, 2, 2, 39]
    out = Run(native(hyper, weights), threads=2).step(
        [Seq(ids, 0, [0, 1])], rows=rows, want_hidden=True, want_logits=False
    )
    assert out.logits is None and out.hidden.shape == (4, 36)
    np.testing.assert_allclose(out.hidden, reference.decoder_hidden(ids, weights, hyper)[rows], atol=5e-5)
    logits = Run(native(hyper, weights)).step([Seq(ids, 0, [0, 1])], rows=rows).logits
    np.testing.assert_allclose(logits, out.hidden @ weights["output", -1].T, atol=5e-5)
    assert Run(native(hyper, weights)).step([Seq(ids, 0, [0, 1])]).hidden is None


def test_more_rows_than_logits_are_held_at_a_time() -> None:
    """64 MiB hold 65 rows of 256,000: 100 rows take two rounds, with repeats over the seam."""
    hyper, weights = random_model(n_layers=1, n_vocab=256_000, d_model=32, d_ff=32)
    model, ids = native(hyper, weights, GGMLType.Q8_0), random_ids(100)
    targets = np.arange(0, 206_000, 2000, dtype=np.int32)
    rows = np.array([*range(66), 65, 65, 64, *range(66, 100)], np.int32)
    rows.sort()
    out = Run(model, threads=2).step(
        [Seq(ids, 0, [0, 1, 2, 3])], rows=rows, targets=targets, want_logits=False, want_hidden=True
    )
    one = Run(model)
    one.step([Seq(ids, 0, [0, 1, 2, 3])], rows=[])
    for index in (0, 1, 63, 64, 65, 66, 67, 68, 69, 70, 102):
        row = int(rows[index])
        alone = one.step([Seq(ids[row : row + 1], row, [0, 1, 2, 3])], targets=targets[index : index + 1],
                         want_logits=False, want_hidden=True)  # fmt: skip
        assert same_bits(alone.hidden[0], out.hidden[index]), index
        assert (alone.logprobs[0], alone.entropies[0]) == (out.logprobs[index], out.entropies[index]), index


def test_rows_that_want_hidden_states_alone_get_no_logits() -> None:
    """Beside draws and scores of other rows and of the same row, over the seam of two rounds."""
    hyper, weights = random_model(n_layers=1, n_vocab=256_000, d_model=32, d_ff=32)
    model, ids = native(hyper, weights, GGMLType.Q8_0), random_ids(100)
    rows = np.sort(np.array([*range(100), 10, 65, 99], np.int32))
    wanted = np.isin(rows, (3, 64, 65, 66))
    wanted[np.searchsorted(rows, 10)] = wanted[-1] = True
    targets = np.where(wanted, 1000 + rows, -1).astype(np.int32)
    samplers: list[Any] = [None] * len(rows)
    samplers[-1] = _native.Sampler(256_000, 7, 0)
    step = {"rows": rows, "want_logits": False, "want_hidden": True}
    out = Run(model, threads=2).step([Seq(ids, 0, [0, 1, 2, 3])], **step, targets=targets, samplers=samplers)
    samplers[-1] = _native.Sampler(256_000, 7, 0)
    full = Run(model).step([Seq(ids, 0, [0, 1, 2, 3])], **step, targets=1000 + rows, samplers=samplers)
    assert same_bits(out.hidden, full.hidden)
    for name in ("token_ids", "logprobs", "raw_logprobs", "entropies"):
        assert same_bits(getattr(out, name)[wanted], getattr(full, name)[wanted]), name
    assert (out.token_ids[~wanted] == -1).all()
    assert np.isnan(out.logprobs[~wanted]).all() and np.isnan(out.entropies[~wanted]).all()
    none = Run(model).step([Seq(ids, 0, [0, 1, 2, 3])], **step, targets=np.full(103, -1, np.int32))
    assert same_bits(none.hidden, full.hidden) and np.isnan(none.raw_logprobs).all()


def test_samplers_draw_the_same_alone_and_beside_others() -> None:
    """Greedy and T = 1 samplers on shared and own rows; those drawn from a row leave its logits alone."""
    model, ids = native(*random_model(own_head=True)), random_ids(33)

    def sampler(index: int) -> Any:
        return _native.Sampler(101, 7, index, temperature=1.0)

    rows = np.array([5, 20, 20, 20, 32], np.int32)
    samplers = [sampler(0), None, sampler(1), sampler(2), sampler(3)]
    whole = Run(model).logits(ids)
    for threads in (1, 2, 3):
        for i in (0, 2, 3, 4):
            samplers[i] = sampler(i)
        out = Run(model, threads=threads).step([Seq(ids, 0, [0, 1])], rows=rows, samplers=samplers)
        assert same_bits(out.logits, whole[rows])
        for i in (0, 2, 3, 4):
            alone = Run(model).step([Seq(ids, 0, [0, 1])], rows=rows[i : i + 1], samplers=[sampler(i)])
            assert alone.token_ids[0] == out.token_ids[i]
            assert alone.logprobs[0] == out.logprobs[i] and alone.entropies[0] == out.entropies[i]


def test_masks_allow_only_their_tokens() -> None:
    model, ids = native(*random_model(own_head=True)), random_ids(10)
    mask = np.zeros(4, np.uint32)
    mask[1] = 1 << 5  # token 37
    out = Run(model).step(
        [Seq(ids, 0, [0])], rows=[9], samplers=[_native.Sampler(101, 1, 0, temperature=1.0)], masks=[mask]
    )
    assert out.token_ids.tolist() == [37]
    np.testing.assert_allclose(out.logprobs, 0.0, atol=1e-6)


def int32(*values: int) -> Any:
    return np.array(values, np.int32)


# Samplers are made by the test that needs them: pytest keeps parameters for longer than the interpreter keeps
# the native module, which then reports them as leaked.
BAD_STEPS: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": int32(1, 101, 3)}, "token id 101, allowed 0 to 100"),
    ({"token_ids": int32(1, -1, 3)}, "token id -1"),
    ({"token_ids": int32()}, "at least one token"),
    ({"token_ids": int32(1, 2, 3, 4)}, "first_token"),
    ({"first_token": int32()}, "first_token"),
    ({"first_token": int32(0)}, "first_token"),
    ({"first_token": int32(0, 2)}, "first_token must run from 0 to the number of tokens"),
    ({"first_token": int32(1, 3)}, "first_token"),
    ({"first_token": int32(0, 4)}, "first_token"),
    (
        {"first_token": int32(0, 3, 3), "first_position": int32(0, 0), "first_page": int32(0, 1, 2)},
        "no token",
    ),
    ({"first_token": int32(0, 5, 3), "first_position": int32(0, 0), "first_page": int32(0, 1, 2)}, "fall"),
    ({"first_position": int32(-1)}, "position"),
    ({"first_position": int32(62)}, "too few for position 64"),
    ({"first_position": int32(2**31 - 1)}, "too few"),
    ({"first_position": int32(0, 0)}, "first_position has 2 values, expected 1"),
    ({"pages": int32(0, 4)}, "page 4, allowed 0 to 3"),
    ({"pages": int32(0, -1)}, "page -1"),
    ({"pages": int32(0)}, "first_page"),
    ({"pages": int32(), "first_page": int32(0, 0)}, "too few"),
    ({"first_page": int32(0, 1)}, "first_page"),
    ({"first_page": int32(1, 2)}, "first_page"),
    ({"first_page": int32(0, 1, 2)}, "first_page has 3 values, expected 2"),
    ({"rows": int32(0, 1, 3)}, "rows must be ascending token indices"),
    ({"rows": int32(0, 1, -1)}, "rows"),
    ({"rows": int32(0, 2, 1)}, "ascending"),
    ({"rows": int32(0)}, "targets has 3 values, expected 1"),
    ({"targets": int32(0, 0, 101)}, "row 2 has neither a sampler nor a target"),
    ({"targets": int32(0, 0, -1)}, "row 2 has neither a sampler nor a target"),
    ({"targets": int32(0, 0, -2), "want_hidden": True}, "row 2 has neither"),
    ({"targets": int32(0, 0)}, "targets has 2 values"),
    ({"n_top": int32(0, 0, 102)}, "n_top = 102"),
    ({"n_top": int32(0, 0, 2**31 - 1)}, "n_top = 2147483647"),
    ({"n_top": int32(0, 0, -1)}, "n_top = -1"),
    ({"n_top": int32(0)}, "n_top has 1 values"),
    ({"samplers": [None]}, "samplers need one value a row"),
    ({"samplers": lambda: [_native.Sampler(100, 1, 0), None, None]}, "a sampler was made for 100 tokens"),
    ({"samplers": lambda: [_native.Sampler(101, 1, 0)] * 2 + [None]}, "two rows"),
    ({"masks": [None]}, "masks need one value a row"),
    ({"masks": [None, None, np.zeros(3, np.uint32)]}, "one bit a vocabulary entry"),
]


@pytest.mark.parametrize(
    ("changes", "text"), BAD_STEPS, ids=[f"{text}-{i}" for i, (_, text) in enumerate(BAD_STEPS)]
)
def test_a_bad_step_is_refused_and_changes_nothing(changes: dict[str, Any], text: str) -> None:
    model, ids = native(*random_model()), random_ids(3)
    run = Run(model, n_pages=4)
    good = [Seq(ids, 0, [0, 1])]
    changes = {name: value() if callable(value) else value for name, value in changes.items()}
    before = run.step(good).logits
    page = run.cache.export_page(0)
    with pytest.raises(ValueError, match=re.escape(text)):
        run.step(good, **changes) if "rows" not in changes else run.step(
            good,
            changes["rows"],
            targets=int32(0, 0, 0),
            samplers=[None] * 3,
            masks=[None] * 3,
            n_top=int32(0, 0, 0),
        )
    assert run.cache.export_page(0) == page
    assert same_bits(run.step(good).logits, before)


@pytest.mark.parametrize("changes", [
    {"token_ids": np.zeros(3, np.int64)}, {"token_ids": np.zeros((3, 2), np.int32)[:, 0]}, {"rows": None},
    {"adapter_scales": np.zeros(0)}, {"samplers": [1, 2, 3]}, {"masks": [None, None, np.zeros(4, np.int32)]},
    {"masks": [None, None, np.zeros(8, np.uint32)[::2]]}, {"adapters": [3]},
])  # fmt: skip
def test_arrays_of_another_type_are_refused(changes: dict[str, Any]) -> None:
    run = Run(native(*random_model()))
    arguments: dict[str, Any] = {"rows": int32(0, 1, 2)} | changes
    with pytest.raises(TypeError):
        run.decoder.step(**(plain_arguments() | arguments))
    assert run.decoder.step(**plain_arguments()).token_ids.tolist() == [0, 0, 0]


def plain_arguments() -> dict[str, Any]:
    return {"token_ids": int32(1, 2, 3), "first_token": int32(0, 3), "first_position": int32(0),
            "pages": int32(0), "first_page": int32(0, 1), "adapters": [],
            "adapter_scales": np.zeros(0, np.float32), "rows": int32(0, 1, 2), "samplers": [None] * 3,
            "targets": int32(0, 0, 0), "masks": [None] * 3, "n_top": int32(0, 0, 0)}  # fmt: skip
