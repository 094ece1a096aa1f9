"""Who made a stored output: the peer's name, its version and the command, kept beside the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write_peer_record(path: Path, versions: Mapping[str, str], command: str, **facts: object) -> None:
    """Write {"peers": {name: version}, "command": …, facts…} to `path`."""
    record = {"peers": dict(versions), "command": command, **facts}
    path.write_text(json.dumps(record, indent=1) + "\n")
