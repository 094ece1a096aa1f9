"""The native sampler chain against llama.cpp: its own test vectors, and stored outputs of its samplers.

The vectors are those of llama.cpp's tests/test-sampling.cpp (MIT), build 11434. Two differences: they are
compared without their order, and xtc's probability is 1 instead of 0.99 with a seed that hits.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from etude.kernels._native import Breakers, Sampler
from tests.kernels.sampling_cases import case_logits

STORED = Path(__file__).parents[1] / "data" / "peers" / "sampling.json.gz"
TENTHS = (0.1, 0.2, 0.3, 0.4)
FIFTHS = (0.2,) * 5


def native(settings: dict[str, Any], n_vocab: int, history: Sequence[int] = ()) -> Sampler:
    """A sampler that has accepted `history`; dry_breakers may be plain lists."""
    settings = dict(settings)
    if "dry_breakers" in settings:
        settings["dry_breakers"] = Breakers(settings["dry_breakers"])
    sampler = Sampler(n_vocab, 1, 0, **settings)
    sampler.accept_prompt(np.array(history, np.int32))
    return sampler


def left(
    probabilities: Sequence[float], settings: dict[str, Any], history: Sequence[int] = ()
) -> list[float]:
    """What the chain leaves of a distribution: probabilities, smallest first."""
    logits = np.log(np.array(probabilities, np.float32))
    _, logprobs = native(settings, len(logits), history).distribution(logits)
    return sorted(np.exp(logprobs.astype(np.float64)).tolist())


def penalty(repeat: float, frequency: float, presence: float, last_n: int) -> dict[str, Any]:
    names = ("repeat_penalty", "frequency_penalty", "presence_penalty", "penalty_last_n")
    return dict(zip(names, (repeat, frequency, presence, last_n), strict=True))


def dry(
    multiplier: float, base: float, allowed: int, last_n: int, breakers: list[list[int]]
) -> dict[str, Any]:
    names = ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_last_n", "dry_breakers")
    return dict(zip(names, (multiplier, base, allowed, last_n, breakers), strict=True))


@pytest.mark.parametrize(
    ("probabilities", "settings", "wanted"),
    [
        (TENTHS, {"temperature": 1.0}, TENTHS),
        (TENTHS, {"temperature": 0.0}, (1,)),
        (TENTHS, {"temperature": 0.0, "dynamic_range": 0.0}, (1,)),
        (TENTHS, {"top_k": 1}, (1,)),
        (TENTHS, {"top_k": 3}, (0.22222, 0.33333, 0.44444)),
        (TENTHS, {"top_k": 4}, TENTHS),
        (TENTHS, {"top_k": 0}, TENTHS),
        (TENTHS, {"top_p": 0.0}, (1,)),
        (TENTHS, {"top_p": 0.7}, (0.428571, 0.571429)),
        (TENTHS, {"top_p": 0.8}, (0.22222, 0.33333, 0.44444)),
        (TENTHS, {"top_p": 1.0}, TENTHS),
        (TENTHS, {"min_p": 0.00}, TENTHS),
        (TENTHS, {"min_p": 0.24}, TENTHS),
        (TENTHS, {"min_p": 0.26}, (0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9)),
        (TENTHS, {"min_p": 0.49}, (0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9)),
        (TENTHS, {"min_p": 0.51}, (0.3 / 0.7, 0.4 / 0.7)),
        (TENTHS, {"min_p": 0.74}, (0.3 / 0.7, 0.4 / 0.7)),
        (TENTHS, {"min_p": 0.76}, (1,)),
        (TENTHS, {"min_p": 1.00}, (1,)),
        (TENTHS, {"min_p": 1.05}, (1,)),
        (TENTHS, {"xtc_probability": 1.0, "xtc_threshold": 0.09}, (1,)),
        (TENTHS, {"xtc_probability": 1.0, "xtc_threshold": 0.19}, (0.1 / 0.3, 0.2 / 0.3)),
        (TENTHS, {"xtc_probability": 1.0, "xtc_threshold": 0.29}, (0.1 / 0.6, 0.2 / 0.6, 0.3 / 0.6)),
        (TENTHS, {"xtc_probability": 1.0, "xtc_threshold": 0.39}, TENTHS),
        ((0.97, 0.01, 0.01, 0.01), {"typical_p": 0.5}, (1,)),
        ((0.4, 0.2, 0.2, 0.2), {"typical_p": 0.5}, (1 / 3, 1 / 3, 1 / 3)),
        (TENTHS, {"top_n_sigma": 1.00}, (0.428571, 0.571429)),
        (TENTHS, {"top_n_sigma": 0.00}, TENTHS),
        (TENTHS, {"top_n_sigma": 3.00}, TENTHS),
    ],
)
def test_vectors_of_truncations(
    probabilities: Sequence[float], settings: dict[str, Any], wanted: Sequence[float]
) -> None:
    np.testing.assert_allclose(left(probabilities, settings), sorted(wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("history", "settings", "wanted"),
    [
        ([0], (50.0, 0.0, 0.0), [0, 0.25, 0.25, 0.25, 0.25]),
        ([0, 1, 2], (50.0, 0.0, 0.0), [0, 0, 0, 0.5, 0.5]),
        ([0, 1, 2, 0, 0], (50.0, 0.0, 0.0), [0, 0, 0, 0.5, 0.5]),
        ([0], (1.0, 5.0, 5.0), [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
        ([0, 1, 2], (1.0, 5.0, 5.0), [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
        ([0, 1, 2, 0, 0], (1.0, 5.0, 5.0), [0.000000, 0.000023, 0.000023, 0.499977, 0.499977]),
    ],
)
def test_vectors_of_penalties(
    history: list[int], settings: tuple[float, float, float], wanted: list[float]
) -> None:
    got = left(FIFTHS, penalty(*settings, last_n=len(history)), history)
    np.testing.assert_allclose(got, sorted(wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("n_vocab", "history", "settings", "wanted"),
    [
        (4, [0, 1], (1.0, 1.1, 2, 4, []), [0.25] * 4),
        (4, [0, 1, 2, 0, 1], (1.0, 1.1, 2, 5, []), [0.296923, 0.296923, 0.109232, 0.296923]),
        (5, [0, 1, 3, 4, 0, 1], (1.0, 1.1, 2, 6, [[3]]), [0.2] * 5),
        (5, [0, 1, 2, 0, 1], (2.0, 1.1, 2, 5, []), [0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
        (5, [0, 1, 2, 3, 4, 0, 1], (1.0, 1.1, 4, 7, []), [0.2] * 5),
    ],
)
def test_vectors_of_dry(
    n_vocab: int,
    history: list[int],
    settings: tuple[float, float, int, int, list[list[int]]],
    wanted: list[float],
) -> None:
    got = left([1 / n_vocab] * n_vocab, dry(*settings), history)
    np.testing.assert_allclose(got, sorted(wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("probabilities", "settings", "ids"),
    [
        ((0.25,) * 4, {"top_k": 2}, [0, 1]),
        ((0.25,) * 4, {"top_p": 0.5}, [0, 1]),  # until the sum reaches p …
        ((0.25,) * 4, {"typical_p": 0.5}, [0, 1, 2]),  # … but exceeds typical_p
        ((0.25,) * 4, {"top_p": 0.2, "min_keep": 3}, [0, 1, 2]),
        ((0.2, 0.4, 0.4), {"xtc_probability": 1.0, "xtc_threshold": 0.3}, [0, 2]),
        ((0.25,) * 4, {"xtc_probability": 1.0, "xtc_threshold": 0.25}, [3]),
        ((0.25,) * 4, {"xtc_probability": 1.0, "xtc_threshold": 0.25, "min_keep": 2}, [0, 1, 2, 3]),
        ((0.2, 0.4, 0.4), {"temperature": 0.0}, [1]),
        ((0.25,) * 4, {"mirostat": 2, "mirostat_tau": 0.9}, [0]),
        ((0.25,) * 4, {"mirostat": 2, "mirostat_tau": 1.0}, [0, 1, 2, 3]),
    ],
)
def test_of_equals_the_smaller_id_is_preferred(
    probabilities: Sequence[float], settings: dict[str, Any], ids: list[int]
) -> None:
    logits = np.log(np.array(probabilities, np.float32))
    assert native(settings, len(logits)).distribution(logits)[0].tolist() == ids


QUEUES = [
    ("k", 10000, 1.0, 1.0), ("k", 1, 1.0, 1.0), ("p", 10000, 1.0, 1.0), ("p", 10000, 0.0, 1.0),
    ("m", 10000, 1.0, 1.0), ("m", 10000, 1.0, 1e-12), ("k", 100, 1.0, 1.0), ("p", 10000, 0.0003, 1.0),
    ("p", 10000, 0.8, 1.0), ("m", 10000, 1.0, 9997.9 / 9999.0), ("m", 10000, 1.0, 0.1), ("kp", 100, 0.8, 0.1),
    ("km", 100, 0.8, 0.1), ("pk", 100, 0.8, 0.1), ("pm", 100, 0.8, 0.1), ("mk", 100, 0.8, 0.1),
    ("mp", 100, 0.8, 9997.9 / 9999.0), ("mp", 100, 0.8, 0.1), ("kpm", 100, 0.8, 0.1), ("kmp", 100, 0.8, 0.1),
    ("pkm", 100, 0.8, 0.1), ("pmk", 100, 0.8, 0.1), ("mkp", 100, 0.8, 0.1), ("mpk", 100, 0.8, 0.1),
]  # fmt: skip


def queue_sizes(letters: str, n_vocab: int, top_k: int, top_p: float, min_p: float) -> tuple[int, int]:
    """(tokens left, smallest id left) of the weights 0, 1, 2 …, as in the source's test_sampler_queue."""
    size, least = n_vocab, 0
    for letter in letters:
        if letter == "k":
            size = min(size, top_k)
            least = max(least, n_vocab - top_k)
        elif letter == "p":
            target = math.ceil(top_p * (n_vocab * (n_vocab - 1) // 2 - least * (least - 1) // 2))
            least, size, held = n_vocab, 0, 0
            while size == 0 or held < target:
                least, size = least - 1, size + 1
                held += least
        else:
            size = min(max(math.ceil((1 - min_p) * n_vocab), 1), size)
            least = min(max(math.floor(min_p * n_vocab), 1, n_vocab - size), n_vocab - 1)
    return size, least


@pytest.mark.parametrize(("letters", "top_k", "top_p", "min_p"), QUEUES)
def test_vectors_of_queues(letters: str, top_k: int, top_p: float, min_p: float) -> None:
    n_vocab = 10000
    with np.errstate(divide="ignore"):
        logits = np.log(np.arange(n_vocab, dtype=np.float32))
    names = {"k": "top_k", "p": "top_p", "m": "min_p"}
    settings = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "min_keep": 1}
    chain = Sampler(n_vocab, 1, 0, samplers=[names[letter] for letter in letters], **settings)
    ids, _ = chain.distribution(logits)
    size, least = queue_sizes(letters, n_vocab, top_k, top_p, min_p)
    possible = {"k": top_k, "p": size, "m": size}[letters[0]]
    if possible == n_vocab:  # llama.cpp also counts token 0, whose probability is 0
        size, least = size - 1, 1
    assert (len(ids), ids.min(), ids.max()) == (size, least, n_vocab - 1)


def stored_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(gzip.decompress(STORED.read_bytes()))["cases"]
    return cases


def probabilities(case: dict[str, Any]) -> NDArray[np.float64]:
    """The native distribution of a stored case, (V,)."""
    settings = case["settings"] | {"samplers": case["steps"]}
    sampler = native(settings, case["n_vocab"], case["history"])
    ids, logprobs = sampler.distribution(case_logits(case["seed"], case["n_vocab"]))
    p_V = np.zeros(case["n_vocab"])
    p_V[ids] = np.exp(logprobs.astype(np.float64))
    return p_V


def test_random_chains_equal_llama_cpp() -> None:
    cases = stored_cases()
    assert len(cases) >= 500
    for case in cases:
        p_V = probabilities(case)
        named = f"case {case['seed']}: {case['steps']} {case['settings']}"
        # llama.cpp's running sum of a top_p over thousands of tokens is in f32: it may end one token later
        many = case["n_left"] > 1000
        assert abs(int((p_V >= 1e-30).sum()) - case["n_left"]) <= many, named
        ids, wanted = zip(*case["top"], strict=True)
        np.testing.assert_allclose(
            p_V[list(ids)], wanted, atol=2e-6, rtol=1e-4 if many else 2e-5, err_msg=named
        )


def test_stored_cases_are_not_trivial() -> None:
    cases = stored_cases()
    assert sum(case["n_left"] == 1 for case in cases) < len(cases) / 3
    for step in ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"):
        assert sum(step in case["steps"] for case in cases) > 90, step
    for setting in ("mirostat", "min_keep", "logit_bias", "dynamic_range"):
        assert sum(setting in case["settings"] for case in cases) > 40, setting
