"""One whole GRPO step, Etude against TRL with Hugging Face's generate: same model, same work, one machine.

    python bench/grpo_vs_trl.py --trl-python PYTHON --json FILE [--quick] [--rounds N] [--peer-batch N]

8 questions × 8 answers of at most 64 tokens, one update, on-policy; SmolLM2-135M out of the packaged GGUF, of
which the peer gets a Hugging Face folder in f32 with the same numbers. Three comparisons, each between two
processes that live through all rounds and do a step when told, one while the other waits: full fine-tune and
LoRA (rank 16 on all matrices of the layers; ours beside the quantised base), f32 weights on both sides; and a
full fine-tune in which the peer's weights are bf16 (no promise is made for it).

The same loss on both sides: advantage = reward less its group's mean, mean over all tokens of the step, ratio
1, no KL, nothing masked (ours: preset `small` with the answers that were cut off; TRL: loss_type="dapo",
scale_rewards="none", beta=0; see etude_step.py and trl_step.py). Ours also weighs each token by how far
engine and learner differ, which TRL need not, and writes its run folder.

The peer is at its best: each batch size of BATCHES with bf16 autocast, then f32 at the winner, a step each;
--peer-batch N skips that. The first step of each process is not counted; the median of the others is. A goal
that is missed makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peer_reference import cpu_description
from results import Row, table
from step_rows import KINDS, Both, Kind, Step, rows_of
from step_task import StepSettings, write_questions
from workers import Worker, WorkerError

from etude.model.checkpoint import config_of, open_source
from etude.model.hf_tensors import hf_tensors
from etude.model.pull import resolve
from etude.model.rates import product_rates
from etude.model.save import save_hf_folder

HERE = Path(__file__).parent
BATCHES = (8, 16, 32, 64)
QUICK_BATCH = 16
GOAL_TOKENS = 64
RATE_SIZE = 2048
NEEDED_BYTES = 13e9


@dataclass
class Compared:
    """One kind of step, as far as it has been measured. sweep_s: seconds of the peer's settings."""

    kind: Kind
    sweep_s: dict[str, float] = field(default_factory=dict)
    peer_dtype: str = ""
    peer_batch: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    warm_up: dict[str, Any] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def peer_setting(self) -> str:
        names = {"bf16": "f32 weights, bf16 autocast", "f32": "f32", "pure-bf16": "bf16 weights"}
        return f"{names[self.peer_dtype]}, batches of {self.peer_batch}"

    def both(self) -> Both:
        ours, peer = ([Step.of(one[side]) for one in self.rounds] for side in ("ours", "peer"))
        return Both(ours, peer, self.peak_bytes["ours"], self.peak_bytes["peer"])


