"""The run folder: what is written is read back; a process killed at any moment leaves what resumes."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.records import EtudeError, Message, Problem, Rollout, Score
from etude.runlog import RunInfo, RunReader, RunWriter, find_runs, rollout_of, rollout_row, to_toml
from etude.runlog.files import check_room

INFO = RunInfo("grpo", total_steps=10)
CONFIG = {"model": "smollm2", "learner": {"lr": 1e-5, "steps": 10}}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunWriter]:
    with RunWriter.create(tmp_path / "run", CONFIG, INFO) as writer:
        yield writer


def save(writer: RunWriter, step: int, metric: float | None = None) -> None:
    with writer.checkpoint(step, metric) as folder:
        (folder / "weights").write_text(str(step))


def steps(writer: RunWriter) -> list[int]:
    return [checkpoint.step for checkpoint in RunReader(writer.folder).checkpoints()]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# ── written and read ──


def test_a_run_is_read_back(run: RunWriter) -> None:
    run.metrics(0, {"eval/accuracy": 0.25})
    run.metrics(
        1, {"loss": float("nan"), "kl": float("-inf"), "n": np.int64(3), "x": np.float32(0.5), "s": "é\n"}
    )
    run.doctor(1, {"sign": "no signal", "text": "too hard"})
    reader = RunReader(run.folder)
    assert reader.config == CONFIG and reader.info.algorithm == "grpo" and reader.info.total_steps == 10
    zero, one = reader.metrics()
    assert zero == {"step": 0, "eval/accuracy": 0.25}
    assert np.isnan(one.pop("loss"))
    assert one == {"step": 1, "kl": float("-inf"), "n": 3, "x": 0.5, "s": "é\n"} and isinstance(one["n"], int)
    assert reader.doctor() == [{"step": 1, "sign": "no signal", "text": "too hard"}]
    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_rollouts_are_read_back(run: RunWriter) -> None:
    logprobs = tuple(float(value) for value in np.log(np.random.default_rng(0).random(3, np.float32)))
    rollout = Rollout("p", 2, (5, 6, 7), (False, True, True), logprobs, 1, "eos", 4,
                      Score(1.0, {"math": 1.0}, "4", "equal"), "4")  # fmt: skip
    row = rollout_row(rollout, Problem("p", (Message("user", "2 + 2?"),), "4"), advantages=[0, 0.5, -0.5])
    run.rollouts(3, [row, row])
    stored = RunReader(run.folder).rollouts(3)
    assert len(stored) == 2 and rollout_of(stored[0]) == rollout
    assert stored[0]["advantages"] == [0, 0.5, -0.5] and stored[0]["prompt"] == [["user", "2 + 2?"]]
    assert np.array_equal(np.float32(stored[0]["logprobs"]), np.float32(logprobs))
    assert RunReader(run.folder).rollout_steps() == [3]
    with pytest.raises(EtudeError, match="no rollouts of step 4"):
        RunReader(run.folder).rollouts(4)
    with pytest.raises(EtudeError, match="ratios has 2 numbers for 3 tokens"):
        rollout_row(rollout, ratios=[1, 1])


def test_a_live_reader_sees_each_row_once(run: RunWriter) -> None:
    reader = RunReader(run.folder)
    assert reader.new_metrics() == [] and reader.state == "running"
    run.metrics(0, {})
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1, "lo')
        file.flush()
        assert [row["step"] for row in reader.new_metrics()] == [0]
        file.write(b'ss": 1}\n')
    assert reader.new_metrics() == [{"step": 1, "loss": 1}] and reader.new_metrics() == []
    run.close()
    assert reader.state == "stopped"
    with RunWriter.resume(run.folder):
        assert reader.new_metrics() == []  # begun anew


def test_ten_thousand_steps(run: RunWriter) -> None:
    line = json.dumps({f"metric/{i}": i / 7 for i in range(20)})
    (run.folder / "metrics.jsonl").write_text("".join(f'{{"step": {i}, {line[1:]}\n' for i in range(10_000)))
    rows = RunReader(run.folder).metrics()
    assert len(rows) == 10_000 and rows[-1]["step"] == 9_999


def test_the_last_and_the_best_checkpoints_stay(run: RunWriter) -> None:
    for step, metric in enumerate([0.1, 0.9, 0.5, None, float("nan"), 0.9, 0.2]):
        save(run, step, metric)
    reader = RunReader(run.folder)
    assert steps(run) == [1, 5, 6]
    best = reader.best()
    assert best is not None and best.step == 1 and (best.folder / "weights").read_text() == "1"
    assert run.last_checkpoint is not None and run.last_checkpoint.step == 6


def test_a_checkpoint_that_fails_leaves_the_old_ones(run: RunWriter) -> None:
    save(run, 1)
    with pytest.raises(RuntimeError), run.checkpoint(2) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    with pytest.raises(EtudeError, match=r"cannot write .*No space"), run.checkpoint(2) as folder:
        raise OSError(28, "No space left on device", str(folder / "weights"))
    assert steps(run) == [1] and not list(run.folder.glob("*/.tmp-*"))
    save(run, 1)
    assert steps(run) == [1]


def test_final(run: RunWriter) -> None:
    with run.final() as folder:
        (folder / "model.gguf").write_bytes(b"x")
    run.close()
    assert RunReader(run.folder).state == "finished" and (run.folder / "final/model.gguf").exists()


def test_find_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunWriter.create(tmp_path / name, {}, RunInfo("sft", created=f"2026-01-0{ord(name) - 96}")).close()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/run.json").write_text("{")
    assert [run.folder.name for run in find_runs(tmp_path)] == ["b", "a"]


# ── refused ──


def test_a_second_writer_is_refused(run: RunWriter) -> None:
    code = (
        "import sys; from pathlib import Path; from etude.runlog import RunWriter\n"
        "RunWriter.resume(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, run.folder], capture_output=True, text=True)
    assert f"being written by another process ({os.getpid()})" in done.stderr
    with pytest.raises(EtudeError, match="being written"):
        RunWriter.resume(run.folder)
    run.close()
    RunWriter.resume(run.folder).close()


def test_folders_that_are_no_place_for_a_run(tmp_path: Path, run: RunWriter) -> None:
    with pytest.raises(EtudeError, match="is not empty; resume"):
        RunWriter.create(run.folder, {}, INFO)
    (tmp_path / "file").write_text("")
    with pytest.raises(EtudeError, match=r"cannot write .*file"):
        RunWriter.create(tmp_path / "file", {}, INFO)
    with pytest.raises(EtudeError, match="cannot write /"):
        RunWriter.create(Path("/dev/null/run"), {}, INFO)
    with pytest.raises(EtudeError, match=r"no run\.json"):
        RunWriter.resume(tmp_path)
    with pytest.raises(EtudeError, match="keep_last is 0"):
        RunWriter.create(tmp_path / "new", {}, INFO, keep_last=0)
    (run.folder / "run.json").write_text('{"format": "etude run 9"}')
    with pytest.raises(EtudeError, match="'etude run 9'"):
        RunReader(run.folder)
    for text in ("", "[]", '{"format": "etude run 1", "x": 1}', '{"format": "etude run 1"}'):
        (run.folder / "run.json").write_text(text)
        with pytest.raises(EtudeError, match=r"run\.json cannot be read"):
            RunReader(run.folder)


def test_too_little_room_is_found_before_training(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(EtudeError, match="too little room"):
        RunWriter.create(tmp_path / "run", {}, INFO, checkpoint_bytes=free // 2)
    RunWriter.create(tmp_path / "run", {}, INFO).close()  # what it left does not stand in the way
    code = (
        "import resource, signal, sys; from pathlib import Path; from etude.runlog import check_room\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"  # as a quota would
        "check_room(Path(sys.argv[1]), 2 << 20)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert "too little room" in done.stderr, done.stderr
    check_room(tmp_path, 2 << 20)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_line_for_which_there_is_no_room_leaves_the_file_as_it_was(run: RunWriter) -> None:
    run.metrics(0, {"a": 1})
    size = (run.folder / "metrics.jsonl").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, old[1]))
    try:
        with pytest.raises(EtudeError, match="cannot write"):
            run.metrics(1, {"a": 2})
        with pytest.raises(EtudeError, match="cannot write"):
            run.rollouts(1, [{"text": random.Random(0).randbytes(500).hex()}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert RunReader(run.folder).metrics() == [{"step": 0, "a": 1}]
    run.metrics(1, {"a": 2})
    assert len(RunReader(run.folder).metrics()) == 2 and not list(run.folder.glob("*/.tmp-*"))


# ── resumed ──


def written(folder: Path, n_steps: int, last_saved: int) -> None:
    """A run of n_steps, of which only the first last_saved have a checkpoint."""
    with RunWriter.create(folder, CONFIG, INFO) as writer:
        for step in range(n_steps + 1):
            writer.rollouts(step, [{"step": step}])
            writer.metrics(step, {"loss": step})
            writer.doctor(step, {"text": str(step)})
            if 0 < step <= last_saved:
                save(writer, step)


def test_steps_after_the_last_checkpoint_are_gone(tmp_path: Path) -> None:
    written(tmp_path / "a", 5, last_saved=3)
    written(tmp_path / "b", 3, last_saved=3)
    stamp = json.loads((tmp_path / "b/run.json").read_text())["created"]
    with RunWriter.resume(tmp_path / "a") as writer:
        assert writer.last_checkpoint is not None and writer.last_checkpoint.step == 3
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    a.pop("run.json"), b.pop("run.json")
    assert a == b and stamp


def test_without_a_checkpoint_it_begins_again(tmp_path: Path) -> None:
    written(tmp_path / "a", 4, last_saved=0)
    with RunWriter.resume(tmp_path / "a") as writer:
        assert writer.last_checkpoint is None
    reader = RunReader(tmp_path / "a")
    assert reader.metrics() == reader.doctor() == reader.rollout_steps() == []


def test_what_a_kill_can_leave_is_repaired(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    written(folder, 3, last_saved=3)
    whole = tree(folder)
    (folder / "metrics.jsonl").write_bytes(whole["metrics.jsonl"] + b'{"step": 4, "lo')
    (folder / "doctor.jsonl").write_bytes(whole["doctor.jsonl"] + b"\x00\x00\x00\x00\n\xff\n")
    (folder / "rollouts/.tmp-000004.jsonl.gz").write_bytes(gzip.compress(b"{")[:5])
    for name in (".tmp-final", "..tmp-final.123.tmp"):  # as model/save.py calls what it writes beside it
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    for name in (".tmp-000004", ".tmp-old-000001", "000007"):  # the last one is no whole checkpoint
        (folder / "checkpoints" / name).mkdir()
        (folder / "checkpoints" / name / "weights").write_bytes(b"half")
    reader = RunReader(folder)
    assert [row["step"] for row in reader.metrics()] == [0, 1, 2, 3] and len(reader.doctor()) == 4
    assert [checkpoint.step for checkpoint in reader.checkpoints()] == [2, 3]
    RunWriter.resume(folder).close()
    assert tree(folder) == whole


TRAINING = """
import hashlib, sys, time
from pathlib import Path
from etude.runlog import RunInfo, RunWriter

