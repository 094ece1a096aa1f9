"""What the server was told at its start: where it listens, who may ask, how much it takes.

Models and how to sample from them are the pool's (models.py). Defaults are safe: loopback only, no CORS,
bodies and lines of bounded size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_BODY_BYTES = 32 << 20
MAX_QUEUE = 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """api_keys: one of them opens everything but what changes the server; none: open. admin_keys: one of
    them opens all; none: nothing changes weights or adapters. cors_origins: web pages of other hosts that may
    ask; "*" is any, "localhost" those of this machine; cors_credentials: with cookies and passwords.
    max_queue: completions that run or wait at once, more are refused with 429. write_timeout_s: a client that
    takes nothing for so long is dropped. prefix: what stands before every path. slot_folder: where requests
    may save prompt caches, weights_folder and adapters_folder: where those lie that may be loaded while it
    runs; None: nowhere. runs_folder: of the runs that the pages show. data_folder: where conversations are
    kept; None: in memory, until the server ends. explains: answers show what the model read and how it was
    drawn, where a request does not say.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    cors_credentials: bool = False
    max_queue: int = MAX_QUEUE
    max_body_bytes: int = MAX_BODY_BYTES
    write_timeout_s: float = 600.0
    ping_interval_s: float = 30.0
    prefix: str = ""
    shows_slots: bool = True
    shows_metrics: bool = False
    changes_props: bool = False
    slot_folder: Path | None = None
    weights_folder: Path | None = None
    adapters_folder: Path | None = None
    runs_folder: Path | None = None
    data_folder: Path | None = None
    shows_pages: bool = True
    explains: bool = False
