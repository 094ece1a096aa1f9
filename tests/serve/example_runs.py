"""Run folders to look at, made in a few seconds by the real writer: for tests and for the pages' authors.

    python -m tests.serve.example_runs FOLDER            all of them; one stays "running" until Ctrl-C, and
                                                         gets a step a second

    largest-s0, -s1, -s2   three seeds of one GRPO run, finished, with a final LoRA adapter
    largest-running        one that is being written
    add-failed             one whose policy collapsed and that was stopped; the doctor says why
    largest-10k            10,000 steps, with rollouts of a few

Problems, prompts, tokens, rewards, metrics of rollouts and the doctor's findings are real (SmolLM2's
tokenizer, `rollout_metrics`, `examine`); what the model says and what the learner measured are drawn from
curves that such runs have. The same arguments give the same files, but for the time in run.json.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.tasks import task_problems
from etude.model.chat import ChatTemplate
from etude.model.checkpoint import config_of
from etude.model.family import ModelConfig
from etude.model.gguf import GGUFFile
from etude.model.lora import LoraWeights, LowRank
from etude.model.lora_write import save_gguf_adapter
from etude.model.pull import resolve
from etude.model.tokenizer import Tokenizer
from etude.records import Problem, Rollout, Score
from etude.rollout import PromptWriter
from etude.runlog import RunInfo, RunWriter, rollout_row
from etude.runlog.rows import json_line
from etude.train.doctor import examine
from etude.train.rollout_metrics import rollout_metrics

MODEL = "smollm2-135m"
PROMPTS, SAMPLES, MAX_TOKENS = 4, 8, 24
EVAL_EVERY = 5
CREATED = "2026-11-20T{hour:02d}:15:00Z"
SEEDS = ("largest-s0", "largest-s1", "largest-s2")
RUNNING, FAILED, LONG = "largest-running", "add-failed", "largest-10k"


@dataclass(frozen=True)
class Course:
    """How a run goes. skill: share of right answers at the start and at the end; collapse_at: the step after
    which the policy says the same thing again and again."""

    name: str
    task: str
    steps: int
    seed: int = 0
    skill: tuple[float, float] = (0.1, 0.85)
    learning_rate: float = 1e-5
    collapse_at: int | None = None
    model: str = MODEL

    @property
    def config(self) -> dict[str, Any]:
        """As config.toml has it."""
        return {
            "model": {"name": self.model},
            "lora": {"rank": 8, "alpha": 16.0},
            "optimizer": {"learning_rate": self.learning_rate, "schedule": "linear"},
            "data": {"train": f"task:{self.task}", "held_out": f"task:{self.task}?held_out=true&size=300"},
            "reward": {"math": 0.5, "math?parse=lenient": 0.5},
            "grpo": {"preset": "grpo"},
            "sampling": {
                "prompts_per_step": PROMPTS,
                "samples_per_prompt": SAMPLES,
                "max_tokens": MAX_TOKENS,
            },
            "eval": {"every": EVAL_EVERY},
            "run": {"name": self.name, "steps": self.steps, "seed": self.seed},
        }

    def progress(self, step: int) -> float:
        """0 at the start, 1 at the end: an S-curve."""
        return 1 / (1 + math.exp(-10 * (step / self.steps - 0.4)))

    def collapsed(self, step: int) -> float:
        """How far the collapse has gone, 0 to 1."""
        return 0.0 if self.collapse_at is None else min(1.0, max(0, step - self.collapse_at) / 6)

    def accuracy(self, step: int) -> float:
        low, high = self.skill
        return (low + (high - low) * self.progress(step)) * (1 - self.collapsed(step))


class Writing:
    """What the model of a course says, judged."""

    def __init__(self, course: Course, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.course = course
        self.tokenizer = tokenizer
        self.prompts = PromptWriter(tokenizer, template)
        self.problems = task_problems(course.task, size=200)
        self.draw = random.Random(f"{course.name}/{course.seed}")
        self.noise = np.random.default_rng(course.seed + 1)

    def rollouts(self, step: int) -> list[tuple[Problem, Rollout]]:
        """PROMPTS groups of SAMPLES answers."""
        problems = self.draw.sample(self.problems, PROMPTS)
        return [(problem, self.rollout(step, problem, i)) for problem in problems for i in range(SAMPLES)]

    def rollout(self, step: int, problem: Problem, index: int) -> Rollout:
        prompt_ids = self.prompts.opening(problem).ids
        text, score = self.answer(step, problem)
        ids = self.tokenizer.encode(text, add_special=False)
        ended = len(ids) < MAX_TOKENS and self.tokenizer.eos_id is not None
        ids = [*ids, self.tokenizer.eos_id] if ended else ids[:MAX_TOKENS]
        sure = 1.5 * (1 - self.course.progress(step)) + 0.05
        logprobs = -self.noise.exponential(sure, len(ids)).astype(np.float32)
        n = len(prompt_ids)
        return Rollout(
            problem_id=problem.id,
            index=index,
            token_ids=(*prompt_ids, *ids),
            mask=(False,) * n + (True,) * len(ids),
            logprobs=(0.0,) * n + tuple(map(float, logprobs)),
            prompt_length=n,
            finish="eos" if ended else "length",
            weights_version=step - 1,
            score=score,
            text=text if ended else self.tokenizer.decode(ids),
        )

    def answer(self, step: int, problem: Problem) -> tuple[str, Score]:
        """What is said, and what the two rewards make of it."""
        gold, draw = str(problem.answer), self.draw
        if draw.random() < self.course.collapsed(step):
            return "the the " * MAX_TOKENS, Score(0.0, {"math": 0.0, "math?parse=lenient": 0.0}, None, "none")
        right = draw.random() < self.course.accuracy(step)
        said = gold if right else str(int(gold) + draw.choice((-11, -2, -1, 1, 3, 10)))
        wordy = draw.random() > self.course.progress(step)
        text = (
            draw.choice(
                (
                    "The answer is {} — “of course”.",
                    "Let me see… 数字是 {}，我想。 🙂",
                    "**{}** is right, I think.",
                )
            )
            if wordy
            else "{}"
        )
        strict = float(right and not wordy)
        score = Score(
            0.5 * strict + 0.5 * right,
            {"math": strict, "math?parse=lenient": float(right)},
            said,
            "equal" if right else "different",
        )
        return text.format(said), score

    def stored(self, drawn: list[tuple[Problem, Rollout]]) -> list[dict[str, Any]]:
        """As they are written, with the learner's numbers for each token."""
        rows = []
        for problem, rollout in drawn:
            rewards = [other.score.total for p, other in drawn if p.id == problem.id]
            spread = float(np.std(rewards))
            advantage = (rollout.score.total - float(np.mean(rewards))) / spread if spread > 0 else 0.0
            sampled = np.array(rollout.mask, np.float64)
            drift = self.noise.normal(0, 0.02, len(sampled)) * sampled
            rows.append(
                rollout_row(
                    rollout,
                    problem,
                    advantages=(advantage * sampled).tolist(),
                    ratios=np.where(sampled > 0, np.exp(2 * drift), 0).tolist(),
                    learner_logprobs=((np.array(rollout.logprobs) + drift) * sampled).tolist(),
                    entropies=(-0.8 * np.array(rollout.logprobs) * sampled).tolist(),
                )
            )
        return rows


