"""Conversations in the tables of conversation_file.py: each function is one piece of work in one transaction.

A conversation is a tree: an edit or another answer is a sibling of what it stands in for, and `current` is
the message at which reading ends. Nothing of another owner is ever found: it is a 404 as if it were not.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from sqlite3 import Connection, Row
from typing import Any

from etude.serve.conversation_file import SHORTEST
from etude.serve.errors import ApiError
from etude.serve.types_conversations import (
    EXPORT,
    MAX_MESSAGES,
    ExportedConversation,
    MessageFields,
)

MAX_CONVERSATIONS = 50_000
MAX_SETTINGS, MAX_JSON = 256 << 10, 16 << 20
KEPT_AS_JSON = ("timings", "tokens", "attachments")
SUMMARY = """id, title, folder, pinned, created_at, updated_at,
    (SELECT count(*) FROM messages WHERE conversation = conversations.seq) AS n_messages,
    (SELECT model FROM messages WHERE conversation = conversations.seq AND model IS NOT NULL
     ORDER BY seq DESC LIMIT 1) AS model"""
PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


# ── conversations ──


def listed(
    db: Connection,
    owner: str,
    *,
    query: str = "",
    folder: str | None = None,
    indexed: bool = True,
    offset: int = 0,
    limit: int = 1000,
) -> dict[str, Any]:
    """The newest first. query: words that stand in the title, or all in one message."""
    where, values = "owner = ?", [owner]
    if folder is not None:
        where, values = f"{where} AND folder = ?", [*values, folder]
    words = query.casefold().split()[:20]
    if words:
        found, wanted = _containing(words, indexed)
        where, values = f"{where} AND {found}", [*values, *wanted]
    rows = db.execute(
        f"SELECT {SUMMARY} FROM conversations WHERE {where} "
        "ORDER BY updated_at DESC, seq DESC LIMIT ? OFFSET ?",
        (*values, limit, offset),
    )
    total = db.execute(f"SELECT count(*) FROM conversations WHERE {where}", values).fetchone()[0]
    folders = db.execute(
        "SELECT DISTINCT folder FROM conversations WHERE owner = ? AND folder IS NOT NULL ORDER BY folder",
        (owner,),
    )
    return {
        "conversations": [_summary(row) for row in rows],
        "folders": [row[0] for row in folders],
        "total": total,
    }


def _containing(words: Sequence[str], indexed: bool) -> tuple[str, list[str]]:
    """The condition that a conversation contains words."""
    title = " AND ".join("instr(folded(title), ?)" for _ in words)
    long = [word for word in words if len(word) >= SHORTEST] if indexed else []
    short = [word for word in words if word not in long]
    tests = ["instr(folded(content), ?)" for _ in short]
    texts = "SELECT conversation FROM messages"
    if long:
        tests.insert(0, "seq IN (SELECT rowid FROM message_index WHERE message_index MATCH ?)")
    match = [" AND ".join(f'"{word.replace(chr(34), chr(34) * 2)}"' for word in long)] if long else []
    condition = f"(({title}) OR seq IN ({texts} WHERE {' AND '.join(tests)}))"
    return condition, [*words, *match, *short]


def created(db: Connection, owner: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A new conversation, without messages."""
    _check_room(db, owner, 1)
    identity, now = _new_id(), time.time()
    settings = dict(fields["settings"])
    if fields.get("system") is not None:
        settings["system"] = fields["system"]
    db.execute(
        "INSERT INTO conversations (id, owner, title, folder, pinned, settings, created_at, updated_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity, owner, fields["title"], fields["folder"] or None, fields["pinned"],
            _json("settings", settings, MAX_SETTINGS), now, now,
        ),
    )  # fmt: skip
    return read(db, owner, identity)


def read(db: Connection, owner: str, identity: str) -> dict[str, Any]:
    """A conversation with all its messages. ApiError 404."""
    row = db.execute(
        f"SELECT {SUMMARY}, seq, settings, current FROM conversations WHERE id = ? AND owner = ?",
        (identity, owner),
    ).fetchone()
    if row is None:
        raise _none(identity)
    messages = db.execute("SELECT * FROM messages WHERE conversation = ? ORDER BY seq", (row["seq"],))
    return _summary(row) | {
        "settings": json.loads(row["settings"]),
        "current": row["current"],
        "messages": [_message(message) for message in messages],
    }


