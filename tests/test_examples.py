"""Everything in examples/ runs as it is printed; here the programs, on a model of bytes, and the settings."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import etude
from etude.learner.local import ComputeSettings
from etude.recipes import grpo as recipe
from etude.records import Problem
from etude.runlog import RunReader
from etude.terminal.config import read_config
from etude.terminal.train import TRAININGS
from etude.train.settings import ModelSettings
from tests.serve.live import app_of, live_of

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_own_reward(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten lines of Python: own problems, own reward; only model and sizes are changed here."""

    def small(**given: Any) -> RunReader:
        given["run"] = replace(given["run"], steps=2, folder=str(tmp_path))
        given["sampling"] = replace(
            given["sampling"], prompts_per_step=2, max_tokens=4, weight_type="f32", threads=1
        )
        return recipe.grpo(**given, model=ModelSettings(str(tiny)), compute=ComputeSettings(dtype="f32"))

    monkeypatch.setattr(etude, "grpo", small, raising=False)
    document = (EXAMPLES.parent / "docs" / "algorithms.md").read_text()
    (shown,) = re.findall(r"^    (def loud.*?)\n\n(?=\S)", document, re.MULTILINE | re.DOTALL)
    assert shown.replace("\n    ", "\n") in (EXAMPLES / "own_reward.py").read_text()
    names = runpy.run_path(str(EXAMPLES / "own_reward.py"))
    loud = names["loud"]
    problem = Problem("x", ())
    assert [loud(problem, text) for text in ("CATS!", "Cats", "12", "")] == [1.0, 0.25, 0.0, 0.0]
    run = names["run"]
    assert run.state == "finished" and len(run.metrics()) == 2
    assert "loud" in run.config["reward"] and "14 problems" in run.config["data"]["train"]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("  1 0.") and out[-1] == f"etude runs {run.folder}"


def test_sample_from_server(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trainer's client: what the server says of the tokens it drew is what scoring them here says."""
    main = runpy.run_path(str(EXAMPLES / "sample_from_server.py"))["main"]
    with live_of(app_of(tiny)) as live:
        main(["--url", live.url, "--n", "3", "--max-tokens", "10", "--check", str(tiny)])
    *group, checked = capsys.readouterr().out.splitlines()
    assert len(group) == 3 and all("weights 0" in line and "advantage" in line for line in group)
    assert checked == "largest difference to scoring them here: 0.0"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_settings_are_read_by_the_verb_they_are_for(path: Path) -> None:
    """The first comment of a file shows its command."""
    verb = re.search(rf"etude ([a-z-]+) examples/{re.escape(path.name)}", path.read_text())
    assert verb is not None, "the file does not say how it is run"
    read_config(TRAININGS[verb[1]].config, [str(path)], {})
