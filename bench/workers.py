"""A long-lived process that does one training step when it is told to, seen from inside and from outside.

Inside, `Channel`: one line of JSON to say that a step is done, then wait for "go". Outside, `Worker`: starts
the process, times each step (both sides by the same clock) and watches how much memory its tree takes. The
other side's process waits on a read meanwhile and costs no CPU. Standard library only: `Channel` also runs in
the peer's environment.

Memory is the most that all processes of the tree together had resident, looked at every POLL_S, or the
kernel's own peak of one of them where that is more (Linux).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

POLL_S = 0.2
STEP_TIMEOUT_S = 1800.0
GO = "go"


class Channel:
    """The process's own side. What libraries print to standard output goes to standard error instead."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, **message: Any) -> None:
        """One message, then wait until told to go on. SystemExit when there is nothing more to do."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()
        if sys.stdin.readline().strip() != GO:
            raise SystemExit(0)


class WorkerError(RuntimeError):
    """The process ended or hung; the text holds the end of what it wrote."""


class Worker:
    """Starts the process and waits for its first message, `opening`. Close it, or use it in `with`."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.peak_bytes = 0
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment | dict(extra or {}),
                start_new_session=True,  # Ctrl-C is for us; we end it then
            )
        self._buffer = b""
        try:
            self.opening = self._answer()
        except BaseException:
            self.close()
            raise

    def step(self) -> dict[str, Any]:
        """Let it do one step; its answer, with `seconds` by our clock."""
        start_s = time.perf_counter()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: the answer says so
            self._process.stdin.write(f"{GO}\n".encode())
            self._process.stdin.flush()
        answer = self._answer()
        return {**answer, "seconds": time.perf_counter() - start_s}

    def close(self) -> None:
        """End it and everything that it started."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        """Its next message; its memory is looked at while we wait."""
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        deadline_s = time.monotonic() + STEP_TIMEOUT_S
        while b"\n" not in self._buffer:
            if time.monotonic() > deadline_s:
                raise WorkerError(f"no answer in {STEP_TIMEOUT_S:.0f} s\n{self._end_of_log()}")
            ready, _, _ = select.select([stream], [], [], POLL_S)
            if ready:
                part = os.read(stream, 1 << 16)
                if not part:
                    status = self._process.wait()
                    why = ", killed: too little memory?" if status == -signal.SIGKILL else ""
                    raise WorkerError(f"it ended ({status}{why})\n{self._end_of_log()}")
                self._buffer += part
            self.peak_bytes = max(self.peak_bytes, *tree_bytes(self._process.pid))
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end_of_log(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-30:])


def tree_bytes(pid: int) -> tuple[int, int]:
    """(bytes that a process and its descendants have resident now, the highest peak of one of them); zeros
    where there is no /proc."""
    now = peak = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{member}/status").read_text()
            sizes = {
                line.split(":")[0]: int(line.split()[1]) * 1024
                for line in status.splitlines()
                if line.startswith(("VmRSS:", "VmHWM:"))
            }
            now += sizes.get("VmRSS", 0)
            peak = max(peak, sizes.get("VmHWM", 0))
    return now, peak


def tree(pid: int) -> Iterator[int]:
    """A process and all that it and its threads have started."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from tree(int(child))
