"""What llama.cpp's server tests found on two servers, side by side: outcomes, and shapes of answers.

A shape is what a client can rely on: {"a": 1, "b": [null]} has the shape {"a": "number", "b": ["null"]}. The
items of a list, and the events of a stream, are merged into one shape, where a value may have several types
("null|string").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Shape = Any
"""A dict of shapes, a list with one shape or none, or names of types joined by |."""


@dataclass
class Outcome:
    """Of one test on one server. state: passed, failed or skipped. answers: request, status and shape."""

    state: str
    message: str = ""
    answers: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_outcomes(report: Path, record: Path) -> dict[str, Outcome]:
    """Outcomes by test, such as `basic::test_no_ui`, of pytest's XML and of the record of answers."""
    found: dict[str, Outcome] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.attrib['classname'].rpartition('test_')[2]}::{case.attrib['name']}"
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        state = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
        found[name] = Outcome(state, "" if problem is None else _reason(problem))
    for line in record.read_text().splitlines():
        answer = json.loads(line)
        file, _, test = answer.pop("test").partition("::")
        outcome = found.get(f"{Path(file).stem.removeprefix('test_')}::{test}")
        if outcome is not None:
            bodies = answer.pop("bodies")
            outcome.answers.append(answer | {"shape": merged(shape_of(body) for body in bodies)})
    return found


def _reason(problem: ElementTree.Element) -> str:
    """The line that says what was wrong: pytest's messages go on for pages."""
    lines = [line for line in problem.attrib.get("message", "").splitlines() if line.strip()]
    return lines[0][:300] if lines else ""


# ── shapes ──


def shape_of(value: Any) -> Shape:
    """
    >>> shape_of({"a": 1.5, "b": [None, "x"], "c": []})
    {'a': 'number', 'b': ['null|string'], 'c': []}
    """
    if isinstance(value, dict):
        return {key: shape_of(each) for key, each in value.items()}
    if isinstance(value, list):
        return [merged(map(shape_of, value))] if value else []
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    return "string" if isinstance(value, str) else "number"


def merged(shapes: Iterable[Shape]) -> Shape:
    """One shape for values of several."""
    result: Shape = None
    for shape in shapes:
        result = shape if result is None else _union(result, shape)
    return result


def _union(one: Shape, other: Shape) -> Shape:
    if isinstance(one, dict) and isinstance(other, dict):
        both = {key: _union(value, other[key]) if key in other else value for key, value in one.items()}
        return both | {key: value for key, value in other.items() if key not in one}
    if isinstance(one, list) and isinstance(other, list):
        return [_union(one[0], other[0])] if one and other else one or other
    structures = [shape for shape in (one, other) if not isinstance(shape, str)]
    if structures:  # beside a null, say: its keys are what clients read
        return structures[0]
    return "|".join(sorted({*one.split("|"), *other.split("|")}))


def differences(real: Shape, ours: Shape, path: str = "") -> list[str]:
    """What a client of the real server misses in our answer. What ours has beside it is no difference.

    >>> differences({"a": "number", "b": ["string"]}, {"b": ["null"], "c": "string"})
    ['a is missing', 'b[] is null, not string']
    """
    if isinstance(real, dict) and isinstance(ours, dict):
        found = []
        for key, shape in real.items():
            inner = f"{path}.{key}" if path else key
            found += differences(shape, ours[key], inner) if key in ours else [f"{inner} is missing"]
        return found
    if isinstance(real, list) and isinstance(ours, list):
        return differences(real[0], ours[0], f"{path}[]") if real and ours else []
    if _kinds(real) & _kinds(ours):
        return []
    return [f"{path or 'the answer'} is {_named(ours)}, not {_named(real)}"]


def _kinds(shape: Shape) -> set[str]:
    return set(_named(shape).split("|"))


def _named(shape: Shape) -> str:
    return "object" if isinstance(shape, dict) else "list" if isinstance(shape, list) else str(shape)


