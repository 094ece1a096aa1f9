"""`etude serve` against llama-server: the same file, the same streaming clients, one interleaved run.

    python bench/serve_vs_llama.py --llama-bin DIR --json FILE [--quick]

1, 8 and 32 clients stream completions of 64 sampled tokens from prompts of their own (no prompt is in a
cache). The clients are one process (stream_clients.py), the same for both servers. Both servers live through
the whole run and one waits while the other is measured; who goes first changes from round to round, and of
all rounds the best counts on both sides. llama-server is at its best: each of its switches is tried at 32
clients, and the setting that gave most tokens per second is kept. Rows: tokens per second, and seconds to the
first token (median and 95th percentile of the requests of a round). A goal that is missed makes the exit
status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles

from cases import requantized
from llama_cpp import LlamaCpp, Setting, neighbours
from peer_reference import cpu_description
from results import Row, row, table

from etude.model.pull import cache_folder

HERE = Path(__file__).parent
CLIENTS = (1, 8, 32)
REQUESTS = {1: 4, 8: 2, 32: 2}
TOKENS_GOAL = {32: 3.0}
FIRST_GOAL = 1.0
MODEL = "smollm2-135m Q8_0"
CONTEXT = 512  # tokens of each stream's context in llama-server
START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Found:
    """One round of one server at one number of clients."""

    tokens_per_s: float
    median_s: float
    p95_s: float

    @classmethod
    def of(cls, told: dict[str, object]) -> Found:
        """From what stream_clients.py prints."""
        first_s, tokens, seconds = told["first_s"], told["tokens"], told["seconds"]
        assert isinstance(first_s, list) and isinstance(tokens, int) and isinstance(seconds, float)
        slow_s = quantiles(first_s, n=20, method="inclusive")[-1] if len(first_s) > 1 else first_s[0]
        return cls(tokens / seconds, median(first_s), slow_s)


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@contextlib.contextmanager
def serving(command: list[str], port: int, **extra: str) -> Iterator[int]:
    """A server that answers, until the block ends. RuntimeError with what it said if it does not start."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | extra)
        try:
            end = time.monotonic() + START_TIMEOUT_S
            while not answers(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} does not serve:\n{log.read()[-1500:].decode()}")
                time.sleep(0.2)
            yield port
        finally:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    """Whether a server is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ours(model: Path, threads: int) -> contextlib.AbstractContextManager[int]:
    """`etude serve` as a user starts it."""
    port = free_port()
    command = [sys.executable, "-m", "etude", "serve", str(model), "--port", str(port), "-t", str(threads)]
    return serving([*command, "--no-ui"], port)


def peer(folder: Path, model: Path, setting: Setting, slots: int) -> contextlib.AbstractContextManager[int]:
    """llama-server at a setting."""
    port = free_port()
    command = [
        str(folder / "llama-server"), "-m", str(model), "--port", str(port), "-np", str(slots),
        "-c", str(slots * CONTEXT), "-t", str(setting.threads), "-tb", str(setting.threads),
        "-fa", "on" if setting.flash else "off", "--repack" if setting.repack else "--no-repack",
        "-kvu" if setting.unified else "-no-kvu",
    ]  # fmt: skip
    return serving(command, port, GGML_CPU_TILED_MM=str(int(setting.tiled)))


class Run:
    """The clock, the model, and how much is asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.load = os.getloadavg()[0]
        self.threads: int = args.threads
        self.folder: Path = args.llama_bin
        self.n_rounds = 1 if args.quick else args.rounds
        self.n_tokens: int = args.tokens
        self.quick: bool = args.quick
        self.clients: tuple[int, ...] = tuple(args.clients or CLIENTS)
        self.llama = LlamaCpp(args.llama_bin, args.threads)
        args.models.mkdir(parents=True, exist_ok=True)
        self.model = args.model or requantized("Q8_0")(args.models, self.llama)
        self._seed = 0
        if self.load > 0.5:
            self.say(f"load average {self.load:.1f}: this machine is busy, which costs llama.cpp more")

    def say(self, text: str) -> None:
        print(f"[{(time.monotonic() - self.began) / 60:5.1f} min] {text}", file=sys.stderr, flush=True)

    def measure(self, port: int, clients: int, requests: int) -> Found:
        """One run of the clients. Every run has prompts of its own."""
        self._seed += 1
        command = [sys.executable, str(HERE / "stream_clients.py"), str(port)]
        for name, value in (
            ("clients", clients),
            ("requests", requests),
            ("tokens", self.n_tokens),
            ("seed", self._seed),
        ):
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the clients failed:\n{done.stderr[-1500:]}")
        return Found.of(json.loads(done.stdout))

    def sweep(self) -> tuple[Setting, dict[str, float]]:
        """llama-server's best setting at the most clients, and what each gave."""
        best, most = Setting(self.threads), max(self.clients)
        speeds: dict[str, float] = {}
        found = -1.0
        for setting in [best] if self.quick else [best, *neighbours(best, self.threads, True)]:
            with peer(self.folder, self.model, setting, most) as port:
                speed = self.measure(port, most, 1).tokens_per_s
            speeds[str(setting)] = speed
            self.say(f"llama-server {setting}: {speed:.0f} tokens/s")
            if speed > found:
                best, found = setting, speed
        return best, speeds

    def rounds(self, setting: Setting) -> dict[tuple[int, str], list[Found]]:
        """Everything on both sides, in turn."""
        measured: dict[tuple[int, str], list[Found]] = defaultdict(list)
        with (
            ours(self.model, self.threads) as mine,
            peer(self.folder, self.model, setting, max(self.clients)) as theirs,
        ):
            for port in (mine, theirs):  # the first request of a server is slower
                self.measure(port, 1, 1)
            for number in range(self.n_rounds):
                sides = [("ours", mine), ("peer", theirs)]
                for clients in self.clients:
                    for side, port in sides if number % 2 == 0 else sides[::-1]:
                        found = self.measure(port, clients, 1 if self.quick else REQUESTS.get(clients, 2))
                        measured[clients, side].append(found)
                        self.say(
                            f"round {number + 1}, {clients} clients, {side}: {found.tokens_per_s:.0f} "
                            f"tokens/s, first token {found.median_s:.3f} s"
                        )
        return measured


