"""From timed steps of both sides to rows {work, model, ours, peer, ratio, goal}.

Of several rounds the median counts, on both sides: what a user waits for is the usual step. The number of
sampled tokens is chance; where the sides differ by more than TOKENS_APART, seconds are compared per sampled
token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from results import Row

TOKENS_APART = 0.03
MEMORY_GOAL = 1 / 0.6
"""Ours in at most 0.6 of the peer's memory."""


@dataclass(frozen=True)
class Step:
    """One step. seconds: by the clock of the process that asked for it, all included; sampling_s: drawing and
    judging the answers and whatever hands weights to the sampler; tokens: sampled, prompt_tokens: of all
    prompts, each as often as it was answered."""

    seconds: float
    sampling_s: float
    tokens: float
    prompt_tokens: float

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Step:
        return cls(*(float(answer[name]) for name in ("seconds", "sampling_s", "tokens", "prompt_tokens")))

    @property
    def training_s(self) -> float:
        return self.seconds - self.sampling_s


@dataclass(frozen=True)
class Kind:
    """One comparison. lora: on both sides. peer_dtypes: what the peer's setting is chosen from; goal: of the
    whole step, None: none is promised, for memory neither."""

    name: str
    title: str
    lora: bool
    peer_dtypes: tuple[str, ...]
    goal: float | None


KINDS = (
    Kind("full", "full fine-tune", False, ("bf16", "f32"), 5.0),
    Kind("lora", "LoRA", True, ("bf16", "f32"), 6.5),
    Kind("pure-bf16", "full fine-tune, peer's weights in bf16", False, ("pure-bf16",), None),
)


@dataclass(frozen=True)
class Both:
    """All rounds of one comparison, and the most memory that each side's processes took."""

    ours: Sequence[Step]
    peer: Sequence[Step]
    ours_bytes: int
    peer_bytes: int

    @property
    def tokens_ratio(self) -> float:
        """Sampled tokens, ours / peer's; it is 1 but for chance."""
        return sum(step.tokens for step in self.ours) / sum(step.tokens for step in self.peer)


def seconds_row(work: str, model: str, both: Both, of: Callable[[Step], float], goal: float | None) -> Row:
    """Median seconds, ratio per sampled token where the sides sampled different numbers."""
    ours, peer = median(map(of, both.ours)), median(map(of, both.peer))
    ratio, note = peer / ours, ""
    if abs(both.tokens_ratio - 1) > TOKENS_APART:
        ratio *= both.tokens_ratio
        note = f"ratio per sampled token (ours sampled {both.tokens_ratio:.2f} times as many)"
    return Row(work, model, ours, peer, ratio, goal, "s", met(ratio, goal), note)


def rows_of(kind: Kind, model: str, both: Both, peer_setting: str, *, goals: bool = True) -> list[Row]:
    """goals=False: for work that the goals were not set for."""
    goal = kind.goal if goals else None
    memory_goal = MEMORY_GOAL if goal is not None else None
    speeds = [median(step.tokens / step.sampling_s for step in side) for side in (both.ours, both.peer)]
    if min(both.ours_bytes, both.peer_bytes) > 0:
        ratio = both.peer_bytes / both.ours_bytes
        memory = [
            Row(
                f"peak memory, {kind.title}", model, both.ours_bytes / 1e6, both.peer_bytes / 1e6, ratio,
                memory_goal, "MB", met(ratio, memory_goal),
            )
        ]  # fmt: skip
    else:
        memory = []
    whole = seconds_row(f"GRPO step, {kind.title}", model, both, lambda step: step.seconds, goal)
    note = f"peer: {peer_setting}" + (f"; {whole.note}" if whole.note else "")
    return [
        Row(**(whole.as_json() | {"note": note})),
        Row(f"sampling, {kind.title}", model, *speeds, speeds[0] / speeds[1], None, "tokens/s", None),
        seconds_row(f"training, {kind.title}", model, both, lambda step: step.training_s, None),
        *memory,
    ]


def met(ratio: float, goal: float | None) -> bool | None:
    return None if goal is None else ratio >= goal
