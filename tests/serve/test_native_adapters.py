"""/lora-adapters: llama.cpp's list, and which of them answers are given with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.serve.models import Adapter, ModelDefaults, ModelSpec
from tests.serve.live import client_of, load
from tests.serve.trainer import write_adapter

ADMIN = {"X-Api-Key": "boss"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Adapter, ...]:
    found = []
    for at, name in enumerate(("first", "second")):
        folder = tmp_path_factory.mktemp(name)
        write_adapter(folder, tiny, at + 1)
        found.append(Adapter(name, folder, 0.0))
    return tuple(found)


@pytest.fixture
def adapted(tiny: Path, adapters: tuple[Adapter, ...]) -> Iterator[TestClient]:
    def with_adapters(spec: ModelSpec) -> Engine:
        engine = load(spec)
        for adapter in adapters:
            engine.load_adapter(adapter.name, adapter.path)
        return engine

    with client_of(tiny, ModelDefaults(adapters=adapters), with_adapters, admin_keys=("boss",)) as client:
        yield client


def complete(client: TestClient, **fields: Any) -> Any:
    asked = {"prompt": "abc", "n_predict": 8, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    answer = client.post("/completion", json=asked | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def change(client: TestClient, body: Any, status: int = 200) -> Any:
    answer = client.post("/lora-adapters", json=body, headers=ADMIN)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_requests_choose(adapted: TestClient) -> None:
    listed = adapted.get("/lora-adapters").json()
    assert [(each["id"], Path(each["path"]).name[:5], each["scale"]) for each in listed] == [
        (0, "first", 0.0),
        (1, "secon", 0.0),
    ]
    answers = [
        complete(adapted, lora=lora) for lora in ([], [{"id": 0, "scale": 1}], [{"id": 1, "scale": 1}])
    ]
    tokens = [tuple(each["tokens"]) for each in answers]
    assert len(set(tokens)) == 3 and tuple(complete(adapted)["tokens"]) == tokens[0]
    assert [each["generation_settings"]["lora"] for each in answers] == [
        [], [{"id": 0, "scale": 1.0}], [{"id": 1, "scale": 1.0}],
    ]  # fmt: skip


def test_the_admin_chooses_for_all_others(adapted: TestClient) -> None:
    plain = complete(adapted)["tokens"]
    second = complete(adapted, lora=[{"id": 1, "scale": 0.5}])["tokens"]
    assert change(adapted, [{"id": 1, "scale": 0.5}]) == {"success": True}
    assert [each["scale"] for each in adapted.get("/lora-adapters").json()] == [0.0, 0.5]
    assert complete(adapted)["tokens"] == second != plain
    assert complete(adapted, lora=[{"id": 1, "scale": 0}])["tokens"] == plain
    change(adapted, [])
    assert complete(adapted)["tokens"] == plain


def test_what_was_chosen_outlives_a_sleep(adapted: TestClient) -> None:
    change(adapted, [{"id": 0, "scale": 1}])
    before, pool = complete(adapted)["tokens"], adapted.app.state.server.pool
    pool.idle_s = 0.0
    assert adapted.portal is not None
    adapted.portal.call(pool.unload_idle)
    assert not pool.all_loaded and complete(adapted)["tokens"] == before


def test_refusals(adapted: TestClient) -> None:
    assert "no adapter 2" in change(adapted, [{"id": 2, "scale": 1}], 400)["error"]["message"]
    both = [{"id": 0, "scale": 1}, {"id": 1, "scale": 1}]
    assert "one adapter" in change(adapted, both, 400)["error"]["message"]
    change(adapted, {"id": 0}, 400)
    change(adapted, [{"id": "0"}], 400)
    assert adapted.post("/lora-adapters", json=[]).status_code == 401
