"""What both sides of grpo_vs_trl.py do: the same questions in the same order, the same reward, one record of
settings. Free of third-party packages: it also runs in the peer's environment.

The reward is noise, drawn from the text of the answer: no group is flat, so that nothing can be left out, and
the policy is pulled nowhere, so that the lengths of the answers stay those of the model on both sides.
"""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

QUESTIONS = 512


@dataclass(frozen=True)
class StepSettings:
    """One side's run. model: a file or name for ours, a folder for the peer. dtype: of products; ours:
    "bf16", "f32" or "" for the default; the peer: "bf16" (autocast), "f32", or "pure-bf16" (weights too).
    batch: the peer's per_device_train_batch_size."""

    model: str
    questions: str
    folder: str
    threads: int
    lora: bool = False
    dtype: str = ""
    batch: int = 16
    prompts: int = 8
    samples: int = 8
    max_tokens: int = 64

    @property
    def learning_rate(self) -> float:
        return 1e-4 if self.lora else 1e-5

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def questions(n: int = QUESTIONS, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct sums as conversations, in the rows that both sides read."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    texts = [f"What is {a}+{b}? Think step by step, then give the answer." for a, b in rng.sample(pairs, n)]
    return [{"prompt": [{"role": "user", "content": text}]} for text in texts]


def write_questions(path: Path, n: int = QUESTIONS) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in questions(n)), encoding="utf-8")


def reward_of(text: str) -> float:
    """Noise in [0, 1), the same for the same answer."""
    return zlib.crc32(text.encode()) / 2**32
