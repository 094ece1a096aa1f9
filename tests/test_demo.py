"""The demo, and the README's training, with a model of random weights: everything but the learning."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from etude.cli import main as etude
from etude.data import load_problems
from etude.runlog import RunReader
from etude.terminal.config import read_config
from etude.terminal.train import FLAGS, TRAININGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("etude_demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def words(tiny: Path, folder: Path, steps: int = 2) -> list[str]:
    """The demo's settings, smaller."""
    settings = {
        "model.name": tiny, "run.folder": folder, "run.steps": steps, "eval.limit": 5,
        "sampling.prompts_per_step": 2, "sampling.samples_per_prompt": 2, "sampling.max_tokens": 4,
        "sampling.weight_type": "f32", "compute.dtype": "f32", "run.checkpoint_every": 1,
    }  # fmt: skip
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_the_demo_trains_and_shows(
    demo: ModuleType, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(words(tiny, tmp_path)) == 1  # random weights learn nothing in two steps, and it says so
    out = capsys.readouterr().out
    run = RunReader(tmp_path / "demo")
    assert run.state == "finished" and len(run.metrics()) == 3
    assert "accuracy on 5 held-out problems" in out and "always '" in out and "named, 33.3 %" in out
    assert "strict    0.0 % [0.0, 43.4]" in out and "lenient   " in out
    assert out.count("  before  wrong") == out.count("  after   wrong") == 4
    assert "this run has not shown" in out
    ElementTree.parse(run.folder / "curve.svg")
    assert etude(["info", str(run.folder / "final" / "model.gguf")]) == 0
    # once more: nothing is trained again
    before = (run.folder / "metrics.jsonl").stat().st_mtime_ns
    assert demo.main(words(tiny, tmp_path)) == 1
    assert (run.folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_demo_goes_on_after_a_stop(
    demo: ModuleType, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert demo.main(words(tiny, whole)) == 1
    shown: list[Any] = []
    monkeypatch.setattr(demo, "show", lambda run: shown.append(run) or 0)
    # what is left when the process dies after the first step
    assert demo.main(words(tiny, cut)) == 0
    last = max((cut / "demo" / "checkpoints").iterdir())
    for path in (last, cut / "demo" / "final"):
        path.rename(tmp_path / f"gone-{path.name}")
    assert demo.main(words(tiny, cut)) == 1, "other settings for a run that is under way"
    monkeypatch.chdir(cut)
    monkeypatch.setattr(demo, "CONFIG", whole / "demo" / "config.toml")
    text = demo.CONFIG.read_text().replace(str(whole), ".")
    (cut / "config.toml").write_text(text)
    monkeypatch.setattr(demo, "CONFIG", cut / "config.toml")
    assert demo.main([]) == 0 and len(shown) == 2
    rows = [RunReader(folder / "demo").metrics()[-1] for folder in (whole, cut)]
    assert rows[0]["loss"] == rows[1]["loss"] and rows[0]["step"] == rows[1]["step"] == 2
    models = [(folder / "demo" / "final" / "model.gguf").read_bytes() for folder in (whole, cut)]
    assert models[0] == models[1]


def test_the_demo_is_what_the_issue_asks_for(demo: ModuleType) -> None:
    """Enough problems, and no operand on both sides."""
    config = read_config(TRAININGS["grpo"].config, [str(demo.CONFIG)], FLAGS).config
    training, held_out = load_problems(config.data.train), load_problems(config.data.held_out)
    assert len(training) >= 2000 and len(held_out) >= 300
    seen, held = (
        {operand for problem in some for operand in problem.columns["operands"]}
        for some in (training, held_out)
    )
    assert not seen & held


def test_learning_means_that_no_intervals_touch(demo: ModuleType) -> None:
    def row(step: int, strict: tuple[float, float], lenient: tuple[float, float]) -> dict[str, float]:
        ends = {"strict": strict, "lenient": lenient}
        return {"step": step} | {
            f"eval/accuracy/{part}{end}": value
            for part, (low, high) in ends.items()
            for end, value in (("", low), ("/low", low), ("/high", high))
        }

    before = row(0, (0.0, 0.02), (0.25, 0.35))
    assert demo.has_learnt([before, row(60, (0.8, 0.9), (0.8, 0.9))], 0.33)
    assert not demo.has_learnt([before, row(60, (0.3, 0.4), (0.3, 0.4))], 0.1)  # only the form is better
    assert not demo.has_learnt([before, row(60, (0.4, 0.5), (0.4, 0.5))], 0.45)  # chance would do it


# ── the README's section on training ──


def blocks(language: str) -> list[str]:
    section = README.partition("\n## Train\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_the_readmes_own_data_and_reward_train(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files as they are printed, the command as it is printed, on the tiny model."""
    monkeypatch.chdir(tmp_path)
    (rows,) = blocks("json")
    assert all(json.loads(line) for line in rows.splitlines())
    (tmp_path / "mine.jsonl").write_text(rows)
    reward = next(text for text in blocks("python") if text.startswith("# my_reward.py"))
    (tmp_path / "my_reward.py").write_text(reward)
    shell = "".join(blocks("sh")).replace("\\\n", " ")
    (command,) = (line for line in shell.splitlines() if "mine.jsonl" in line and "etude grpo" in line)
    argv = command.partition("#")[0].split()[1:]
    smaller = ["--model.name", str(tiny), "--run.steps", "1", "--run.name", "x"]
    assert etude([*argv, *smaller]) == 0
    assert RunReader(Path("runs/x")).state == "finished"
