"""A process that does a step when told: messages, memory of its tree, its end, its failure."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import Worker, WorkerError

PREAMBLE = "import subprocess, sys, time\nfrom workers import Channel\nchannel = Channel()\n"
MEGABYTES = 120


def started(tmp_path: Path, bench_folder: Path, body: str) -> Worker:
    script = tmp_path / "worker.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(bench_folder)!r})\n{PREAMBLE}{body}")
    return Worker([sys.executable, str(script)], tmp_path / "log.txt")


@pytest.fixture
def counting(tmp_path: Path, bench_folder: Path) -> Iterator[Worker]:
    """One that counts its steps and prints beside them."""
    body = "channel.say(step=0)\nfor n in range(1, 9):\n    print('noise')\n    channel.say(step=n)\n"
    with started(tmp_path, bench_folder, body) as worker:
        yield worker


def test_steps_are_answered_one_by_one(counting: Worker) -> None:
    assert counting.opening == {"step": 0}
    answers = [counting.step() for _ in range(3)]
    assert [answer["step"] for answer in answers] == [1, 2, 3]
    assert all(answer["seconds"] > 0 for answer in answers)


def test_what_is_printed_goes_to_the_log(counting: Worker) -> None:
    counting.step()
    counting.close()
    assert "noise" in counting.log.read_text()


def test_it_waits_between_steps(tmp_path: Path, bench_folder: Path) -> None:
    """Only what was asked for is done."""
    mark = tmp_path / "mark"
    body = f"channel.say()\nopen({str(mark)!r}, 'w').close()\nchannel.say()\n"
    with started(tmp_path, bench_folder, body) as worker:
        time.sleep(0.3)
        assert not mark.exists()
        worker.step()
        assert mark.exists()


def test_failure_shows_the_end_of_the_log(tmp_path: Path, bench_folder: Path) -> None:
    with started(tmp_path, bench_folder, "channel.say()\nraise ValueError('out of luck')\n") as worker:
        with pytest.raises(WorkerError, match="out of luck"):
            worker.step()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_peak_memory_counts_the_whole_tree(tmp_path: Path, bench_folder: Path) -> None:
    """A child's memory counts beside the process's own, and stays counted when it is gone."""
    child = f"x = bytearray({MEGABYTES} << 20); import time; time.sleep(1)"
    body = (
        "channel.say()\n"
        f"x = bytearray({MEGABYTES} << 20)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])\n"
        "channel.say()\n"
    )
    with started(tmp_path, bench_folder, body) as worker:
        assert worker.peak_bytes < MEGABYTES << 20
        worker.step()
        assert 2 * MEGABYTES << 20 < worker.peak_bytes < 4 * MEGABYTES << 20


def test_closing_ends_everything_that_it_started(tmp_path: Path, bench_folder: Path) -> None:
    body = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "channel.say(child=child.pid)\n"
    )
    worker = started(tmp_path, bench_folder, body)
    child = worker.opening["child"]
    worker.close()
    deadline_s = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has asked about."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
