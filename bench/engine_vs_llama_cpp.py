"""Etude's engine against llama.cpp: same files, same machine, one interleaved run.

    python bench/engine_vs_llama_cpp.py --llama-bin DIR --json FILE [--quick | --full]

First llama.cpp's settings are swept and the fastest are kept for each kind of work; then rounds follow, in
which every piece of work runs on one side right after the other. llama.cpp's numbers hold no sampling, ours
hold sampling at temperature 1 and two logprobs of every token. At the end ours runs alone, beside a busy
process, and from its start. A goal that is missed makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import ours
from cases import CASES, Case, Lengths, lengths_of
from llama_cpp import Group, LlamaCpp, Work
from peer_reference import cpu_description, is_reference_cpu, shortfall
from peer_sweep import SWEEP_GROUP, Winner, sweep
from results import Row, Speeds, busy_rows, speed_rows, start_rows, table
from roofline import Roofline, measure_roofline

from etude.model.pull import cache_folder

MINUTES = {"quick": 3.0, "default": 20.0, "full": 240.0}
MAX_ROUNDS = {"quick": 1, "default": 3, "full": 3}
LARGE_SWEEP_GROUP = Group(32, 32, 4)

Measure = Callable[[], dict[Work, float]]
Measured = dict[tuple[Case, Work], Speeds]


class Run:
    """One run: the files, the peer's winning settings, and the clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.load = os.getloadavg()[0]
        if self.load > 0.5:
            self.say(
                f"load average {self.load:.1f}: this machine is busy, which costs llama.cpp more than us"
            )
        self.size = "quick" if args.quick else "full" if args.full else "default"
        self.threads: int = args.threads
        self.peer = LlamaCpp(args.llama_bin, self.threads)
        chosen = [case for case in CASES if not args.model or case.name in args.model]
        self.cases = chosen[:1] if args.quick and not args.model else chosen
        args.models.mkdir(parents=True, exist_ok=True)
        self.paths: dict[Case, Path] = {}
        for case in self.cases:
            self.say(f"file of {case.name}")
            self.paths[case] = case.make(args.models, self.peer)
        self.model_bytes = {case: ours.tensor_bytes(path, self.threads) for case, path in self.paths.items()}
        self.began = time.monotonic()  # files are made once; the clock is for measuring
        self.winners: dict[Case, dict[str, Winner]] = {}

    def say(self, text: str) -> None:
        print(f"[{(time.monotonic() - self.began) / 60:5.1f} min] {text}", file=sys.stderr, flush=True)

    @property
    def minutes_left(self) -> float:
        return MINUTES[self.size] - (time.monotonic() - self.began) / 60

    def sweep_all(self) -> None:
        """Find the peer's best settings on every file."""
        for case in self.cases:
            self.say(f"llama.cpp's best setting on {case.name}")
            group = LARGE_SWEEP_GROUP if case.is_large else SWEEP_GROUP
            known = next(
                (self.winners[done] for done in self.winners if done.is_large == case.is_large), None
            )
            self.winners[case] = sweep(self.peer, self.paths[case], self.size, group, known)
            for work, winner in self.winners[case].items():
                self.say(f"  {work}: {winner.setting} ({winner.speeds[winner.setting]:.0f} tokens/s)")

    def peer_single(self, case: Case, lengths: Lengths) -> dict[Work, float]:
        """Prefill and one stream, each at its own best setting."""
        best, path = self.winners[case], self.paths[case]
        prefill = self.peer.single(path, best["prefill"].setting, lengths.n_prompt, 0)
        stream = self.peer.single(path, best["stream"].setting, 0, lengths.n_gen)
        return {**prefill, **stream}

    def pieces(self, case: Case) -> Iterator[tuple[Measure, Measure]]:
        """What is measured of a file, piece by piece: on our side, on llama.cpp's."""
        lengths, path = lengths_of(case, self.size), self.paths[case]
        yield (
            partial(ours.single, path, self.threads, lengths.n_prompt, lengths.n_gen),
            partial(self.peer_single, case, lengths),
        )
        setting = self.winners[case]["groups"].setting
        for groups in lengths.groups():
            yield (
                partial(ours.groups, path, self.threads, groups),
                partial(self.peer.groups, path, setting, groups),
            )

    def round(self, number: int, measured: Measured) -> None:
        """All work once on both sides; who goes first changes from round to round."""
        for case in self.cases:
            self.say(f"round {number + 1}: {case.name}")
            lengths = lengths_of(case, self.size)
            for mine, theirs in self.pieces(case):
                sides = [("ours", mine), ("peer", theirs)]
                for side, measure in sides if number % 2 == 0 else sides[::-1]:
                    for work, speed in measure().items():
                        speeds = measured[case, full_name(work, lengths)]
                        (speeds.ours if side == "ours" else speeds.peer).append(speed)

    def rounds(self) -> Measured:
        """As many rounds as fit into the time, at least one."""
        measured: Measured = defaultdict(Speeds)
        for number in range(MAX_ROUNDS[self.size]):
            before = self.minutes_left
            self.round(number, measured)
            if number == 0:
                check_reference(measured)
            round_minutes = before - self.minutes_left
            if self.minutes_left < round_minutes + 1.5:  # what follows takes a minute or more
                break
        return measured

    def neighbour(self) -> list[Row]:
        """Ours alone and beside a busy process, twice each, on the first file."""
        case = self.cases[0]
        lengths, path = lengths_of(case, "quick"), self.paths[case]
        self.say(f"beside a busy process: {case.name}")
        best: dict[str, dict[str, float]] = {"idle": {}, "busy": {}}

        def measure(kind: str) -> None:
            speeds = ours.single(path, self.threads, lengths.n_prompt, lengths.n_gen)
            speeds |= ours.groups(path, self.threads, lengths.groups()[0])
            for work, speed in speeds.items():
                name = f"group of {work.n}" if isinstance(work, Group) else full_name(work, lengths)
                best[kind][str(name)] = max(best[kind].get(str(name), 0.0), speed)

        for _ in range(2):
            measure("idle")
            with ours.busy_neighbour():
                measure("busy")
        return busy_rows(case.name, best["idle"], best["busy"])

    def start(self) -> list[Row]:
        """Start to first token on the first file, best of three."""
        case = self.cases[0]
        self.say(f"start: {case.name}")
        starts = [ours.start(self.paths[case], self.threads) for _ in range(3)]
        seconds = min(start.seconds for start in starts)
        return start_rows(
            case.name, seconds, max(start.peak_rss_bytes for start in starts), self.model_bytes[case]
        )


