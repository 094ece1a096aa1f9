"""From measured speeds to rows {work, model, ours, peer, ratio, goal}, and their table.

Of several rounds the best counts, on both sides: a shared machine only ever makes a run slower.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import random_model
from cases import Case
from llama_cpp import Group
from roofline import Roofline

PEAK_GOAL = 0.55
BANDWIDTH_GOAL = 0.85
BUSY_GOAL = 0.45
START_GOAL_S = 1.0
EXTRA_BYTES = 400_000_000
WEIGHT_FACTOR = 1.15


@dataclass
class Speeds:
    """All rounds of one piece of work, tokens per second."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """`ratio` above 1 is better for us, also for seconds and bytes. No `goal`: nothing is promised."""

    work: str
    model: str
    ours: float
    peer: float
    ratio: float
    goal: float | None
    unit: str
    met: bool | None
    note: str = ""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def row(
    work: str, model: str, ours: float, peer: float, goal: float | None, unit: str, note: str = ""
) -> Row:
    ratio = ours / peer
    return Row(work, model, ours, peer, ratio, goal, unit, None if goal is None else ratio >= goal, note)


def work_name(work: str | Group) -> str:
    return f"group of {work.n}, prompt {work.n_prompt}" if isinstance(work, Group) else work


def goal_of(case: Case, work: str | Group) -> float | None:
    if isinstance(work, Group):
        return case.group32_goal if work.n == 32 else None
    return case.prefill_goal if work.startswith("prefill") else case.stream_goal


def speed_rows(
    case: Case, work: str | Group, speeds: Speeds, roofline: Roofline, model_bytes: int
) -> list[Row]:
    """The ratio to llama.cpp, and for a large model the share of the int8 peak."""
    ours, peer = max(speeds.ours), max(speeds.peer)
    rows = [row(work_name(work), case.name, ours, peer, goal_of(case, work), "tokens/s")]
    if work == "one stream":
        rows[0] = with_bandwidth(rows[0], model_bytes, roofline)
    elif case.is_large:
        weights = random_model.LAYER_WEIGHTS + (random_model.HEAD_WEIGHTS if isinstance(work, Group) else 0)
        gops = ours * 2 * weights / 1e9
        name = f"{work_name(work)}, of the int8 peak"
        goal = PEAK_GOAL if not isinstance(work, Group) or work.n >= 32 else None
        rows.append(row(name, case.name, gops, roofline.int8_gops, goal, "GOP/s"))
    return rows


def with_bandwidth(stream: Row, model_bytes: int, roofline: Roofline) -> Row:
    """One stream also meets its goal by reading the weights at 85 % of the memory's speed."""
    share = stream.ours * model_bytes / 1e9 / roofline.read_gb_per_s
    values = asdict(stream) | {"note": f"{share:.0%} of the read bandwidth"}
    if stream.goal is not None:
        values["met"] = bool(stream.met) or share >= BANDWIDTH_GOAL
    return Row(**values)


def busy_rows(model: str, idle: dict[str, float], busy: dict[str, float]) -> list[Row]:
    """Ours beside one busy process against ours alone."""
    name = "{} beside a busy process, against alone"
    return [row(name.format(work), model, busy[work], idle[work], BUSY_GOAL, "tokens/s") for work in idle]


def start_rows(model: str, seconds: float, peak_rss_bytes: int, model_bytes: int) -> list[Row]:
    """Start to first token, and peak memory against weights and 400 MB (the cache of 512 tokens is small)."""
    allowed = WEIGHT_FACTOR * model_bytes + EXTRA_BYTES
    in_time = Row(
        "start to first token, against the limit", model, seconds, START_GOAL_S, START_GOAL_S / seconds, 1.0,
        "s", seconds <= START_GOAL_S,
    )  # fmt: skip
    in_memory = Row(
        "peak memory, against the limit", model, peak_rss_bytes / 1e6, allowed / 1e6,
        allowed / peak_rss_bytes, 1.0, "MB", peak_rss_bytes <= allowed,
    )  # fmt: skip
    return [in_time, in_memory]


def table(rows: list[Row]) -> str:
    """Markdown, as it goes into the docs."""
    lines = ["| work | model | ours | peer | unit | ratio | goal | |", "|---|---|--:|--:|---|--:|--:|---|"]
    for r in rows:
        goal = "" if r.goal is None else f"{r.goal:.2f}"
        verdict = {True: "met", False: "MISSED", None: ""}[r.met]
        if r.note:
            verdict = f"{verdict}; {r.note}" if verdict else r.note
        ours, peer = (f"{value:.0f}" if value >= 100 else f"{value:.2f}" for value in (r.ours, r.peer))
        lines.append(
            f"| {r.work} | {r.model} | {ours} | {peer} | {r.unit} | {r.ratio:.2f} | {goal} | {verdict} |"
        )
    return "\n".join(lines)
