"""Hubs and a package index on 127.0.0.1, for the real libraries to talk to, able to fail as real ones do.

One server speaks Hugging Face's, ModelScope's and a simple package index's routes. It can be slow, break a
transfer off, or send wrong bytes; and it remembers what was asked of it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Stub:
    """What the server has and how it behaves.

    repos: "owner/repo" → file → bytes. wheels: file name → bytes. slow: seconds per 16 KiB of a file.
    break_after: file → bytes after which the connection is cut, every time. wrong: file → how many more times
    it is sent with its last byte changed. asked: (method, path, first byte asked for).
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    wheels: dict[str, bytes] = field(default_factory=dict)
    licence: str = "apache-2.0"
    slow_s: float = 0.0
    break_after: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    gated: bool = False
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    def transfers(self, name: str) -> list[int]:
        """First bytes of the GET requests for a file, in order."""
        return [start for method, path, start in self.asked if method == "GET" and path.endswith(name)]


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Serve until the block ends; `stub.url` is the address."""

    class Handler(StubHandler):
        pass

    Handler.stub = stub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class StubHandler(BaseHTTPRequestHandler):
    """The routes."""

    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        shown = query.get("FilePath", path)
        self.stub.asked.append((self.command, shown, self._first_byte()))
        words = path.strip("/").split("/")
        repo = self._repo(words)
        if words[0] in ("simple", "wheels"):
            self._index(words)
        elif repo is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif self.stub.gated:
            self._send(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif words[:2] == ["api", "models"]:
            self._send(200, self._hf_listing(repo))
        elif words[2:3] == ["resolve"]:
            self._file(repo, "/".join(words[4:]))
        elif words[:2] == ["openapi", "v1"]:
            self._send(200, {"success": True, "data": {"id": repo, "license": self.stub.licence}})
        elif words[-2:] == ["repo", "files"]:
            self._send(200, {"Code": 200, "Success": True, "Data": {"Files": self._modelscope_files(repo)}})
        else:
            self._file(repo, query["FilePath"])

    def _repo(self, words: list[str]) -> str | None:
        """The repository of a path: /api/models/o/r, /o/r/resolve/…, /api/v1/models/o/r/…"""
        after = words.index("models") + 1 if "models" in words else 0
        name = "/".join(words[after : after + 2])
        return name if name in self.stub.repos else None

    def _first_byte(self) -> int:
        asked = self.headers.get("Range", "")
        return int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0

    def _hf_listing(self, repo: str) -> dict[str, object]:
        siblings = []
        for name, content in self.stub.repos[repo].items():
            sibling: dict[str, object] = {
                "rfilename": name,
                "size": len(content),
                "blobId": _etag(content)[:40],
            }
            if name.endswith((".gguf", ".safetensors")):
                sibling["lfs"] = {"size": len(content), "sha256": _etag(content), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": self.stub.licence}}

    def _modelscope_files(self, repo: str) -> list[dict[str, object]]:
        files = self.stub.repos[repo].items()
        return [{"Path": n, "Size": len(c), "Sha256": _etag(c), "Type": "blob"} for n, c in files]

    def _index(self, words: list[str]) -> None:
        """A simple package index: /simple/NAME/ lists, /wheels/FILE serves."""
        if words[0] == "wheels":
            self._file("", words[1])
            return
        prefix = words[1].replace("-", "_") + "-"
        names = [name for name in self.stub.wheels if name.startswith(prefix)]
        links = "".join(f'<a href="/wheels/{n}#sha256={_etag(self.stub.wheels[n])}">{n}</a>\n' for n in names)
        self._send(200 if names else 404, f"<!DOCTYPE html><html><body>{links}</body></html>")

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _file(self, repo: str, name: str) -> None:
        files = self.stub.repos[repo] if repo else self.stub.wheels
        if name not in files:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = files[name]
        start = self._first_byte()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command != "HEAD":
            self._stream(name, content, start)

    def _stream(self, name: str, content: bytes, start: int) -> None:
        if self.stub.wrong.get(name, 0) > 0:
            self.stub.wrong[name] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        end = self.stub.break_after.get(name, len(content))
        for first in range(start, end, 16384):
            try:
                self.wfile.write(content[first : min(first + 16384, end)])
            except OSError:  # the client was killed
                break
            time.sleep(self.stub.slow_s)
        if end < len(content):
            self.close_connection = True
            self.connection.close()


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, for pip's find-links."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