def full_name(work: Work, lengths: Lengths) -> Work:
    """ "prefill" → "prefill 512", "stream" → "one stream"; a group stays one."""
    if isinstance(work, Group):
        return work
    return {"prefill": f"prefill {lengths.n_prompt}", "stream": "one stream"}[work]


def check_reference(measured: Measured) -> None:
    """Stop if llama.cpp is slower today than it is known to be on this CPU: then the machine is not quiet."""
    if not is_reference_cpu():
        print("no reference speeds of llama.cpp are known for this CPU", file=sys.stderr)
        return
    for (case, work), speeds in measured.items():
        if isinstance(work, Group):
            key: str | int = work.n if work.n_prompt == 128 else ""
        else:
            key = "stream" if work == "one stream" else "prefill"
        problem = shortfall(case.name, key, max(speeds.peer))
        if problem:
            raise SystemExit(
                f"stopped: {problem}. Is the machine busy, or the peer built without optimisation?"
            )


def write_json(path: Path, run: Run, roofline: Roofline, rows: list[Row], measured: Measured) -> None:
    """Rows, and everything that is needed to judge them."""
    record = {
        "cpu": cpu_description(),
        "threads": run.threads,
        "size": run.size,
        "load_average_at_start": run.load,
        "peer": f"llama.cpp {run.peer.version()}",
        "roofline": vars(roofline),
        "peer_settings": {
            case.name: {
                work: {
                    "best": str(winner.setting),
                    "tokens_per_s": {str(s): v for s, v in winner.speeds.items()},
                }
                for work, winner in winners.items()
            }
            for case, winners in run.winners.items()
        },
        "rounds": [
            {"model": case.name, "work": str(work), "ours": speeds.ours, "peer": speeds.peer}
            for (case, work), speeds in measured.items()
        ],
        "rows": [row.as_json() for row in rows],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bin", type=Path, required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--json", type=Path, help="file for the rows and what led to them")
    parser.add_argument(
        "--models", type=Path, default=cache_folder() / "bench", help="folder for files made here"
    )
    parser.add_argument(
        "--model", action="append", choices=[case.name for case in CASES], help="only this one"
    )
    parser.add_argument("--threads", "-t", type=int, default=os.cpu_count(), help="threads of both sides")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one model, one round: three minutes")
    size.add_argument("--full", action="store_true", help="all settings of the peer, all lengths: hours")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    run = Run(args)
    roofline = measure_roofline(run.threads)
    run.say(f"{cpu_description()}: {roofline}")
    run.sweep_all()
    measured = run.rounds()
    rows = []
    for (case, work), speeds in measured.items():
        rows += speed_rows(case, work, speeds, roofline, run.model_bytes[case])
    rows += run.neighbour() + run.start()
    print(table(rows))
    if args.json:
        write_json(args.json, run, roofline, rows, measured)
    run.say("done")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
