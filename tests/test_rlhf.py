"""The whole of RLHF in one program, with a model of random weights: everything but the learning."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from etude.runlog import RunReader

ROOT = Path(__file__).parent.parent
STEPS = ("sft", "reward-model", "ppo")


@pytest.fixture(scope="module")
def rlhf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("etude_rlhf", ROOT / "examples" / "rlhf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.shown = lambda answer: bool(answer.text)  # random bytes have no end
    return module


def plan(rlhf: ModuleType, tiny: Path, folder: Path) -> Any:
    """The same with less of everything. Random bytes are never right, so a rule that likes some of them."""
    rule = folder.parent / "rule.py"
    rule.write_text("def even(problem, answer):\n    return float(sum(map(ord, answer.strip())) % 2 == 0)\n")
    small = ["--lora.rank", "2", "--compute.dtype", "f32", "--compute.max_tokens", "4096"]
    ppo = ["--run.steps", "2", "--sampling.prompts_per_step", "4", "--sampling.samples_per_prompt", "2"]
    settings = {verb: [*small, *(ppo if verb == "ppo" else ["--batches.size", "3"])] for verb in STEPS}
    return rlhf.Plan(
        folder, str(tiny), rule=f"{rule}:even", demonstrations=16, compared=40, answers=4, trained_on=20,
        measured=20, max_tokens=12, settings=settings,
    )  # fmt: skip


def test_all_stages(rlhf: ModuleType, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    this = plan(rlhf, tiny, tmp_path / "rlhf")
    assert rlhf.rlhf(this) == 1  # random weights: nothing is learnt, and it says so
    out = capsys.readouterr().out
    assert all(RunReader(this.folder / name).state == "finished" for name in STEPS)
    assert "held-out pairs in the right order" in out and "this run has not shown it" in out
    assert out.count("tokens") >= 1 and all(f"\n{name:<8}" in out for name in ("before", "SFT", "PPO"))
    # what PPO is told is the reward model's opinion, never the rule
    rollout = RunReader(this.folder / "ppo").rollouts(1)[0]
    assert "raw" in rollout["score"]["parts"]
    # once more: nothing is trained, written or merged again
    before = {path: path.stat().st_mtime_ns for path in this.folder.rglob("*") if path.is_file()}
    assert rlhf.rlhf(this) == 1
    assert {path: path.stat().st_mtime_ns for path in this.folder.rglob("*") if path.is_file()} == before


def test_pairs_are_answers_of_the_sft_model_to_one_question(
    rlhf: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    this = plan(rlhf, tiny, tmp_path / "rlhf")
    this.folder.mkdir()
    (this.folder / "sft.gguf").symlink_to(tiny)
    rows = list(rlhf.comparisons(this, False))
    assert rows and all(sum(map(ord, row["chosen"])) % 2 == 0 for row in rows)
    assert all(sum(map(ord, row["rejected"])) % 2 == 1 for row in rows)
    words = rlhf.files(this, "comparisons", rlhf.comparisons)
    assert [json.loads(line) for line in Path(words[1]).read_text().splitlines()] == rows
    training, held_out = (
        {json.loads(line)["prompt"] for line in Path(path).read_text().splitlines()} for path in words[1::2]
    )
    assert not training & held_out


def test_a_stop_is_passed_on_and_the_rest_follows(
    rlhf: ModuleType, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a stage ends the program with its code; the next call resumes that stage."""
    this = plan(rlhf, tiny, tmp_path / "rlhf")
    called: list[list[str]] = []

    def interrupted(words: list[str]) -> int:
        called.append(words)
        if words[0] == "sft" and len(called) == 1:
            (this.folder / "sft").mkdir()
            (this.folder / "sft" / "run.json").write_text('{"format": "etude run 1", "algorithm": "sft"}')
            return 0
        return 7

    monkeypatch.setattr(rlhf, "etude", interrupted)
    with pytest.raises(rlhf.Stopped) as first:
        rlhf.rlhf(this)
    with pytest.raises(rlhf.Stopped) as second:
        rlhf.rlhf(this)
    assert (first.value.code, second.value.code) == (130, 7)
    assert called[0][0] == "sft" and called[1] == ["sft", "--resume", str(this.folder / "sft")]


def test_the_default_plan_asks_about_other_numbers_than_it_trains_on(rlhf: ModuleType) -> None:
    this = rlhf.Plan()
    training, held_out = (
        {number for problem in some for number in problem.columns["operands"]}
        for some in (
            [*this.problems(this.trained_on, 3), *this.problems(this.compared, 2)],
            this.problems(this.measured, 3, held_out=True),
        )
    )
    assert training and held_out and not training & held_out
