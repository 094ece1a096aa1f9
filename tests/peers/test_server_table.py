"""The table of llama.cpp's server tests must see what differs, and the wrapper must pass on what counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.server_table import Outcome, differences, markdown, merged, read_outcomes, rows_of, shape_of

WRAPPER = Path(__file__).parent / "llama_server_wrapper" / "llama-server"
CASE = '<testcase classname="unit.test_basic" name='
REPORT = f"""<testsuites><testsuite>
{CASE}"test_a[1-x]"><failure message="assert 1 == 2&#10; more">…</failure></testcase>
{CASE}"test_b"/>{CASE}"test_c"><skipped/></testcase>
</testsuite></testsuites>"""


def test_outcomes_and_answers_are_read(tmp_path: Path) -> None:
    report, record = tmp_path / "report.xml", tmp_path / "record.jsonl"
    report.write_text(REPORT)
    line = {
        "test": "unit/test_basic.py::test_a[1-x]",
        "request": "GET /",
        "status": 200,
        "bodies": [{"a": 1}],
    }
    record.write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"test": "unit/test_basic.py::setup"}) + "\n"
    )
    found = read_outcomes(report, record)
    assert [outcome.state for outcome in found.values()] == ["failed", "passed", "skipped"]
    assert found["basic::test_a[1-x]"].message == "assert 1 == 2"
    assert found["basic::test_a[1-x]"].answers == [
        {"request": "GET /", "status": 200, "shape": {"a": "number"}}
    ]


@pytest.mark.parametrize(
    ("real", "ours", "expected"),
    [
        ({"a": 1}, {"a": 2.5, "b": 3}, []),
        ({"a": 1}, {}, ["a is missing"]),
        ({"a": [{"b": None}, {"b": "x"}]}, {"a": [{"b": "y"}]}, []),
        ({"a": [{"b": "x"}]}, {"a": [{"b": None}]}, ["a[].b is null, not string"]),
        ({"a": [1]}, {"a": []}, []),
        ({"a": {"b": 1}}, {"a": [1]}, ["a is list, not object"]),
        ([{"a": 1}], {"a": 1}, ["the answer is object, not list"]),
        ("text", {"error": {}}, ["the answer is object, not string"]),
        ({"a": True}, {"a": 1}, ["a is number, not boolean"]),
    ],
)
def test_differences_of_shapes(real: object, ours: object, expected: list[str]) -> None:
    assert differences(shape_of(real), shape_of(ours)) == expected


def test_events_are_merged() -> None:
    shape = merged(map(shape_of, [{"a": None, "c": {"d": 1}}, {"a": "x", "b": 1}, {"c": None}]))
    assert shape == {"a": "null|string", "b": "number", "c": {"d": "number"}}


def test_rows_tell_apart_whose_fault_it_is() -> None:
    states = {
        "x::1": ("passed", "passed"),
        "x::2": ("passed", "failed"),
        "x::3": ("failed", "passed"),
        "x::4": ("failed", "failed"),
        "x::5": ("failed", "failed"),
        "x::6": ("skipped", "skipped"),
    }
    real, ours = ({test: Outcome(pair[at], f"said {at}") for test, pair in states.items()} for at in (0, 1))
    rows = rows_of(real, ours, {"x::5": "a large model"}, {"x::2": "there are no slots"})
    assert [row.verdict for row in rows] == [
        "both",
        "ours fails",
        "real fails",
        "neither",
        "model",
        "skipped",
    ]
    assert [row.reason for row in rows] == [
        "",
        "there are no slots",
        "there: said 0",
        "said 0",
        "a large model",
        "",
    ]
    text = markdown(rows, {"etude": "1"})
    assert "| x | 1 | 1 | 1 | 1 | 1 | 1 |" in text and "| x::2 | there are no slots |" in text


def test_a_changed_status_is_a_difference() -> None:
    answers = [{"request": "GET /", "status": 200, "shape": {}}]
    one, other = Outcome("passed", "", answers), Outcome("passed", "", [answers[0] | {"status": 404}])
    [row] = rows_of({"x::1": one}, {"x::1": other}, {}, {})
    assert row.differences == ("GET /: status 404, not 200",)


def test_the_wrapper_says_what_it_leaves_out() -> None:
    """The file is missing on purpose: everything before that is what is looked at."""
    flags = ["--port", "1", "--model", "missing.gguf", "--ctx-size", "512", "--parallel", "2", "-b", "32"]
    flags += ["--no-jinja", "--alias", "b,a", "--no-such-flag", "-1", "--n-predict", "-1"]
    done = subprocess.run([sys.executable, str(WRAPPER), *flags], capture_output=True, text=True)
    assert done.returncode == 1 and "missing.gguf" in done.stderr
    ignored = [line for line in done.stderr.splitlines() if "ignored" in line]
    assert len(ignored) == 2 and "--no-jinja: every template" in ignored[0]
    assert "--no-such-flag -1: unknown" in ignored[1]
