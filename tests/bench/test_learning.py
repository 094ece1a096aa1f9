"""bench/learning.py: what is run and what is left, and what its report says of runs."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from statistics import stdev
from types import ModuleType
from typing import Any

import pytest

from etude.runlog import RunInfo, RunWriter
from etude.terminal.config import read_config
from etude.terminal.train import FLAGS, TRAININGS

ROOT = Path(__file__).parent.parent.parent
STRICT = "eval/accuracy/strict"


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import learning

    return learning


@pytest.fixture
def learning_report(learning: ModuleType) -> ModuleType:
    return sys.modules["learning_report"]


def accuracy_row(step: int, value: float, **other: float) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step, "seconds/step": 6.0 * (step > 0), **other}
    return row | {STRICT: value, f"{STRICT}/low": value - 0.05, f"{STRICT}/high": value + 0.05}


def outcome(report: ModuleType, seed: int, after: float, task: str = "sums", verb: str = "grpo") -> Any:
    rows = (accuracy_row(0, 0.1), {"step": 1, "seconds/step": 6.0}, accuracy_row(2, after))
    rows[1]["reward/mean"] = 0.25 * (seed + 1)
    command = f"etude {verb} sums.toml --run.seed {seed}"
    return report.Outcome(task, "sums", verb, seed, command, rows, constant=("7", 0.2))


def test_every_case_is_a_command_that_can_be_read(
    learning: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert len({case.name for case in learning.CASES}) == len(learning.CASES) >= 5
    for case in learning.CASES:
        verb, *words = case.command(2)
        config = read_config(TRAININGS[verb].config, words, FLAGS).config
        assert config.run.seed == 2 and config.data.held_out


def test_a_bad_seed_is_kept(learning_report: ModuleType) -> None:
    some = [outcome(learning_report, seed, after) for seed, after in ((0, 0.9), (1, 0.8), (2, 0.1))]
    text = learning_report.tables(some)
    mean = learning_report.over_seeds([0.9, 0.8, 0.1])
    assert mean.value == pytest.approx(0.6) and (mean.low, mean.high) == (0.0, 1.0)  # cut off
    assert f"| 10.0 % | {mean} | 90.0 %, 80.0 %, 10.0 % | 20.0 % (“7”) | 0.2 |" in text
    assert "sums, seed 2 | strict | 10.0 % [5.0, 15.0] | 10.0 % [5.0, 15.0] | 2 | 0.2 | 6.0 |" in text
    assert "    etude grpo sums.toml --run.seed S" in text


def test_the_interval_over_seeds_is_students(learning_report: ModuleType) -> None:
    values = [0.50, 0.52, 0.56]
    found = learning_report.over_seeds(values)
    half = 4.303 * stdev(values) / 3**0.5
    assert (found.high - found.value, found.value - found.low) == pytest.approx((half, half))


def test_pictures_hold_every_seed_and_the_rewards_mean(learning_report: ModuleType) -> None:
    some = [outcome(learning_report, seed, after) for seed, after in ((0, 0.9), (1, 0.8))]
    other = [outcome(learning_report, seed, 0.5, "sums_ppo", "ppo") for seed in (0, 1)]
    svg = learning_report.picture(some)
    texts = [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"seed 0", "seed 1", "training reward", "always “7”"} <= set(texts)
    assert svg.count("<circle") == 4
    versus = learning_report.comparison([some, other])
    texts = [node.text for node in ElementTree.fromstring(versus).iter("{http://www.w3.org/2000/svg}text")]
    assert {"GRPO", "PPO"} <= set(texts)
    assert set(learning_report.pictures([*some, *other])) == {"sums", "sums_ppo"}


def test_a_picture_shows_what_moves(learning_report: ModuleType) -> None:
    """A task whose answers stay wordy is drawn as it is read leniently."""
    lenient = learning_report.LENIENT
    wordy = {lenient: 0.5, f"{lenient}/low": 0.4, f"{lenient}/high": 0.6}
    never = {STRICT: 0.0, f"{STRICT}/low": 0.0, f"{STRICT}/high": 0.1}
    rows = ({"step": 0, **never, **wordy}, {"step": 1, **never, **wordy})
    some = [learning_report.Outcome("sums", "sums", "grpo", 0, "etude", rows)]
    assert learning_report.shown(some) == lenient
    assert "lenient" in learning_report.picture(some)
    assert learning_report.shown([outcome(learning_report, 0, 0.9)]) == STRICT


def test_pairs_by_fault(learning_report: ModuleType) -> None:
    name = "eval/accuracy"
    rows = tuple(
        {"step": step, name: value, f"{name}/low": 0.0, f"{name}/high": 1.0}
        for step, value in ((0, 0.5), (9, 0.75))
    )
    some = [
        learning_report.Outcome("rm", "pairs", "reward-model", seed, "etude", rows, faults=faults)
        for seed, faults in ((0, {"wrong": [5, 10]}), (1, {"wrong": [7, 10]}))
    ]
    text = learning_report.tables(some)
    assert "| wrong | 10 | 60.0 % |" in text and "pairs in order" in text
    json.dumps([learning_report.outcome_json(one) for one in some])


def written(path: Path, steps: int, total: int) -> None:
    info = RunInfo("grpo", total)
    with RunWriter.create(path, {"data": {"held_out": "x"}}, info) as writer:
        for step in range(steps + 1):
            writer.metrics(step, accuracy_row(step, 0.5))


def test_finished_runs_are_passed_over_and_stopped_ones_go_on(
    learning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = learning.Case("sums", "sums", "grpo", "sums.toml")
    jobs = [learning.Job(case, seed, tmp_path) for seed in range(3)]
    written(jobs[0].path, 4, 4)
    written(jobs[1].path, 2, 4)
    assert [job.finished for job in jobs] == [True, False, False]
    asked: list[list[str]] = []

    def stands_in(words: list[str]) -> int:
        asked.append(words)
        path = Path(words[words.index("--run.folder") + 1]) / words[-1] if "--run.name" in words else None
        if path is not None:
            written(path, 4, 4)
        return 0

    monkeypatch.setattr(learning, "run", stands_in)
    assert learning.run_all(jobs) == 130  # the second one ended before its last step, as after Ctrl-C
    assert asked == [["grpo", "--resume", str(jobs[1].path)]]
    assert learning.run_all([jobs[0], jobs[2]]) == 0
    assert asked[1][:4] == ["grpo", "sums.toml", "--run.seed", "2"]
    assert jobs[2].finished and not (jobs[2].path / "checkpoints").exists()


def test_what_is_left_is_guessed_from_what_was_seen(learning: ModuleType) -> None:
    seen: Mapping[str, list[float]] = {"a": [60.0, 120.0], "b": [240.0]}
    assert learning.expected_s(seen, "a") == 90.0 and learning.expected_s(seen, "c") == 140.0
    assert learning.expected_s({}, "a") == learning.GUESS_S