folder, n_steps, every = Path(sys.argv[1]), int(sys.argv[2]), 3
if (folder / "run.json").exists():
    writer = RunWriter.resume(folder)
else:
    writer = RunWriter.create(folder, {"seed": 0}, RunInfo("fake", created="now"))
print("begun", flush=True)
saved = writer.last_checkpoint
state, first = ("start", 1) if saved is None else ((saved.folder / "part0").read_text()[:64], saved.step + 1)
if saved is None:
    writer.metrics(0, {"eval": 0.0})
for step in range(first, n_steps + 1):
    state = hashlib.sha256(f"{state}{step}".encode()).hexdigest()
    writer.rollouts(step, [{"state": state, "text": state * 200}] * 20)
    writer.metrics(step, {"state": state})
    if step % every == 0:
        with writer.checkpoint(step, metric=int(state[:4], 16)) as draft:
            for part in range(4):
                (draft / f"part{part}").write_text(state * 1000)
with writer.final() as draft:
    (draft / "model").write_text(state)
"""


def test_twenty_kills_at_random_milliseconds(tmp_path: Path) -> None:
    """The run that was killed again and again ends as the one that was not, file by file."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    n_steps = 120

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(tmp_path / name), str(n_steps)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("whole") as process:
        assert process.wait(timeout=120) == 0
    draw = random.Random(20261122)
    kills, in_drafts = 0, 0
    while kills < 20:
        with start("killed") as process:
            assert process.stdout is not None
            if draw.random() < 0.9:
                process.stdout.readline()
            time.sleep(draw.uniform(0, 0.04))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        in_drafts += bool(list((tmp_path / "killed").rglob(".tmp-*")))
        if process.returncode == 0:  # it came to its end first: another one
            assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    with start("killed") as process:
        assert process.wait(timeout=120) == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert in_drafts, "no kill fell into a write: the test shows less than it says"


# ── config.toml ──

values = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


tables = st.recursive(
    st.dictionaries(st.text(min_size=1), values, max_size=4),
    lambda inner: st.dictionaries(st.text(min_size=1), inner | values, max_size=3),
)


@given(tables)
def test_toml_is_read_back(settings: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(settings)) == settings


def test_what_toml_cannot_say() -> None:
    assert to_toml({"a": None, "b": float("inf"), "c": Path("x")}) == 'b = inf\nc = "x"\n'
    with pytest.raises(EtudeError, match="a setting is"):
        to_toml({"a": object()})
