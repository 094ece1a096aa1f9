"""Random chains on random logits, as data: what the stored outputs of llama.cpp and the sampler tests share.

Logits come from integer arithmetic and exact float operations, so that every machine makes the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    """One distribution to compare. settings: those of the native Sampler that are not off."""

    seed: int
    n_vocab: int
    steps: tuple[str, ...]
    settings: Mapping[str, Any]
    history: tuple[int, ...]


def case_logits(seed: int, n_vocab: int) -> NDArray[np.float32]:
    """(V,) cubes between -a and a, so that a few tokens stand out, in steps of 2**-15; a is 3, 6 or 12."""
    x = np.arange(n_vocab, dtype=np.uint64) + np.uint64(seed * 1_000_003)
    for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # splitmix64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(multiplier)
    u = ((x >> np.uint64(40)).astype(np.float64) / 2**24) * 2 - 1
    return (np.round((3, 6, 12)[seed % 3] * u * u * u * 2**15) / 2**15).astype(np.float32)


def _settings(rng: np.random.Generator, steps: tuple[str, ...], n_vocab: int) -> dict[str, Any]:
    """Values for these steps; odd ones, so that no threshold falls on a probability."""
    values: dict[str, dict[str, Any]] = {
        "penalties": {
            "repeat_penalty": float(rng.uniform(0.8, 1.7)),
            "frequency_penalty": float(rng.uniform(-0.5, 1)),
            "presence_penalty": float(rng.uniform(-0.5, 1)),
            "penalty_last_n": int(rng.choice([1, 7, 64, 500])),
        },
        "dry": {
            "dry_multiplier": float(rng.uniform(0.3, 2)),
            "dry_base": float(rng.uniform(1, 2)),
            "dry_allowed_length": int(rng.integers(1, 4)),
            "dry_last_n": int(rng.choice([5, 40, 500])),
            "dry_breakers": [[int(i) for i in rng.integers(0, 8, rng.integers(1, 4))] for _ in range(2)],
        },
        "top_n_sigma": {"top_n_sigma": float(rng.uniform(0.4, 2.5))},
        "top_k": {"top_k": int(rng.choice([3, 40, 200, 700, 5000]))},
        "typ_p": {"typical_p": float(rng.uniform(0.4, 0.99))},
        "top_p": {"top_p": float(rng.uniform(0.5, 0.99))},
        "min_p": {"min_p": float(rng.uniform(0.005, 0.3))},
        "xtc": {"xtc_probability": 1.0, "xtc_threshold": float(rng.uniform(0.003, 0.2))},
        "temperature": {"temperature": float(rng.choice([0.0, 0.5, 0.8, 1.3, 1.7, 2.3]))},
    }
    settings = {name: value for step in steps for name, value in values[step].items()}
    if "temperature" in steps and rng.random() < 0.3:
        settings |= {"dynamic_range": 0.67, "dynamic_exponent": 1.3, "temperature": 0.9}
    if rng.random() < 0.3:
        settings["min_keep"] = int(rng.integers(1, 12))
    if rng.random() < 0.2:
        settings["logit_bias"] = [(int(rng.integers(n_vocab)), 3.25), (int(rng.integers(n_vocab)), -np.inf)]
    return settings


def random_case(seed: int) -> Case:
    """The case of this number: mirostat every ninth, else one to nine steps in any order."""
    rng = np.random.default_rng(seed)
    n_vocab = int(rng.choice([2, 17, 300, 1000, 5003]))
    if seed % 9 == 8:
        mirostat = {"mirostat": int(rng.integers(1, 3)), "mirostat_tau": float(rng.uniform(0.5, 4))}
        return Case(seed, n_vocab, (), {**mirostat, "temperature": float(rng.uniform(0.5, 2))}, ())
    names = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
    steps = [str(name) for name in rng.permutation(names)[: rng.choice([1, 2, 3, 4, 5, 9])]]
    settings = _settings(rng, tuple(steps), n_vocab)
    if "typ_p" in steps:  # llama.cpp computes NaN when typ_p meets impossible tokens
        steps.remove("top_n_sigma") if "top_n_sigma" in steps else None
        settings.pop("logit_bias", None)
        if settings.get("temperature") == 0.0:
            settings["temperature"] = 0.5
    settings = {name: value for name, value in settings.items() if name != "top_n_sigma" or name in steps}
    # ids from a few, so that the history repeats itself; its end is one that DRY has seen before
    few = rng.integers(0, min(8, n_vocab), rng.integers(0, 60))
    history = tuple(int(i) for i in np.concatenate([few, few[: len(few) // 3]]))
    return Case(seed, n_vocab, tuple(steps), settings, history)
