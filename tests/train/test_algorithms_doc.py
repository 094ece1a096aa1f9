"""docs/algorithms.md names what exists, quotes lines that are there, and has every function of the maths."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from etude.train.presets import PRESETS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENT = (DOCS / "algorithms.md").read_text()
MODULES = ("advantages", "losses", "kl", "corrections", "preference", "moments", "presets")
"""The maths: each of their functions is in the document."""
TARGETS = dict(re.findall(r"^\[(\w+)\]: (\S+)$", DOCUMENT, re.MULTILINE))
LINKS = sorted(set(re.findall(r"\[`([\w.]+)`\]\[(\w+)\]", DOCUMENT)))
"""(name with its module, reference)."""
NAMED = sorted(set(re.findall(rf"(?<![\w./])({'|'.join(MODULES)})\.(?!py\b)([A-Za-z_]\w*)", DOCUMENT)))
INSIDE = {  # steps of others, named by their docstrings
    "group_statistics", "normalised", "token_weights", "sequence_weights", "within", "log1mexp",
    "named", "bind", "advantage_named", "preset_named",
}  # fmt: skip


def module_of(reference: str) -> ModuleType:
    """The module whose file a reference of the document leads to."""
    path = (DOCS / TARGETS[reference]).resolve().relative_to(ROOT)
    return importlib.import_module(".".join(path.with_suffix("").parts))


def linked(name: str, reference: str) -> Any:
    """What a link such as [`losses.clipped`][losses] is about."""
    return getattr(module_of(reference), name.rpartition(".")[2])


@pytest.mark.parametrize(("name", "reference"), LINKS)
def test_every_link_leads_to_what_it_names(name: str, reference: str) -> None:
    if name.endswith(".py"):
        assert module_of(reference).__name__.endswith(name.removesuffix(".py").replace("/", "."))
        return
    module = module_of(reference)
    assert f"etude.train.{name}".startswith(f"{module.__name__}.") or f"etude.{name}".startswith(
        f"{module.__name__}."
    ), "another file than its name says"
    found = linked(name, reference)
    if inspect.isfunction(found) or inspect.isclass(found):
        assert found.__module__ == module.__name__, "imported there, and written elsewhere"


def test_every_file_that_is_linked_exists_and_is_used() -> None:
    used = {reference for _, reference in LINKS} | set(re.findall(r"\]\[(\w+)\]", DOCUMENT))
    assert set(TARGETS) == used
    for target in TARGETS.values():
        assert (DOCS / target).is_file(), target


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_every_name_exists_and_is_linked(module: str, name: str) -> None:
    """At least once: in a formula block Markdown has no links."""
    assert hasattr(importlib.import_module(f"etude.train.{module}"), name)
    assert (f"{module}.{name}", module) in LINKS


@pytest.mark.parametrize("module", MODULES)
def test_every_function_is_in_the_document(module: str) -> None:
    source = importlib.import_module(f"etude.train.{module}")
    functions = {
        name for name, f in inspect.getmembers(source, inspect.isfunction) if f.__module__ == source.__name__
    }
    documented = {name for where, name in NAMED if where == module}
    assert functions - INSIDE <= documented


def test_every_preset_is_in_the_document() -> None:
    for name, preset in PRESETS.items():
        (row,) = re.findall(rf"^\| `{re.escape(name)}` \|(.*)\|$", DOCUMENT, re.MULTILINE)
        advantage, clip, _, kl, updates, _ = (cell.strip() for cell in row.split("|"))
        assert int(updates) == preset.minibatches
        assert (kl == "none") is (preset.kl_coefficient == 0)
        assert kl == "none" or str(preset.kl_coefficient) in kl
        assert ("std" in advantage) is ("std" in str(preset.advantage))
        assert clip != "none" or "unclipped" in str(preset.clip)


@pytest.mark.parametrize(
    "word",
    [
        "Policy gradient", "Baseline", "Importance sampling", "PPO", "GAE",
        "GRPO: Group Relative Policy Optimization", "Bradley-Terry", "DPO",
    ],
)  # fmt: skip
def test_the_derivations_are_there(word: str) -> None:
    assert re.search(rf"^(## |\*\*){re.escape(word)}", DOCUMENT, re.MULTILINE)


# ── the textbook's lines beside ours ──


def pairs(heading: str) -> list[tuple[str, str, tuple[str, str]]]:
    """(the textbook's line, ours, where ours is) of a section's table."""
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)[2:]
    found = []
    for row in rows:
        theirs, ours, where = (cell.strip() for cell in row.split("|"))
        ((line,), (link,)) = re.findall(r"^`(.*)`$", ours), re.findall(r"^\[`([\w.]+)`\]\[(\w+)\]$", where)
        found.append((theirs, line, link))
    return found


PAIRS = [*pairs("The textbook's PPO, line by line"), *pairs("The textbook's GRPO, line by line")]


@pytest.mark.parametrize(("theirs", "ours", "link"), PAIRS, ids=[ours for _, ours, _ in PAIRS])
def test_a_line_that_is_quoted_is_there(theirs: str, ours: str, link: tuple[str, str]) -> None:
    lines = [line.strip() for line in inspect.getsource(linked(*link)).splitlines()]
    assert ours in lines


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("PPO", ["critic with its own learning rate", "backward loop", "clipped surrogate", "value loss"]),
        ("GRPO", ["group is the baseline", "ratio", "clip", "exact KL of new and old"]),
    ],
)  # fmt: skip
def test_the_parts_of_the_textbook_are_there(heading: str, words: list[str]) -> None:
    theirs = " ".join(row for row, _, _ in pairs(f"The textbook's {heading}, line by line"))
    for word in words:
        assert word in theirs
