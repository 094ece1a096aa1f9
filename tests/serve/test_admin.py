"""New weights and adapters while the server runs: who may, and that nothing old is used again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.serve.app import create_app
from etude.serve.models import ModelPool, ModelSpec
from etude.serve.settings import ServeSettings
from tests.serve.live import client_of, load
from tests.serve.trainer import FIXED, KEY, TEXT, expected, said, training_settings
from tests.terminal.tiny import write_tiny


@pytest.fixture
def folders(tmp_path: Path, tiny: Path) -> dict[str, Any]:
    return training_settings(tmp_path, tiny)


@pytest.fixture
def trained(tiny: Path, folders: dict[str, Any]) -> Iterator[TestClient]:
    with client_of(tiny, **folders) as client:
        yield client


# ── who may ──

ROUTES = [
    ("POST", "/pause"), ("POST", "/resume"), ("GET", "/is_paused"), ("POST", "/update_weights"),
    ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("POST", "/load_lora_adapter"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_the_admin_key_opens_them(tiny: Path, method: str, path: str) -> None:
    with client_of(tiny, api_keys=("user",), admin_keys=("boss", "other")) as client:
        for headers, status in (
            ({}, 401),
            ({"X-Api-Key": "wrong"}, 401),
            ({"X-Api-Key": "user"}, 403),
            ({"Authorization": "Bearer bos"}, 401),
            ({"Authorization": "Bearer boss"}, None),
            ({"X-Api-Key": "other"}, None),
        ):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == status or (status is None and answer.status_code in (200, 400))
            assert answer.status_code == 200 or answer.json()["error"]["message"]
        assert client.get("/v1/models", headers=KEY).status_code == 200
    with client_of(tiny) as client:  # nobody has one
        answer = client.request(method, path, headers=KEY)
        assert answer.status_code == 403 and "--admin-key" in answer.json()["error"]["message"]
    with client_of(tiny, admin_keys=("boss",)) as client:  # all else is open
        assert client.request(method, path).status_code == 401
        assert client.request(method, path, headers={"X-Api-Key": "user"}).status_code == 403
        assert client.get("/v1/models").status_code == 200


# ── weights ──


def test_new_weights_are_as_if_loaded_from_their_file(trained: TestClient, folders: dict[str, Any]) -> None:
    """Also what the prefix cache holds: the same prompt before and after."""
    before = said(trained, TEXT, FIXED)
    assert said(trained, TEXT, FIXED)["usage"]["prompt_tokens_details"]["cached_tokens"] == 32
    for version, name in ((1, "step_1.gguf"), (7, "step_2.gguf")):
        body = {"weight_dir": name, **({} if version == 1 else {"version": version})}
        assert said(trained, "/update_weights", body) == {
            "status": "ok", "model": "tiny", "weights_version": version,
        }  # fmt: skip
        after = said(trained, TEXT, FIXED)
        ids = after["choices"][0]["token_ids"]
        assert ids == expected(folders["weights_folder"] / name) != before["choices"][0]["token_ids"]
        assert after["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert after["weights_versions"] == [version]
        assert after["choices"][0]["weight_versions"] == [{"version": str(version), "start": 0, "end": 12}]
        assert trained.get("/v1/models").json()["data"][0]["meta"]["weights_version"] == version
        assert after["system_fingerprint"].endswith(f"-w{version}")


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"weight_dir": "none.gguf"}, 404, "none.gguf"),
        ({"weight_dir": "../weights/step_1.gguf"}, 400, "plain name"),
        ({"weight_dir": "/etc/passwd"}, 400, "plain name"),
        ({"weight_dir": ".."}, 400, "plain name"),
        ({"weight_dir": "outside"}, 404, "outside"),
        ({"weight_dir": "broken.gguf"}, 400, "broken.gguf"),
        ({"weight_dir": "step_1.gguf", "version": 0}, 400, "version"),
        ({"weight_dir": "step_1.gguf", "version": "2"}, 400, "version"),
        ({"weight_dir": "step_1.gguf", "running": "stop"}, 400, "running"),
        ({"weight_dir": None}, 400, "weight_dir"),
        ({}, 400, "weight_dir"),
    ],
)
def test_weights_that_cannot_be_had_change_nothing(
    trained: TestClient, fields: dict[str, Any], status: int, message: str
) -> None:
    before = said(trained, TEXT, FIXED)["choices"]
    assert message in said(trained, "/update_weights", fields, status)["error"]["message"]
    after = said(trained, TEXT, FIXED)
    assert after["choices"] == before and after["weights_versions"] == [0]
    assert trained.get("/is_paused", headers=KEY).json() == {"is_paused": False}


def test_without_a_folder_there_is_nothing_to_name(tiny: Path) -> None:
    with client_of(tiny, admin_keys=("boss",)) as client:
        for path, body in (
            ("/update_weights", {"weight_dir": "x"}),
            ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "x"}),
        ):
            assert "started without" in said(client, path, body, 501)["error"]["message"]


def test_a_changed_model_is_not_unloaded(tiny: Path, tmp_path: Path, folders: dict[str, Any]) -> None:
    """Loaded again it would have its old weights, and nobody would know."""
    other = write_tiny(tmp_path / "other.gguf", seed=5)
    pool = ModelPool([ModelSpec("tiny", tiny), ModelSpec("other", other)], load, max_loaded=1, idle_s=0.01)
    with TestClient(create_app(replace(ServeSettings(), **folders), pool)) as client:
        said(client, TEXT, FIXED | {"model": "other"})
        said(client, "/update_weights", {"weight_dir": "step_1.gguf", "model": "tiny"})
        error = said(client, TEXT, FIXED | {"model": "other"}, 503)["error"]
        assert "--models-max" in error["message"]
        assert said(client, TEXT, FIXED | {"model": "tiny"})["weights_versions"] == [1]


# ── adapters ──


def test_an_adapter_is_a_model_by_its_name(trained: TestClient, tiny: Path, folders: dict[str, Any]) -> None:
    base = said(trained, TEXT, FIXED)["choices"][0]["token_ids"]
    body = {"lora_name": "math", "lora_path": "lora_1"}
    assert said(trained, "/v1/load_lora_adapter", body)["adapters"] == ["math"]
    assert "math" in [entry["id"] for entry in trained.get("/v1/models").json()["data"]]
    own = expected(tiny, folders["adapters_folder"] / "lora_1")
    half = expected(tiny, folders["adapters_folder"] / "lora_1", scale=0.5)
    for fields, ids in (
        ({"model": "math"}, own),
        ({"model": "tiny", "lora": [{"id": 0}]}, own),
        ({"lora": [{"name": "math", "scale": 0.5}]}, half),
        ({"model": "math", "lora": [{"name": "math", "scale": 0.5}]}, half),
        ({"model": "tiny"}, base),
        ({"model": "math", "lora": []}, base),
    ):
        assert said(trained, TEXT, FIXED | fields)["choices"][0]["token_ids"] == ids, fields
    drawn = said(
        trained,
        "/inference/v1/generate",
        {
            "token_ids": [100] * 40,
            "model": "math",
            "sampling_params": {"max_tokens": 12, "seed": 1, "ignore_eos": True},
        },
    )
    assert drawn["choices"][0]["token_ids"] == own
    said(trained, "/v1/load_lora_adapter", body | {"lora_path": "lora_2", "version": 3})
    after = said(trained, TEXT, FIXED | {"model": "math"})
    assert after["choices"][0]["token_ids"] == expected(tiny, folders["adapters_folder"] / "lora_2")
    assert after["weights_versions"] == [3] and after["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert said(trained, "/v1/unload_lora_adapter", {"lora_name": "math"})["adapters"] == []
    assert said(trained, TEXT, FIXED | {"lora": [{"name": "math"}]}, 400)


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("load", {"lora_path": "none"}, 404, "none"),
        ("load", {"lora_path": "../adapters/lora_1"}, 400, "plain name"),
        ("load", {"lora_name": "tiny"}, 400, "name of a model"),
        ("load", {"lora_name": "small"}, 400, "name of a model"),
        ("load", {"lora_name": ""}, 400, "lora_name"),
        ("unload", {"lora_name": "other"}, 404, "not loaded"),
    ],
)
def test_adapters_that_cannot_be(
    trained: TestClient, path: str, fields: dict[str, Any], status: int, message: str
) -> None:
    body = {"lora_name": "a", "lora_path": "lora_1"} | fields
    assert message in said(trained, f"/v1/{path}_lora_adapter", body, status)["error"]["message"]
    assert [entry["id"] for entry in trained.get("/v1/models").json()["data"]] == ["tiny"]


def test_an_adapter_that_shall_not_be_replaced(trained: TestClient) -> None:
    body = {"lora_name": "a", "lora_path": "lora_1", "load_inplace": False}
    said(trained, "/load_lora_adapter", body)
    assert "load_inplace" in said(trained, "/load_lora_adapter", body, 400)["error"]["message"]
    said(trained, "/load_lora_adapter", body | {"load_inplace": True})
