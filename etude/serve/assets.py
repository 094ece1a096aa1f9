"""The files of the pages: what Vite has built into web/, held in memory and compressed once.

index.html is asked for each time (a 304 if it is the same); everything else has a hash of its content in its
name, and browsers keep it for ever.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

WEB = Path(__file__).parent / "web"
INDEX = "index.html"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "worker-src 'self' blob:",  # pdf.js
        "style-src 'self'",
        "style-src-attr 'unsafe-inline'",  # KaTeX places its boxes so
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SAFETY = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
TEXTS = ("text/", "application/json", "application/manifest+json", "image/svg+xml")
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".wasm": "application/wasm",
    ".ico": "image/x-icon",
}
"""Not by the system's table, which may call scripts what it likes."""
FOREVER, ASK = "public, max-age=31536000, immutable", "no-cache"


@dataclass(frozen=True)
class Asset:
    """A file of the pages. bodies: by content encoding, "" for none."""

    media_type: str
    etag: str
    cache: str
    bodies: Mapping[str, bytes]

    def answer(self, request: Request) -> Response:
        """Compressed as the browser takes it, or 304 if it has it already."""
        headers = {**SAFETY, "ETag": self.etag, "Cache-Control": self.cache, "Vary": "Accept-Encoding"}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        encoding = chosen(request.headers.get("accept-encoding", ""), self.bodies)
        if encoding:
            headers["Content-Encoding"] = encoding
        headers["Content-Type"] = self.media_type
        return Response(self.bodies[encoding], headers=headers)


def chosen(accepted: str, bodies: Mapping[str, bytes]) -> str:
    """The best encoding that both sides know.

    >>> chosen("gzip, deflate, br;q=0", {"": b"", "gzip": b"", "br": b""}), chosen("", {"": b""})
    ('gzip', '')
    """
    known = set()
    for part in accepted.split(","):
        name, _, weight = part.strip().lower().partition(";")
        if weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            known.add(name.strip())
    return next((name for name in ("br", "gzip") if name in known and name in bodies), "")


def read_site(folder: Path) -> dict[str, Asset]:
    """All files of a folder by their paths; compressed ones (.gz, .br) are other forms of theirs."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: _asset(name, path, names)
        for name, path in names.items()
        if not (name.endswith((".gz", ".br")) and name.rpartition(".")[0] in names)
    }


def _asset(name: str, path: Path, names: Mapping[str, Path]) -> Asset:
    body = path.read_bytes()
    media = TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    bodies = {"": body}
    for encoding, suffix in (("gzip", ".gz"), ("br", ".br")):
        if name + suffix in names:
            bodies[encoding] = names[name + suffix].read_bytes()
    if media.startswith(TEXTS):
        bodies.setdefault("gzip", gzip.compress(body, 9, mtime=0))
        media += "; charset=utf-8"
    bodies = {key: value for key, value in bodies.items() if not key or len(value) < len(body)}
    hashed = name.startswith("assets/")  # Vite puts a hash into their names
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    return Asset(media, etag, FOREVER if hashed else ASK, bodies)


class Site:
    """The pages as they are on the disk; read again when they are built anew."""

    def __init__(self, folder: Path = WEB) -> None:
        self._folder = folder
        self._stamp: tuple[int, int] | None = None
        self._assets: dict[str, Asset] = {}

    def get(self, name: str) -> Asset | None:
        """A file by its path."""
        try:
            status = (self._folder / INDEX).stat()
        except OSError:
            return None
        if (status.st_mtime_ns, status.st_ino) != self._stamp:
            self._assets = read_site(self._folder)
            self._stamp = (status.st_mtime_ns, status.st_ino)
        return self._assets.get(name)