def learner_row(course: Course, step: int, noise: np.random.Generator) -> dict[str, float]:
    """What the learner and the clock say of a step."""
    done, gone = course.progress(step), course.collapsed(step)
    seconds = {
        "sampling": 3.2 - done + 0.2 * noise.random(),
        "scoring": 1.4 + 0.1 * noise.random(),
        "update": 5.5 + 0.4 * noise.random(),
        "publish": 0.05,
        "storing": 0.02,
    }
    return {
        "loss": float(noise.normal(0, 0.02)),
        "grad_norm": 0.4 * (1 - done) + 0.1 + 0.1 * float(noise.random()) + 30 * gone,
        "learning_rate": course.learning_rate * (1 - step / (course.steps + 1)),
        "updates": 1.0,
        "skipped": 0.0,
        "samples_computed": float(PROMPTS * SAMPLES),
        "tokens_computed": 2400.0,
        "seconds/forward": 0.35 * seconds["update"],
        "seconds/backward": 0.55 * seconds["update"],
        "seconds/optimizer": 0.1 * seconds["update"],
        "entropy": (1.8 - 1.2 * done + 0.1 * float(noise.random())) * (1 - 0.98 * gone),
        "kl": 0.03 * done + 0.002 * float(noise.random()) + 2.5 * gone,
        "mismatch/k3": 3e-4 + 2e-4 * float(noise.random()) + 0.02 * gone,
        "mismatch/max_ratio": 1.1 + 0.2 * float(noise.random()),
        "mismatch/effective_samples": 0.99,
        **{f"seconds/{phase}": value for phase, value in seconds.items()},
        "seconds/step": sum(seconds.values()) + 0.01,
        "tokens_per_s/sampling": 340 + 20 * float(noise.random()),
        "tokens_per_s/update": 2400.0 / seconds["update"],
        "memory_bytes": float(1.9e9 + 1e6 * step),
    }


def eval_row(course: Course, step: int, noise: np.random.Generator) -> dict[str, float]:
    """An evaluation on 300 problems, with its interval."""
    value = min(1.0, max(0.0, course.accuracy(step) + float(noise.normal(0, 0.02))))
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.003) / 300)
    row = {"eval/accuracy": value, "eval/accuracy/low": value - half, "eval/accuracy/high": value + half}
    return {
        **row,
        "eval/tokens": 14.0 - 9 * course.progress(step),
        "eval/reward": 0.9 * value,
        "seconds/eval": 8.1,
    }


