"""Conversations on the server: the tree of messages, search, export, owners, limits, kills, two servers."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from etude.records import EtudeError
from etude.serve import conversation_file
from etude.serve.conversation_file import FILE, ConversationFile, data_folder, owner_of
from tests.serve.live import client_of

JSON = {"Content-Type": "application/json"}


@contextmanager
def pages_of(model: Path, folder: Path | None = None, **settings: Any) -> Iterator[TestClient]:
    """A client that asks as a browser on this machine does."""
    with client_of(model, data_folder=folder, **settings) as client:
        client.base_url = "http://localhost"
        yield client


@pytest.fixture(scope="module")
def client(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pages_of(tiny, tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture
def conversation(client: TestClient) -> str:
    """A new one."""
    identity: str = ok(client.post("/api/conversations", json={"title": "Fjords"}))["id"]
    return identity


def ok(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def say(client: TestClient, conversation: str, parent: str | None, text: str, **fields: Any) -> str:
    role = fields.pop("role", "user")
    body = {"parent": parent, "role": role, "content": text, **fields}
    identity: str = ok(client.post(f"/api/conversations/{conversation}/messages", json=body))["id"]
    return identity


def of(client: TestClient, conversation: str) -> Any:
    return ok(client.get(f"/api/conversations/{conversation}"))


def found(client: TestClient, query: str) -> set[str]:
    return {
        one["id"] for one in ok(client.get("/api/conversations", params={"query": query}))["conversations"]
    }


# ── the tree ──


def test_a_conversation_is_kept_as_it_was(client: TestClient) -> None:
    settings = {"system": "Be brief.", "sampling": {"temperature": 0.5, "stop": ["\n"]}}
    made = ok(client.post("/api/conversations", json={"title": "A", "folder": "F", "settings": settings}))
    question = say(
        client, made["id"], None, "Read this.", attachments=[{"name": "a.txt", "text": "é\n", "kind": "text"}]
    )
    answer = {
        "reasoning": "Hm.", "model": "tiny", "timings": {"predicted_n": 2},
        "tokens": [["Yes", -0.1, [["No", -2.0]]]],
    }  # fmt: skip
    reply = say(client, made["id"], question, "Yes", role="assistant", **answer)
    read = of(client, made["id"])
    assert (read["title"], read["folder"], read["settings"], read["pinned"]) == ("A", "F", settings, False)
    assert (read["current"], read["model"], read["n_messages"]) == (reply, "tiny", 2)
    first, second = read["messages"]
    assert first["attachments"] == [{"name": "a.txt", "text": "é\n", "kind": "text"}]
    assert (first["parent"], second["parent"]) == (None, question)
    assert {key: second[key] for key in answer} == answer and "tokens" not in first


def test_an_edit_is_a_sibling_and_a_cut_takes_what_follows(client: TestClient, conversation: str) -> None:
    one = say(client, conversation, None, "one")
    a = say(client, conversation, one, "a", role="assistant")
    below = say(client, conversation, a, "more")
    b = say(client, conversation, one, "b", role="assistant")
    assert of(client, conversation)["current"] == b
    ok(client.patch(f"/api/conversations/{conversation}", json={"current": below}))
    cut = ok(client.delete(f"/api/conversations/{conversation}/messages/{a}"))
    assert set(cut["deleted"]) == {a, below} and cut["current"] == b
    assert [message["id"] for message in of(client, conversation)["messages"]] == [one, b]
    cut = ok(client.delete(f"/api/conversations/{conversation}/messages/{one}"))
    assert cut["current"] is None and of(client, conversation)["messages"] == []


def test_a_long_branch_is_cut_at_once(client: TestClient, conversation: str) -> None:
    messages = [
        {"id": f"m{i}", "parent": f"m{i - 1}" if i else None, "role": "user", "content": "x"}
        for i in range(3000)
    ]
    given = {"id": "long", "messages": messages, "current": "m2999"}
    body = {"format": "etude-conversations", "version": 1, "conversations": [given]}
    [identity] = ok(client.post("/api/import", json=body))["imported"]
    first = of(client, identity)["messages"][0]["id"]
    assert len(ok(client.delete(f"/api/conversations/{identity}/messages/{first}"))["deleted"]) == 3000


def test_a_streamed_answer_is_rewritten(client: TestClient, conversation: str) -> None:
    message = say(client, conversation, None, "", role="assistant", model="tiny")
    path = f"/api/conversations/{conversation}/messages/{message}"
    ok(client.put(path, json={"content": "The walrus", "reasoning": "Hm"}))
    ok(client.put(path, json={"content": "The walruses sing"}))
    kept = of(client, conversation)["messages"][0]
    assert (kept["content"], kept["reasoning"], kept["model"]) == ("The walruses sing", "Hm", "tiny")
    assert found(client, "walruses") == {conversation} and not found(client, "walrus.")


def test_reading_elsewhere_makes_nothing_newer(client: TestClient, conversation: str) -> None:
    message = say(client, conversation, None, "x")
    before = of(client, conversation)
    ok(client.patch(f"/api/conversations/{conversation}", json={"current": None, "pinned": True}))
    after = of(client, conversation)
    assert (after["current"], after["pinned"]) == (None, True)
    assert after["updated_at"] == before["updated_at"]
    ok(client.patch(f"/api/conversations/{conversation}", json={"current": message, "title": "New"}))
    renamed = of(client, conversation)
    assert renamed["updated_at"] > before["updated_at"] and renamed["title"] == "New"
    assert ok(client.get("/api/conversations"))["conversations"][0]["id"] == conversation


# ── search and folders ──


@pytest.mark.parametrize("indexed", [True, False])
def test_search_finds_titles_and_texts(tiny: Path, indexed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not indexed:
        monkeypatch.setattr(conversation_file, "_has_index", lambda connection: False)
    with pages_of(tiny) as client:
        a = ok(client.post("/api/conversations", json={"title": "Über Fjorde"}))["id"]
        b = ok(client.post("/api/conversations", json={"title": ""}))["id"]
        say(client, b, None, 'He said "tide tables" — 潮汐表很好用, 100%_sure')
        say(client, b, None, "unrelated sentence")
        assert found(client, "über FJORD") == {a}
        for query in ("TABLES", "tide tables", 'said "tide', "潮汐表", "潮汐", "100%_", "ti bles", "—"):
            assert found(client, query) == {b}, query
        for query in ("tables unrelated", "100%%", "tide OR fjorde", "NEAR(", '"', "xyzzy*"):
            assert not found(client, query) or query == '"', query
        assert found(client, "") == found(client, "  ") == {a, b}
        ok(client.delete(f"/api/conversations/{b}"))
        assert found(client, "tide tables") == set()


def test_folders(client: TestClient, conversation: str) -> None:
    ok(client.patch(f"/api/conversations/{conversation}", json={"folder": "Work"}))
    listed = ok(client.get("/api/conversations", params={"folder": "Work"}))
    assert [one["id"] for one in listed["conversations"]] == [conversation] and listed["total"] == 1
    assert "Work" in listed["folders"]
    ok(client.patch(f"/api/conversations/{conversation}", json={"folder": ""}))
    assert of(client, conversation)["folder"] is None
    assert ok(client.get("/api/conversations", params={"limit": 1, "offset": 1}))["total"] > 1


# ── export and import ──


def test_an_export_comes_back_the_same(client: TestClient, tiny: Path, conversation: str) -> None:
    one = say(client, conversation, None, "one", attachments=[{"name": "x", "text": "y"}])
    say(client, conversation, one, "two", role="assistant", timings={"n": 1.5})
    file = ok(client.get("/api/export", params={"id": conversation}))
    assert (file["format"], file["version"]) == ("etude-conversations", 1)
    with pages_of(tiny) as other:
        assert ok(other.post("/api/import", json=file)) == {"imported": [conversation]}
        assert ok(other.get("/api/export")) == file  # the same ids, where they are free
        [copy] = ok(other.post("/api/import", json=file))["imported"]
        assert copy != conversation
        again = of(other, copy)
        assert [message["content"] for message in again["messages"]] == ["one", "two"]
        assert again["messages"][1]["parent"] == again["messages"][0]["id"] != one
        assert again["current"] == again["messages"][1]["id"]


@pytest.mark.parametrize(
    ("messages", "current", "words"),
    [
        ([("a", "b"), ("b", "a")], None, "comes after it"),
        ([("a", "a")], None, "comes after it"),
        ([("a", "z")], None, "none of them"),
        ([("a", None), ("a", None)], None, "same id"),
        ([("a", None)], "z", "current is none"),
    ],
)
def test_an_import_is_whole_or_refused(
    client: TestClient, messages: list[tuple[str, str | None]], current: str | None, words: str
) -> None:
    def one(pairs: list[tuple[str, str | None]], current: str | None) -> dict[str, Any]:
        texts = [{"id": id, "parent": parent, "role": "user", "content": "x"} for id, parent in pairs]
        return {"title": "half an import", "messages": texts, "current": current}

    body = {
        "format": "etude-conversations", "version": 1,
        "conversations": [one([("p", None)], "p"), one(messages, current)],
    }  # fmt: skip
    response = client.post("/api/import", json=body)
    assert response.status_code == 400 and words in response.json()["error"]["message"]
    assert "conversations[1]" in response.json()["error"]["message"]
    assert found(client, "half an import") == set()


# ── who may ask ──


def test_each_key_has_its_own(tiny: Path, tmp_path: Path) -> None:
    with pages_of(tiny, tmp_path, api_keys=("first-key", "second-key")) as client:
        first, second = ({"Authorization": f"Bearer {key}"} for key in ("first-key", "second-key"))
        made = ok(client.post("/api/conversations", json={"title": "mine"}, headers=first))["id"]
        assert client.get("/api/conversations").status_code == 401
        assert ok(client.get("/api/conversations", headers=second))["conversations"] == []
        body = {"role": "user", "parent": None, "content": "x"}
        for method, path, given in (
            ("GET", "", None), ("DELETE", "", None), ("PATCH", "", {"title": "x"}),
            ("POST", "/messages", body),
        ):  # fmt: skip
            response = client.request(method, f"/api/conversations/{made}{path}", json=given, headers=second)
            assert response.status_code == 404, (method, path)
        assert client.get("/api/export", params={"id": made}, headers=second).status_code == 404
        file = ok(client.get("/api/export", headers=first))
        assert ok(client.post("/api/import", json=file, headers=second))["imported"] != [made]
        users = [ok(client.get("/api/session", headers=headers))["user"] for headers in (first, second)]
        assert len(set(users)) == 2 and None not in users
    whole = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"mine" in whole and b"first-key" not in whole
    with pages_of(tiny, tmp_path, api_keys=("first-key",)) as client:  # a later start knows the key again
        assert ok(client.get("/api/conversations", headers=first))["total"] == 1


def test_other_sites_are_kept_away(client: TestClient, conversation: str) -> None:
    body = b'{"title": "forged"}'
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
    ):
        assert client.post("/api/conversations", content=body, headers=headers).status_code == 415
    for host in (
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[",
    ):
        response = client.get("/api/conversations", headers={"Host": host})
        assert response.status_code == 403, host
    for host in ("127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "192.168.1.7"):
        assert client.get("/api/conversations", headers={"Host": host}).status_code == 200, host
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 200


def test_a_named_origin_and_a_key_are_let_in(tiny: Path) -> None:
    with pages_of(tiny, cors_origins=("https://chat.example",)) as client:
        assert client.get("/api/conversations", headers={"Host": "chat.example"}).status_code == 200
        preflight = {"Origin": "https://chat.example", "Access-Control-Request-Method": "PUT"}
        assert client.options("/api/conversations", headers=preflight).status_code == 200
    with pages_of(tiny, api_keys=("k",)) as client:
        headers = {"Host": "chat.example", "Authorization": "Bearer k"}
        assert client.get("/api/conversations", headers=headers).status_code == 200


# ── limits ──


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "", {"title": "x" * 501}, "title"),
        ("POST", "", {"folder": "x" * 201}, "folder"),
        ("POST", "", {"settings": []}, "settings"),
        ("POST", "", {"settings": {"a": "x" * 300_000}}, "settings"),
        ("PATCH", "/{id}", {"title": None}, "title"),
        ("PATCH", "/{id}", {"current": "elsewhere"}, "current"),
        ("POST", "/{id}/messages", {"role": "user", "content": 5}, "content"),
        ("POST", "/{id}/messages", {"role": "robot", "content": ""}, "role"),
        ("POST", "/{id}/messages", {"role": "user", "parent": "elsewhere"}, "parent"),
        ("POST", "/{id}/messages", {"role": "user", "attachments": [{"text": "x"}]}, "attachments[0].name"),
        ("POST", "/{id}/messages", {"role": "user", "attachments": [{"name": "x"}] * 65}, "attachments"),
    ],
)
def test_what_cannot_be_kept_is_a_400_that_names_it(
    client: TestClient, conversation: str, method: str, path: str, body: Any, field: str
) -> None:
    response = client.request(method, f"/api/conversations{path.format(id=conversation)}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, field), response.text


def test_odd_values_are_no_bugs(client: TestClient, conversation: str) -> None:
    path = f"/api/conversations/{conversation}"
    for raw in (
        b"",
        b"[]",
        b'{"settings": {"a": NaN}}',
        b'{"settings": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"\xff",
    ):
        assert client.patch(path, content=raw, headers=JSON).status_code == 400, raw[:20]
    assert client.patch(path, content=rb'{"title": "\ud800"}', headers=JSON).status_code == 400
    for strange in ("nul \0 inside", "🙂" * 100, "'; DROP TABLE messages; --"):
        ok(client.patch(path, json={"title": strange}))
        assert of(client, conversation)["title"] == strange
    for identity in ("nothing", "%00", "..%2f..", "x" * 3000):
        assert client.get(f"/api/conversations/{identity}").status_code == 404
    assert client.put(f"{path}/messages/none", json={"content": ""}).status_code == 404
    assert client.delete(f"{path}/messages/none").status_code == 404
    assert client.get("/api/conversations", params={"query": "x" * 501}).status_code == 400
    assert client.get("/api/conversations", params={"limit": "0"}).status_code == 400


def test_without_pages_nothing_is_kept(tiny: Path, tmp_path: Path) -> None:
    with pages_of(tiny, tmp_path, shows_pages=False) as client:
        assert client.get("/api/conversations").status_code == 404
        assert ok(client.get("/api/session"))["conversations"] is False
    assert not list(tmp_path.iterdir())


def test_the_session_says_what_there_is(client: TestClient) -> None:
    response = client.get("/api/session")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    found = ok(response)
    assert (found["user"], found["models"], found["runs"], found["kept"]) == (None, ["tiny"], False, True)
    assert found["defaults"]["temperature"] == 1.0 and found["defaults"]["top_k"] == 0


# ── the file ──


def test_the_file_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path / "given"))
    assert data_folder() == tmp_path / "given"
    monkeypatch.delenv("ETUDE_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert sys.platform == "darwin" or data_folder() == tmp_path / "etude"
    ConversationFile(tmp_path / "new" / "folder").close()
    assert (tmp_path / "new" / "folder" / FILE).stat().st_mode & 0o077 == 0


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        before = (folder / FILE).read_bytes()
        with pytest.raises(EtudeError, match=words):
            ConversationFile(folder)
        assert (folder / FILE).read_bytes() == before

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / FILE).write_text("not a database, but a text of some length " * 50)
    refused(tmp_path / "text", "cannot be kept")
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / FILE) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE conversations (x)")
    other.close()
    refused(tmp_path / "other", "another program")
    ConversationFile(tmp_path / "later").close()
    with sqlite3.connect(tmp_path / "later" / FILE) as later:
        later.execute("PRAGMA user_version = 99")
    later.close()
    refused(tmp_path / "later", "later version")
    (tmp_path / "file").write_text("")
    with pytest.raises(EtudeError, match="--data-dir"):
        ConversationFile(tmp_path / "file" / "below")


def test_an_index_that_another_sqlite_left_behind_is_made_anew(tiny: Path, tmp_path: Path) -> None:
    with pages_of(tiny, tmp_path) as client:
        one = ok(client.post("/api/conversations", json={}))["id"]
    raw = sqlite3.connect(tmp_path / FILE)
    for trigger in conversation_file.TRIGGERS:  # as a SQLite without FTS5 leaves it
        raw.execute(f"DROP TRIGGER {trigger}")
    raw.execute(
        "INSERT INTO messages (id, conversation, role, content, created_at) "
        "VALUES ('m', 1, 'user', 'hidden', 0)"
    )
    raw.commit()
    raw.close()
    with pages_of(tiny, tmp_path) as client:
        assert found(client, "hidden") == {one}


def test_owners_are_hashes() -> None:
    assert owner_of("", b"salt") == ""
    assert owner_of("key", b"salt") == owner_of("key", b"salt") != owner_of("key", b"other")
    assert "key" not in owner_of("key", b"salt") and len(owner_of("k", b"s")) == 32


WRITER = """
import asyncio, sys
from pathlib import Path
from etude.serve import conversation_store as store
from etude.serve.conversation_file import ConversationFile
from etude.serve.types_conversations import MessageFields

