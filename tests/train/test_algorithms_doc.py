"""docs/algorithms.md names only functions that exist, and all that the maths consists of."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = (DOCS / "algorithms.md").read_text()
MODULES = ("advantages", "losses", "kl", "corrections", "preference", "moments", "presets")
NAMED = sorted(set(re.findall(rf"\b({'|'.join(MODULES)})\.(?!py\b)([A-Za-z_]\w*)", DOCUMENT)))
INSIDE = {  # steps of others, named by their docstrings
    "group_statistics", "normalised", "token_weights", "sequence_weights", "within", "log1mexp",
    "named", "bind", "advantage_named", "preset_named",
}  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_what_the_document_names_exists(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(f"etude.train.{module}"), name)


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_every_name_is_linked_to_its_file(module: str, name: str) -> None:
    """At least once: in a formula block Markdown has no links."""
    assert f"[`{module}.{name}`][{module}]" in DOCUMENT
    (target,) = re.findall(rf"^\[{module}\]: (.*)$", DOCUMENT, re.MULTILINE)
    assert f"def {name}(" in (DOCS / target).read_text() or name == "PRESETS"


@pytest.mark.parametrize("module", MODULES)
def test_every_function_is_in_the_document(module: str) -> None:
    source = importlib.import_module(f"etude.train.{module}")
    functions = {
        name for name, f in inspect.getmembers(source, inspect.isfunction) if f.__module__ == source.__name__
    }
    documented = {name for where, name in NAMED if where == module}
    assert functions - INSIDE <= documented


@pytest.mark.parametrize(
    "word",
    [
        "Policy gradient", "Baseline", "Importance sampling", "PPO", "GAE",
        "GRPO: Group Relative Policy Optimization", "Bradley-Terry", "DPO",
    ],
)  # fmt: skip
def test_the_derivations_are_there(word: str) -> None:
    assert re.search(rf"^(## |\*\*){re.escape(word)}", DOCUMENT, re.MULTILINE)


def test_quoted_lines_of_gae_are_its_lines() -> None:
    source = inspect.getsource(importlib.import_module("etude.train.advantages").gae)
    for line in (
        "for t in reversed(range(len(rewards))):",
        "delta = rewards[t] + gamma * next_value - values[t]",
        "advantages[t] = delta + gamma * lam * next_advantage",
        "returns[t] = advantages[t] + values[t]",
    ):
        assert line in source
        assert line in DOCUMENT
