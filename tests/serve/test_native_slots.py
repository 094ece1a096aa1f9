"""/slots: what runs where, and caches by name."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.engine.engine import Engine
from etude.serve.models import ModelSpec
from tests.serve.live import CONTEXT, Live, app_of, client_of, live_of, until

PROMPT = [3 + at % 200 for at in range(100)]


def load(spec: ModelSpec) -> Engine:
    return Engine.load(spec.path, context=CONTEXT, threads=1, cache_tokens=16 * CONTEXT, max_sequences=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def saving(tiny: Path, folder: Path) -> Iterator[TestClient]:
    with client_of(tiny, load=load, slot_folder=folder) as client:
        yield client


@pytest.fixture
def live(tiny: Path) -> Iterator[Live]:
    with live_of(app_of(tiny, load=load)) as live:
        yield live


def complete(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/completion", json={"prompt": PROMPT, "n_predict": 4, "ignore_eos": True, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_idle_slots(saving: TestClient) -> None:
    slots = saving.get("/slots").json()
    bare = {"n_ctx": CONTEXT, "speculative": False, "is_processing": False}
    assert slots == [{"id": at, **bare} for at in range(3)]
    complete(saving, id_slot=1, top_k=7)
    slot = saving.get("/slots").json()[1]
    assert not slot["is_processing"] and slot["params"]["top_k"] == 7 and slot["n_prompt_tokens"] == 103
    assert slot["next_token"][0] == {
        "has_next_token": False, "has_new_line": False, "n_remain": -1, "n_decoded": 0,
    }  # fmt: skip


def get(live: Live, path: str) -> tuple[int, Any]:
    """Status and JSON."""
    try:
        with urllib.request.urlopen(f"{live.url}{path}", timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_busy_slots(live: Live) -> None:
    """Five answers want to be written, three are; when their clients leave, all is idle."""
    slow = {"prompt": PROMPT, "ignore_eos": True, "n_predict": 150, "stream": True}
    live.post("/completion", slow | {"n_predict": 1})
    until(lambda: "tiny" in live.server.slots and not live.server.active)
    [model] = live.server.pool.all_loaded
    model.engine.pause()
    connections = [live.post("/completion", slow) for _ in range(5)]
    until(lambda: len(live.server.active) == 5)
    _, slots = get(live, "/slots")
    assert all(slot["is_processing"] for slot in slots) and len(slots) == 3
    assert slots[0]["next_token"][0]["n_remain"] == 150
    assert live.server.slots["tiny"].n_waiting == 2
    status, refused = get(live, "/slots?fail_on_no_slot=1")
    assert status == 503 and refused["error"]["message"] == "no slot available"
    for connection in connections:
        connection.close()
    model.engine.resume()
    until(lambda: not live.server.active)
    assert not any(slot["is_processing"] for slot in get(live, "/slots")[1])
    assert get(live, "/slots?fail_on_no_slot=1")[0] == 200


def test_a_cache_is_saved_and_restored(saving: TestClient, folder: Path, tiny: Path) -> None:
    complete(saving, id_slot=1)
    saved = saving.post("/slots/1?action=save", json={"filename": "one.bin"}).json()
    assert (saved["id_slot"], saved["n_saved"]) == (1, 96)
    assert saved["n_written"] == (folder / "one.bin").stat().st_size and saved["timings"]["save_ms"] > 0
    with client_of(tiny, load=load, slot_folder=folder) as other:
        restored = other.post("/slots/0?action=restore", json={"filename": "one.bin"}).json()
        assert (restored["id_slot"], restored["n_restored"]) == (0, 96)
        assert restored["n_read"] == saved["n_written"]
        assert complete(other)["timings"]["cache_n"] == 96
        again = other.post("/slots/0?action=save", json={"filename": "two.bin"}).json()
        assert again["n_saved"] == 96


def test_a_cache_is_erased(saving: TestClient) -> None:
    complete(saving, id_slot=2)
    assert complete(saving, id_slot=2)["timings"]["cache_n"] == 96
    assert saving.post("/slots/2?action=erase").json() == {"id_slot": 2, "n_erased": 96}
    assert complete(saving, id_slot=2)["timings"]["cache_n"] == 0
    assert saving.post("/slots/0?action=erase").json() == {"id_slot": 0, "n_erased": 0}


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/slots/3?action=erase", {}, "slot ID"),
        ("/slots/x?action=erase", {}, "slot ID"),
        ("/slots/0?action=burn", {}, "action"),
        ("/slots/0", {}, "action"),
        ("/slots/0?action=save", {"filename": "../x"}, "filename"),
        ("/slots/0?action=save", {"filename": "/etc/passwd"}, "filename"),
        ("/slots/0?action=save", {}, "filename"),
        ("/slots/0?action=save", {"filename": "x"}, "nothing yet"),
        ("/slots/0?action=restore", {"filename": "absent"}, "Unable to restore"),
        ("/slots/0?action=restore", {"filename": "link"}, "filename"),
    ],
)
def test_refusals(saving: TestClient, folder: Path, path: str, body: Any, word: str) -> None:
    (folder / "link").symlink_to("/etc/hosts")
    answer = saving.post(path, json=body)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and word in message and str(folder) not in message


def test_without_the_flags(tiny: Path) -> None:
    with client_of(tiny, shows_slots=False) as client:
        assert client.get("/slots").status_code == 501
        answer = client.post("/slots/0?action=erase")
        assert answer.status_code == 501 and answer.json()["error"]["type"] == "not_supported_error"
