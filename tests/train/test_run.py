"""When a run saves, and what it says when the disk fails."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from etude.records import EtudeError
from etude.train import run as module
from etude.train.run import Job, Run, SavingTime, opened
from etude.train.settings import RunSettings


class Time:
    """A clock that the test moves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        patch.setattr(module.time, "perf_counter", lambda: self.now_s)


class Slow:
    """A learner whose saving takes so many seconds."""

    def __init__(self, clock: Time, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.saved = 0

    def save(self, folder: Path) -> None:
        folder.mkdir()
        self._clock.now_s += self._seconds
        self.saved += 1

    def restore(self, folder: Path) -> None:
        pass


def trained(
    tmp_path: Path, clock: Time, learner: Slow, steps: int, eval_every: int, **settings: int
) -> tuple[list[int], float]:
    """A run of steps of 10 s that gets better and better: (the steps it saved, share of the time for it)."""
    job, config = Job(tmp_path / "run", {}), RunSettings(steps=steps, rollouts_every=0, **settings)
    saved = []
    begun_s = clock.now_s
    with opened(job, config, "grpo", {"policy": learner}, checkpoint_bytes=1 << 20) as run:
        for step in range(1, steps + 1):
            clock.now_s += 10
            metric = step / steps if step % eval_every == 0 else None
            if run.saves(step, metric):
                run.save(step, metric)
                saved.append(step)
    return saved, learner.saved * learner._seconds / (clock.now_s - begun_s)


def test_saving_takes_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    learner = Slow(clock, 8.0)
    saved, share = trained(tmp_path, clock, learner, 1000, eval_every=10_000)
    assert 0.04 < share < 0.05 + 8 / 10_000
    assert saved[0] == 1  # the disk was taken to be fast enough; then it was seen how slow it is
    assert all(15 <= later - earlier <= 17 for earlier, later in pairwise(saved[1:-1]))


def test_the_best_is_saved_where_that_is_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saving takes 8 s, and 20 times that pass between two evals: every new best is there."""
    clock = Time(monkeypatch)
    saved, share = trained(tmp_path, clock, Slow(clock, 8.0), 1000, eval_every=18)
    assert set(range(18, 1001, 18)) <= set(saved)
    assert share < 0.05 + 2 * 8 / 10_000


def test_a_best_in_every_second_step_does_not_eat_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Time(monkeypatch)
    saved, share = trained(tmp_path, clock, Slow(clock, 8.0), 1000, eval_every=2)
    assert share < 0.05 + 2 * 8 / 10_000
    assert 1000 in saved  # the last is, and here it is the best


def test_an_interval_that_is_given_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    saved, _ = trained(tmp_path, clock, Slow(clock, 50.0), 20, eval_every=100, checkpoint_every=3)
    assert saved == [3, 6, 9, 12, 15, 18, 20]


def test_a_quick_disk_after_a_slow_guess_is_no_reason_to_save_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Time(monkeypatch)
    saving = SavingTime(10.0)
    clock.now_s += 200
    assert saving.pays()
    saving.spend(1.0)
    clock.now_s += 10
    assert not saving.pays()
    clock.now_s += 10
    assert saving.pays()


def test_a_failing_disk_says_how_to_go_on(tmp_path: Path) -> None:
    def body(run: Run) -> None:
        with run.writer.checkpoint(1) as folder:
            raise OSError(28, "No space left on device", str(folder / "weights"))

    with (
        pytest.raises(EtudeError, match=r"No space left on device\n.*etude grpo --resume .*run"),
        opened(Job(tmp_path / "run", {}), RunSettings(), "grpo", {}) as run,
    ):
        body(run)
    with (
        pytest.raises(EtudeError, match=r"^other$"),
        opened(Job(tmp_path / "b", {}), RunSettings(), "grpo", {}),
    ):
        raise EtudeError("other")


def test_room_for_rollouts_is_asked_for(tmp_path: Path) -> None:
    many = RunSettings(steps=10**6)
    with (
        pytest.raises(EtudeError, match="too little room"),
        opened(Job(tmp_path / "run", {}), many, "grpo", {}, sampled_tokens=10**7),
    ):
        raise AssertionError
    fewer = RunSettings(steps=10**6, rollouts_every=0)
    with opened(Job(tmp_path / "run", {}), fewer, "grpo", {}, sampled_tokens=10**7):
        pass
    with (
        pytest.raises(EtudeError, match="too little room"),
        opened(Job(tmp_path / "run", {}, resume=True), many, "grpo", {}, sampled_tokens=10**7),
    ):
        raise AssertionError
