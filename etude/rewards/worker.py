"""Calls a function in other processes that can be stopped whatever they do: limits on CPU time and memory.

A thread cannot be stopped, and Python inside one big multiplication sees no signal and no other thread. The
kernel can: a worker arms an interval timer of its own CPU time (SIGPROF, whose default action ends the
process), so that the verdict does not depend on how busy the machine is, and a worker whose parent was killed
ends as well. Arguments and results are JSON: nothing is unpickled. Workers start when first needed, one after
the other as calls overlap, and stay.

    worker_pool("etude.rewards.math_verify_call:same").call("$x+1$", "$1+x$")
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from etude.records import EtudeError

START_TIMEOUT_S = 180.0
MEMORY_BYTES = 1 << 30
"""What a call may take beyond what the worker has when it is ready."""

_START = (
    "import sys; sys.path.append(sys.argv[1]); from etude.rewards.worker import serve; serve(sys.argv[2:])"
)


class WorkerFailure(Exception):
    """A call gave no result: it took too long, took too much memory, or raised. The text says which."""


class WorkerPool:
    """Processes that call one function, `module:name`; any thread may use it.

    cpu_limit_s: CPU time of one call; wall_limit_s: its time by the clock, should it wait instead of work
    (the default allows for a machine that is thirty times as busy as it can bear).
    The module's `warm_up()` runs before the first call, outside the limits.
    """

    def __init__(
        self, target: str, *, n_workers: int = 2, cpu_limit_s: float = 2.0, wall_limit_s: float | None = None
    ) -> None:
        self._target = target
        self._cpu_limit_s = cpu_limit_s
        self._wall_limit_s = 30 * cpu_limit_s + 30 if wall_limit_s is None else wall_limit_s
        self._free = threading.Semaphore(n_workers)
        self._idle: list[_Worker] = []
        self._close = weakref.finalize(self, _stop_all, self._idle)

    def call(self, *arguments: Any) -> Any:
        """The function's result. WorkerFailure if there is none; EtudeError if a package is missing."""
        with self._free:
            worker = self._worker()
            kept = False
            try:
                result = worker.call(arguments, self._wall_limit_s)
                kept = True
            except _Raised as error:
                kept = True
                raise WorkerFailure(str(error)) from None
            finally:
                if kept:
                    self._idle.append(worker)
                else:
                    worker.stop()
        return result

    def _worker(self) -> _Worker:
        """An idle one that still lives, or a new one."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return _Worker(self._target, self._cpu_limit_s)
            if worker.is_alive:
                return worker
            worker.stop()

    def close(self) -> None:
        """End the idle workers."""
        _stop_all(self._idle)


@functools.cache
def worker_pool(target: str, cpu_limit_s: float = 2.0) -> WorkerPool:
    """The pool of this process for a function: rewards of one kind share it."""
    return WorkerPool(target, n_workers=min(2, os.cpu_count() or 1), cpu_limit_s=cpu_limit_s)


class _Raised(Exception):
    """The function raised; the worker is fine."""


class _Worker:
    """One process. A session of its own: Ctrl-C at the terminal is for the parent."""

    def __init__(self, target: str, cpu_limit_s: float) -> None:
        self._connection, theirs = Pipe()
        root = str(Path(__file__).parent.parent.parent)
        command = [sys.executable, "-P", "-c", _START, root, target, str(theirs.fileno()), str(cpu_limit_s)]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        try:
            ready = self._receive(START_TIMEOUT_S)
        except BaseException as error:
            self.stop()
            if isinstance(error, WorkerFailure):
                raise EtudeError(f"the process for {target} did not start: {error}") from None
            raise
        if "missing" in ready:
            self.stop()
            raise EtudeError(f"the package {ready['missing']!r} is not installed: pip install 'etude[train]'")

    @property
    def is_alive(self) -> bool:
        """False for one that was ended from outside, say for want of memory."""
        return self._process.poll() is None

    def call(self, arguments: tuple[Any, ...], wall_limit_s: float) -> Any:
        with suppress(OSError):  # it has just died: _receive says how
            self._connection.send_bytes(json.dumps(arguments).encode())
        reply = self._receive(wall_limit_s)
        if "raised" in reply:
            raise _Raised(reply["raised"])
        return reply["result"]

    def _receive(self, wall_limit_s: float) -> dict[str, Any]:
        started_s = time.monotonic()
        try:
            if not self._connection.poll(wall_limit_s):
                raise WorkerFailure(f"no result within {wall_limit_s:g} s")
            reply: dict[str, Any] = json.loads(self._connection.recv_bytes())
            return reply
        except (EOFError, OSError):
            code = self._process.wait(timeout=10)
            if code == -signal.SIGPROF:
                raise WorkerFailure("no result within its limit of CPU time") from None
            spent_s = time.monotonic() - started_s
            raise WorkerFailure(f"its process ended with code {code} after {spent_s:.1f} s") from None

    def stop(self) -> None:
        """End it, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _stop_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()


def serve(arguments: list[str]) -> None:
    """The life of a worker process: (target, file descriptor, CPU limit in s)."""
    target, descriptor, cpu_limit_s = arguments[0], int(arguments[1]), float(arguments[2])
    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    try:
        function = _function(target)
    except ModuleNotFoundError as error:
        connection.send_bytes(json.dumps({"missing": error.name}).encode())
        return
    _limit_memory()
    connection.send_bytes(b'{"ready": true}')
    with suppress(EOFError, OSError):  # the parent has gone
        while True:
            request = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
            reply = _reply(function, request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send_bytes(reply)


def _function(target: str) -> Callable[..., Any]:
    """`module:name`, after the module's `warm_up`."""
    module_name, _, name = target.partition(":")
    module = importlib.import_module(module_name)
    if hasattr(module, "warm_up"):
        module.warm_up()
    function: Callable[..., Any] = getattr(module, name)
    return function


def _reply(function: Callable[..., Any], arguments: list[Any]) -> bytes:
    """What is sent back. A stranger's verifier fails in any way, and that is what is reported."""
    try:
        return json.dumps({"result": function(*arguments)}).encode()
    except MemoryError:
        return json.dumps({"raised": "it needs too much memory"}).encode()
    except BaseException as error:
        return json.dumps({"raised": f"{type(error).__name__}: {error}"[:500]}).encode()


def _limit_memory() -> None:
    """Address space: what there is now, and MEMORY_BYTES. Where the system cannot, CPU time is the limit."""
    try:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)
    except (OSError, ValueError):
        pass