class Run:
    """A run that is written step by step."""

    def __init__(self, folder: Path, course: Course, writing: Writing, hour: int) -> None:
        info = RunInfo("grpo", course.steps, CREATED.format(hour=hour), "0.1.0")
        self.course, self.writing = course, writing
        self.writer = RunWriter.create(folder / course.name, course.config, info)
        self.noise = np.random.default_rng(course.seed + 100)
        self.history: list[dict[str, Any]] = []
        self.record(0, eval_row(course, 0, self.noise), [])

    def step(self) -> None:
        """The next one."""
        step = len(self.history)
        drawn = self.writing.rollouts(step)
        rollouts = [rollout for _, rollout in drawn]
        row = {**rollout_metrics(rollouts, counted_parts=("math", "math?parse=lenient"))}
        row |= learner_row(self.course, step, self.noise) | {"epoch": step * PROMPTS / 200}
        if step % EVAL_EVERY == 0:
            row |= eval_row(self.course, step, self.noise)
        self.writer.rollouts(step, self.writing.stored(drawn))
        self.record(step, row, rollouts)
        if step % EVAL_EVERY == 0:
            with self.writer.checkpoint(step, row["eval/accuracy"]) as draft:
                (draft / "state.json").write_text(f'{{"position": {step * PROMPTS}}}')

    def record(self, step: int, row: dict[str, Any], rollouts: list[Rollout]) -> None:
        self.writer.metrics(step, row)
        self.history.append({"step": step, **row})
        for finding in examine(self.history, rollouts):
            self.writer.doctor(step, finding.row())

    def finish(self, config: ModelConfig) -> None:
        """With an adapter of random numbers, too small to change what the model says."""
        draw = np.random.default_rng(self.course.seed)
        a = draw.normal(0, 0.01, (4, config.d_model)).astype(np.float32)
        b = draw.normal(0, 0.01, (config.d_model, 4)).astype(np.float32)
        tensors = {("attn_output", layer): LowRank(a, b) for layer in range(config.n_layers)}
        with self.writer.final() as draft:
            save_gguf_adapter(draft / "adapter.gguf", config, LoraWeights(1.0, tensors))
        self.writer.close()


def write_long(folder: Path, course: Course, writing: Writing) -> None:
    """10,000 steps: metrics in one go, because each of the writer's lines waits for the disk."""
    noise = np.random.default_rng(7)
    info = RunInfo("grpo", course.steps, CREATED.format(hour=9), "0.1.0")
    with RunWriter.create(folder / course.name, course.config, info) as writer:
        few = rollout_metrics([rollout for _, rollout in writing.rollouts(1)])
        lines = [json_line({"step": 0, **eval_row(course, 0, noise)})]
        for step in range(1, course.steps + 1):
            reward = course.accuracy(step) + float(noise.normal(0, 0.08))
            row = {**few, **learner_row(course, step, noise), "reward/mean": reward}
            row |= {"tokens/mean": 14 - 9 * course.progress(step) + float(noise.normal(0, 0.5))}
            if step % (10 * EVAL_EVERY) == 0:
                row |= eval_row(course, step, noise)
            lines.append(json_line({"step": step, **row}))
        (writer.folder / "metrics.jsonl").write_bytes(b"".join(lines))
        for step in (1, course.steps // 2, course.steps):
            writer.rollouts(step, writing.stored(writing.rollouts(step)))
        with writer.final() as draft:
            (draft / "note.txt").write_text("an example without weights")


@contextmanager
def write_example_runs(folder: Path, *, model: str | Path = MODEL, long_steps: int = 10_000) -> Iterator[Run]:
    """All of them. Yields the one that runs; it stops when the block ends. model: GGUF with a tokenizer and a
    chat template. long_steps 0: without the long one."""
    path = resolve(model)
    with GGUFFile.open(path) as file:
        metadata = dict(file.metadata)
        config = config_of(file)
    tokenizer = Tokenizer.from_metadata(metadata)
    template = ChatTemplate(metadata["tokenizer.chat_template"])

    def begun(course: Course, hour: int) -> Run:
        return Run(folder, course, Writing(course, tokenizer, template), hour)

    for seed, name in enumerate(SEEDS):
        run = begun(Course(name, "largest", 40, seed, (0.1, 0.8 + 0.05 * seed)), 10 + seed)
        for _ in range(40):
            run.step()
        run.finish(config)
    failed = begun(Course(FAILED, "add", 60, 0, (0.3, 0.5), 3e-3, collapse_at=10), 14)
    for _ in range(24):
        failed.step()
    failed.writer.close()
    if long_steps:
        course = Course(LONG, "largest", long_steps, 0, (0.05, 0.97))
        write_long(folder, course, Writing(course, tokenizer, template))
    running = begun(Course(RUNNING, "largest", 400, 3, (0.1, 0.95)), 16)
    for _ in range(37):
        running.step()
    try:
        yield running
    finally:
        running.writer.close()


def main() -> None:
    """The command line of the module."""
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("folder", type=Path)
    reader.add_argument("--model", default=MODEL)
    reader.add_argument("--pause-s", type=float, default=1.0, help="between two steps of the one that runs")
    arguments = reader.parse_args()
    with write_example_runs(arguments.folder, model=arguments.model) as running:
        print(f"{arguments.folder}: {RUNNING} runs until Ctrl-C", flush=True)
        try:
            while len(running.history) <= running.course.steps:
                time.sleep(arguments.pause_s)
                running.step()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
