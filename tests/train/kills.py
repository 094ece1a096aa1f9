"""Kills trainings with SIGKILL and goes on with them, until they end; then compares them, file by file, with
one that nobody touched.

Some kills come at random milliseconds, others are aimed: as soon as a draft (`.tmp-…`) of a checkpoint, of
rollouts or of the final model is seen, the process that writes it dies.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etude.runlog.files import LEFTOVER

SERVER = Path(__file__).with_name("fork_server.py")
END = b"\0"
"""What the server says after each command."""
PLACES = {"checkpoint": "checkpoints", "rollouts": "rollouts", "final": "."}
"""Where drafts of something lie in a run folder."""
CHANGING = ("seconds/", "critic/seconds/", "tokens_per_s/", "memory_bytes")
"""Numbers that no two runs have in common."""
TIMEOUT_S = 900.0
WINDOW = 0.5
"""A kill comes within this share of the time that the whole run takes: some before the first step, most in
the next ones."""
TRIES = 20
REMOVED = f"{LEFTOVER}old-"
POLL_S = 2e-4
"""Between two looks for a draft."""


class ForkServer:
    """See fork_server.py. Commands run one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, str(SERVER)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        self._said = b""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._started = 0

    def start(self, words: Sequence[str]) -> Child:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(map(str, words))).encode() + b"\n")
        self._started += 1
        return Child(int(self._process.stdout.readline()), self._process.stdout)

    def said(self) -> str:
        """By the last command, which has ended."""
        while self._said.count(END) < self._started:
            time.sleep(POLL_S)
        return self._said.split(END)[-2].decode()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=TIMEOUT_S)
        self._listener.join(timeout=TIMEOUT_S)
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            while piece := pipe.read(1 << 16):
                self._said += piece


@dataclass
class Child:
    """One running command."""

    pid: int
    _answers: Any
    _code: int | None = None

    def wait(self, timeout_s: float = TIMEOUT_S) -> int | None:
        """The exit code; None while it runs."""
        if self._code is None and select.select([self._answers], [], [], timeout_s)[0]:
            self._code = int(self._answers.readline())
        return self._code

    def signal(self, number: int) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:  # it was faster
            pass

    def kill(self) -> bool:
        """SIGKILL; whether it came before the end."""
        self.signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


@dataclass
class Tally:
    """What happened: kills, what kills have left half written, how often the run came to its end."""

    kills: int = 0
    ends: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        left = ", ".join(f"{count} in {name}" for name, count in sorted(self.left.items()))
        return f"{self.kills} kills ({left}), {self.ends} ends"


