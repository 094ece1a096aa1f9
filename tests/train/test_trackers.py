"""Copies of the metrics in other tools: every step once, also after a resume; what is missing is said first.

The real packages are tried where they are installed: pip install tensorboard trackio wandb.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from etude.records import EtudeError
from etude.train import trackers
from etude.train.run import Job, opened
from etude.train.settings import RunSettings
from etude.train.trackers import TRACKERS


class Nothing:
    """A learner without a state."""

    def save(self, folder: Path) -> None:
        folder.mkdir()

    def restore(self, folder: Path) -> None:
        assert folder.is_dir()


def run_of(folder: Path, tracker: Any, *, die_after: int | None = None, resume: bool = False) -> None:
    """Six steps with a checkpoint after every second one; dies as a process would, or goes on."""
    settings = RunSettings(steps=6, checkpoint_every=2, tracker=tracker)
    job = Job(folder, {"run": {"steps": 6, "name": None}}, resume=resume)
    with opened(job, settings, "grpo", {"policy": Nothing()}) as run:
        for step in range(run.step + 1 if run.step else 0, 7):
            run.record(step, row_of(step))
            if run.saves(step, None):
                run.save(step)
            if step == die_after:
                return


def row_of(step: int) -> dict[str, Any]:
    return {"reward/mean": step / 10, "kl": float("nan"), "state": "fine"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a tracker of the test's own, in the place of trackio, is told."""
    found: list[Any] = []

    class Listener:
        def __init__(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
            found.append((folder.name, config["run"]["steps"], first_step))

        def log(self, step: int, row: Mapping[str, Any]) -> None:
            found.append((step, row["reward/mean"]))

        def close(self) -> None:
            found.append("closed")

    monkeypatch.setattr(trackers, "TRACKERS", {"trackio": (Listener, "json")})
    return found


def test_each_row_is_copied(tmp_path: Path, seen: list[Any]) -> None:
    run_of(tmp_path / "demo", "trackio", die_after=3)
    assert seen == [("demo", 6, 0), (0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), "closed"]
    seen.clear()
    run_of(tmp_path / "demo", "trackio", resume=True)
    assert seen == [("demo", 6, 3), (3, 0.3), (4, 0.4), (5, 0.5), (6, 0.6), "closed"]


def test_a_run_that_fails_closes_its_tracker(tmp_path: Path, seen: list[Any]) -> None:
    settings = RunSettings(tracker="trackio")
    with (
        pytest.raises(ZeroDivisionError),
        opened(Job(tmp_path / "run", {"run": {"steps": 1}}), settings, "grpo", {}),
    ):
        raise ZeroDivisionError
    assert seen[-1] == "closed"


def test_without_one_nothing_is_copied(tmp_path: Path, seen: list[Any]) -> None:
    run_of(tmp_path / "run", None)
    assert seen == []


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(EtudeError, match=f"pip install {TRACKERS[name][1]}"):
        run_of(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


# ── the real ones ──


def tensorboard_steps(folder: Path) -> list[tuple[int, float]]:
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    return [(event.step, event.value) for event in events.Scalars("reward/mean")]


def trackio_steps(folder: Path) -> list[tuple[int, float]]:
    storage = import_module("trackio.sqlite_storage").SQLiteStorage
    return [(row["step"], row["reward/mean"]) for row in storage.get_logs("etude", folder.name)]


def records_of(log: bytes) -> Iterator[bytes]:
    """What is in a .wandb file: a LevelDB log, 7 bytes at its head, parts of records in blocks of 32 KiB."""
    at, record, first, middle, last = 7, b"", (1, 2), 3, (1, 4)
    while at + 7 <= len(log):
        if 0x8000 - at % 0x8000 < 7:  # no room for a header: the rest of the block is padding
            at += 0x8000 - at % 0x8000
            continue
        size, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        assert kind in (*first, middle, *last)
        record = (b"" if kind in first else record) + log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in last:
            yield record


def wandb_steps(folder: Path) -> list[tuple[int, float]]:
    """Of both parts: a server that has had a step takes no second one."""
    proto = import_module("wandb.proto.wandb_internal_pb2")
    parts = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2 and len({part.name for part in parts}) == 1, "one run in two parts"
    found: dict[int, float] = {}
    for part in parts:
        for data in records_of(part.read_bytes()):
            record = proto.Record.FromString(data)
            if record.HasField("history"):
                items = {
                    "/".join(item.nested_key) or item.key: item.value_json for item in record.history.item
                }
                found.setdefault(int(items["_step"]), json.loads(items["reward/mean"]))
    return sorted(found.items())


STEPS_OF: dict[str, Callable[[Path], list[tuple[int, float]]]] = {
    "tensorboard": tensorboard_steps,
    "trackio": trackio_steps,
    "wandb": wandb_steps,
}


@pytest.mark.filterwarnings("default")  # of packages that are not ours
@pytest.mark.parametrize("name", TRACKERS)
def test_the_real_one_has_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if find_spec(TRACKERS[name][1]) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    run_of(tmp_path / "demo", name, die_after=3)
    run_of(tmp_path / "demo", name, resume=True)
    assert STEPS_OF[name](tmp_path / "demo") == [(step, pytest.approx(step / 10)) for step in range(7)]
    assert capsys.readouterr().out == "", "the output is for the run's folder"
