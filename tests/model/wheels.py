"""Small wheels with a GGUF inside, made on the spot."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence


def make_wheel(
    name: str,
    files: Mapping[str, bytes],
    *,
    version: str = "1.0",
    requires: Sequence[str] = (),
    licence: str = "MIT",
    recorded: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """{file name: bytes} of a wheel. `recorded`: contents whose checksum RECORD states."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: {licence}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    info = f"{stem}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": "\n".join(metadata).encode() + b"\n\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{path},sha256={_digest((recorded or {}).get(path, content))},{len(content)}"
        for path, content in members.items()
    ]
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return {f"{stem}-py3-none-any.whl": packed.getvalue()}


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
