"""Runs Etude as its users do: `etude bench` and `etude generate`, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_cpp import Group, Work


@dataclass(frozen=True)
class Start:
    """One `etude generate` of one token: wall time from process start to its end, and peak memory."""

    seconds: float
    peak_rss_bytes: int


def bench(model: Path, threads: int, *options: object) -> list[dict[str, Any]]:
    """The rows of `etude bench` (llama-bench's fields). RuntimeError with its last lines where it fails."""
    command = [
        sys.executable,
        "-m",
        "etude",
        "bench",
        "-m",
        model,
        "-t",
        threads,
        "-r",
        1,
        "--json",
        "-",
        *options,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr[-1500:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def single(model: Path, threads: int, n_prompt: int, n_gen: int) -> dict[Work, float]:
    """Tokens per second of `prefill` and `stream`."""
    rows = bench(model, threads, "-p", n_prompt, "-n", n_gen)
    return {"prefill" if row["n_prompt"] else "stream": float(row["avg_ts"]) for row in rows}


def groups(model: Path, threads: int, wanted: list[Group]) -> dict[Work, float]:
    """Tokens per second of groups, with sampling at temperature 1 and both logprobs of every token."""
    sizes = ",".join(str(group.n) for group in wanted)
    rows = bench(
        model,
        threads,
        "-p",
        0,
        "-n",
        0,
        "-pps",
        "-npp",
        wanted[0].n_prompt,
        "-ntg",
        wanted[0].n_gen,
        "-npl",
        sizes,
    )
    by_size = {row["pl"]: float(row["speed_tg"]) for row in rows}
    return {group: by_size[group.n] for group in wanted}


def tensor_bytes(model: Path, threads: int) -> int:
    """Size of the file's tensors, as `etude bench` reports it."""
    return int(bench(model, threads, "-p", 1, "-n", 0, "--no-warmup")[0]["model_size"])


def start(model: Path, threads: int) -> Start:
    """Start to first token: a fresh process that writes one token."""
    command = [
        sys.executable,
        "-m",
        "etude",
        "generate",
        "-m",
        model,
        "-t",
        threads,
        "-c",
        512,
        "-n",
        1,
        "-p",
        "Hi",
    ]
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) != 0:
        assert process.stderr is not None
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{process.stderr.read().decode()[-1500:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Start(seconds, usage.ru_maxrss * unit)


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """One process in an empty loop, not pinned to a core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
