"""The run pages' API: what was written is shown, while it is written too; nothing else can be reached."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.learner.checkpoint import write_state
from etude.model.checkpoint import config_of
from etude.model.gguf import GGUFFile
from etude.model.lora import LoraWeights, LowRank
from etude.model.names import Place, hf_name
from etude.model.tokenizer import Tokenizer
from etude.records import Message
from etude.runlog import RunInfo, RunReader, RunWriter
from etude.serve.app import create_app
from etude.serve.models import ModelPool, ModelSpec
from etude.serve.run_metrics import MetricsTable
from etude.serve.run_models import finder_of
from etude.serve.settings import ServeSettings
from tests.serve.example_runs import LONG, Course, Run, Writing
from tests.serve.live import CONTEXT, live_of

STEPS = 6


def load(spec: ModelSpec) -> Engine:
    return Engine.load(
        spec.path, context=CONTEXT, threads=1, cache_tokens=4 * CONTEXT, weight_type=spec.weight_type
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Path]:
    """a-s0, a-s1: two seeds, the second of which is being written; other: another task."""
    folder = tmp_path_factory.mktemp("runs")
    with GGUFFile.open(tiny) as file:
        tokenizer, model = Tokenizer.from_metadata(dict(file.metadata)), config_of(file)
    courses = [
        Course("a-s0", "largest", STEPS, 0, model=str(tiny)),
        Course("a-s1", "largest", STEPS, 1, model=str(tiny)),
        Course("other", "add", STEPS, 0, model=str(tiny)),
    ]
    runs = [
        Run(folder, course, Writing(course, tokenizer, None), hour) for hour, course in enumerate(courses)
    ]
    for run in runs:
        for _ in range(STEPS):
            run.step()
    runs[0].finish(model)
    runs[2].writer.close()
    yield folder
    runs[1].writer.close()


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    with client_of(root) as client:
        yield client


def app_of(root: Path | None) -> Any:
    pool = ModelPool([], load, finder=finder_of(root) or (lambda name: None))
    return create_app(ServeSettings(runs_folder=root), pool)


def client_of(root: Path | None) -> TestClient:
    return TestClient(app_of(root), base_url="http://localhost", raise_server_exceptions=False)


def get(client: TestClient, path: str, **params: Any) -> Any:
    response = client.get(path, params=params)
    assert response.status_code == 200, response.text
    return response.json()


# ── lists ──


def test_the_list_has_every_run(client: TestClient) -> None:
    runs = {run["name"]: run for run in get(client, "/api/runs")["runs"]}
    assert list(runs) == ["other", "a-s1", "a-s0"]  # the newest first
    assert [run["state"] for run in runs.values()] == ["stopped", "running", "finished"]
    assert runs["a-s0"]["family"] == runs["a-s1"]["family"] != runs["other"]["family"]
    assert (runs["a-s1"]["seed"], runs["a-s1"]["steps"], runs["a-s1"]["step"]) == (1, STEPS, STEPS)
    assert runs["other"]["last"].keys() >= {"reward/mean", "eval/accuracy", "loss"}
    assert runs["other"]["spark"]["name"] == "reward/mean" and len(runs["other"]["spark"]["values"]) == STEPS


def test_a_run_in_full(client: TestClient, root: Path) -> None:
    run = get(client, "/api/runs/a-s0")
    assert (
        run["config"] == (root / "a-s0" / "config.toml").read_text() and run["settings"]["run"]["seed"] == 0
    )
    assert [one["step"] for one in run["checkpoints"]] == [5] and run["checkpoints"][0]["best"]
    assert run["rollout_steps"] == list(range(1, STEPS + 1)) and run["rows"] == STEPS + 1
    assert run["final_model"] == "runs/a-s0/final"
    names = [phase["name"] for phase in run["costs"]["phases"]]
    assert names == ["eval", "sampling", "scoring", "update", "publish", "storing"]
    assert math.isclose(sum(phase["share"] for phase in run["costs"]["phases"]), 1, abs_tol=1e-3)
    update = next(phase for phase in run["costs"]["phases"] if phase["name"] == "update")
    assert math.isclose(
        sum(part["total_s"] for part in run["costs"]["parts"]), update["total_s"], rel_tol=1e-3
    )
    assert run["costs"]["memory_bytes"]["peak"] == 1.9e9 + STEPS * 1e6


def test_findings_are_the_doctors(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "sick", {}, RunInfo("grpo")) as writer:
        writer.metrics(1, {"kl": float("nan"), "grad_norm": float("inf")})
        writer.doctor(
            1, {"sign": "kl-spike", "seen": "s", "advice": "a", "text": "s a", "value": float("nan")}
        )
    with client_of(tmp_path) as client:
        run = get(client, "/api/runs/sick")
        assert [(row["sign"], row["value"]) for row in run["findings"]] == [("kl-spike", None)]
        assert run["last"] == {"kl": None, "grad_norm": None} and run["spark"] is None
        assert get(client, "/api/runs/sick/metrics") == {"step": [1], "kl": [None], "grad_norm": [None]}


def test_settings_that_differ(client: TestClient) -> None:
    found = get(client, "/api/runs-diff", a="a-s0", b="other")["differences"]
    assert {row["key"]: (row["a"], row["b"]) for row in found} == {
        "data.train": ("task:largest", "task:add"),
        "data.held_out": ("task:largest?held_out=true&size=300", "task:add?held_out=true&size=300"),
        "run.name": ("a-s0", "other"),
    }
    assert get(client, "/api/runs-diff", a="a-s0", b="a-s0")["differences"] == []


# ── curves ──


def test_columns_are_what_was_written(client: TestClient, root: Path) -> None:
    rows = RunReader(root / "a-s0").metrics()
    found = get(client, "/api/runs/a-s0/metrics", names=["reward/mean", "eval/accuracy", "nothing"])
    assert found.keys() == {"step", "reward/mean", "eval/accuracy"}
    assert found["step"] == [row["step"] for row in rows]
    for name in ("reward/mean", "eval/accuracy"):
        values = [row.get(name) for row in rows]
        assert found[name] == [None if v is None else pytest.approx(v, rel=1e-5) for v in values]
    assert get(client, "/api/runs/a-s0/metrics", names="loss,kl", after=4)["step"] == [5, 6]
    assert get(client, "/api/runs/a-s0/metrics", names="loss", after=1, before=4)["step"] == [2, 3]
    names = get(client, "/api/runs/a-s0/metric-names")["names"]
    assert set(get(client, "/api/runs/a-s0/metrics", names="seconds/*")) == {"step"} | {
        name for name in names if name.startswith("seconds/")
    }
    part = "reward/part/math?parse=lenient"
    assert part in get(client, "/api/runs/a-s0/metrics", names=part)


def test_a_long_run_is_binned(tmp_path: Path) -> None:
    """10,000 steps become means, and the highest and lowest of each bin; nothing is lost of a spike."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=10_000)
    values[7777] = 1e6
    with RunWriter.create(tmp_path / LONG, {}, RunInfo("grpo", 10_000)) as writer:
        lines = [
            json.dumps({"step": i, "x": float(v)} | ({"rare": 1.0} if i == 500 else {}))
            for i, v in enumerate(values)
        ]
        (writer.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    table = MetricsTable(tmp_path / LONG)
    table.refresh()
    found = table.columns(["x", "rare"], max_points=300)
    assert len(found["step"]) <= 300 and found["step"][-1] == 9_999
    size = found["step"][0] + 1
    assert found["x"][0] == pytest.approx(values[:size].mean(), rel=1e-5)
    assert max(found["x:max"]) == 1e6 and min(found["x:min"]) == pytest.approx(values.min(), rel=1e-5)
    assert [value for value in found["rare"] if value is not None] == [1.0]
    with client_of(tmp_path) as client:
        [run] = get(client, "/api/runs")["runs"]
        assert run["step"] == 9_999 and 20 < len(run["spark"]["values"]) < 60 if run["spark"] else True
        assert len(get(client, f"/api/runs/{LONG}/metrics", names="x")["step"]) <= 2000


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}, RunInfo("sft")) as writer, client_of(tmp_path) as client:
        writer.metrics(1, {"loss": 2.0})
        with (writer.folder / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 2, "lo')
            file.flush()
            assert get(client, "/api/runs/run/metrics")["step"] == [1]
            assert get(client, "/api/runs/run")["step"] == 1
            file.write(b'ss": 1.0}\nbroken\n[1]\n')
        writer.metrics(3, {"loss": 0.5})
        assert get(client, "/api/runs/run/metrics") == {"step": [1, 2, 3], "loss": [2.0, 1.0, 0.5]}


def test_a_resumed_run_begins_anew(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "run")
    with RunWriter.create(tmp_path / "run", {}, RunInfo("sft")) as writer:
        for step in range(1, 5):
            writer.metrics(step, {"loss": 1 / step})
            if step == 2:
                with writer.checkpoint(step) as draft:
                    (draft / "x").write_text("")
        table.refresh()
        assert (len(table), table.generation) == (4, 0)
    with RunWriter.resume(tmp_path / "run") as writer:
        table.refresh()
        assert (len(table), table.generation) == (2, 1)
        writer.metrics(3, {"loss": 7.0})
        table.refresh()
        assert table.columns(["loss"]) == {"step": [1, 2, 3], "loss": [1.0, 0.5, 7.0]}


# ── rollouts ──


def test_rollouts_token_by_token(client: TestClient, root: Path) -> None:
    stored = RunReader(root / "other").rollouts(3)
    page = get(client, "/api/runs/other/rollouts/3", limit=1000)
    assert page["total"] == len(page["rollouts"]) == len(stored) == 32 and page["tokens_missing"] is None
    totals = [row["score"]["total"] for row in page["rollouts"]]
    assert totals == sorted(totals, reverse=True)
    by_place = {(row["problem_id"], row["index"]): row for row in stored}
    for row in page["rollouts"]:
        original = by_place[row["problem_id"], row["index"]]
        assert {key: row[key] for key in original} == original
        answer = row["tokens"][row["prompt_length"] :]
        assert "".join(answer).removesuffix("<|im_end|>") == row["text"]
        assert len(row["tokens"]) == len(row["token_ids"])
    assert set(page["columns"]) == {"logprobs", "advantages", "ratios", "learner_logprobs", "entropies"}
    assert [group["n"] for group in page["groups"]] == [8] * 4


def test_rollouts_in_pages_and_groups(client: TestClient) -> None:
    path = "/api/runs/other/rollouts/3"
    whole = get(client, path, sort="index", order="asc", limit=1000)["rollouts"]
    parts = [get(client, path, sort="index", order="asc", offset=at, limit=5) for at in range(0, 35, 5)]
    assert [row for part in parts for row in part["rollouts"]] == whole
    problem = whole[0]["problem_id"]
    group = get(client, path, problem=problem)
    assert group["total"] == 8 and {row["problem_id"] for row in group["rollouts"]} == {problem}
    assert len(group["groups"]) == 4


def test_rollouts_of_a_model_that_is_not_here(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "other", tmp_path / "moved")
    config = tmp_path / "moved" / "config.toml"
    config.write_text(config.read_text().replace("tiny.gguf", "gone.gguf"))
    row = json.loads(
        gzip.decompress((root / "other" / "rollouts" / "000001.jsonl.gz").read_bytes()).split(b"\n")[0]
    )
    row["advantages"] = ["NaN"] * len(row["token_ids"])
    row["score"]["total"] = "NaN"
    (tmp_path / "moved" / "rollouts" / "000001.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(row).encode() + b"\n")
    )
    with client_of(tmp_path) as client:
        page = get(client, "/api/runs/moved/rollouts/1")
        assert "gone.gguf" in page["tokens_missing"] and page["rollouts"][0]["tokens"] is None
        assert set(page["rollouts"][0]["advantages"]) == {None} and page["groups"][0]["reward_mean"] is None


# ── live ──


def test_rows_come_as_they_are_written(tmp_path: Path) -> None:
    with (
        RunWriter.create(tmp_path / "live", {}, RunInfo("grpo", 9)) as writer,
        live_of(app_of(tmp_path)) as live,
    ):
        writer.metrics(1, {"loss": 3.0})
        writer.metrics(2, {"loss": float("nan")})
        with (
            httpx2.Client(base_url=live.url, timeout=30) as http,
            http.stream("GET", "/api/runs/live/events", params={"after": 1}) as stream,
        ):
            lines = stream.iter_lines()
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert event(lines) == ("metrics", {"step": 2, "loss": None})
            state = {"state": "running", "step": 2, "rollout_step": None, "generation": 0}
            assert event(lines) == ("state", state)
            writer.metrics(3, {"loss": 1.0})
            assert event(lines) == ("metrics", {"step": 3, "loss": 1.0})
            assert event(lines) == ("state", state | {"step": 3})
            writer.doctor(3, {"sign": "too-easy", "text": "t"})
            assert event(lines) == ("finding", {"step": 3, "sign": "too-easy", "text": "t"})
            writer.rollouts(3, [])
            assert event(lines)[1]["rollout_step"] == 3
            writer.close()
            assert event(lines)[1]["state"] == "stopped"
            live.server.stopping = True
            assert next(lines, None) is None  # it ends when the server does


def event(lines: Iterator[str]) -> tuple[str, Any]:
    """The next one's name and data."""
    found: dict[str, str] = {}
    for line in lines:
        if not line and found:
            break
        name, _, value = line.partition(": ")
        if name:
            found[name] = value
    return found["event"], json.loads(found["data"])


# ── what cannot be reached ──


def test_names_reach_nothing_else(tmp_path: Path, root: Path) -> None:
    inside = tmp_path / "runs"
    shutil.copytree(root / "other", inside / "real")
    shutil.copytree(root / "other", tmp_path / "secret")
    shutil.copytree(root / "other", inside / ".hidden")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "near").symlink_to(inside / "real")
    shutil.copytree(root / "other", inside / "trap")
    (inside / "trap" / "config.toml").unlink()
    (inside / "trap" / "config.toml").symlink_to("/etc/passwd")
    (inside / "circle").symlink_to(inside / "circle")
    (inside / "real" / "rollouts" / "000001.jsonl.gz").unlink()
    (inside / "real" / "rollouts" / "000001.jsonl.gz").symlink_to(
        tmp_path / "secret" / "rollouts" / "000001.jsonl.gz"
    )
    with client_of(inside) as client:
        assert {run["name"] for run in get(client, "/api/runs")["runs"]} == {"real", "near"}
        for name in (
            "link", "trap", "circle", ".hidden", "..", "..%2fsecret", "%2e%2e%2fsecret",
            "real%2f..%2f..%2fsecret", "..%5csecret", "nothing", "%00", "a" * 300, "real%00", "%F0%9F%99%82",
        ):  # fmt: skip
            for path in ("", "/metrics", "/rollouts/3", "/events", "/metric-names"):
                assert client.get(f"/api/runs/{name}{path}").status_code == 404, (name, path)
            assert client.get("/api/runs-diff", params={"a": name, "b": "real"}).status_code == 404
        assert client.get("/api/runs/real/rollouts/1").status_code == 404
        assert client.get("/api/runs/real/rollouts/2").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("rollouts/99", 404), ("rollouts/x", 404), ("rollouts/-1", 404), (f"rollouts/{'9' * 5000}", 404),
        ("rollouts/3?sort=taste", 400), ("rollouts/3?order=up", 400), ("rollouts/3?limit=0", 400),
        ("rollouts/3?offset=-1", 400), ("metrics?after=x", 400), ("metrics?max_points=0", 400),
        (f"metrics?after={'9' * 400}", 400), ("events?after=1.5", 400),
    ],
)  # fmt: skip
def test_refusals(client: TestClient, path: str, status: int) -> None:
    response = client.get(f"/api/runs/other/{path}")
    assert response.status_code == status and response.json()["error"]["message"], response.text


