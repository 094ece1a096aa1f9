"""What the documents say is true: their Python runs, their map is the tree, their commands exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etude.terminal.verbs import VERBS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
SHOWN = (".py", ".cpp", ".h", ".pyi")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language.

    >>> blocks("```python\\nx = 1\\n```\\n```text\\nx\\n```", "python")
    ['x = 1\\n']
    """
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def with_python() -> list[Path]:
    """Those of docs/server.md need a server: tests/serve/test_documents.py."""
    return [path for path in DOCUMENTS if path.name != "server.md" and blocks(path.read_text(), "python")]


@pytest.mark.parametrize("path", with_python(), ids=lambda path: path.name)
def test_the_python_of_a_document_runs(
    path: Path, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of a document one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)  # trainings write their runs where one is
    names: dict[str, Any] = {"__name__": "document"}
    for number, block in enumerate(blocks(path.read_text(), "python")):
        exec(compile(block, f"{path.name}, block {number}", "exec"), names)


def mapped(block: str) -> Iterator[str]:
    """The paths that a map names: a folder ends with "/", what is indented below it lies in it.

    >>> list(mapped("a/      folder\\n  b.py  noun\\n  c.h c.cpp  two of them\\nd  file"))
    ['a/b.py', 'a/c.h', 'a/c.cpp', 'd']
    """
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        names = line.strip().split("  ")[0].split()
        folders = [folder for folder in folders if folder[0] < indent]
        base = "".join(name for _, name in folders)
        for name in names:
            if name.endswith("/"):
                folders.append((indent, name))
            else:
                yield base + name


def test_the_map_is_the_tree() -> None:
    (block,) = blocks(README, "text")
    listed = list(mapped(block))
    assert len(listed) == len(set(listed))
    files = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "etude").rglob("*") if path.suffix in SHOWN
    }
    there = {name for name in files if not name.endswith("/__init__.py")} | {"etude/__init__.py"}
    in_map = {name for name in listed if name.startswith("etude/")}
    assert in_map == there
    assert all((ROOT / name).exists() for name in listed)


def test_the_documents_name_verbs_and_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        text = path.read_text()
        for verb in re.findall(r"(?:`|^    |bin/)etude ([a-z]+(?:-[a-z]+)*)", text, re.MULTILINE):
            assert verb in VERBS, f"{path.name}: etude {verb}"
        for target in re.findall(r"(?:`|^    |^)make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{path.name}: make {target}"


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
