"""The order of the tree: which folder may import which, no cycles, and inference without torch.

Read as the design draws it: `records, kernels ← model ← engine`; `records ← data, rewards, runlog`;
`model.chat, rewards ← rollout ← evals`; `kernels, model ← learner ← train ← recipes ← serve, terminal, cli`.
`rollout` and `train` are given an engine and never import one. Folders that a later issue builds stand here
already.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "etude"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

INFERENCE = {"records", "kernels", "model", "engine"}
JUDGING = {"data", "rewards", "rollout", "evals"}
TRAINING = {"learner", "train", "runlog"}
ALLOWED: dict[str, set[str]] = {
    "records": set(),
    "kernels": set(),
    "model": {"records", "kernels"},
    "engine": {"records", "kernels", "model"},
    "data": {"records"},
    "rewards": {"records"},
    "runlog": {"records"},
    "rollout": {"records", "model.chat", "rewards"},
    "evals": {"records", "model.chat", "rewards", "rollout"},
    "learner": {"records", "kernels", "model"},
    "train": {"records", "model", "learner", "rollout", "evals", "runlog"},
    "recipes": INFERENCE | JUDGING | TRAINING | {"train"},
    "serve": INFERENCE | JUDGING | TRAINING | {"recipes"},
    "terminal": INFERENCE | JUDGING | TRAINING | {"recipes", "serve"},
    "cli": INFERENCE | JUDGING | TRAINING | {"recipes", "serve", "terminal"},
    "__main__": {"cli"},
    "__init__": INFERENCE,
}
"""Layer → what it may import of the package, besides itself: a layer, or one module of a layer."""

WITH_TORCH = (
    "learner/", "train/", "recipes/", "model/transformer.py", "model/heads.py", "model/segments.py",
    "model/attention.py", "model/operators.py", "model/projections.py", "model/rates.py", "model/scratch.py",
)  # fmt: skip
EXTRAS = {
    "gguf", "huggingface_hub", "modelscope_hub", "safetensors", "torch",
    "math_verify", "reasoning_gym", "pyarrow", "datasets", "jsonargparse",
}  # fmt: skip
"""Third-party packages of the optional extras: the only imports inside a function, except in cli.py."""


PART_OF = {"pydantic_core": "pydantic"}
"""Packages that come with another, whose documentation tells to import from them."""


def layer_of(path: Path) -> str:
    """records.py → "records", model/gguf.py → "model"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import below a node, also those inside functions, as (statement, dotted name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write absolute imports"
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def may_import(layer: str, target: str) -> bool:
    """Whether a module of `layer` may import `target` ("etude.model.chat.render")."""
    parts = target.split(".")[1:]
    allowed = ALLOWED[layer] | {layer}
    return parts[0] in allowed or ".".join(parts[:2]) in allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    layer = layer_of(path)
    assert layer in ALLOWED, f"{path}: the design has no folder or module {layer!r}"
    for node, target in imported(ast.parse(path.read_text())):
        if target == "etude" or target.startswith("etude."):
            assert may_import(layer, target), f"{path}:{node.lineno}: {layer} must not import {target}"


@pytest.mark.parametrize(
    ("layer", "target", "allowed"),
    [
        ("model", "etude.records.EtudeError", True),
        ("model", "etude.model.gguf.GGUFFile", True),
        ("model", "etude.engine.engine.Engine", False),
        ("kernels", "etude.records.EtudeError", False),
        ("rollout", "etude.model.chat.ChatTemplate", True),
        ("rollout", "etude.model.gguf.GGUFFile", False),
        ("rollout", "etude.engine.Engine", False),
        ("train", "etude.engine.Engine", False),
        ("terminal", "etude.cli.main", False),
        ("engine", "etude.Engine", False),
    ],
)
def test_the_order_is_the_designs(layer: str, target: str, allowed: bool) -> None:
    assert may_import(layer, target) is allowed


def test_no_import_inside_a_function() -> None:
    """Except of a verb's module in cli.py, of the optional extras, and the lazy names of a package."""
    for path in MODULES:
        if path.name in ("cli.py", "__init__.py"):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node, target in imported(function):
                    package = target.split(".")[0]
                    assert package in EXTRAS, f"{path}:{node.lineno}: {target} is imported inside a function"


def test_no_cycles() -> None:
    """No module imports itself through others (type-checking imports do not count)."""
    graph = {module_name(path): set(run_time_imports(path)) for path in MODULES}
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' → '.join((*trail, module))}"
        if module not in finished:
            for target in graph[module]:
                visit(target, (*trail, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def module_name(path: Path) -> str:
    """etude/model/gguf.py → etude.model.gguf, etude/model/__init__.py → etude.model."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_imports(path: Path) -> Iterator[str]:
    """Modules of the package that a module imports when it is itself imported."""
    names = {module_name(module) for module in MODULES}
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for _, target in imported(node):
                while target not in names and "." in target:
                    target = target.rpartition(".")[0]
                if target in names and target != module_name(path):
                    yield target


def test_only_training_imports_torch() -> None:
    for path in MODULES:
        relative = path.relative_to(PACKAGE).as_posix()
        if not relative.startswith(WITH_TORCH):
            for node, target in imported(ast.parse(path.read_text())):
                assert target.split(".")[0] != "torch", (
                    f"{path}:{node.lineno}: inference must not import torch"
                )


def test_dependencies_are_declared_and_used() -> None:
    """The base install brings what the package imports, and nothing else; the rest are the extras."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = {re.split("[>=<]", dependency)[0] for dependency in project["dependencies"]}
    targets = {
        target.split(".")[0] for path in MODULES for _, target in imported(ast.parse(path.read_text()))
    }
    targets = {PART_OF.get(target, target) for target in targets}
    assert targets - set(sys.stdlib_module_names) - EXTRAS - {"etude"} == declared


WITHOUT_TORCH = """
import importlib.abc, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            sys.exit(f"{name} was imported")

sys.meta_path.insert(0, Watch())
import etude, etude.cli
from etude.terminal import bench, chat, generate
engine = etude.Engine.load(sys.argv[1])
print(len(engine.generate(["The capital of France is"], max_tokens=2)[0][0].token_ids))
"""


def test_a_model_runs_without_torch(smollm2: Path) -> None:
    """Nothing on the way from the import to an answer looks for torch, whether it is installed or not."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(smollm2)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout.strip()) == (0, "2"), result.stdout + result.stderr
