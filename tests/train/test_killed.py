"""Runs that are killed with SIGKILL again and again end as the run that nobody touched, to the last bit.

The processes are real, the kills too; only the model is tiny. `python -m tests.train.kill_smollm2` does the
same to a real model. ETUDE_KILLS=200 kills so often instead of twenty times.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from etude.runlog import RunReader
from tests.train.kills import Child, ForkServer, Killed, killed_run

KILLS = int(os.environ.get("ETUDE_KILLS", "20"))
FEW = max(6, KILLS // 4)
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
def server() -> Iterator[ForkServer]:
    made = ForkServer()
    yield made
    made.close()


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
    tally = killed_run(server, words, tmp_path, at_random=n, aimed=AIMED)
    print(shape, tally)
    assert tally.kills >= n + len(AIMED)


def test_ppo(server: ForkServer, tiny: Path, tmp_path: Path) -> None:
    """Two learners, each with an optimizer, running moments of the scores, an adaptive KL."""
    words = [
        "ppo", "--model.name", str(tiny), *SAMPLED, *OFTEN, "--ppo.minibatches", "2",
        "--ppo.standardise_scores", "true", "--ppo.kl_target_nats", "0.1",
    ]  # fmt: skip
    tally = killed_run(server, words, tmp_path, at_random=KILLS, aimed=AIMED)
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
    tally = killed_run(server, words, tmp_path, at_random=FEW, aimed=("checkpoint", "final"))
    print(verb, tally)
    assert tally.kills >= FEW + 2


# ── other ends ──


@pytest.fixture
def stopped(server: ForkServer, tiny: Path, tmp_path: Path) -> Killed:
    """A run with a LoRA, which saves every step."""
    return Killed(server, ["grpo", "--model.name", str(tiny), *SAMPLED, *LORA], tmp_path)


def running(killed: Killed) -> Child:
    """The run, in the middle of its steps."""
    child = killed.start()
    while child.wait(0.01) is None:
        if len(list(killed.run.glob("rollouts/[0-9]*"))) >= 3:
            return child
    raise AssertionError(killed.server.said())


def test_ctrl_c_once_finishes_the_step_and_saves_it(stopped: Killed) -> None:
    child = running(stopped)
    child.signal(signal.SIGINT)
    assert child.wait() == 0
    said = stopped.server.said()
    assert "stopping after this step" in said and f"to go on: etude grpo --resume {stopped.run}" in said
    reader = RunReader(stopped.run)
    assert reader.state == "stopped" and 3 <= reader.metrics()[-1]["step"] < 12
    assert reader.checkpoints()[-1].step == reader.metrics()[-1]["step"]
    stopped.finish()


def test_ctrl_c_twice_stops_at_once_and_loses_nothing_but_the_step(stopped: Killed) -> None:
    child = running(stopped)
    while child.wait(0.001) is None:
        child.signal(signal.SIGINT)
    # The last of them may meet a process that has given its handler back already: then it ends of the signal.
    assert child.wait() in (128 + signal.SIGINT, -signal.SIGINT)
    assert f"stopped at once; to go on: etude grpo --resume {stopped.run}" in stopped.server.said()
    assert RunReader(stopped.run).state == "stopped"
    assert not list(stopped.run.rglob(".tmp-*"))
    stopped.finish()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process, which only Linux can")
@pytest.mark.parametrize("size", [500, 3000, 20_000])
def test_a_disk_that_is_full_in_the_middle(stopped: Killed, size: int) -> None:
    """From some step on no file may grow beyond `size`: metrics, rollouts or a checkpoint fail first."""
    child = running(stopped)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, size))
    assert child.wait() == 1
    said = stopped.server.said()
    assert (
        "File too large" in said or "No space" in said
    ) and f"go on: etude grpo --resume {stopped.run}" in said, said
    assert "Traceback" not in said and not list(stopped.run.rglob(".tmp-*"))
    stopped.finish()