def test_a_server_without_runs_says_so() -> None:
    with client_of(None) as client:
        response = client.get("/api/runs")
        assert response.status_code == 404 and "--runs" in response.text
        assert get(client, "/api/session")["runs"] is False


def test_it_only_reads(client: TestClient, root: Path) -> None:
    def tree() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*") if path.is_file()
        }

    before = tree()
    for path in ("", "/a-s0", "/a-s1", "/a-s0/metrics", "/a-s0/rollouts/1", "/a-s0/metric-names"):
        get(client, f"/api/runs{path}")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert client.request(method, "/api/runs/a-s0", json={}).status_code == 405
    assert tree() == before


# ── chats with checkpoints ──


def run_of(folder: Path, name: str, base: Path, lora: dict[str, Any] | None, **tensors: Any) -> RunWriter:
    """A run with a checkpoint as a learner writes it (etude/learner/checkpoint.py)."""
    config = {"model": {"name": str(base)}, "run": {"name": name}, "sampling": {"weight_type": "f32"}}
    writer = RunWriter.create(folder / name, config, RunInfo("grpo", 9))
    with writer.checkpoint(7, 0.5) as draft:
        pairs = [(key, torch.from_numpy(value)) for key, value in tensors.items()]
        write_state(draft / "policy", {"lora": lora, "step": 7}, pairs)
    writer.close()
    return writer


