"""Etude's side of grpo_vs_trl.py: `etude.grpo`, as a user calls it, held after each step until told to go on.

    python bench/etude_step.py SETTINGS        (JSON of step_task.StepSettings; started by grpo_vs_trl.py)

Everything is the default, run folder, metrics, stored rollouts and doctor included, but for: micro-batches
hold one group and not two (as fast here, and less memory), answers that are cut off stay in the loss for the
whole run (TRL leaves none out), the questions keep their order, and a full fine-tune writes no checkpoint
while it is timed (TRL writes none; by default saving costs at most a twentieth). A LoRA saves in every step,
as is its default, and that is timed.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import torch
from step_task import StepSettings, reward_of
from workers import Channel

from etude import grpo
from etude.learner.local import AUTO, ComputeSettings
from etude.learner.lora import LoraSettings
from etude.records import Problem
from etude.train.grpo_settings import GrpoSettings
from etude.train.run import Report
from etude.train.settings import DataSettings, OptimizerSettings, RunSettings, SamplingSettings

STEPS = 10_000
"""More than are ever run."""
MICRO_BATCH_TOKENS = 640


def reward(problem: Problem, answer: str) -> float:
    return reward_of(answer)


def answer_of(report: Report, run: Path) -> dict[str, object]:
    """What is told of a step. Handing the weights to the engine is part of sampling."""
    row, answer = report.row, dict[str, object]()
    answer["sampling_s"] = row["seconds/sampling"] + row["seconds/publish"]
    answer["tokens"] = row["tokens/sampled"]
    answer["prompt_tokens"] = sum(rollout.prompt_length for rollout in report.rollouts)
    answer["phases"] = {name: value for name, value in row.items() if name.startswith("seconds/")}
    if report.step == 1:
        config = tomllib.loads((run / "config.toml").read_text())
        answer["config"] = {table: config.get(table) for table in ("grpo", "compute", "sampling", "lora")}
    return answer


def main() -> None:
    settings = StepSettings.from_json(sys.argv[1])
    channel = Channel()
    torch.set_num_threads(settings.threads)
    run = Path(settings.folder) / "run"
    channel.say(versions={name: version(name) for name in ("etude", "torch")})
    grpo(
        settings.model,
        DataSettings(train=settings.questions, shuffle=False),
        reward,
        on_step=lambda report: channel.say(**answer_of(report, run)),
        lora=LoraSettings(rank=16, alpha=32.0) if settings.lora else None,
        compute=ComputeSettings(settings.dtype or AUTO, max_tokens=MICRO_BATCH_TOKENS),
        optimizer=OptimizerSettings(learning_rate=settings.learning_rate),
        grpo=GrpoSettings(mask_truncated_after=1.0),
        sampling=SamplingSettings(
            prompts_per_step=settings.prompts,
            samples_per_prompt=settings.samples,
            max_tokens=settings.max_tokens,
            threads=settings.threads,
        ),
        run=RunSettings(
            steps=STEPS,
            folder=settings.folder,
            name=run.name,
            checkpoint_every=None if settings.lora else STEPS,
        ),
    )


if __name__ == "__main__":
    main()
