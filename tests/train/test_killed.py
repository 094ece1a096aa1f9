"""Runs that are killed with SIGKILL again and again end as the run that nobody touched, to the last bit.

The processes are real, the kills too; only the model is tiny. `python -m tests.train.kill_smollm2` does the
same to a real model. ETUDE_KILLS=200 kills so often instead of twenty times.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.kills import ForkServer, killed_run, serving

KILLS = int(os.environ.get("ETUDE_KILLS", "20"))
FEW = max(6, KILLS // 4)
WINDOW_S = 0.8
"""Within which a run is killed: reading settings and model takes a third of it, then come some steps."""
SAMPLED = [
    "--data.train", "task:add?low=1&high=9&size=40", "--data.held_out_size", "6", "--data.check", "false",
    "--reward", "length?target=4", "--compute.dtype", "f32", "--compute.max_tokens", "256",
    "--sampling.prompts_per_step", "3", "--sampling.samples_per_prompt", "4", "--sampling.max_tokens", "8",
    "--sampling.threads", "1", "--sampling.weight_type", "f32", "--optimizer.learning_rate", "3e-3",
    "--eval.every", "4", "--run.steps", "12",
]  # fmt: skip
TEXTS = [
    "--data.held_out_size", "6", "--compute.dtype", "f32", "--compute.max_tokens", "256",
    "--batches.size", "4", "--optimizer.learning_rate", "3e-3", "--eval.every", "5",
]  # fmt: skip
LORA = ["--lora.rank", "4"]
OFTEN = ["--run.checkpoint_every", "2"]
AIMED = ("checkpoint", "checkpoint", "rollouts", "rollouts", "final")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with serving(tmp_path_factory.mktemp("server")) as made:
        yield made


GRPO = {
    "full": [
        *OFTEN, "--grpo.minibatches", "2", "--grpo.epochs", "2", "--grpo.kl_coefficient", "0.05",
        "--grpo.reference_refresh", "0.4", "--grpo.dynamic_sampling", "true",
        "--optimizer.schedule", "cosine", "--optimizer.warmup_steps", "2",
    ],
    "lora": LORA,
}  # fmt: skip


@pytest.mark.parametrize("shape", GRPO)
def test_grpo(server: ForkServer, tiny: Path, tmp_path: Path, shape: str) -> None:
    words = ["grpo", "--model.name", str(tiny), *SAMPLED, *GRPO[shape]]
    n = KILLS if shape == "full" else KILLS // 2
    tally = killed_run(server, words, tmp_path, at_random=n, window_s=WINDOW_S, aimed=AIMED)
    print(shape, tally)
    assert tally.kills >= n + len(AIMED)


def test_ppo(server: ForkServer, tiny: Path, tmp_path: Path) -> None:
    """Two learners, each with an optimizer, running moments of the scores, an adaptive KL."""
    words = [
        "ppo", "--model.name", str(tiny), *SAMPLED, *OFTEN, "--ppo.minibatches", "2",
        "--ppo.standardise_scores", "true", "--ppo.kl_target_nats", "0.1",
    ]  # fmt: skip
    tally = killed_run(server, words, tmp_path, at_random=KILLS, window_s=WINDOW_S, aimed=AIMED)
    print(tally)
    assert tally.kills >= KILLS + len(AIMED)


TRAININGS = {
    "sft": ["--data.train", "task:add?low=1&high=9&size=40", *OFTEN, "--batches.steps", "12"],
    "dpo": ["--data.train", "pairs:add?low=1&high=9&size=40", *LORA, "--batches.steps", "12"],
    "reward-model": ["--data.train", "pairs:add?low=1&high=9&size=40", *OFTEN, "--batches.steps", "12"],
}


@pytest.mark.parametrize("verb", TRAININGS)
def test_trainings_on_texts(server: ForkServer, tiny: Path, tmp_path: Path, verb: str) -> None:
    words = [verb, "--model.name", str(tiny), *TEXTS, *TRAININGS[verb]]
    tally = killed_run(
        server, words, tmp_path, at_random=FEW, window_s=WINDOW_S, aimed=("checkpoint", "final")
    )
    print(verb, tally)
    assert tally.kills >= FEW + 2
