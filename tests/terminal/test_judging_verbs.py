"""`etude eval` and `etude runs` as a user meets them, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from etude.records import Rollout, Score
from etude.runlog import RunInfo, RunWriter, rollout_row
from etude.terminal.runs import sparkline
from tests.command import Done, assert_one_message, etude
from tests.terminal.tiny import write_tiny

DATA = "task:add?size=6&held_out=true"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


def evaluate(tiny: Path, *argv: str | Path) -> Done:
    return etude("eval", tiny, "-d", DATA, "-n", "5", "-t", "1", *argv)


def test_a_table(tiny: Path) -> None:
    done = evaluate(tiny)
    assert done.returncode == 0 and not done.stderr, done
    lines = done.stdout.splitlines()
    assert lines[0] == "6 problems, 6 answers"
    assert lines[1].startswith("strict   accuracy 0.0 % [0.0, 39.0]") and lines[2].startswith(
        "lenient  accuracy"
    )
    assert "the best constant answer" in lines[3] and "% cut off" in lines[4]


def test_a_report_and_all_answers(tiny: Path, tmp_path: Path) -> None:
    argv = ["--samples", "4", "--json", tmp_path / "report.json", "--rollouts", tmp_path / "answers.jsonl"]
    done = evaluate(tiny, *argv)
    assert "pass@4" in done.stdout and "cons@4" in done.stdout, done
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["n_problems"], report["n_samples"], report["temperature"]) == (6, 24, 0.6)
    assert set(report["accuracies"]) == {"strict", "lenient"} and report["best_constant"][1] > 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and {row["index"] for row in rows} == {0, 1, 2, 3}
    assert all(
        "What is" in row["prompt"][0][1] and set(row["score"]["parts"]) == {"strict", "lenient"}
        for row in rows
    )
    again = evaluate(tiny, "--samples", "4", "--json", "-")
    assert json.loads(again.stdout)["by_problem"] == report["by_problem"]


def test_a_reward_of_ones_own_and_other_templates(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def long(problem, answer):\n    return float(len(answer) > 0)\n")
    done = evaluate(
        tiny, "-r", f"{tmp_path}/mine.py:long", "--no-check", "--limit", "2", "--chat-template", "none"
    )
    assert done.stdout.splitlines()[0] == "2 problems, 2 answers" and "score    accuracy" in done.stdout, done
    assert "constant" not in done.stdout
    assert evaluate(tiny, "--chat-template", "r1-zero").returncode == 0


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["eval"], 2, ["give -d DATA"]), (["eval", "-d", "task:ad"], 1, ["did you mean add"]),
        (["eval", "-d", "nowhere.jsonl"], 1, ["no file or folder 'nowhere.jsonl'"]),
        (["eval", "-d", DATA, "-r", "maths"], 1, ["did you mean math"]),
        (["eval", "-d", DATA, "-r", "length?target=9&unit=words"], 1, ["does not fit the problems"]),
        (["eval", "-d", DATA, "--samples", "4", "--temp", "0"], 2, ["--temp: several samples"]),
        (["eval", "-d", DATA, "--top-p", "0.5"], 2, ["--top-p: no effect at temperature 0"]),
        (["runs", "--folder", "/nowhere"], 1, ["there are no runs in '/nowhere'"]),
        (["runs", "--step", "3"], 2, ["--step: no effect without the name of a run"]),
        (["runs", "x", "--samples", "3"], 2, ["--samples: no effect without --step"]),
        (["runs", "x", "--folder", "/nowhere"], 1, ["/nowhere/x is no run"]),
    ],
)  # fmt: skip
def test_wrong_usage(argv: list[str], code: int, parts: list[str]) -> None:
    assert_one_message(etude(*argv), code, *parts)


def test_what_does_not_fit_the_model(tiny: Path, tmp_path: Path) -> None:
    assert_one_message(evaluate(tiny, "-n", "600"), 1, "add-held-out:0:", "the context of 512 is too small")
    assert_one_message(evaluate(tiny, "--adapter", "/nowhere"), 1, "no file or folder '/nowhere'")
    assert_one_message(evaluate(tiny, "--chat-template", "nothing"), 1, "no built-in chat template 'nothing'")
    assert_one_message(
        evaluate(tiny, "--json", "/nowhere/x.json"), 2, "--json: cannot write '/nowhere/x.json'"
    )


# ── runs ──


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    rollout = Rollout(
        "p7", 1, (1, 2), (False, True), (0.0, -1.0), 1, "eos", 0, Score(1.0, verdict="equal"), "4\x1b[2J"
    )
    with RunWriter.create(tmp_path / "runs/add", {}, RunInfo("grpo", 20, "2026-11-22T10:00:00Z")) as writer:
        for step in range(11):
            writer.metrics(
                step, {"reward": step / 10, "eval/accuracy": 0.25 + step / 20, "loss": float("nan")}
            )
        writer.rollouts(10, [rollout_row(rollout)] * 5)
        writer.doctor(4, {"text": "the task is too hard"})
        with writer.checkpoint(10, metric=0.75):
            pass
    RunWriter.create(tmp_path / "runs/new", {}, RunInfo("sft", created="2026-11-21T10:00:00Z")).close()
    return tmp_path / "runs"


def test_all_runs(runs: Path) -> None:
    done = etude("runs", "--folder", runs)
    header, first, second = done.stdout.splitlines()
    assert header.split() == ["run", "what", "state", "steps", "accuracy", "reward", "begun"]
    assert (
        first.split("  ")[0] == "add" and "stopped" in first and "10/20" in first and "0.25 → 0.75" in first
    )
    assert second.split()[:3] == ["new", "sft", "stopped"]


def test_one_run_and_its_samples(runs: Path) -> None:
    done = etude("runs", "add", "--folder", runs)
    assert (
        "grpo, stopped, step 10/20" in done.stdout and "doctor, step 4: the task is too hard" in done.stdout
    )
    assert "eval/accuracy" in done.stdout and "▁" in done.stdout and "checkpoints: 10 (best)" in done.stdout
    assert etude("runs", runs / "add").stdout == done.stdout
    shown = etude("runs", "add", "--folder", runs, "--step", "10", "--samples", "2").stdout
    assert shown.count("── p7, sample 1: 1 (equal)") == 2 and "\x1b" not in shown and "→ 4␛[2J" in shown
    assert_one_message(etude("runs", "add", "--folder", runs, "--step", "3"), 1, "no rollouts of step 3")


def test_a_long_curve_fits_its_line() -> None:
    assert len(sparkline(list(range(1000)))) == 60 and len(sparkline([1.0] * 7)) == 7