def said(client: TestClient, model: str) -> str:
    body = {
        "model": model, "temperature": 0, "max_tokens": 12, "messages": [{"role": "user", "content": "Hi"}],
    }  # fmt: skip
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_any_checkpoint_can_be_talked_with(tmp_path: Path, tiny: Path) -> None:
    """A whole model's weights and a LoRA's pairs say what the engine says that is given them by hand."""
    with GGUFFile.open(tiny) as source:
        config = config_of(source)
        rng = np.random.default_rng(3)
        place = Place("attn_v", 1)
        name = hf_name(config.architecture, place)
        value = rng.normal(size=source.dequantize("blk.1.attn_v.weight").shape).astype(np.float32)
    module = name.removesuffix(".weight")
    a = rng.normal(size=(2, value.shape[1])).astype(np.float32)
    b = rng.normal(size=(value.shape[0], 2)).astype(np.float32)
    pair = {
        f"weight/base_model.model.{module}.lora_A.weight": a,
        f"weight/base_model.model.{module}.lora_B.weight": b,
    }
    run_of(tmp_path, "whole", tiny, None, **{f"weight/{name}": value, f"exp_avg/{name}": value})
    run_of(tmp_path, "pairs", tiny, {"rank": 2, "alpha": 4.0, "slots": [], "seed": 0}, **pair)
    run_of(tmp_path, "plain", tiny, {"rank": 2, "alpha": 4.0}, **{key: 0 * v for key, v in pair.items()})
    with client_of(tmp_path) as client:
        run = get(client, "/api/runs/whole")
        assert run["checkpoints"] == [{"step": 7, "best": True, "metric": 0.5, "model": "runs/whole/7"}]
        answers = {run: said(client, f"runs/{run}/7") for run in ("whole", "pairs", "plain")}
        assert said(client, "runs/whole/best") == said(client, "runs/whole/last") == answers["whole"]
        assert get(client, "/v1/models/runs/pairs/7")["id"] == "runs/pairs/7"
        for missing in (
            "runs/whole/8",
            "runs/none/7",
            "runs/whole/final",
            "runs/../whole/7",
            "runs/whole/x",
            "tiny",
        ):
            body = {"model": missing, "messages": [{"role": "user", "content": "Hi"}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 404, missing
    with Engine.load(tiny, context=CONTEXT, threads=1, weight_type="f32") as engine:

        def alone(adapter: str | None = None) -> str:
            prompt = [Message("user", "Hi")]
            [[completion]] = engine.generate([prompt], temperature=0, max_tokens=12, adapter=adapter)
            return engine.tokenizer.decode(completion.token_ids)

        assert answers["plain"] == alone()
        engine.load_adapter("by hand", LoraWeights(2.0, {place: LowRank(a, b)}))
        assert answers["pairs"] == alone("by hand") != answers["plain"]
        engine.load_weights([(name, value)], 1)
        assert answers["whole"] == alone() != answers["plain"]


def test_a_finished_adapter_can_be_talked_with(client: TestClient, root: Path, tiny: Path) -> None:
    text = said(client, "runs/a-s0/final")
    with Engine.load(tiny, context=CONTEXT, threads=1) as engine:
        engine.load_adapter("final", root / "a-s0" / "final" / "adapter.gguf")
        prompt = [Message("user", "Hi")]
        [[completion]] = engine.generate([prompt], temperature=0, max_tokens=12, adapter="final")
        assert text == engine.tokenizer.decode(completion.token_ids)
    assert (
        client.post("/v1/completions", json={"model": "runs/other/final", "prompt": "a"}).status_code == 404
    )