async def main(folder, mark):
    file = ConversationFile(Path(folder))
    new = {"title": mark, "folder": None, "pinned": False, "settings": {}}
    one = await file.run(lambda db: store.created(db, "", new), write=True)
    parent = None
    for i in range(100_000):
        fields = MessageFields(content=f"{mark} {i} " + "text " * 200)
        found = await file.run(lambda db: store.added(db, "", one["id"], parent, "user", fields), write=True)
        parent = found["id"]
        print(parent, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_two_servers_write_one_file_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    """What was answered is there afterwards, as a whole chain, and the file is sound."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), mark], stdout=subprocess.PIPE, text=True
        )
        for mark in ("first", "second")
    ]
    said: list[list[str]] = [[], []]
    try:
        for _ in range(15):
            for mine, writer in zip(said, writers, strict=True):
                assert writer.stdout is not None
                mine.append(writer.stdout.readline().strip())
        os.kill(writers[0].pid, signal.SIGKILL)
        for _ in range(5):  # the other goes on
            assert writers[1].stdout is not None
            said[1].append(writers[1].stdout.readline().strip())
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    connection = sqlite3.connect(tmp_path / FILE)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.execute("INSERT INTO message_index (message_index) VALUES ('integrity-check')")
    parents = dict(connection.execute("SELECT id, parent FROM messages ORDER BY seq").fetchall())
    for mine in said:
        assert all(mine) and set(mine) <= parents.keys()
        assert [parents[one] for one in mine] == [None, *mine[:-1]]
    connection.close()
