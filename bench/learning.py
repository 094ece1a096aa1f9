"""What GRPO, PPO and a reward model learn, measured: a few tasks, three seeds each, bad seeds kept.

    python bench/learning.py --folder runs/learning            train what is missing, then report
    python bench/learning.py --folder runs/learning --report-only --docs docs

Every run is the real command line (`etude grpo CONFIG --run.seed S …`) in a process of its own, one after the
other. Ctrl-C stops after the step at hand, and the same command goes on there; what is finished is not run
again. Seeds come one after the other, tasks within them, so that a stop leaves whole sets.

The report is a Markdown table, a JSON file, and a picture for each task (learning_report.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from learning_report import Outcome, outcome_json, pictures, tables

from etude.data import load_preferences, load_problems
from etude.data.check import best_constant
from etude.recipes.accuracy import fitting_reward, judges_for
from etude.records import Problem
from etude.runlog import RunReader
from etude.train.judge import as_reward

HERE = Path(__file__).parent
FAULTS_FILE = "faults.json"
GUESS_S = 300.0
"""What a run is taken to need before the first one has shown it."""


@dataclass(frozen=True)
class Case:
    """A set of runs that differ in their seed. verb, config: of the command; words: what else it says.

    goal: whether it is there to be learnt; else it is a negative result.
    """

    name: str
    title: str
    verb: str
    config: str
    words: tuple[str, ...] = ()

    def command(self, seed: int) -> list[str]:
        """Words of the documented command, after `etude`."""
        return [self.verb, self.config, *self.words, "--run.seed", str(seed)]


CASES = (
    Case("largest", "the largest of three numbers", "grpo", "examples/demo.toml", ("--run.final", "none")),
    Case("last_word", "the last word of four", "grpo", "bench/tasks/last_word.toml"),
    Case("chain_sum", "sums and differences", "grpo", "bench/tasks/chain_sum.toml"),
    Case("largest_ppo", "the largest of three numbers", "ppo", "bench/tasks/largest_ppo.toml"),
    Case("reward_model", "which answer is right and clean", "reward-model", "examples/reward_model.toml"),
    Case("products", "products of two-digit numbers", "grpo", "bench/tasks/products.toml"),
)


@dataclass(frozen=True)
class Job:
    """One run. folder: where all of them lie."""

    case: Case
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.case.name}-{self.seed}"

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def finished(self) -> bool:
        return steps_done(self.path) is not None

    def words(self) -> list[str]:
        """Of `etude`: a new run, or the rest of one."""
        if (self.path / "run.json").exists():
            return [self.case.verb, "--resume", str(self.path)]
        own = ["--run.folder", str(self.folder), "--run.name", self.name]
        return [*self.case.command(self.seed), *own]


def steps_done(path: Path) -> int | None:
    """How many steps a run has, if these are all that it planned; None: it is not finished, or not there."""
    if not (path / "run.json").exists():
        return None
    run = RunReader(path)
    rows = run.metrics()
    if run.state == "running" or not rows or rows[-1]["step"] != run.info.total_steps:
        return None
    return int(rows[-1]["step"])


def main(argv: Sequence[str]) -> int:
    """0: all is there; 1: a run failed; 130: stopped by Ctrl-C."""
    args = parsed(argv)
    cases = [case for case in CASES if case.name in args.tasks]
    jobs = [Job(case, seed, args.folder) for seed in args.seeds for case in cases]
    args.folder.mkdir(parents=True, exist_ok=True)
    code = 0 if args.report_only else run_all(jobs)
    if code != 128 + signal.SIGINT:
        report([job for job in jobs if job.finished], args.folder, args.docs)
    return code


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="of the runs")
    parser.add_argument("--docs", type=Path, help="also put the pictures into DOCS/pictures")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    return parser.parse_args(argv)


def run_all(jobs: Sequence[Job]) -> int:
    """Train what is missing, one run at a time. Returns an exit code."""
    seconds: dict[str, list[float]] = {}
    code = 0
    for at, job in enumerate(jobs):
        if job.finished:
            settle(job)
            continue
        left = sum(expected_s(seconds, later.case.name) for later in jobs[at:] if not later.finished)
        clock, minutes = time.strftime("%H:%M"), left / 60
        print(f"[{clock}] {at + 1}/{len(jobs)} {job.name}; about {minutes:.0f} min left", flush=True)
        began, resumed = time.monotonic(), (job.path / "run.json").exists()
        if (status := run(job.words())) != 0:
            print(f"{job.name}: etude {job.case.verb} ended with status {status}", file=sys.stderr)
            code = 1
        elif not job.finished:  # Ctrl-C: the step was finished, the run was not
            return 128 + signal.SIGINT
        else:
            settle(job)
            if not resumed:
                seconds.setdefault(job.case.name, []).append(time.monotonic() - began)
    return code


def expected_s(seconds: dict[str, list[float]], name: str) -> float:
    """Of a run: the mean of its set so far, else of all, else a guess."""
    known = seconds.get(name) or [one for some in seconds.values() for one in some]
    return sum(known) / len(known) if known else GUESS_S


def run(words: Sequence[str]) -> int:
    """An `etude` command in a process of its own. Ctrl-C reaches both, and the child's end is waited for."""
    print("$ etude " + shlex.join(words), flush=True)
    with subprocess.Popen([sys.executable, "-m", "etude", *words], cwd=HERE.parent) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                print("stopping after this step", file=sys.stderr)


