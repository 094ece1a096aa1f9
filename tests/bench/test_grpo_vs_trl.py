"""The comparison with TRL, small: its questions and reward, the search for the peer's best setting, and a
whole run in which Etude, on the folder that was made for the peer, takes the peer's place."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from grpo_vs_trl import BATCHES, Bench, fastest
from step_task import questions, reward_of, write_questions
from workers import Worker, WorkerError

from etude.data.problems import read_problems


def test_questions_are_distinct_and_always_the_same(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    write_questions(path)
    problems = read_problems(path)
    texts = [problem.messages[0].content for problem in problems]
    assert len(set(texts)) == len(texts) == len(questions())
    assert {problem.messages[0].role for problem in problems} == {"user"}
    assert questions() == questions()


def test_rewards_differ_between_answers() -> None:
    rewards = [reward_of(f"answer {n}") for n in range(100)]
    assert len(set(rewards)) == 100
    assert all(0 <= reward < 1 for reward in rewards)
    assert reward_of("answer 3") == rewards[3]


def test_the_peer_gets_its_fastest_setting() -> None:
    seconds = {
        ("bf16", 8): 9.0,
        ("bf16", 16): 7.0,
        ("bf16", 32): 8.0,
        ("bf16", 64): math.inf,
        ("f32", 16): 6.0,
    }
    tried: list[tuple[str, int]] = []

    def measure(dtype: str, batch: int) -> float:
        tried.append((dtype, batch))
        return seconds[dtype, batch]

    assert fastest(measure, ("bf16", "f32"), BATCHES) == ("f32", 16)
    assert sorted(tried) == sorted(seconds)
    assert fastest(measure, ("bf16",), BATCHES) == ("bf16", 16)


def test_a_peer_that_fails_at_every_setting_is_no_result() -> None:
    with pytest.raises(WorkerError, match="none of the peer's settings"):
        fastest(lambda dtype, batch: math.inf, ("bf16", "f32"), BATCHES)


class FakeWorker:
    """Answers at once."""

    def __init__(self, prompt_tokens: int, log: list[int]) -> None:
        self.prompt_tokens, self.log = prompt_tokens, log

    def step(self) -> dict[str, Any]:
        self.log.append(self.prompt_tokens)
        return {"prompt_tokens": self.prompt_tokens}


def sides(ours: int, peer: int, log: list[int]) -> dict[str, Worker]:
    return cast("dict[str, Worker]", {"ours": FakeWorker(ours, log), "peer": FakeWorker(peer, log)})


def test_a_round_keeps_the_order_that_it_is_told() -> None:
    for order in (("ours", "peer"), ("peer", "ours")):
        assert Bench.round(sides(5, 5, []), order)["first"] == order[0]


def test_a_round_stops_if_the_prompts_are_not_the_same() -> None:
    log: list[int] = []
    with pytest.raises(SystemExit, match="prompts are not the same"):
        Bench.round(sides(5, 6, log), ("peer", "ours"))
    assert log == [6, 5]


def test_a_whole_run(tiny: Path, tmp_path: Path, bench_folder: Path) -> None:
    """Etude against itself on the peer's folder: the same prompts in every round, all rows, no goal."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {bench_folder / "etude_step.py"} "$2"\n')
    stand_in.chmod(0o755)
    out = tmp_path / "out.json"
    command = [
        sys.executable, bench_folder / "grpo_vs_trl.py", "--trl-python", stand_in, "--json", out, "--quick",
        "--model", tiny, "--max-tokens", "6", "--only", "full", "--threads", "1", "--work", tmp_path / "work",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench_folder.parent, env=environment())
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    works = [row["work"] for row in record["rows"]]
    assert works[:3] == ["GRPO step, full fine-tune", "sampling, full fine-tune", "training, full fine-tune"]
    assert all(row["ours"] > 0 and row["peer"] > 0 and row["goal"] is None for row in record["rows"])
    (kind,) = record["kinds"]
    (round_,) = kind["rounds"]
    assert round_["ours"]["prompt_tokens"] == round_["peer"]["prompt_tokens"] > 0
    assert 64 < round_["ours"]["tokens"] <= 64 * 6
    config = kind["warm_up"]["ours"]["config"]
    assert config["grpo"]["preset"] == "small" and config["grpo"]["mask_truncated_after"] == 1.0
    runs = [path for path in (tmp_path / "work").glob("*/etude-full-*") if "-bf16-" not in path.name]
    (metrics,) = (path / "run" / "metrics.jsonl" for path in runs)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["skipped"] == 0 for row in rows), "no group may be flat"
    assert "GRPO step, full fine-tune" in done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}