class Bench:
    """One run: the folder that it works in, its clock, and what was measured so far."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.began = time.monotonic()
        self.compared: list[Compared] = []
        self.versions: dict[str, Any] = {}
        self.questions = work / "questions.jsonl"
        write_questions(self.questions)
        path = resolve(args.model)
        self.model_name = path.stem if path.is_file() else path.name
        self.peer_model = work / f"{self.model_name}-f32"
        self.say(f"the peer's folder of {path.name}, in f32")
        with open_source(path) as source:
            save_hf_folder(self.peer_model, source, hf_tensors(source, config_of(source)), "f32")
        self.say(f"{cpu_description()}, {args.threads} threads; products of {RATE_SIZE}³:")
        torch.set_num_threads(args.threads)
        rates = product_rates((torch.bfloat16, torch.float32), size=RATE_SIZE, rounds=4)
        self.gflops = {"bf16": rates[0] / 1e9, "f32": rates[1] / 1e9}
        self.say(", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in self.gflops.items()))
        self.load = os.getloadavg()[0]
        if self.load > 0.5:
            self.say(f"load average {self.load:.1f}: this machine is busy")
        free = available_bytes()
        if free is not None and free < NEEDED_BYTES:
            self.say(
                f"{free / 1e9:.0f} GB of memory available; both sides together take 10 to 12 at 64 tokens"
            )

    def say(self, text: str) -> None:
        print(f"[{(time.monotonic() - self.began) / 60:5.1f} min] {text}", file=sys.stderr, flush=True)

    # ── the two sides ──

    def ours(self, kind: Kind) -> Worker:
        return self.worker("etude", sys.executable, self.args.model, kind, dtype=self.args.our_dtype)

    def peer(self, kind: Kind, dtype: str, batch: int) -> Worker:
        return self.worker("trl", self.args.trl_python, str(self.peer_model), kind, dtype=dtype, batch=batch)

    def worker(self, side: str, python: str, model: str, kind: Kind, **more: Any) -> Worker:
        """A process that has loaded what it needs, or will with its first step."""
        name = "-".join(str(part) for part in (side, kind.name, *more.values()) if part)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work))
        threads = self.args.threads
        settings = StepSettings(
            model=model,
            questions=str(self.questions),
            folder=str(folder),
            threads=threads,
            lora=kind.lora,
            max_tokens=self.args.max_tokens,
            **more,
        )
        command = [python, str(HERE / f"{side}_step.py"), settings.to_json()]
        worker = Worker(command, folder / "log.txt", extra={"OMP_NUM_THREADS": str(threads)})
        self.versions.setdefault(side, worker.opening["versions"])
        return worker

    # ── measuring ──

    def sweep(self, compared: Compared) -> None:
        """Find the peer's fastest setting, by the first step of a process for each."""
        kind, args = compared.kind, self.args
        wished = args.peer_dtype if args.peer_dtype in kind.peer_dtypes else None
        if args.peer_batch:
            compared.peer_dtype, compared.peer_batch = wished or kind.peer_dtypes[0], args.peer_batch
            return

        def tried(dtype: str, batch: int) -> float:
            try:
                with self.peer(kind, dtype, batch) as worker:
                    seconds: float = worker.step()["seconds"]
            except WorkerError as error:  # such as too little memory for large batches
                self.say(f"  {dtype}, batches of {batch}: failed\n{error}")
                return math.inf
            compared.sweep_s[f"{dtype} {batch}"] = seconds
            self.say(f"  {dtype}, batches of {batch}: {seconds:.1f} s")
            return seconds

        self.say(f"TRL's best setting, {kind.title}")
        dtypes = (wished,) if wished else kind.peer_dtypes
        compared.peer_dtype, compared.peer_batch = fastest(tried, dtypes, BATCHES)
        self.save()

    def compare(self, kind: Kind) -> None:
        """Rounds of a step on each side, who goes first changing from round to round."""
        compared = Compared(kind)
        self.compared.append(compared)
        self.sweep(compared)
        self.say(f"{kind.title}: against {compared.peer_setting}; warming up")
        with (
            self.ours(kind) as ours,
            self.peer(kind, compared.peer_dtype, compared.peer_batch) as peer,
        ):
            sides = {"ours": ours, "peer": peer}
            compared.warm_up = self.round(sides, ("ours", "peer"))
            for number in range(self.args.rounds):
                order = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
                compared.rounds.append(self.round(sides, order))
                compared.peak_bytes = {side: worker.peak_bytes for side, worker in sides.items()}
                self.say(f"  round {number + 1}: {told(compared.rounds[-1])}")
                self.save()

    @staticmethod
    def round(sides: dict[str, Worker], order: Sequence[str]) -> dict[str, Any]:
        """One step of each; they must have been given the same prompts."""
        answers: dict[str, Any] = {side: sides[side].step() for side in order}
        prompts = {side: answers[side]["prompt_tokens"] for side in order}
        if len(set(prompts.values())) > 1:
            raise SystemExit(f"stopped: the prompts are not the same on both sides, tokens: {prompts}")
        return {"first": order[0], **answers}

    # ── results ──

    def rows(self) -> list[Row]:
        goals = self.args.max_tokens == GOAL_TOKENS
        return [
            row
            for one in self.compared
            if one.rounds
            for row in rows_of(one.kind, self.model_name, one.both(), one.peer_setting, goals=goals)
        ]

    def save(self) -> None:
        """Everything so far, after each round: a run that is cut off loses nothing."""
        if self.args.json is None:
            return
        record = {
            "cpu": cpu_description(),
            "threads": self.args.threads,
            "load_average_at_start": self.load,
            "product_gflops": self.gflops,
            "versions": self.versions,
            "max_tokens": self.args.max_tokens,
            "kinds": [asdict(one) | {"summary": summary(one)} for one in self.compared],
            "rows": [row.as_json() for row in self.rows()],
        }
        self.args.json.write_text(json.dumps(record, indent=1) + "\n")


