"""Logits of both real models: with f32 arithmetic against transformers, with int8 against that.

The peer computed in f64 with exactly the weights of the GGUF file (tests/peers/make_logits_fixtures.py), so
the f32 path has only its own rounding between itself and the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.model.quants import GGMLType
from tests.kernels.native_model import Run, Seq, mean_kl, same_bits
from tests.model.perplexity import PEERS, peer_distributions
from tests.model.real_models import NAMES, load

ROWS = np.arange(64, 512, 3, dtype=np.int32)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any, Any]]:
    """(name, as in the file, in f32)."""
    path = request.getfixturevalue(request.param)
    yield request.param, load(path), load(path, GGMLType.F32)


def last_rows(run: Run, ids: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[np.float32]:
    return np.asarray(run.step([Seq(ids, 0, run.pages(len(ids)))], rows=rows).logits)


def test_f32_logits_equal_those_of_transformers(model: tuple[str, Any, Any]) -> None:
    """Six prompts, the last of 700 tokens, beyond Gemma's window."""
    name, _, f32 = model
    run = Run(f32, threads=2)
    with np.load(PEERS / f"logits_{name}.npz") as stored:
        peer = dict(stored)
    worst = 0.0
    for i in range(sum(key.startswith("ids_") for key in peer)):
        logits_RV = last_rows(run, peer[f"ids_{i}"], peer[f"rows_{i}"])
        top = np.take_along_axis(logits_RV, peer[f"top_ids_{i}"].astype(np.int64), axis=-1)
        peak = logits_RV.max(-1).astype(np.float64)
        log_sum_exp = peak + np.log(np.exp(logits_RV - peak[:, None], dtype=np.float64).sum(-1))
        for ours, theirs in (
            (top, peer[f"top_logits_{i}"]),
            (logits_RV[:, peer["some_ids"]], peer[f"logits_{i}"]),
            (log_sum_exp, peer[f"log_sum_exp_{i}"]),
        ):
            worst = max(worst, float(np.abs(ours - theirs).max()))
        np.testing.assert_array_equal(logits_RV.argmax(-1), peer[f"top_ids_{i}"][:, 0])
    print(f"{name}: largest difference of a logit {worst:.2e}")
    assert worst <= 1e-4


def test_int8_logits_stay_near_f32(model: tuple[str, Any, Any]) -> None:
    """Mean KL over real text <= 1e-3, with the f16 cache that is the default."""
    name, packed, f32 = model
    ids = peer_distributions(name)[0][0]
    exact = last_rows(Run(f32, threads=2), ids, ROWS)
    rough = last_rows(Run(packed, threads=2, types=("f16", "f16")), ids, ROWS)
    kl, same = mean_kl(exact, rough), (exact.argmax(-1) == rough.argmax(-1)).mean()
    print(f"{name}: KL {kl:.2e}, same likeliest token {100 * same:.1f} %")
    assert kl <= 1e-3
    assert same > 0.97


def test_chunks_threads_and_company_do_not_change_a_bit(model: tuple[str, Any, Any]) -> None:
    """300 tokens at once, in chunks, beside another sequence, on 1 to 3 threads."""
    name, packed, _ = model
    first, second = peer_distributions(name)[0]
    ids, rows = first[:300], np.array([0, 127, 128, 290, 298, 299], np.int32)
    whole = last_rows(Run(packed, types=("f16", "f16")), ids, rows)
    for threads in (1, 2, 3):
        run = Run(packed, types=("f16", "f16"), threads=threads)
        table, other = run.pages(300), run.pages(100, first=20)
        parts = [
            run.step([Seq(ids[:130], 0, table)], rows=rows[:3]).logits,
            run.step(
                [Seq(second[:60], 0, other), Seq(ids[130:299], 130, table)], rows=60 + rows[3:5] - 130
            ).logits,
            run.step([Seq(ids[299:], 299, table), Seq(second[60:61], 60, other)], rows=[0]).logits,
        ]
        assert same_bits(np.concatenate(parts), whole), threads
