"""Which files are measured, how long each piece of work is, and what is to be reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import random_model
from llama_cpp import Group, LlamaCpp

from etude.model.pull import resolve


@dataclass(frozen=True)
class Lengths:
    """In tokens: the prompt to prefill, one stream, a group's prompt and each of its completions."""

    n_prompt: int
    n_gen: int
    group_sizes: tuple[int, ...]
    group_prompts: tuple[int, ...]
    group_gen: int

    def groups(self) -> list[list[Group]]:
        """One list for each prompt length: what one run of a program measures."""
        sizes, n_gen = self.group_sizes, self.group_gen
        return [[Group(n, n_prompt, n_gen) for n in sizes] for n_prompt in self.group_prompts]


@dataclass(frozen=True)
class Case:
    """One model file. Goals are ratios to llama.cpp; a large one has shares of the int8 peak too."""

    name: str
    make: Callable[[Path, LlamaCpp], Path]
    stream_goal: float | None = None
    prefill_goal: float | None = None
    group32_goal: float | None = None
    is_large: bool = False


QUICK = Lengths(512, 64, (32,), (128,), 16)
SMALL = {"quick": QUICK, "default": Lengths(512, 128, (8, 16, 32, 64), (128, 512), 32),
         "full": Lengths(512, 128, (8, 16, 32, 64), (128, 512), 128)}  # fmt: skip
LARGE = {"quick": QUICK, "default": Lengths(512, 32, (8, 32), (128,), 8),
         "full": Lengths(512, 128, (8, 16, 32, 64), (128, 512), 64)}  # fmt: skip


def lengths_of(case: Case, size: str) -> Lengths:
    """`size`: "quick", "default" or "full"."""
    return (LARGE if case.is_large else SMALL)[size]


def requantized(kind: str) -> Callable[[Path, LlamaCpp], Path]:
    """SmolLM2 in another type, through F16, by the peer's own llama-quantize."""

    def make(folder: Path, peer: LlamaCpp) -> Path:
        half, target = folder / "smollm2-135m-f16.gguf", folder / f"smollm2-135m-{kind.lower()}.gguf"
        if not half.exists():
            peer.quantize(resolve("smollm2-135m", download=True), half, "F16")
        if not target.exists():
            peer.quantize(half, target, kind)
        return target

    return make


def pulled(name: str) -> Callable[[Path, LlamaCpp], Path]:
    return lambda folder, peer: resolve(name, download=True)


def random(kind: random_model.Kind) -> Callable[[Path, LlamaCpp], Path]:
    def make(folder: Path, peer: LlamaCpp) -> Path:
        target = folder / f"random-1.5b-{kind.name.lower()}.gguf"
        if not target.exists():
            random_model.write_random_model(target, kind)
        return target

    return make


CASES = (
    Case("smollm2-135m Q8_0", requantized("Q8_0"), 1.25, 2.5, 4.0),
    Case("smollm2-135m Q4_0", requantized("Q4_0"), 1.25, 2.5, 3.5),
    Case("smollm2-135m Q4_1", pulled("smollm2-135m"), 1.25, 2.5),
    Case("gemma3-270m Q4_K_M", pulled("gemma3-270m"), None, 2.5, 3.0),
    Case("random-1.5b Q4_K", random(random_model.Kind.Q4_K), 1.1, is_large=True),
    Case("random-1.5b Q8_0", random(random_model.Kind.Q8_0), 1.1, is_large=True),
)
