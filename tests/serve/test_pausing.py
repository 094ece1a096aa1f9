"""A pause, and weights that change while requests run: what becomes of them, by mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from tests.serve.live import CONTEXT, Live, app_of, client_of, live_of, until
from tests.serve.trainer import (
    FIXED,
    KEY,
    LONG,
    TEXT,
    Asked,
    admin,
    running,
    said,
    slow_down,
    training_settings,
)


@pytest.fixture
def folders(tmp_path: Path, tiny: Path) -> dict[str, Any]:
    return training_settings(tmp_path, tiny)


@pytest.fixture
def live(tiny: Path, folders: dict[str, Any]) -> Iterator[Live]:
    with ExitStack() as stack:
        live = stack.enter_context(live_of(app_of(tiny, **folders)))
        stack.callback(lambda: admin(live, "/resume"))  # a server that is paused does not end
        yield live


def test_kept_requests_stand_still_and_go_on(live: Live) -> None:
    whole = Asked(live, TEXT, LONG).wait()
    slow_down(live)
    kept = running(live)
    assert admin(live, "/pause?mode=keep") == {"status": "paused"}
    drawn = live.drawn
    late = Asked(live, TEXT, FIXED)
    until(lambda: live.server.n_running == 2)
    assert live.drawn == drawn and not kept.is_done and not late.is_done
    assert admin(live, "/resume") == {"status": "resumed"}
    assert kept.wait()["choices"] == whole["choices"] and late.wait()["choices"]


def test_kept_requests_go_on_with_new_weights(live: Live, folders: dict[str, Any]) -> None:
    """Old tokens stay; each later one is what the new weights make of all before it."""
    Asked(live, TEXT, FIXED).wait()
    slow_down(live)
    kept = running(live)
    admin(live, "/pause", {"mode": "keep"})
    late = Asked(live, TEXT, LONG)
    assert admin(live, "/update_weights", {"weight_dir": "step_1.gguf", "version": 4})["weights_version"] == 4
    assert not kept.is_done and not late.is_done
    admin(live, "/resume")
    answer = kept.wait()
    [choice] = answer["choices"]
    first, second = choice["weight_versions"]
    assert answer["weights_versions"] == [0, 4] and choice["finish_reason"] == "length"
    assert (first["version"], first["start"], second["version"], second["end"]) == ("0", 0, "4", 200)
    ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
    at = first["end"] + len(choice["prompt_token_ids"])
    assert 0 < first["end"] == second["start"] < 200
    with Engine.load(folders["weights_folder"] / "step_1.gguf", context=CONTEXT) as engine:
        assert list(engine.score(ids)[at:]) == choice["logprobs"]["token_logprobs"][first["end"] :]
    assert late.wait()["weights_versions"] == [4]


def test_a_pause_that_waits_lets_what_runs_finish(live: Live) -> None:
    whole = Asked(live, TEXT, LONG).wait()
    slow_down(live)
    runs = running(live)
    pausing = Asked(live, "/pause?mode=wait", {}, KEY)
    until(lambda: not live.server.pool.open.is_set())
    late = Asked(live, TEXT, FIXED)
    assert pausing.wait() == {"status": "paused"} and live.server.n_running <= 2
    assert runs.wait()["choices"] == whole["choices"] and not late.is_done
    admin(live, "/resume")
    assert late.wait()["choices"]


def test_an_aborting_pause_gives_what_there_is(live: Live) -> None:
    whole = Asked(live, TEXT, LONG).wait()["choices"][0]
    slow_down(live)
    runs = running(live)
    admin(live, "/pause?mode=keep")
    assert admin(live, "/pause") == {"status": "paused"}  # also of what an earlier one has kept
    [choice] = runs.wait()["choices"]
    assert choice["finish_reason"] == "abort" and 0 < len(choice["token_ids"]) < 200
    assert choice["token_ids"] == whole["token_ids"][: len(choice["token_ids"])]
    until(lambda: not live.server.active)


@pytest.mark.parametrize("what", ["wait", "abort", "continue"])
def test_weights_change_under_what_runs(live: Live, what: str) -> None:
    Asked(live, TEXT, FIXED).wait()
    slow_down(live)
    runs = running(live)
    answer = admin(live, "/update_weights", {"weight_dir": "step_2.gguf", "running": what})
    assert answer["weights_version"] == 1 and live.server.pool.open.is_set()
    ended = runs.wait()
    assert ended["weights_versions"] == {"wait": [0], "abort": [0], "continue": [0, 1]}[what]
    assert ended["choices"][0]["finish_reason"] == ("abort" if what == "abort" else "length")
    assert Asked(live, TEXT, FIXED).wait()["weights_versions"] == [1]


def test_a_resume_ends_a_pause_that_still_waits(live: Live) -> None:
    Asked(live, TEXT, FIXED).wait()
    slow_down(live)
    runs = running(live)
    pausing = Asked(live, "/pause?mode=wait", {}, KEY)
    until(lambda: not live.server.pool.open.is_set())
    admin(live, "/resume")
    assert pausing.wait()["error"]["code"] == "resumed" and runs.wait()["choices"]


def test_a_client_that_goes_while_paused_leaves_nothing(live: Live) -> None:
    Asked(live, TEXT, FIXED).wait()
    slow_down(live)
    with live.post(TEXT, LONG | {"stream": True}) as kept:
        assert kept.recv(100)
        admin(live, "/pause?mode=keep")
        with live.post(TEXT, LONG):
            until(lambda: live.server.n_running == 2)
        until(lambda: live.server.n_running == 1)
    until(lambda: live.server.n_running == 0)
    admin(live, "/resume")
    assert Asked(live, TEXT, FIXED).wait()["choices"]


def test_modes_that_are_none(tiny: Path) -> None:
    with client_of(tiny, admin_keys=("boss",)) as client:
        check_modes(client)


def check_modes(client: TestClient) -> None:
    for path, body in (
        ("/pause?mode=sleep", {}),
        ("/pause", {"mode": "sleep"}),
        ("/pause?mode=keep", {"mode": "wait"}),
    ):
        assert "mode" in said(client, path, body, 400)["error"]["message"]
    assert client.get("/is_paused", headers=KEY).json() == {"is_paused": False}
    assert client.post("/pause", headers=KEY).json() == {"status": "paused"}
    assert client.get("/is_paused", headers=KEY).json() == {"is_paused": True}
    said(client, "/resume", {})
