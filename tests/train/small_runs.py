"""A model of bytes, a task that it learns in seconds, and runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from etude.learner.local import ComputeSettings
from etude.recipes.grpo import Given, GrpoConfig, recorded, steps
from etude.records import Message, Problem
from etude.runlog import RunReader
from etude.train.grpo_settings import GrpoSettings
from etude.train.run import Job, Report
from etude.train.settings import EvalSettings, ModelSettings, OptimizerSettings, RunSettings, SamplingSettings
from tests.terminal.tiny import write_tiny

PROBLEMS = [Problem(f"p{i}", (Message("user", f"say {i}"),), "a") for i in range(12)]
CHANGING = ("seconds/", "tokens_per_s/", "memory_bytes")
"""Numbers that no two runs have in common."""


def letters(problem: Problem, answer: str) -> float:
    """Share of the answer that is a, b or c."""
    return sum(character in "abc" for character in answer) / 8


def tiny_model(folder: Path) -> Path:
    path = folder / "tiny.gguf"
    return path if path.exists() else write_tiny(path)


def config_of(folder: Path, n_steps: int = 3, **changes: Any) -> GrpoConfig:
    """A run of a moment. changes: tables of GrpoConfig, or dicts that change one of the small defaults."""
    tables: dict[str, Any] = {
        "model": {"name": str(tiny_model(folder))},
        "compute": {"dtype": "f32", "max_tokens": 256},
        "optimizer": {"learning_rate": 5e-3},
        "sampling": {
            "prompts_per_step": 4, "samples_per_prompt": 4, "max_tokens": 8, "weight_type": "f32",
            "threads": 1,
        },
        "grpo": {},
        "eval": {"every": 0},
        "run": {"steps": n_steps, "checkpoint_every": 1},
    }  # fmt: skip
    kinds: dict[str, Callable[..., Any]] = {
        "model": ModelSettings, "compute": ComputeSettings, "optimizer": OptimizerSettings,
        "sampling": SamplingSettings, "grpo": GrpoSettings, "eval": EvalSettings, "run": RunSettings,
    }  # fmt: skip
    made: dict[str, Any] = {}
    for name, values in tables.items():
        made[name] = kinds[name](**(values | dict(changes.pop(name, {}))))
    return GrpoConfig(**made, **changes)


def train(
    config: GrpoConfig,
    folder: Path,
    *,
    reward: Callable[..., Any] = letters,
    stop_after: int | None = None,
    resume: bool = False,
    held_out: int = 2,
) -> list[Report]:
    """The reports of a run. stop_after: leave it there, as a killed process would."""
    given = Given(PROBLEMS, PROBLEMS[:held_out], reward)
    reports = []
    for report in steps(config, Job(folder, recorded(config, given), resume=resume), given):
        reports.append(report)
        if report.step == stop_after:
            break
    return reports


def lasting(folder: Path) -> list[dict[str, Any]]:
    """What must be the same in two runs: all numbers that are no times."""
    return [
        {name: value for name, value in row.items() if not name.startswith(CHANGING)}
        for row in RunReader(folder).metrics()
    ]


def means(reports: list[Report], name: str) -> list[float]:
    return [report.row[name] for report in reports if name in report.row]
