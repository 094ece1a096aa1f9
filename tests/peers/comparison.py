"""Are outputs made anew the stored ones? Equal where a peer computes exactly, close where it adds floats.

Another processor gives the peers other instruction sets, so their floats move a little; ids, configs and
weights do not.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

LOGIT_TOLERANCE = 2e-4  # float32 sums in another order; twice what equality with us is allowed
PPL_TOLERANCE = 2e-3  # relative: llama.cpp's kernels round activations alike, but add in other orders
DOUBLE_TOLERANCE = 1e-7  # sums of doubles; verl's GDPO has float32 in it
MIN_SAME_TOP1 = 0.98
MAX_LOGPROB_SHIFT = 0.02  # nats, mean over the likeliest tokens of all positions


def compare_folders(stored: Path, made: Path) -> list[str]:
    """One line for each difference between the stored outputs and those made anew; empty if there is none."""
    stored_names = {str(path.relative_to(stored)) for path in stored.rglob("*") if path.is_file()}
    made_names = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    problems = [f"{name}: stored, but no peer made it" for name in sorted(stored_names - made_names)]
    problems += [f"{name}: made, but not stored" for name in sorted(made_names - stored_names)]
    for name in sorted(stored_names & made_names):
        problems += [f"{name}: {problem}" for problem in compare_files(stored / name, made / name)]
    return problems


def compare_files(stored: Path, made: Path) -> list[str]:
    if stored.suffix == ".npz":
        compare = compare_windows if stored.name.startswith("perplexity") else compare_arrays
        with np.load(stored) as a, np.load(made) as b:
            return compare(dict(a), dict(b))
    if stored.name.startswith("training_"):
        contents = [json.loads(gzip.decompress(path.read_bytes())) for path in (stored, made)]
        return compare_json(*contents, tolerance=DOUBLE_TOLERANCE, near_zero=DOUBLE_TOLERANCE)
    if stored.suffix == ".json":
        return compare_json(json.loads(stored.read_text()), json.loads(made.read_text()))
    if stored.name.endswith(".json.gz"):
        contents = [json.loads(gzip.decompress(path.read_bytes())) for path in (stored, made)]
        return compare_json(*contents)
    return [] if stored.read_bytes() == made.read_bytes() else ["its bytes differ"]


def compare_json(
    stored: Any, made: Any, where: str = "", *, tolerance: float = PPL_TOLERANCE, near_zero: float = 0.0
) -> list[str]:
    """Equal structure and values; floats within a tolerance, except differences, which only inform."""
    limits = {"tolerance": tolerance, "near_zero": near_zero}
    if isinstance(stored, dict) and isinstance(made, dict) and stored.keys() == made.keys():
        keys = [key for key in stored if key != "float32_max_difference"]
        return [
            line for key in keys for line in compare_json(stored[key], made[key], f"{where}.{key}", **limits)
        ]
    if isinstance(stored, list) and isinstance(made, list) and len(stored) == len(made):
        pairs = enumerate(zip(stored, made, strict=True))
        return [line for i, (a, b) in pairs for line in compare_json(a, b, f"{where}[{i}]", **limits)][:5]
    if isinstance(stored, float) and isinstance(made, float):
        close = np.isclose(stored, made, rtol=tolerance, atol=near_zero)
        return [] if close else [f"{where}: {stored} → {made}"]
    return [] if stored == made else [f"{where}: {str(stored)[:80]} → {str(made)[:80]}"]


def compare_arrays(stored: dict[str, np.ndarray], made: dict[str, np.ndarray]) -> list[str]:
    """Floats within LOGIT_TOLERANCE; ids equal, except that neighbours in a ranking may swap."""
    if stored.keys() != made.keys():
        return [f"arrays {sorted(stored)} → {sorted(made)}"]
    problems = []
    for name, old in stored.items():
        new = made[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            problems.append(f"{name}: {old.dtype}{old.shape} → {new.dtype}{new.shape}")
        elif old.dtype.kind == "f":
            difference = float(np.max(np.abs(old - new)))
            if not difference <= LOGIT_TOLERANCE:
                problems.append(f"{name}: differs by up to {difference:.2e}")
        elif name.startswith("top_ids"):
            if np.mean(old == new) < MIN_SAME_TOP1:
                problems.append(f"{name}: only {np.mean(old == new):.1%} of the ranking is the same")
        elif not np.array_equal(old, new):
            problems.append(f"{name}: differs")
    return problems


def compare_windows(stored: dict[str, np.ndarray], made: dict[str, np.ndarray]) -> list[str]:
    """llama.cpp's distributions: the same windows, nearly the same likeliest token, nearly its logprob."""
    if stored.keys() != made.keys() or not np.array_equal(stored["ids_WT"], made["ids_WT"]):
        return ["the windows differ"]
    same = stored["top_ids_WPK"][..., 0] == made["top_ids_WPK"][..., 0]
    steps = [a["top_steps_WPK"][..., 0].astype(np.int64) for a in (stored, made)]
    shift_nats = float(np.mean(np.abs(steps[0] - steps[1])[same])) / 4096
    problems = []
    if same.mean() < MIN_SAME_TOP1:
        problems.append(f"the likeliest token is the same at only {same.mean():.1%} of the positions")
    if shift_nats > MAX_LOGPROB_SHIFT:
        problems.append(f"its logprob moved by {shift_nats:.4f} nats on average")
    return problems
