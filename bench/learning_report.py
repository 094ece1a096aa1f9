"""From runs to what is said of them: intervals over seeds, tables, pictures. Reads nothing, trains nothing.

Two kinds of intervals stand beside each other and must not be confused: that of one run's accuracy on its
held-out problems (Wilson's; other problems would have given another number), and that of the mean over seeds
(Student's t; another seed would have given another number).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from etude.evals import Interval
from etude.runlog.curve import Curve, curve_svg

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantile of Student's t for the mean of n values (n - 1 degrees of freedom)."""
STRICT, LENIENT, PAIRS = "eval/accuracy/strict", "eval/accuracy/lenient", "eval/accuracy"
NAMES = {STRICT: "strict", LENIENT: "lenient", PAIRS: "pairs in order"}
VERSUS = {"largest_grpo_ppo": ("largest", "largest_ppo")}
"""Pictures of two sets of runs on the same task."""


@dataclass(frozen=True)
class Outcome:
    """A finished run. rows: of metrics.jsonl, step 0 first. constant: the best answer that is always the
    same, and how often it is right. faults: of a reward model, fault → [pairs in order, pairs]. findings:
    the doctor's signs."""

    task: str
    title: str
    verb: str
    seed: int
    command: str
    rows: tuple[Mapping[str, Any], ...]
    constant: tuple[str, float] | None = None
    faults: Mapping[str, Sequence[int]] | None = None
    findings: tuple[str, ...] = ()

    @property
    def measures(self) -> list[str]:
        """What was measured on held-out data, the strictest first."""
        return [name for name in (STRICT, LENIENT) if name in self.rows[0]] or [PAIRS]

    def before(self, measure: str) -> Interval:
        return interval(self.rows[0], measure)

    def after(self, measure: str) -> Interval:
        return interval(self.rows[-1], measure)

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"])

    @property
    def minutes(self) -> float:
        """Of all steps, evaluations from step 1 on included; without loading."""
        return sum(float(row.get("seconds/step", 0.0)) for row in self.rows) / 60


def interval(row: Mapping[str, Any], measure: str) -> Interval:
    return Interval(float(row[measure]), float(row[f"{measure}/low"]), float(row[f"{measure}/high"]))


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval, cut to 0 … 1; a single value says nothing of others.

    >>> str(over_seeds([0.8, 0.9, 0.85])), str(over_seeds([0.5]))
    ('85.0 % [72.6, 97.4]', '50.0 % [0.0, 100.0]')
    """
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, 0.0, 1.0)
    half = T95[len(values)] * stdev(values) / len(values) ** 0.5
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def by_task(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Sets of runs that differ in their seed, in order."""
    sets: dict[str, list[Outcome]] = {}
    for one in outcomes:
        sets.setdefault(one.task, []).append(one)
    return {task: sorted(some, key=lambda one: one.seed) for task, some in sets.items()}


SUMMARY = (
    "| task | by | read | before | after: mean of seeds | seeds, after | best constant answer | minutes |",
    "|---|---|---|--:|--:|--:|--:|--:|",
)
EVERY_RUN = (
    "| run | read | before | after | steps | minutes | s a step | GB | the doctor |",
    "|---|---|--:|--:|--:|--:|--:|--:|---|",
)
FAULTS = ("| the worse answer is | pairs | in order, mean of seeds |", "|---|--:|--:|")


