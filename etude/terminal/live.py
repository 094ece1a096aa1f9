"""A training run in the terminal: how far it is, when it will be done, the curve, one sample.

On a terminal the block is drawn anew after each step; elsewhere (a file, a pipe) each step is one line.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, Self, TextIO

from etude.records import Rollout
from etude.terminal.runs import sparkline
from etude.terminal.screen import VISIBLE
from etude.train.run import Report

CURVES = ("eval/accuracy", "reward/mean", "eval/loss", "loss")
"""The numbers that are drawn: those of the first two that a run has."""
NUMBERS = (
    ("reward/mean", "reward"), ("eval/accuracy", "held out"), ("loss", "loss"), ("tokens/mean", "tokens"),
    ("truncated", "cut off"), ("entropy", "entropy"), ("kl", "KL"), ("mismatch/k3", "mismatch"),
    ("grad_norm", "gradient"), ("seconds/step", "s/step"),
)  # fmt: skip
SAMPLE_LINES = 4


class Live:
    """Shows the reports of a run. out: where to (None: the error output); on a terminal the block stays."""

    def __init__(self, title: str, out: TextIO | None = None) -> None:
        self._title = title
        self._out = out or sys.stderr
        self._redraws = self._out.isatty()
        self._drawn = 0
        self._begun_s = time.monotonic()
        self._first: int | None = None
        self._curves: dict[str, list[float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._drawn = 0

    def show(self, report: Report) -> None:
        """One more step."""
        if self._first is None:
            self._first = max(0, report.step - 1)
        for name in CURVES:
            value = report.row.get(name)
            if value is not None and math.isfinite(value):
                self._curves.setdefault(name, []).append(value)
        findings = [f"doctor: {finding.text}".translate(VISIBLE) for finding in report.findings]
        if not self._redraws:
            lines = [self._progress(report) + "  " + numbers(report.row), *findings]
            self._out.write("".join(f"{line}\n" for line in lines))
            self._out.flush()
            return
        self._erase()
        for line in findings:  # these stay above the block
            self._out.write(f"{line}\n")
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in self._block(report)]
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")

    def _block(self, report: Report) -> list[str]:
        lines = [f"{self._title}  {self._progress(report)}", numbers(report.row)]
        for name in [name for name in CURVES if name in self._curves][:2]:
            values = self._curves[name]
            lines.append(f"{name:<14} {sparkline(values)} {values[0]:.3g} → {values[-1]:.3g}")
        if report.rollouts:
            lines += sample_lines(report.rollouts[0])
        return lines

    def _progress(self, report: Report) -> str:
        done, total = report.step, report.total_steps
        text = f"step {done}/{total}"
        begun = self._first or 0
        if done > begun:
            left_s = (time.monotonic() - self._begun_s) / (done - begun) * (total - done)
            text += f"  {duration(left_s)} left" if done < total else ""
        return text


def numbers(row: Mapping[str, Any]) -> str:
    """The numbers of a step that a reader wants first.

    >>> numbers({"reward/mean": 0.25, "seconds/step": 3.14159})
    'reward 0.25  s/step 3.14'
    """
    return "  ".join(f"{label} {row[name]:.3g}" for name, label in NUMBERS if name in row)


def sample_lines(rollout: Rollout) -> list[str]:
    """The end of a text and what it got."""
    text = rollout.text.translate(VISIBLE).splitlines() or [""]
    verdict = f" ({rollout.score.verdict})" if rollout.score.verdict else ""
    return [f"── {rollout.problem_id}: reward {rollout.score.total:.3g}{verdict}", *text[-SAMPLE_LINES:]]


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(200), duration(4000)
    ('42 s', '3 min', '1 h 7 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
