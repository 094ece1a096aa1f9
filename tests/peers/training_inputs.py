"""What the peers of the training maths are asked about: small padded batches, random and adversarial.

B answers of up to T tokens, `mask_BT` True where a token counts. Deterministic; free of torch, so that any
peer's environment can make them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LENGTHS = (7, 3, 1, 5, 7, 2, 4, 6)
GROUPS = (0, 0, 0, 0, 1, 1, 1, 1)
REWARD_WEIGHTS = (1.0, 0.5)


def batch(spread: float, seed: int) -> dict[str, np.ndarray]:
    """Answers whose policy, old policy, sampler and reference differ by about `spread` nats a token."""
    rng = np.random.default_rng(seed)
    rows, columns = len(LENGTHS), max(LENGTHS)
    shape = (rows, columns)
    mask = np.arange(columns)[None, :] < np.array(LENGTHS)[:, None]
    logprobs = -rng.exponential(1.5, shape)
    parts = np.stack([rng.integers(0, 2, rows), rng.normal(0, 1, rows)], axis=1).astype(float)
    rewards = parts @ np.array(REWARD_WEIGHTS)
    terminal = np.zeros(shape)
    terminal[np.arange(rows), np.array(LENGTHS) - 1] = rewards
    old_values = rng.normal(0, 1, shape)
    return {
        "mask_BT": mask,
        "group_B": np.array(GROUPS),
        "logprobs_BT": logprobs,
        "old_BT": logprobs + rng.normal(0, spread, shape),
        "sampler_BT": logprobs + rng.normal(0, spread, shape),
        "reference_BT": logprobs + rng.normal(0, spread, shape),
        "advantages_B": rng.normal(0, 1, rows),
        "parts_BK": parts,
        "rewards_B": rewards,
        "token_rewards_BT": (terminal + rng.normal(0, 0.1, shape)) * mask,
        "terminal_BT": terminal,
        "values_BT": old_values + rng.normal(0, 0.3, shape),
        "old_values_BT": old_values,
        "returns_BT": rng.normal(0, 1, shape),
    }


def interrupted(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with tokens of the environment in the middle of some answers: masked out, and without
    reward."""
    mask = inputs["mask_BT"].copy()
    mask[0, 2:4] = False
    mask[4, 0] = False
    mask[7, 1:5] = False
    rewards = inputs["token_rewards_BT"] * mask
    return {**inputs, "mask_BT": mask, "token_rewards_BT": rewards}


def extreme(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with logprobs from 0 to -10,000, equal policies, and a group whose rewards are all equal."""
    changed = {name: value.copy() for name, value in inputs.items()}
    changed["logprobs_BT"][0, 0], changed["old_BT"][0, 0] = -1e4, -1.0
    changed["logprobs_BT"][1, 1], changed["old_BT"][1, 1] = 0.0, -1e4
    changed["logprobs_BT"][4, 2], changed["old_BT"][4, 2] = 0.0, 0.0
    changed["old_BT"][5] = changed["logprobs_BT"][5]
    changed["advantages_B"][1] = -2.0
    changed["advantages_B"][6] = 0.0
    changed["rewards_B"][:4] = 1.0
    changed["parts_BK"][:4] = (1.0, 0.0)
    return changed


def batches() -> dict[str, dict[str, np.ndarray]]:
    """The named batches."""
    near, far = batch(0.1, seed=1), batch(1.0, seed=2)
    return {"near": near, "far": far, "interrupted": interrupted(far), "extreme": extreme(far)}


def pairs() -> dict[str, np.ndarray]:
    """Four chosen and four rejected answers (chosen first), with margins and scores of a reward model."""
    rng = np.random.default_rng(3)
    inputs = batch(0.5, seed=4)
    names = ("mask_BT", "logprobs_BT", "reference_BT")
    rows = len(LENGTHS)
    scores = rng.normal(0, 2, rows)
    margins = rng.uniform(0, 1, rows // 2)
    desirable = np.array([True, False, True, True, False, False, True, False])
    return {
        **{name: inputs[name] for name in names},
        "scores_B": scores,
        "margin_P": margins,
        "desirable_B": desirable,
    }


def as_json(values: Any) -> Any:
    """Arrays and tensors as nested lists; doubles keep every digit."""
    if isinstance(values, dict):
        return {key: as_json(value) for key, value in values.items()}
    if isinstance(values, list):
        return [as_json(value) for value in values]
    return values.tolist() if hasattr(values, "tolist") else values
