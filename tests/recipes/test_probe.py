"""--dry-run: what is left out is counted as if it had been done; every verb has it, and leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from etude.cli import main
from etude.learner.batch import Sample
from etude.learner.learner import Denominators, Metrics, SampleOutputs
from etude.recipes import probe as module
from etude.recipes.probe import Probed, packed, tried
from etude.train.run import Report, Run
from etude.train.settings import RunSettings


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products on several threads wait for each other, and for whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TOKEN_S, SCORE_S, OPTIMIZER_S, SAMPLING_S = 0.01, 0.004, 0.5, 1.5


class Machine:
    """A clock, and a learner that takes so much time for each token."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.computed: list[int] = []
        self.compute = SimpleNamespace(max_tokens=60)
        patch.setattr(module.time, "perf_counter", lambda: self.now_s)

    def score(self, samples: Sequence[Sample], outputs: Sequence[str], adapter: bool) -> list[SampleOutputs]:
        self.now_s += SCORE_S * packed(samples)
        return [{name: np.zeros(len(one.mask), np.float32) for name in outputs} for one in samples]

    def update(self, samples: Sequence[Sample], *arguments: Any, **named: Any) -> Metrics:
        tokens = packed(samples)
        self.computed.append(tokens)
        optimizer_s = OPTIMIZER_S if tokens else 0.0
        self.now_s += TOKEN_S * tokens + optimizer_s
        metrics = Metrics({"seconds/forward": TOKEN_S * tokens, "seconds/optimizer": optimizer_s})
        metrics.outputs = [{"logprobs": np.zeros(len(one.mask), np.float32)} for one in samples]
        return metrics


def sample(group: int, n: int, skip: bool = False) -> Sample:
    """Ten tokens of a prompt, n of an answer."""
    columns = {"sampler_logprobs": np.full(n + 1, -1.5, np.float32)}
    return Sample((1,) * 10, (2,) * (n + 1), (True,) * (n + 1), group, columns, skip)


def training(machine: Machine, learner: Probed, samples: list[Sample], updates: int) -> Any:
    """Steps as an algorithm does them: sample, score, update."""

    def begin(run: Run) -> Iterator[Report]:
        for step in range(1, run.settings.steps + 1):
            machine.now_s += SAMPLING_S
            start = machine.now_s
            rows = learner.score(samples)
            assert all(len(row["logprobs"]) == len(one.mask) for row, one in zip(rows, samples, strict=True))
            scored = machine.now_s
            for _ in range(updates):
                learner.update(samples, None, denominators=Denominators.of(samples))
            row: Mapping[str, float] = {
                "seconds/sampling": SAMPLING_S,
                "seconds/scoring": scored - start,
                "seconds/update": machine.now_s - scored,
                "tokens/sampled": 100,
            }
            yield Report(step, run.settings.steps, row)

    return begin


@pytest.mark.parametrize("updates", [1, 2, 8])
@pytest.mark.parametrize("n_groups", [1, 4, 30])
def test_a_part_stands_for_the_whole(monkeypatch: pytest.MonkeyPatch, n_groups: int, updates: int) -> None:
    machine = Machine(monkeypatch)
    samples = [sample(group, 5 + group % 4, skip=group % 3 == 2) for group in range(n_groups) for _ in "ab"]
    learner = Probed(machine)
    found = tried(RunSettings(steps=50), [learner], training(machine, learner, samples, updates))
    tokens = packed(samples)
    assert found.seconds["update"] == pytest.approx(updates * (TOKEN_S * tokens + OPTIMIZER_S))
    assert found.seconds["scoring"] == pytest.approx(SCORE_S * tokens)
    assert found.seconds["sampling"] == SAMPLING_S and found.sampled == 100
    assert found.computed == updates * tokens
    assert found.signal == sum(not one.idle for one in samples) / len(samples)
    assert max(machine.computed) <= max(tokens, 180)
    if n_groups == 30 and updates == 8:
        assert sum(machine.computed) < updates * tokens  # for which there would be no time


def test_the_check_before_the_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    learner = Probed(machine, checked=True)
    found = tried(RunSettings(steps=1), [learner], training(machine, learner, [sample(0, 5)], 1))
    assert found.seconds.get("scoring", 0.0) == pytest.approx(0.0)


def test_what_is_left_out_agrees_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    learner = Probed(machine)
    rows = learner.score([sample(group, 20) for group in range(5)], ("logprobs", "entropy"))
    assert [float(row["logprobs"][0]) for row in rows] == [0.0, 0.0, -1.5, -1.5, -1.5]


SAMPLED = [
    "--data.train", "task:add?low=1&high=9&size=40", "--data.check", "false", "--reward", "length?target=4",
    "--sampling.threads", "1", "--sampling.weight_type", "f32", "--sampling.max_tokens", "8",
]  # fmt: skip
WORDS = {
    "grpo": SAMPLED,
    "ppo": SAMPLED,
    "sft": ["--data.train", "task:add?low=1&high=9&size=40"],
    "dpo": ["--data.train", "pairs:add?low=1&high=9&size=40"],
    "reward-model": ["--data.train", "pairs:add?low=1&high=9&size=40"],
}


@pytest.mark.parametrize("verb", WORDS)
def test_every_verb_has_it(
    tiny: Path,
    tmp_path: Path,
    verb: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TRIAL_S", 0.1)
    monkeypatch.setattr(module, "PASS_S", 0.01)
    where = ["--run.folder", str(tmp_path / "runs"), "--data.held_out_size", "4", "--compute.dtype", "f32"]
    assert main([verb, "--model.name", str(tiny), *WORDS[verb], *where, "--dry-run"]) == 0
    step, time_, memory = capsys.readouterr().out.splitlines()
    assert step.startswith("a step: ") and "computed in updates" in step
    assert " s a step (" in time_ and "an evaluation" in time_ and memory.endswith("GiB")
    assert not (tmp_path / "runs").exists()
