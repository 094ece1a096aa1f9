"""What keeps the code readable, counted: lines of a file and of a function; names that say what is inside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("etude", "tests", "bench")
FILE_LINES = 500
FUNCTION_LINES = 60
TRAIN_LINES = 100
"""One `train()` per algorithm reads from top to bottom beside its paper, and may be longer."""

NOT_A_FUNCTION = ("namespace", "extern", "struct", "class", "enum", "union", "using", "public:", "private:")
NAMELESS = {"util", "utils", "common", "helper", "helpers", "misc", "base", "manager", "handler", "handlers"}
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
NATIVE = sorted(path for suffix in ("cpp", "h") for path in (ROOT / "etude").rglob(f"*.{suffix}"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=relative)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES, f"{relative(path)} has {lines} lines: split it where a reader would"


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            budget = (
                TRAIN_LINES if node.name == "train" and "etude/train/" in path.as_posix() else FUNCTION_LINES
            )
            assert lines <= budget, f"{relative(path)}: {node.name} has {lines} lines, the budget is {budget}"


def native_functions(text: str) -> Iterator[tuple[str, int]]:
    """(first line, number of lines) of the C++ functions that are not inside a class.

    Our C++ does not indent namespaces: a definition starts in the first column and ends with a brace there.

    >>> list(native_functions("int f() {\\n  return 1;\\n}\\nnamespace x {\\n"))
    [('int f() {', 3)]
    """
    signature: tuple[str, int] | None = None
    inside = False
    for number, line in enumerate(text.splitlines()):
        ending = line.split("//")[0].rstrip()
        if signature is None and re.match(r"[A-Za-z_]", line) and not line.startswith(NOT_A_FUNCTION):
            signature = (line, number)
        if signature is None:
            continue
        if inside and line.startswith("}"):
            yield signature[0], number - signature[1] + 1
            signature, inside = None, False
        elif not inside and ending.endswith("{"):
            inside = True
        elif not inside and ending.endswith((";", "}")):  # a declaration, or a definition on one line
            signature = None


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_native_functions_are_short(path: Path) -> None:
    for name, lines in native_functions(path.read_text()):
        assert lines <= FUNCTION_LINES, f"{relative(path)}: {name} has {lines} lines"


def test_modules_are_named_by_what_they_define() -> None:
    for path in [*PYTHON, *NATIVE]:
        words = {
            word for part in path.relative_to(ROOT).with_suffix("").parts for word in part.lower().split("_")
        }
        assert not words & NAMELESS, f"{relative(path)}: {words & NAMELESS} says nothing about what is in it"


def test_modules_say_what_they_are() -> None:
    """Every module that has code opens with a docstring; a native file, or its header, with a comment."""
    for path in PYTHON:
        tree = ast.parse(path.read_text())
        assert not tree.body or ast.get_docstring(tree), f"{relative(path)} has no module docstring"
    for path in NATIVE:
        texts = [file.read_text() for file in (path, path.with_suffix(".h")) if file.exists()]
        opens = [text.removeprefix("#pragma once").lstrip().startswith(("//", "/*")) for text in texts]
        assert any(opens), f"{relative(path)} does not open with a comment, nor does its header"
