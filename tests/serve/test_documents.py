"""The Python of docs/server.md, block after block, against a server with a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serve.live import app_of, live_of, load_large
from tests.test_readme import ROOT, blocks

DOCUMENT = ROOT / "docs" / "server.md"
ADDRESS = "http://127.0.0.1:8080"


def test_the_python_of_the_document_runs(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(DOCUMENT.read_text(), "python")
    assert any("anthropic" in block for block in found) and any("responses" in block for block in found)
    with live_of(app_of(smollm2, load=load_large)) as live:
        names: dict[str, Any] = {"__name__": "document"}
        for number, block in enumerate(found):
            code = block.replace(ADDRESS, live.url)
            exec(compile(code, f"{DOCUMENT.name}, block {number}", "exec"), names)
    assert "Paris" in capsys.readouterr().out