def best_of(rounds: list[Found]) -> Found:
    """The best of each: a shared machine only ever makes a round slower."""
    return Found(
        max(each.tokens_per_s for each in rounds),
        min(each.median_s for each in rounds),
        min(each.p95_s for each in rounds),
    )


def rows_of(measured: dict[tuple[int, str], list[Found]]) -> list[Row]:
    """Three rows for each number of clients; ratios above 1 are better for us, also of seconds."""
    rows = []
    for clients in sorted({clients for clients, _ in measured}):
        mine, theirs = (best_of(measured[clients, side]) for side in ("ours", "peer"))
        name = f"{clients} streaming client{'s' * (clients > 1)}"
        rows.append(
            row(name, MODEL, mine.tokens_per_s, theirs.tokens_per_s, TOKENS_GOAL.get(clients), "tokens/s")
        )
        for work, one, other in (
            ("first token, median", mine.median_s, theirs.median_s),
            ("first token, 95th percentile", mine.p95_s, theirs.p95_s),
        ):
            turned = row(f"{name}, {work}", MODEL, other, one, FIRST_GOAL, "s")
            rows.append(replace(turned, ours=one, peer=other))
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bin", type=Path, required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--json", type=Path, help="file for the rows and what led to them")
    parser.add_argument("--model", type=Path, help="GGUF file (default: SmolLM2-135M in Q8_0, made here)")
    parser.add_argument(
        "--models", type=Path, default=cache_folder() / "bench", help="folder for files made here"
    )
    parser.add_argument("--threads", "-t", type=int, default=os.cpu_count(), help="threads of both sides")
    parser.add_argument("--clients", type=int, action="append", help="only so many at once; repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--quick", action="store_true", help="no sweep, one round of one request each")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no server is left behind
    run = Run(args)
    setting, speeds = run.sweep()
    measured = run.rounds(setting)
    rows = rows_of(measured)
    print(table(rows))
    if args.json:
        record = {
            "cpu": cpu_description(),
            "threads": run.threads,
            "load_average_at_start": run.load,
            "peer": f"llama.cpp {run.llama.version()}",
            "peer_setting": {"best": str(setting), "tokens_per_s": speeds},
            "tokens_per_answer": run.n_tokens,
            "rounds": [
                {"clients": clients, "side": side, **asdict(found)}
                for (clients, side), rounds in measured.items()
                for found in rounds
            ],
            "rows": [each.as_json() for each in rows],
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    run.say("done")
    return 1 if any(each.met is False for each in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