def answer_differences(real: Outcome, ours: Outcome) -> list[str]:
    """Of the answers that both servers gave to the same requests, up to where one test stopped."""
    found: list[str] = []
    for theirs, mine in zip(real.answers, ours.answers, strict=False):
        where = theirs["request"]
        if where != mine["request"]:
            break
        if theirs["status"] != mine["status"]:
            found.append(f"{where}: status {mine['status']}, not {theirs['status']}")
        else:
            found += [f"{where}: {each}" for each in differences(theirs["shape"], mine["shape"])]
    return sorted(set(found))


# ── the table ──

VERDICTS = {
    "both": "passes on both",
    "ours fails": "passes on llama-server, fails here",
    "real fails": "fails on llama-server, passes here",
    "model": "fails on both: it needs a model, or pages, that are not made here",
    "neither": "fails on both",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class Row:
    """A test. reason: why it fails here; differences: of shapes, of what both answered."""

    test: str
    verdict: str
    real: str
    ours: str
    reason: str
    differences: tuple[str, ...]


def rows_of(
    real: Mapping[str, Outcome],
    ours: Mapping[str, Outcome],
    needs_model: Mapping[str, str],
    explained: Mapping[str, str],
) -> list[Row]:
    """needs_model, explained: beginning of a test's name → why it cannot pass; why it fails here only."""
    rows = []
    for test in [*real, *(test for test in ours if test not in real)]:
        one = real.get(test, Outcome("failed", "did not run"))
        other = ours.get(test, Outcome("failed", "did not run"))
        model = _explanation(test, needs_model)
        verdict = _verdict(one.state, other.state, model is not None)
        reason = other.message if other.state == "failed" else ""
        if verdict == "ours fails":
            reason = _explanation(test, explained) or reason
        elif verdict in ("neither", "model"):
            reason = model or one.message
        elif verdict == "real fails":
            reason = model or f"there: {one.message}"
        rows.append(Row(test, verdict, one.state, other.state, reason, tuple(answer_differences(one, other))))
    return rows


def _explanation(test: str, table: Mapping[str, str]) -> str | None:
    return next((text for start, text in table.items() if test.startswith(start)), None)


def _verdict(real: str, ours: str, needs_model: bool) -> str:
    if "skipped" in (real, ours):
        return "skipped"
    if real == ours:
        return "both" if real == "passed" else "model" if needs_model else "neither"
    return "ours fails" if real == "passed" else "real fails"


def markdown(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """Counts by file, then every test that does not pass on both, then differences of shapes."""
    lines = [f"* {name}: {value}" for name, value in facts.items()]
    files = list(dict.fromkeys(row.test.partition("::")[0] for row in rows))
    lines += ["", f"| file | {' | '.join(VERDICTS.values())} |", "|---" * (len(VERDICTS) + 1) + "|"]
    total: Counter[str] = Counter()
    for file in files:
        count = Counter(row.verdict for row in rows if row.test.partition("::")[0] == file)
        total += count
        lines.append(f"| {file} | {' | '.join(str(count[verdict] or '') for verdict in VERDICTS)} |")
    lines.append(f"| **all** | {' | '.join(f'**{total[verdict]}**' for verdict in VERDICTS)} |")
    for verdict in ("ours fails", "real fails", "neither", "model"):
        chosen = [row for row in rows if row.verdict == verdict]
        if chosen:
            lines += ["", f"### {VERDICTS[verdict].capitalize()}", "", "| test | why |", "|---|---|"]
            lines += [f"| {_cell(row.test)} | {_cell(row.reason)} |" for row in chosen]
    found = Counter(difference for row in rows for difference in row.differences)
    if found:
        lines += ["", "### Shapes that differ", "", "| answer | tests |", "|---|---|"]
        lines += [f"| {_cell(text)} | {n} |" for text, n in sorted(found.items())]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:300]


def written_table(folder: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """table.json and table.md."""
    record = {"facts": dict(facts), "rows": [asdict(row) for row in rows]}
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(rows, facts))