def settle(job: Job) -> None:
    """After the last step: what needs the weights is measured, then they go (gigabytes for each run)."""
    final = job.path / "final"
    if job.case.verb == "reward-model" and final.is_dir() and not (job.path / FAULTS_FILE).exists():
        held_out = RunReader(job.path).config["data"]["held_out"]
        (job.path / FAULTS_FILE).write_text(json.dumps(by_fault(final, held_out)) + "\n")
    for folder in (final, job.path / "checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)


def by_fault(model: Path, held_out: str) -> dict[str, list[int]]:
    """What is the matter with the worse answer → [pairs in which it scores lower, pairs]."""
    judge = as_reward(model)
    counts: dict[str, list[int]] = {}
    for pair in load_preferences(held_out):
        chosen, rejected = judge(Problem(pair.id, pair.messages), [pair.chosen, pair.rejected])
        count = counts.setdefault(str(pair.columns["fault"]), [0, 0])
        count[0] += chosen.total > rejected.total
        count[1] += 1
    return counts


def report(jobs: Sequence[Job], folder: Path, docs: Path | None) -> None:
    """Print the tables; write report.md, results.json and the pictures."""
    outcomes = list(collected(jobs))
    text = tables(outcomes)
    (folder / "report.md").write_text(text, encoding="utf-8")
    records = [outcome_json(one) for one in outcomes]
    (folder / "results.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    for place in [folder, *([docs / "pictures"] if docs else [])]:
        place.mkdir(parents=True, exist_ok=True)
        for name, svg in pictures(outcomes).items():
            (place / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(text)


def collected(jobs: Sequence[Job]) -> Iterator[Outcome]:
    """What finished runs have measured."""
    levels: dict[str, tuple[str, float] | None] = {}
    for job in jobs:
        reader = RunReader(job.path)
        name = job.case.name
        if name not in levels:
            levels[name] = constant_of(job.case.verb, reader.config["data"]["held_out"])
        faults = job.path / FAULTS_FILE
        yield Outcome(
            task=name,
            title=job.case.title,
            verb=job.case.verb,
            seed=job.seed,
            command=shlex.join(["etude", *job.case.command(job.seed)]),
            rows=tuple(reader.metrics()),
            constant=levels[name],
            faults=json.loads(faults.read_text()) if faults.exists() else None,
            findings=tuple(sorted({str(row["sign"]) for row in reader.doctor()})),
        )


def constant_of(verb: str, held_out: str) -> tuple[str, float] | None:
    """The best answer that is always the same, and how often it is right; None for pairs of answers."""
    if verb == "reward-model":
        return None
    problems = load_problems(held_out)
    return best_constant(problems, judges_for(fitting_reward(problems))[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
