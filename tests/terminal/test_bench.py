"""What `etude bench` runs and prints, on an engine that does no work."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest

from etude.terminal.bench import GroupTest, Sample, StreamTest, Test, measured, planned, row_of, run_once
from etude.terminal.bench_rows import PRINTERS, Setting
from etude.terminal.options import UsageError, parse
from etude.terminal.verbs import VERBS
from tests.terminal.scripted import ScriptedEngine

SETTING = Setting("m.gguf", "llama 135M Q8_0", 144_000_000, 134_515_008, 2, 512, "f16", "f16", "CPU")
LLAMA_BENCH_FIELDS = {
    "model_filename", "model_type", "model_size", "model_n_params", "n_threads", "n_ubatch", "type_k",
    "type_v", "cpu_info", "backends", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns",
    "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
}  # fmt: skip
BATCHED_BENCH_FIELDS = {
    "pp", "tg", "pl", "n_kv", "t_pp", "speed_pp", "t_tg", "speed_tg", "t", "speed", "is_pp_shared",
}  # fmt: skip


def plan(*argv: str) -> list[Test]:
    return planned(parse(VERBS["bench"], argv, {}))


def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda request: [1] * 10_000, set(), context=10_000)


def test_the_plan() -> None:
    assert plan() == [StreamTest(512, 0), StreamTest(0, 128)]
    assert [test.name for test in plan("-p", "64,128", "-n", "0", "-pg", "8,4")] == [
        "pp64",
        "pp128",
        "pp8+tg4",
    ]
    assert [test.name for test in plan("-p", "0", "-n", "4", "-d", "0,32")] == ["tg4", "tg4 @ d32"]
    groups = plan("-p", "0", "-n", "0", "-npl", "1,8", "-npp", "16", "-ntg", "4", "-pps")
    assert groups == [GroupTest(16, 4, 1, True), GroupTest(16, 4, 8, True)]
    assert [test.name for test in groups] == ["pl1 pps16+tg4", "pl8 pps16+tg4"]


@pytest.mark.parametrize(
    "argv", [["-p", "0", "-n", "0"], ["-pps"], ["-npp", "5"], ["-pg", "0,5"], ["-pg", "x"]]
)
def test_a_plan_without_sense(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        plan(*argv)


@pytest.mark.parametrize(
    ("test", "prompts", "n"),
    [
        (StreamTest(16, 0), [16], 1),
        (StreamTest(0, 4), [1], 1),
        (StreamTest(8, 4, depth=32), [32, 40], 1),
        (GroupTest(16, 4, 3, shared=True), [16, 16], 3),
        (GroupTest(16, 4, 3), [16] * 6, 1),
    ],
)
def test_what_is_run(test: Test, prompts: list[int], n: int) -> None:
    """Prompts are computed by themselves first; decode finds them in the cache; nothing is left behind."""
    runs = engine()
    sample = run_once(runs, 1000, test, random.Random(0))
    assert sample.reading_ns > 0 and sample.writing_ns > 0
    assert [len(request.prompt_ids) for request in runs.requests] == prompts
    assert runs.requests[-1].n == n and runs.requests[-1].params.ignore_eos
    assert runs.requests[-1].params.temperature == 1.0 and runs.requests[-1].params.top_k == 0
    if isinstance(test, GroupTest):
        half = len(prompts) // 2
        first, second = runs.requests[:half], runs.requests[half:]
        assert [request.prompt_ids for request in first] == [request.prompt_ids for request in second]
        assert {request.params.max_tokens for request in first} == {1}
    assert not runs._running and not runs._ended


def test_runs_have_prompts_of_their_own() -> None:
    runs, draw = engine(), random.Random(0)
    for _ in range(2):
        run_once(runs, 1000, StreamTest(16, 0), draw)
    assert runs.requests[0].prompt_ids != runs.requests[1].prompt_ids


def test_repetitions_and_warm_up() -> None:
    options = parse(VERBS["bench"], ["-p", "8", "-n", "0", "-r", "3"], {})
    runs = engine()
    (row,) = measured(runs, 1000, planned(options), options)
    assert len(row.samples_ns) == 3 and len(runs.requests) == 4
    options = parse(VERBS["bench"], ["-p", "8", "-n", "0", "-r", "3", "--no-warmup"], {})
    runs = engine()
    list(measured(runs, 1000, planned(options), options))
    assert len(runs.requests) == 3


# ── rows ──


def test_numbers_of_a_stream() -> None:
    samples = [Sample(reading_ns=1_000_000_000, writing_ns=5), Sample(reading_ns=500_000_000, writing_ns=7)]
    record = row_of(StreamTest(512, 0), samples).as_json(SETTING)
    assert LLAMA_BENCH_FIELDS <= record.keys() and not BATCHED_BENCH_FIELDS & record.keys()
    assert (record["test"], record["n_prompt"], record["n_gen"], record["n_depth"]) == ("pp512", 512, 0, 0)
    assert (record["avg_ns"], record["samples_ns"]) == (750_000_000, [1_000_000_000, 500_000_000])
    assert (record["avg_ts"], record["samples_ts"]) == (768.0, [512.0, 1024.0])
    assert record["stddev_ts"] == pytest.approx(362.038672) and record["stddev_ns"] == 353553391
    record = row_of(StreamTest(0, 4, 64), [Sample(9, 2_000_000_000)]).as_json(SETTING)
    assert (record["test"], record["avg_ts"], record["stddev_ts"]) == ("tg4 @ d64", 2.0, 0.0)
    record = row_of(StreamTest(6, 2), [Sample(1_000_000_000, 3_000_000_000)]).as_json(SETTING)
    assert (record["test"], record["avg_ts"]) == ("pp6+tg2", 2.0)


@pytest.mark.parametrize(("shared", "n_prompt_tokens"), [(True, 100), (False, 400)])
def test_numbers_of_a_group(shared: bool, n_prompt_tokens: int) -> None:
    samples = [Sample(500_000_000, 2_000_000_000)] * 2
    record = row_of(GroupTest(100, 50, 4, shared), samples).as_json(SETTING)
    assert LLAMA_BENCH_FIELDS | BATCHED_BENCH_FIELDS <= record.keys()
    assert (record["pp"], record["tg"], record["pl"], record["is_pp_shared"]) == (100, 50, 4, int(shared))
    assert (record["n_kv"], record["t_pp"], record["t_tg"], record["t"]) == (
        n_prompt_tokens + 200,
        0.5,
        2.0,
        2.5,
    )
    assert (record["speed_pp"], record["speed_tg"]) == (n_prompt_tokens / 0.5, 100.0)
    assert record["speed"] == (n_prompt_tokens + 200) / 2.5 and record["avg_ts"] == 100.0


def printed(form: str) -> str:
    stream = io.StringIO()
    printer = PRINTERS[form](stream)
    printer.add(row_of(StreamTest(512, 0), [Sample(1_000_000_000, 5)]).as_json(SETTING))
    printer.add(row_of(GroupTest(100, 50, 4), [Sample(1_000_000_000, 2_000_000_000)]).as_json(SETTING))
    printer.end()
    return stream.getvalue()


def test_the_table_is_llama_benchs() -> None:
    head, rule, first, second = printed("md").splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "model", "size", "params", "backend", "threads", "test", "t/s",
    ]  # fmt: skip
    assert set(rule) == set("| -:") and len({len(line) for line in (head, rule, first, second)}) == 1
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "llama 135M Q8_0", "137.33 MiB", "134.52 M", "CPU", "2", "pp512", "512.00 ± 0.00",
    ]  # fmt: skip
    assert "pl4 pp100+tg50" in second


def test_the_other_forms_hold_the_same() -> None:
    records = json.loads(printed("json"))
    assert [json.loads(line) for line in printed("jsonl").splitlines()] == [
        {**record, "test_time": lines["test_time"]}
        for record, lines in zip(records, map(json.loads, printed("jsonl").splitlines()), strict=True)
    ]
    rows = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [row["test"] for row in rows] == ["pp512", "pl4 pp100+tg50"]
    assert float(rows[0]["avg_ts"]) == records[0]["avg_ts"] == 512.0