def tables(outcomes: Sequence[Outcome]) -> str:
    """Markdown: sets of runs, every run, commands, and what reward models confuse."""
    sets = by_task(outcomes)
    parts: list[list[str]] = [[*SUMMARY, *summary_rows(sets)], [*EVERY_RUN, *run_rows(sets)], []]
    for some in sets.values():
        parts[-1].append("    " + some[0].command.replace(f"seed {some[0].seed}", "seed S"))
    if faults := list(fault_rows(sets)):
        parts.append([*FAULTS, *faults])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def summary_rows(sets: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    for some in sets.values():
        first = some[0]
        constant = ""
        if first.constant is not None:
            constant = f"{percent(first.constant[1])} (“{first.constant[0]}”)"
        for measure in first.measures:
            before = percent(fmean(one.before(measure).value for one in some))
            after = [one.after(measure).value for one in some]
            seeds = ", ".join(percent(one) for one in after)
            minutes = f"{fmean(one.minutes for one in some):.1f}"
            about = (first.title, first.verb, NAMES[measure])
            mean = str(over_seeds(after)) if len(after) > 1 else f"{percent(after[0])}, one run"
            yield "| " + " | ".join([*about, before, mean, seeds, constant, minutes]) + " |"


def run_rows(sets: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    for some in sets.values():
        for one in some:
            for at, measure in enumerate(one.measures):
                about = [""] * 5
                if at == 0:
                    memory = max(float(row.get("memory_bytes", 0)) for row in one.rows) / 1e9
                    rate = f"{60 * one.minutes / one.steps:.1f}"
                    about = [
                        str(one.steps), f"{one.minutes:.1f}", rate, f"{memory:.1f}", ", ".join(one.findings),
                    ]  # fmt: skip
                name = f"{one.task}, seed {one.seed}" if at == 0 else ""
                cells = (name, NAMES[measure], str(one.before(measure)), str(one.after(measure)), *about)
                yield "| " + " | ".join(cells) + " |"


def fault_rows(sets: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Of reward models: how often the worse answer scores lower, by what is the matter with it."""
    for some in sets.values():
        known = [one.faults for one in some if one.faults]
        if not known:
            continue
        for fault in sorted(known[0]):
            right = fmean(one[fault][0] / one[fault][1] for one in known)
            yield f"| {fault} | {known[0][fault][1]} | {percent(right)} |"


def percent(value: float) -> str:
    """
    >>> percent(0.8912)
    '89.1 %'
    """
    return f"{100 * value:.1f} %"


def outcome_json(one: Outcome) -> dict[str, Any]:
    """A record of results.json."""
    return {
        "task": one.task,
        "seed": one.seed,
        "command": one.command,
        "steps": one.steps,
        "minutes": round(one.minutes, 2),
        "before": {NAMES[name]: vars(one.before(name)) for name in one.measures},
        "after": {NAMES[name]: vars(one.after(name)) for name in one.measures},
        "constant": one.constant,
        "faults": one.faults,
        "doctor": list(one.findings),
        "last_row": dict(one.rows[-1]),
    }


def pictures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Name → SVG: each set of runs, and sets that are compared."""
    sets = by_task(outcomes)
    drawn = {task: picture(some) for task, some in sets.items()}
    for name, tasks in VERSUS.items():
        if all(task in sets for task in tasks):
            drawn[name] = comparison([sets[task] for task in tasks])
    return drawn


def shown(some: Sequence[Outcome]) -> str:
    """The strictest measure by which a run is ever right in the end."""
    measures = some[0].measures
    return next((name for name in measures if any(one.after(name).value > 0 for one in some)), measures[-1])


def picture(some: Sequence[Outcome]) -> str:
    """The accuracy of each seed with its own interval, and the training reward's mean of seeds."""
    first = some[0]
    measure = shown(some)
    curves = [Curve("reward/mean", "training reward")]
    curves += [Curve(f"{one.seed}", f"seed {one.seed}") for one in some]
    rows = merged({f"{one.seed}": one.rows for one in some}, measure)
    for row in rows:
        rewards = [
            float(its["reward/mean"])
            for one in some
            for its in one.rows
            if its["step"] == row["step"] and "reward/mean" in its
        ]
        if rewards:
            row["reward/mean"] = fmean(rewards)
    levels = {} if first.constant is None else {f"always “{first.constant[0]}”": first.constant[1]}
    read = "held-out pairs in order" if measure == PAIRS else f"held-out accuracy, {NAMES[measure]}"
    return curve_svg(rows, curves, title=f"{first.verb}: {first.title}; {read}", levels=levels)


def comparison(sets: Sequence[Sequence[Outcome]]) -> str:
    """Means over seeds; bars from the worst to the best seed."""
    measure = shown(sets[0])
    rows: dict[int, dict[str, Any]] = {}
    for some in sets:
        at: dict[int, list[float]] = {}
        for one in some:
            for row in one.rows:
                if measure in row:
                    at.setdefault(int(row["step"]), []).append(float(row[measure]))
        name = some[0].verb
        for step, values in at.items():
            ends = {f"{name}/low": min(values), f"{name}/high": max(values)}
            rows.setdefault(step, {"step": step}).update({name: fmean(values), **ends})
    curves = [Curve("", ""), *(Curve(some[0].verb, some[0].verb.upper()) for some in sets)]
    title = f"{sets[0][0].title}: held-out accuracy, {NAMES[measure]}; mean, worst and best seed"
    return curve_svg([rows[step] for step in sorted(rows)], curves, title=title)


def merged(runs: Mapping[str, Sequence[Mapping[str, Any]]], measure: str) -> list[dict[str, Any]]:
    """One row a step, in which each run's measure has the run's name.

    >>> merged({"a": [{"step": 0, "x": 1.0}], "b": [{"step": 0, "x": 2.0, "x/low": 1.5}]}, "x")
    [{'step': 0, 'a': 1.0, 'b': 2.0, 'b/low': 1.5}]
    """
    rows: dict[int, dict[str, Any]] = {}
    for name, its in runs.items():
        for row in its:
            merged_row = rows.setdefault(int(row["step"]), {"step": int(row["step"])})
            for end in ("", "/low", "/high"):
                if f"{measure}{end}" in row:
                    merged_row[f"{name}{end}"] = row[f"{measure}{end}"]
    return [rows[step] for step in sorted(rows)]
