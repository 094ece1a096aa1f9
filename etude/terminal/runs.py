"""`etude runs`: the run folders there are, and one of them in more detail. Only reads."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from etude.records import EtudeError
from etude.runlog import RunReader, find_runs
from etude.terminal.options import Options
from etude.terminal.screen import VISIBLE

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
CURVES = ("eval/accuracy", "reward", "reward/mean", "loss", "eval/loss")
"""The numbers that are drawn, as far as a run has them."""


def run(options: Options) -> int:
    """The verb."""
    if options["run"] is None:
        options.refuse_without_effect(("step", "samples"), "no effect without the name of a run")
        sys.stdout.write(overview(Path(options["folder"])))
        return 0
    if options["step"] is None:
        options.refuse_without_effect(("samples",), "no effect without --step N")
    named = Path(options["run"])
    reader = RunReader(named if (named / "run.json").exists() else Path(options["folder"]) / named)
    if options["step"] is None:
        sys.stdout.write(details(reader))
    else:
        sys.stdout.write(samples(reader, options["step"], options["samples"]))
    return 0


def overview(folder: Path) -> str:
    """A line for each run, the newest first."""
    runs = find_runs(folder)
    if not runs:
        raise EtudeError(f"there are no runs in {str(folder)!r}; --folder says where they are")
    rows = [("run", "what", "state", "steps", "accuracy", "reward", "begun")]
    for reader in runs:
        metrics = reader.metrics()
        rows.append(
            (
                reader.folder.name,
                reader.info.algorithm,
                reader.state,
                _progress(reader, metrics),
                _from_to(metrics, ("eval/accuracy",)),
                _from_to(metrics, ("reward", "reward/mean")),
                reader.info.created[:16].replace("T", " "),
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def details(reader: RunReader) -> str:
    """Curves, the last numbers, what the doctor said, what can be gone back to."""
    metrics = reader.metrics()
    best = reader.best()
    lines = [f"{reader.folder}: {reader.info.algorithm}, {reader.state}, step {_progress(reader, metrics)}"]
    for name in CURVES:
        values = _values(metrics, name)
        if values:
            lines.append(f"{name:<14} {sparkline(values)} {values[0]:.4g} → {values[-1]:.4g}")
    if metrics:
        numbers = (
            f"{key} {value:.4g}" for key, value in metrics[-1].items() if isinstance(value, int | float)
        )
        lines.append("last: " + ", ".join(numbers))
    lines += [
        f"doctor, step {row['step']}: {str(row.get('text', '')).translate(VISIBLE)}"
        for row in reader.doctor()[-5:]
    ]
    steps = ", ".join(
        f"{checkpoint.step}{' (best)' if best and checkpoint.step == best.step else ''}"
        for checkpoint in reader.checkpoints()
    )
    lines.append(f"checkpoints: {steps or 'none'}")
    stored = reader.rollout_steps()
    if stored:
        lines.append(f"rollouts: steps {stored[0]} to {stored[-1]} (--step N shows one)")
    return "\n".join(lines) + "\n"


def samples(reader: RunReader, step: int, n: int) -> str:
    """The first rollouts of a step."""
    lines = []
    for row in reader.rollouts(step)[:n]:
        score = row["score"]
        lines.append(
            f"── {row['problem_id']}, sample {row['index']}: {score['total']:.3g} ({score['verdict']})"
        )
        for role, content in row["prompt"] or []:
            lines.append(f"{role}: {content.translate(VISIBLE)}")
        lines.append(f"→ {row['text'].translate(VISIBLE)}")
        if score["failure"]:
            lines.append(f"the verifier failed: {score['failure'].translate(VISIBLE)}")
    return "\n".join(lines) + "\n"


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """A curve in one line: means of equal shares, from the lowest to the highest.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7]), sparkline([1.0, 1.0]), sparkline([0, 0, 1, 1], width=2)
    ('▁▂▃▄▅▆▇█', '▁▁', '▁█')
    """
    n = min(width, len(values))
    edges = [round(at * len(values) / n) for at in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def _values(metrics: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A number over the steps, where it is one."""
    found = (row.get(name) for row in metrics)
    return [float(value) for value in found if isinstance(value, int | float) and math.isfinite(value)]


def _from_to(metrics: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    for name in names:
        values = _values(metrics, name)
        if values:
            return f"{values[0]:.3g} → {values[-1]:.3g}"
    return ""


def _progress(reader: RunReader, metrics: Sequence[dict[str, Any]]) -> str:
    done = metrics[-1]["step"] if metrics else 0
    return f"{done}/{reader.info.total_steps}" if reader.info.total_steps else str(done)
