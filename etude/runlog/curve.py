"""A run's numbers as a picture: curves over the steps, with their intervals, in plain SVG.

    svg = curve_svg(RunReader(folder).metrics(), [Curve("eval/accuracy", "held out")])

Any browser opens it, and it needs no library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 44, 40
"""Pixels around the plot; on the right stand the names of the curves."""
COLOURS = ("#9aa4ad", "#d1591b", "#1b5fbf", "#2e8b57", "#7a3fa0")
"""In the order of the curves; later ones lie above."""
NAME_DISTANCE = 16
"""Pixels that names keep from each other."""
STYLE = "font-family:system-ui,sans-serif;font-size:13px;fill:#222"


@dataclass(frozen=True)
class Curve:
    """A number of metrics.jsonl. Where a step also has NAME/low and NAME/high, they are drawn as a bar."""

    name: str
    label: str


@dataclass(frozen=True)
class Frame:
    """The plot's ranges: steps 0 … steps, values low … high."""

    steps: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, self.steps)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)


def curve_svg(
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[Curve],
    *,
    title: str = "",
    levels: Mapping[str, float] | None = None,
) -> str:
    """rows: of metrics.jsonl. levels: named values that do not change, drawn as dashed lines."""
    levels = levels or {}
    points = {curve: points_of(rows, curve.name) for curve in curves}
    values = [value for some in points.values() for _, value in some] + list(levels.values())
    last = max((int(row["step"]) for row in rows), default=1)
    frame = Frame(last, min([0.0, *values]), max([1.0, *values]))
    parts = [*_axes(frame, title)]
    names: list[tuple[float, str, str]] = []
    for label, value in levels.items():
        y = frame.y(value)
        parts.append(_line(LEFT, y, frame.x(last), y, '#888" stroke-dasharray="5 4'))
        names.append((y, label, "#666"))
    for at, curve in enumerate(curves):
        colour = COLOURS[at % len(COLOURS)]
        parts += _drawn(rows, curve, points[curve], frame, colour)
        if points[curve]:
            names.append((frame.y(points[curve][-1][1]), curve.label, colour))
    for y, label, colour in spread(names):
        parts.append(_text(frame.x(last) + 10, y + 4, label, f"fill:{colour}"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" style="{STYLE}">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


def points_of(rows: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) where a step has that number, and it is finite.

    >>> points_of([{"step": 0, "loss": 2.5}, {"step": 1}, {"step": 2, "loss": "nan"}], "loss")
    [(0, 2.5)]
    """
    return [(int(row["step"]), float(row[name])) for row in rows if _is_number(row.get(name))]


def spread(names: Iterable[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Names in the order of their heights, moved down where they would lie on each other; all stay inside.

    >>> spread([(100, "b", ""), (50, "a", ""), (104, "c", "")])
    [(50, 'a', ''), (100, 'b', ''), (116, 'c', '')]
    """
    placed: list[tuple[float, str, str]] = []
    for y, label, colour in sorted(names):
        placed.append((max(y, placed[-1][0] + NAME_DISTANCE) if placed else y, label, colour))
    limit: float = HEIGHT - BOTTOM
    for at in reversed(range(len(placed))):
        y, label, colour = placed[at]
        placed[at] = (min(y, limit), label, colour)
        limit = placed[at][0] - NAME_DISTANCE
    return placed


def spacing(length: float) -> float:
    """1, 2 or 5 times a power of ten: at most six of them in a range.

    >>> [spacing(length) for length in (1.0, 60, 7)]
    [0.2, 10.0, 2.0]
    """
    power = 10.0 ** math.floor(math.log10(length / 6))
    return next(round(k * power, 12) for k in (1, 2, 5, 10) if k * power * 6 >= length * (1 - 1e-9))


def _axes(frame: Frame, title: str) -> Iterable[str]:
    yield _text(LEFT, 24, title, "font-weight:600;font-size:15px")
    step = spacing(frame.high - frame.low)
    for k in range(math.ceil(frame.low / step), math.floor(frame.high / step) + 1):
        y = frame.y(k * step)
        yield _line(LEFT, y, WIDTH - RIGHT, y, "#e4e4e4")
        yield _text(LEFT - 8, y + 4, f"{k * step:g}", "text-anchor:end")
    step = max(1.0, spacing(max(1, frame.steps)))
    for k in range(math.floor(frame.steps / step) + 1):
        yield _text(frame.x(k * step), HEIGHT - BOTTOM + 18, f"{k * step:g}", "text-anchor:middle")
    yield _text(frame.x(frame.steps / 2), HEIGHT - 6, "step", "text-anchor:middle;fill:#666")


def _drawn(
    rows: Sequence[Mapping[str, Any]],
    curve: Curve,
    points: Sequence[tuple[int, float]],
    frame: Frame,
    colour: str,
) -> Iterable[str]:
    """A curve's line and, where there are intervals, its points with bars."""
    path = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in points)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for row in rows:
        value, low, high = (row.get(f"{curve.name}{end}") for end in ("", "/low", "/high"))
        if all(map(_is_number, (value, low, high))):
            x = frame.x(row["step"])
            yield _line(x, frame.y(low), x, frame.y(high), colour)  # type: ignore[arg-type]  # are numbers
            yield f'<circle cx="{x:.1f}" cy="{frame.y(value):.1f}" r="3.5" fill="{colour}"/>'  # type: ignore[arg-type]  # the same


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"/>'


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}">{escape(text)}</text>'
