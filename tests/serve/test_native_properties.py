"""/props: what llama.cpp's clients ask first."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from etude.records import SamplingParams
from etude.serve.models import ModelDefaults
from tests.serve.live import CONTEXT, client_of


def test_what_the_server_is(client: TestClient, tiny: Path) -> None:
    found = client.get("/props").json()
    assert found["model_path"] == str(tiny) and found["model_alias"] == "tiny"
    assert found["total_slots"] == 256 and found["default_generation_settings"]["n_ctx"] == CONTEXT
    assert found["eos_token"] == "<|im_end|>" and "im_start" in found["chat_template"]
    assert not found["is_sleeping"] and found["endpoint_slots"] and not found["endpoint_metrics"]


def test_the_defaults_are_those_of_requests(tiny: Path) -> None:
    params = SamplingParams(temperature=0.5, top_k=7, seed=3, max_tokens=9)
    with client_of(tiny, ModelDefaults(params=params)) as client:
        shown = client.get("/props").json()["default_generation_settings"]["params"]
    assert (shown["temperature"], shown["top_k"], shown["seed"], shown["n_predict"]) == (0.5, 7, 3, 9)
    assert shown["samplers"][0] == "penalties" and "stop" not in shown


def test_nothing_can_be_changed(client: TestClient, tiny: Path) -> None:
    answer = client.post("/props", json={})
    assert answer.status_code == 501 and answer.json()["error"]["type"] == "not_supported_error"
    with client_of(tiny, changes_props=True) as other:
        assert other.post("/props", json={}).json() == {"success": True}


def test_a_model_that_sleeps_is_known(tiny: Path) -> None:
    with client_of(tiny) as client:
        pool = client.app.state.server.pool
        [before] = client.get("/v1/models").json()["data"]
        assert "meta" not in before  # it was never loaded
        assert not client.get("/props").json()["is_sleeping"]
        [awake] = client.get("/v1/models").json()["data"]
        assert awake["meta"]["n_ctx"] == CONTEXT and awake["meta"]["vocab_type"] == 2
        pool.idle_s = 0
        assert client.portal is not None
        client.portal.call(pool.unload_idle)
        assert client.get("/props").json()["is_sleeping"]
        [asleep] = client.get("/v1/models").json()["data"]
        assert asleep["status"] == {"value": "unloaded"} and asleep["meta"] == awake["meta"]
