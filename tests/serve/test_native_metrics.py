"""/metrics and /lora-adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from tests.serve.live import client_of


def read(client: TestClient) -> dict[str, float]:
    """name → value; every one has its help and its type."""
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(
        "text/plain; version=0.0.4"
    )
    headers = dict(answer.headers.raw)
    assert int(headers[b"Process-Start-Time-Unix"]) > 10**9
    lines = answer.text.splitlines()
    found = dict(line.split(" ") for line in lines if not line.startswith("#"))
    for name in found:
        assert any(line.startswith(f"# HELP {name} ") for line in lines)
        assert {f"# TYPE {name} counter", f"# TYPE {name} gauge"} & set(lines)
    return {name.removeprefix("llamacpp:"): float(value) for name, value in found.items()}


def complete(client: TestClient, **fields: Any) -> Any:
    return client.post("/completion", json={"prompt": [50] * 70, "ignore_eos": True, **fields}).json()[
        "timings"
    ]


def test_what_was_done_is_counted(tiny: Path) -> None:
    with client_of(tiny, shows_metrics=True) as client:
        before = read(client)
        assert before["n_decode_total"] == before["prompt_tokens_total"] == 0
        timings = [complete(client, n_predict=n) for n in (4, 1, 9)]
        after = read(client)
        assert after["prompt_tokens_total"] == sum(each["prompt_n"] for each in timings) == 70 + 2 * 6
        assert after["prompt_tokens_cached_total"] == 2 * 64
        assert after["tokens_predicted_total"] == 14 and after["n_tokens_max"] == 79
        assert after["n_decode_total"] >= 14 and after["requests_processing"] == 0
        assert after["predicted_tokens_seconds"] > 0 and after["etude:requests_total"] == 3
        assert read(client)["predicted_tokens_seconds"] == 0
        client.post("/v1/embeddings", json={"input": "abc"})
        client.post("/embedding", json={"input": "abc"})
        assert read(client)["prompt_tokens_total"] == after["prompt_tokens_total"] + 6


def test_a_model_that_sleeps_takes_no_numbers_with_it(tiny: Path) -> None:
    with client_of(tiny, shows_metrics=True) as client:
        complete(client, n_predict=4)
        props = client.get("/props").json()
        before = read(client)
        pool = client.app.state.server.pool
        pool.idle_s = 0.0
        assert client.portal is not None
        client.portal.call(pool.unload_idle)
        assert not pool.all_loaded
        assert read(client) == before | {"predicted_tokens_seconds": 0, "prompt_tokens_seconds": 0}
        assert client.get("/props").json() == props | {"is_sleeping": True}
        assert (
            complete(client, n_predict=1)["predicted_n"] == 1
            and not client.get("/props").json()["is_sleeping"]
        )
        [model] = pool.all_loaded
        used_at = model.used_at
        client.get("/props")
        client.get("/metrics")
        assert model.used_at == used_at  # who only asks keeps nothing awake
        client.portal.call(pool.unload_idle)
        assert not pool.all_loaded


def test_without_the_flag(client: TestClient) -> None:
    answer = client.get("/metrics")
    assert answer.status_code == 501 and answer.json()["error"]["type"] == "not_supported_error"


def test_no_adapters(client: TestClient) -> None:
    assert client.get("/lora-adapters").json() == []
    assert client.post("/lora-adapters", json=[]).status_code == 403