def fastest(
    tried: Callable[[str, int], float], dtypes: Sequence[str], batches: Sequence[int]
) -> tuple[str, int]:
    """(dtype, batch size) of the fewest seconds: all batch sizes in the first dtype, then the winner in the
    others. WorkerError if nothing worked."""
    seconds = {batch: tried(dtypes[0], batch) for batch in batches}
    batch = min(batches, key=lambda size: seconds[size])
    if math.isinf(seconds[batch]):
        raise WorkerError("none of the peer's settings worked")
    by_dtype = {dtypes[0]: seconds[batch]} | {dtype: tried(dtype, batch) for dtype in dtypes[1:]}
    return min(by_dtype, key=lambda dtype: by_dtype[dtype]), batch


def available_bytes() -> float | None:
    """Memory that processes can still have; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024.0


def told(answers: dict[str, Any]) -> str:
    """A round in a line."""
    parts = []
    for side in ("ours", "peer"):
        step = Step.of(answers[side])
        parts.append(
            f"{side} {step.seconds:.1f} s (sampling {step.sampling_s:.1f}, training {step.training_s:.1f}; "
            f"{step.tokens:.0f} tokens)"
        )
    return ", ".join(parts) + f", {answers['peer']['seconds'] / answers['ours']['seconds']:.2f} ×"


def summary(compared: Compared) -> dict[str, Any]:
    """Median, least and tokens of each side."""
    found: dict[str, Any] = {}
    for side in ("ours", "peer"):
        steps = [Step.of(one[side]) for one in compared.rounds]
        if steps:
            seconds = [step.seconds for step in steps]
            found[side] = {
                "median_s": median(seconds),
                "min_s": min(seconds),
                "tokens": [step.tokens for step in steps],
            }
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", required=True, help="python of an environment with trl and peft")
    parser.add_argument("--json", type=Path, help="file for the rows and what led to them")
    parser.add_argument(
        "--model", default="smollm2-135m", help="file, folder or name (default: smollm2-135m)"
    )
    parser.add_argument("--threads", "-t", type=int, default=os.cpu_count(), help="threads of both sides")
    parser.add_argument("--rounds", type=int, default=3, help="counted steps of each side (default: 3)")
    parser.add_argument("--only", action="append", choices=[kind.name for kind in KINDS], help="only it")
    parser.add_argument("--peer-batch", type=int, choices=BATCHES, help="TRL's batch size; no search")
    parser.add_argument("--peer-dtype", choices=("bf16", "f32"), help="TRL's products: autocast or f32")
    parser.add_argument("--our-dtype", choices=("bf16", "f32"), default="", help="ours (default: its own)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=GOAL_TOKENS,
        help="of an answer; 64, or to try the script",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"one round, TRL with batches of {QUICK_BATCH}",
    )
    parser.add_argument("--work", type=Path, help="folder to keep runs and logs in (default: none)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.peer_batch = 1, args.peer_batch or QUICK_BATCH
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """A new folder inside `kept`; None: one that is removed at the end."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="grpo-vs-trl-") as name:
            yield Path(name)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix="grpo-vs-trl-", dir=kept)).absolute()


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: both processes are ended
    with work_folder(args.work) as folder:
        bench = Bench(args, folder)
        for kind in KINDS:
            if not args.only or kind.name in args.only:
                try:
                    bench.compare(kind)
                except WorkerError as error:
                    raise SystemExit(f"stopped: {kind.title}: {error}") from error
    bench.save()
    rows = bench.rows()
    print(table(rows))
    for side, versions in bench.versions.items():
        print(f"{side}: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    bench.say("done")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
