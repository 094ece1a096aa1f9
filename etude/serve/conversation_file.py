"""The SQLite file of the conversations: its tables, their versions, search, and one thread that works in it.

Every change is a transaction that is on the disk when it is answered (WAL, synchronous=FULL), so a killed
server loses nothing that was said to be kept. Several servers may work in one file: SQLite lets one write at
a time, and others wait for it.

Search is an FTS5 index of trigrams over the messages, kept by triggers, which finds any three letters of any
language. A SQLite without FTS5 drops the triggers and looks through the texts; the next that has it builds
the index anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from etude.records import EtudeError
from etude.serve.errors import ApiError

Result = TypeVar("Result")
FILE = "conversations.sqlite3"
APPLICATION = 0x45747564  # "Etud", in the file's header
WAIT_S = 20.0  # for another server that writes
ROUNDS = 100_000

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE about (key TEXT PRIMARY KEY, value BLOB NOT NULL)",
        """CREATE TABLE conversations (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            title TEXT NOT NULL,
            folder TEXT,
            pinned INTEGER NOT NULL,
            settings TEXT NOT NULL,
            current TEXT,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL
        )""",
        "CREATE INDEX conversations_by_owner ON conversations (owner, updated_at)",
        """CREATE TABLE messages (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            conversation INTEGER NOT NULL REFERENCES conversations (seq) ON DELETE CASCADE,
            parent TEXT,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            reasoning TEXT,
            model TEXT,
            timings TEXT,
            tokens TEXT,
            attachments TEXT,
            created_at REAL NOT NULL
        )""",
        "CREATE INDEX messages_by_conversation ON messages (conversation, seq)",
    ),
)
"""What makes version n of version n - 1. PRAGMA user_version is the version of a file."""

TRIGGERS = {
    "message_added": """CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN
        INSERT INTO message_index (rowid, content) VALUES (new.seq, new.content); END""",
    "message_removed": """CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
        INSERT INTO message_index (message_index, rowid, content) VALUES ('delete', old.seq, old.content);
        END""",
    "message_changed": """CREATE TRIGGER message_changed AFTER UPDATE OF content ON messages BEGIN
        INSERT INTO message_index (message_index, rowid, content) VALUES ('delete', old.seq, old.content);
        INSERT INTO message_index (rowid, content) VALUES (new.seq, new.content); END""",
}
INDEX = """CREATE VIRTUAL TABLE message_index USING fts5(
    content, content='messages', content_rowid='seq', tokenize='trigram')"""
SHORTEST = 3  # letters that the index finds


def data_folder() -> Path:
    """Where this user's data is kept: $ETUDE_DATA, else where the system has such things."""
    given = os.environ.get("ETUDE_DATA")
    if given:
        return Path(given)
    if os.uname().sysname == "Darwin":
        return Path.home() / "Library" / "Application Support" / "etude"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "etude"


class ConversationFile:
    """The file, opened. All work in it is done by one thread of its own."""

    def __init__(self, folder: Path | None) -> None:
        """folder None: in memory. EtudeError where it cannot be opened or is of a later version."""
        self.path = None if folder is None else folder / FILE
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = _connect(self.path)
            _migrate(self._connection)
            self.indexed = _has_index(self._connection)
            self.salt = _salt(self._connection)
        except (sqlite3.Error, OSError) as error:
            raise EtudeError(
                f"conversations cannot be kept in {self.path or 'memory'}: {error}; give a folder that can "
                "be written with --data-dir, or leave the pages out with --no-ui"
            ) from error
        self._thread = ThreadPoolExecutor(1, "conversations")

    async def run(self, work: Callable[[sqlite3.Connection], Result], *, write: bool = False) -> Result:
        """Do something in the thread; with `write` all of it or nothing. ApiError 503 if the file fails."""

        def done() -> Result:
            try:
                with transaction(self._connection, write):
                    return work(self._connection)
            except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
                raise ApiError(503, f"the conversations cannot be reached now: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, done)

    def close(self) -> None:
        """After the work that has begun."""
        self._thread.shutdown(wait=True)
        self._connection.close()


def owner_of(key: str, salt: bytes) -> str:
    """Who a key is, without the key: "" for no key. Slow on purpose, and remembered."""
    return _hashed(key, salt) if key else ""


@lru_cache(maxsize=256)
def _hashed(key: str, salt: bytes) -> str:
    return hashlib.pbkdf2_hmac("sha256", key.encode("utf-8", "surrogateescape"), salt, ROUNDS, 16).hex()


@contextmanager
def transaction(connection: sqlite3.Connection, write: bool) -> Iterator[None]:
    """One state of the file from beginning to end; what is written is kept only if all goes well."""
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None and not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # nobody else's to read
    connection = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=WAIT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    connection.create_function("folded", 1, _folded, deterministic=True)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _folded(text: object) -> str:
    return str(text).casefold()


def _migrate(connection: sqlite3.Connection) -> None:
    """To the latest version, from any earlier one; two servers that start at once do it once."""
    with transaction(connection, write=True):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION:
            raise EtudeError(f"{FILE} is a file of another program; give another folder with --data-dir")
        if version > len(MIGRATIONS):
            raise EtudeError(
                f"{FILE} was written by a later version of etude (its layout is {version}, this version "
                f"knows {len(MIGRATIONS)}); use that version, or another folder with --data-dir"
            )
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _has_index(connection: sqlite3.Connection) -> bool:
    """Whether texts are found by the index; it is made, or made anew, where that is possible."""
    with transaction(connection, write=True):
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        try:
            connection.execute("CREATE VIRTUAL TABLE temp.probe USING fts5(x, tokenize='trigram')")
            connection.execute("DROP TABLE temp.probe")
        except sqlite3.OperationalError:  # a SQLite without it
            for name in TRIGGERS:
                connection.execute(f"DROP TRIGGER IF EXISTS {name}")
            return False
        if "message_index" not in names:
            connection.execute(INDEX)
        if not names.issuperset(TRIGGERS):
            for name, statement in TRIGGERS.items():
                if name not in names:
                    connection.execute(statement)
            connection.execute("INSERT INTO message_index (message_index) VALUES ('rebuild')")
    return True


def _salt(connection: sqlite3.Connection) -> bytes:
    """Of the hashes of keys, the file's own."""
    with transaction(connection, write=True):
        connection.execute("INSERT OR IGNORE INTO about VALUES ('salt', ?)", (secrets.token_bytes(16),))
        salt: bytes = connection.execute("SELECT value FROM about WHERE key = 'salt'").fetchone()[0]
    return salt