@dataclass
class Killed:
    """A run that is killed again and again. words: of the command that begins it, without folder and name."""

    server: ForkServer
    words: Sequence[str]
    folder: Path
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0

    @property
    def run(self) -> Path:
        return self.folder / "killed"

    def start(self) -> Child:
        """The run, from its beginning or from where it is."""
        if (self.run / "run.json").exists():
            return self.server.start([self.words[0], "--resume", str(self.run)])
        return self.server.start(self.beginning("killed"))

    def beginning(self, name: str) -> list[str]:
        return [*self.words, "--run.folder", str(self.folder), "--run.name", name]

    def whole(self) -> Path:
        """The run that nobody touches; and how long it takes."""
        folder = self.folder / "whole"
        if not folder.exists():
            start = time.monotonic()
            assert self.server.start(self.beginning("whole")).wait() == 0, self.server.said()
            self.seconds = time.monotonic() - start
        return folder

    def kill_after(self, seconds: float) -> None:
        """At some moment."""
        child = self.start()
        if child.wait(seconds) is None and child.kill():
            self.was_killed()
        else:
            self.ended(child)

    def kill_in(self, what: str, after: int = 0) -> None:
        """While a draft of this is written. after: let so many pass first."""
        place = self.run / PLACES[what]
        before, seen = set(drafts(place)), set[str]()
        child = self.start()
        while child.wait(POLL_S) is None:
            new = set(drafts(place)) - before
            seen |= {name for name, _ in new}
            if new and len(seen) > after and child.kill():
                self.was_killed()
                return
        self.ended(child)

    def hit(self, what: str, draw: random.Random) -> None:
        """Kill until a draft of this is left half written."""
        hits = self.tally.left[what]
        for _ in range(TRIES):
            self.kill_in(what, after=0 if what == "final" else draw.randrange(3))
            if self.tally.left[what] > hits:
                return
        raise AssertionError(f"none of {TRIES} kills fell into the writing of {what}")

    def was_killed(self) -> None:
        """Count it. A process may be killed after its work is done: then the run has come to its end."""
        self.count()
        if (self.run / "final").is_dir():
            self.same_as_whole()

    def count(self) -> None:
        self.tally.kills += 1
        for what, place in PLACES.items():
            self.tally.left[what] += len(list(drafts(self.run / place)))
        self.tally.left["a removal"] += len(list(self.run.rglob(f"{REMOVED}*")))
        if not (self.run / "run.json").exists():
            self.tally.left["the beginning"] += 1
        elif not list(self.run.glob("checkpoints/[0-9]*")):
            self.tally.left["steps before the first checkpoint"] += 1

    def ended(self, child: Child) -> None:
        """It came to its end: it must be the run that nobody touched. The next one begins anew."""
        assert child.wait() == 0, self.server.said()
        self.same_as_whole()

    def same_as_whole(self) -> None:
        self.tally.ends += 1
        assert_same_run(self.run, self.whole())
        shutil.rmtree(self.run)

    def finish(self) -> None:
        """To the end, without another kill."""
        child = self.start()
        child.wait()
        self.ended(child)


def drafts(place: Path) -> Iterator[tuple[str, int]]:
    """(name, number of the file) of what is being written there; what is being removed does not count."""
    try:
        for name in os.listdir(place):
            if name.startswith(LEFTOVER) and not name.startswith(REMOVED):
                yield name, os.stat(place / name).st_ino
    except OSError:  # it is not there yet, or there no more
        pass


def killed_run(
    server: ForkServer,
    words: Sequence[str],
    folder: Path,
    *,
    at_random: int,
    aimed: Sequence[str] = (),
    seed: int = 20261122,
) -> Tally:
    """Kill a run `at_random` times, and once in each of `aimed`, in a random order; and see that whenever it
    ends, it is the run that nobody touched."""
    draw = random.Random(seed)
    plan: list[str | None] = [None] * at_random + list(aimed)
    draw.shuffle(plan)
    killed = Killed(server, words, folder)
    killed.whole()
    window_s = WINDOW * killed.seconds
    for what in plan:
        if what is None:
            killed.kill_after(draw.uniform(0, window_s))
        else:
            killed.hit(what, draw)
    while killed.tally.kills < len(plan):
        killed.kill_after(draw.uniform(0, window_s))
    killed.finish()
    return killed.tally


# ── what must be the same ──


def lasting(folder: Path) -> dict[str, Any]:
    """Everything in a run folder that must not depend on interruptions. Of the checkpoints the last, since
    which others there are depends on the clock."""
    files: dict[str, Any] = {}
    last = max((folder / "checkpoints").iterdir())
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or name in (".lock", "run.json"):
            continue
        if name.startswith("checkpoints/") and last not in path.parents:
            continue
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            files[name] = [
                {key: value for key, value in row.items() if not key.startswith(CHANGING)} for row in rows
            ]
        elif name == "config.toml":
            files[name] = [line for line in path.read_text().splitlines() if not line.startswith("name =")]
        else:
            files[name] = path.read_bytes()
    return files


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics, what the doctor said, rollouts, the last checkpoint, the final model: to the last bit."""
    left, right = lasting(one), lasting(other)
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    for name, value in left.items():
        assert value == right[name], f"{one / name} and {other / name} differ"
    assert {"metrics.jsonl", "config.toml"} < left.keys() and any("final" in name for name in left)
    for step in {path.name for path in (one / "checkpoints").iterdir()}:
        for path in (other / "checkpoints" / step).rglob("*.safetensors"):
            mine = one / path.relative_to(other)
            assert mine.read_bytes() == path.read_bytes(), f"{mine} and {path} differ"