def changed(db: Connection, owner: str, identity: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Set what is given. A change of `current` alone is reading, and does not make it newer."""
    seq = _seq(db, owner, identity)
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "settings":
            values[name] = _json("settings", value or {}, MAX_SETTINGS)
        elif name == "folder":
            values[name] = value or None
        elif value is None and name != "current":
            raise ApiError(400, f"{name} is null, and must not be", param=name)
        else:
            values[name] = value
    if values.get("current") is not None:
        _message_seq(db, seq, values["current"], "current")
    if values.keys() - {"current", "pinned"}:
        values["updated_at"] = time.time()
    if values:
        names = ", ".join(f"{name} = ?" for name in values)
        db.execute(f"UPDATE conversations SET {names} WHERE seq = ?", (*values.values(), seq))
    row = db.execute(
        f"SELECT {SUMMARY}, settings, current FROM conversations WHERE seq = ?", (seq,)
    ).fetchone()
    return _summary(row) | {"settings": json.loads(row["settings"]), "current": row["current"]}


def removed(db: Connection, owner: str, identity: str) -> dict[str, Any]:
    """The conversation and its messages."""
    db.execute("DELETE FROM conversations WHERE seq = ?", (_seq(db, owner, identity),))
    return {"deleted": [identity]}


# ── messages ──


def added(
    db: Connection, owner: str, identity: str, parent: str | None, role: str, fields: MessageFields
) -> dict[str, Any]:
    """A new message, which becomes `current`. ApiError 400 for a parent that is not in the conversation."""
    seq = _seq(db, owner, identity)
    if parent is not None:
        _message_seq(db, seq, parent, "parent")
    n = db.execute("SELECT count(*) FROM messages WHERE conversation = ?", (seq,)).fetchone()[0]
    if n >= MAX_MESSAGES:
        raise ApiError(400, f"the conversation has {n} messages, the most that one may have")
    message, now = _new_id(), time.time()
    _insert(db, seq, message, parent, role, fields, now)
    db.execute("UPDATE conversations SET current = ?, updated_at = ? WHERE seq = ?", (message, now, seq))
    row = db.execute("SELECT * FROM messages WHERE id = ?", (message,)).fetchone()
    return _message(row)


def rewritten(
    db: Connection, owner: str, identity: str, message: str, fields: MessageFields
) -> dict[str, Any]:
    """Set what is given of a message. While an answer streams, a page does this every second."""
    seq = _seq(db, owner, identity)
    place = _message_seq(db, seq, message, "message", status=404)
    values = {name: value for name, value in _columns(fields).items() if name in fields.model_fields_set}
    if values:
        names = ", ".join(f"{name} = ?" for name in values)
        db.execute(f"UPDATE messages SET {names} WHERE seq = ?", (*values.values(), place))
        db.execute("UPDATE conversations SET updated_at = ? WHERE seq = ?", (time.time(), seq))
    return _message(db.execute("SELECT * FROM messages WHERE seq = ?", (place,)).fetchone())


def cut(db: Connection, owner: str, identity: str, message: str) -> dict[str, Any]:
    """Remove a message and all that follows it. If reading ended there, it ends with the newest of what is
    left beside it, else with what it answered."""
    seq = _seq(db, owner, identity)
    _message_seq(db, seq, message, "message", status=404)
    rows = db.execute(
        "SELECT id, parent FROM messages WHERE conversation = ? ORDER BY seq", (seq,)
    ).fetchall()
    children: dict[str | None, list[str]] = {}
    for row in rows:
        children.setdefault(row["parent"], []).append(row["id"])
    gone, waiting = set(), [message]
    while waiting:
        one = waiting.pop()
        gone.add(one)
        waiting += children.get(one, ())
    db.executemany("DELETE FROM messages WHERE id = ?", [(one,) for one in gone])
    current = db.execute("SELECT current FROM conversations WHERE seq = ?", (seq,)).fetchone()[0]
    if current is None or current in gone:
        parent = next(row["parent"] for row in rows if row["id"] == message)
        current = _leaf(children, parent, gone)
    db.execute(
        "UPDATE conversations SET current = ?, updated_at = ? WHERE seq = ?", (current, time.time(), seq)
    )
    return {"deleted": sorted(gone), "current": current}


def _leaf(children: Mapping[str | None, Sequence[str]], begin: str | None, gone: set[str]) -> str | None:
    """Where reading ends that goes on from a message with the newest answers."""
    leaf = begin
    while left := [one for one in children.get(leaf, ()) if one not in gone]:
        leaf = left[-1]
    return leaf


# ── export and import ──


def exported(db: Connection, owner: str, identities: Sequence[str] = ()) -> dict[str, Any]:
    """One conversation, some, or all, the newest first."""
    if not identities:
        rows = db.execute(
            "SELECT id FROM conversations WHERE owner = ? ORDER BY updated_at DESC, seq DESC", (owner,)
        )
        identities = [row[0] for row in rows]
    conversations = [read(db, owner, identity) for identity in identities]
    return {"format": EXPORT, "version": 1, "conversations": conversations}


def imported(db: Connection, owner: str, conversations: Sequence[ExportedConversation]) -> dict[str, Any]:
    """Take the conversations of an export; ids that are in use become new ones. All or none."""
    _check_room(db, owner, len(conversations))
    for place, conversation in enumerate(conversations):
        _check_tree(conversation, f"conversations[{place}]")
    return {"imported": [_taken(db, owner, conversation) for conversation in conversations]}


def _taken(db: Connection, owner: str, conversation: ExportedConversation) -> str:
    identity, now = _free_id(db, "conversations", conversation.id), time.time()
    seq = db.execute(
        "INSERT INTO conversations (id, owner, title, folder, pinned, settings, created_at, updated_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity, owner, conversation.title, conversation.folder or None, conversation.pinned,
            _json("settings", conversation.settings, MAX_SETTINGS), conversation.created_at or now,
            conversation.updated_at or now,
        ),
    ).lastrowid  # fmt: skip
    assert seq is not None
    ids: dict[str | None, str | None] = {None: None}
    for message in conversation.messages:
        ids[message.id] = _free_id(db, "messages", message.id)
    for message in conversation.messages:
        new, parent = ids[message.id], ids[message.parent]
        assert new is not None
        _insert(db, seq, new, parent, message.role, message, message.created_at or now)
    db.execute("UPDATE conversations SET current = ? WHERE seq = ?", (ids[conversation.current], seq))
    return identity


def _check_tree(conversation: ExportedConversation, where: str) -> None:
    """ApiError 400 unless the messages are trees and `current` is one of them."""
    parents = {message.id: message.parent for message in conversation.messages}
    if len(parents) < len(conversation.messages):
        raise ApiError(400, f"{where}: two messages have the same id", param="conversations")
    if conversation.current is not None and conversation.current not in parents:
        raise ApiError(400, f"{where}: current is none of its messages", param="conversations")
    sound: set[str | None] = {None}
    for start in parents:
        path: list[str | None] = []
        seen: set[str | None] = set()
        at: str | None = start
        while at not in sound:
            if at not in parents or at in seen:
                why = "which is none of them" if at not in parents else "which comes after it"
                raise ApiError(400, f"{where}: a message answers {at!r}, {why}", param="conversations")
            path.append(at)
            seen.add(at)
            at = parents[at]
        sound.update(path)


# ── rows ──


def _seq(db: Connection, owner: str, identity: str) -> int:
    row = db.execute("SELECT seq FROM conversations WHERE id = ? AND owner = ?", (identity, owner)).fetchone()
    if row is None:
        raise _none(identity)
    seq: int = row[0]
    return seq


def _none(identity: str) -> ApiError:
    return ApiError(404, f"there is no conversation {identity!r}", param="id", code="conversation_not_found")


def _message_seq(db: Connection, conversation: int, message: str, field: str, status: int = 400) -> int:
    row = db.execute(
        "SELECT seq FROM messages WHERE id = ? AND conversation = ?", (message, conversation)
    ).fetchone()
    if row is None:
        raise ApiError(status, f"{field}: there is no message {message!r} in this conversation", param=field)
    seq: int = row[0]
    return seq


def _insert(
    db: Connection,
    conversation: int,
    identity: str,
    parent: str | None,
    role: str,
    fields: MessageFields,
    created_at: float,
) -> None:
    columns = _columns(fields)
    names = ", ".join(["id", "conversation", "parent", "role", "created_at", *columns])
    values = (identity, conversation, parent, role, created_at, *columns.values())
    db.execute(f"INSERT INTO messages ({names}) VALUES ({', '.join('?' * len(values))})", values)


def _columns(fields: MessageFields) -> dict[str, Any]:
    """The fields as their columns hold them."""
    found = {name: getattr(fields, name) for name in ("content", "reasoning", "model")}
    plain = fields.model_dump(include=set(KEPT_AS_JSON))
    return found | {name: _json(name, plain[name], MAX_JSON) for name in KEPT_AS_JSON}


def _json(name: str, value: Any, limit: int) -> str | None:
    """ApiError 400 for what is too long or no JSON."""
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ApiError(400, f"{name} is no JSON: {error}", param=name) from None
    if len(text) > limit:
        raise ApiError(400, f"{name} has {len(text)} characters; {limit} are allowed", param=name)
    return text


def _summary(row: Row) -> dict[str, Any]:
    names = ("id", "title", "folder", "model", "created_at", "updated_at", "n_messages")
    return {name: row[name] for name in names} | {"pinned": bool(row["pinned"])}


def _message(row: Row) -> dict[str, Any]:
    """Without the fields that it has not."""
    names = ("id", "parent", "role", "content", "created_at")
    found = {name: row[name] for name in names}
    found |= {name: row[name] for name in ("reasoning", "model") if row[name] is not None}
    return found | {name: json.loads(row[name]) for name in KEPT_AS_JSON if row[name] is not None}


def _check_room(db: Connection, owner: str, n: int) -> None:
    there = db.execute("SELECT count(*) FROM conversations WHERE owner = ?", (owner,)).fetchone()[0]
    if there + n > MAX_CONVERSATIONS:
        raise ApiError(400, f"there are {there} conversations; {MAX_CONVERSATIONS} are the most: delete some")


def _free_id(db: Connection, table: str, wanted: str) -> str:
    """The id that was wanted, or a new one if that is taken or cannot be one."""
    taken = db.execute(f"SELECT 1 FROM {table} WHERE id = ?", (wanted,)).fetchone()
    return wanted if PLAIN_ID.fullmatch(wanted) and taken is None else _new_id()


def _new_id() -> str:
    return uuid.uuid4().hex


def unique(values: Iterable[str]) -> list[str]:
    """In their order, each once."""
    return list(dict.fromkeys(values))
