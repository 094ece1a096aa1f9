"""SFT, reward model and DPO from names of data to a finished model, with a model of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from etude.data import read_examples
from etude.learner.lora import LoraSettings
from etude.model.transformer import load_transformer
from etude.recipes import dpo, reward_model, sft
from etude.recipes.sft import prompt_of
from etude.recipes.texts import parted
from etude.records import EtudeError, Message, Problem
from etude.runlog import RunReader
from etude.train.dpo import DPOSettings
from etude.train.epochs import BatchSettings, LossEvalSettings, TextRunSettings, TextSettings
from etude.train.judge import as_reward
from etude.train.reward_model import RewardModelSettings
from etude.train.run import Job, Report
from etude.train.settings import ModelSettings

PAIRS = "pairs:add?low=1&high=49&size=12"
HELD_OUT = "pairs:add?low=1&high=49&size=4&held_out=true"
Steps = Callable[[Any, Job], Iterator[Report]]


def tables(tiny: Path, train: str = PAIRS, held_out: str | None = HELD_OUT) -> dict[str, Any]:
    return {
        "model": ModelSettings(str(tiny)),
        "data": TextSettings(train, held_out),
        "batches": BatchSettings(steps=3, size=4),
        "eval": LossEvalSettings(every=2),
        "run": TextRunSettings(checkpoint_every=1),
    }


def run(
    steps: Steps, config: Any, folder: Path, *, stop_after: int | None = None, **job: Any
) -> list[Report]:
    reports = []
    for report in steps(config, Job(folder, asdict(config), **job)):
        reports.append(report)
        if report.step == stop_after:
            break
    return reports


def cases(tiny: Path) -> dict[str, tuple[Steps, Any]]:
    task = "task:add?low=1&high=49"
    conversations = tables(tiny, f"{task}&size=12", f"{task}&size=4&held_out=true")
    pairs = tables(tiny)
    lora = LoraSettings(rank=4)
    pointwise = RewardModelSettings(kind="pointwise")
    return {
        "sft": (sft.steps, sft.SftConfig(**conversations)),
        "sft-lora": (sft.steps, sft.SftConfig(**conversations, lora=lora)),
        "pairs": (reward_model.steps, reward_model.RewardModelConfig(**pairs)),
        "pairs-lora": (reward_model.steps, reward_model.RewardModelConfig(**pairs, lora=lora)),
        "labels": (reward_model.steps, reward_model.RewardModelConfig(**pairs, reward_model=pointwise)),
        "dpo": (dpo.steps, dpo.DpoConfig(**pairs)),
        "simpo-lora": (dpo.steps, dpo.DpoConfig(**pairs, dpo=DPOSettings("simpo"), lora=lora)),
        "kto": (dpo.steps, dpo.DpoConfig(**pairs, dpo=DPOSettings("kto"))),
    }


NAMES = ("sft", "sft-lora", "pairs", "pairs-lora", "labels", "dpo", "simpo-lora", "kto")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_from_names_to_a_finished_model(tiny: Path, tmp_path: Path, name: str) -> None:
    steps, config = cases(tiny)[name]
    reports = run(steps, config, tmp_path / "run")
    assert [report.step for report in reports] == [0, 1, 2, 3]
    assert all("eval/loss" in reports[at].row for at in (0, 2, 3)) and "eval/loss" not in reports[1].row
    stored = RunReader(tmp_path / "run")
    assert stored.info.total_steps == 3 and stored.state == "finished"
    assert [row["step"] for row in stored.metrics()] == [0, 1, 2, 3]
    final = tmp_path / "run" / "final"
    if steps is reward_model.steps:
        scores = as_reward(final)(Problem("p", (Message("user", "What is 20 + 20?"),)), ["40.", "It is 41."])
        assert len(scores) == 2 and all(abs(score.total) <= 5 for score in scores)
    elif config.lora is None:
        _, source = load_transformer(final)
        source.close()
    else:
        assert json.loads((final / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("name", ["sft", "pairs-lora", "dpo"])
def test_a_run_that_was_dropped_goes_on(tiny: Path, tmp_path: Path, name: str) -> None:
    steps, config = cases(tiny)[name]
    whole = run(steps, config, tmp_path / "whole")
    run(steps, config, tmp_path / "again", stop_after=2)
    rest = run(steps, config, tmp_path / "again", resume=True)
    assert [report.step for report in rest] == [3]
    for key in ("loss", "grad_norm", "eval/loss"):
        assert rest[0].row[key] == whole[3].row[key]
    finals = [tmp_path / folder / "final" for folder in ("whole", "again")]
    for path in finals[0].glob("*.safetensors"):
        assert path.read_bytes() == (finals[1] / path.name).read_bytes()


def test_held_out_prompts_are_not_trained_on(tmp_path: Path) -> None:
    """Both answers to a question go to one side."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q{at // 2}", "completion": f"a{at}"} for at in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = sft.SftConfig(data=TextSettings(str(file), held_out_size=4))
    training, held_out = parted(config, {}, read_examples, prompt_of)
    asked, apart = ({one.messages[0].content for one in side} for side in (training, held_out))
    assert len(apart) == 4 and len(held_out) == 8 and not asked & apart and len(training) == 12


def test_what_cannot_be_is_refused_before_a_model_is_loaded(tiny: Path, tmp_path: Path) -> None:
    def attempt(steps: Steps, config: Any, **written: str) -> None:
        names = {name.replace("__", "."): where for name, where in written.items()}
        list(steps(config, Job(tmp_path / "run", {}, names)))

    with pytest.raises(EtudeError, match=r"data\.train is missing"):
        attempt(sft.steps, sft.SftConfig())
    with pytest.raises(EtudeError, match="head_learning_rate has no effect: SFT has no scalar head"):
        attempt(sft.steps, sft.SftConfig(**tables(tiny)), optimizer__head_learning_rate="a.toml")
    with pytest.raises(EtudeError, match=r"eval\.every has no effect: nothing is held out"):
        attempt(dpo.steps, dpo.DpoConfig(**tables(tiny, held_out=None)), eval__every="--eval.every")
    with pytest.raises(EtudeError, match=r"run\.final is gguf"):
        config = reward_model.RewardModelConfig(**tables(tiny))
        attempt(reward_model.steps, replace(config, run=TextRunSettings(final="gguf")))
    with pytest.raises(EtudeError, match="the shortest of the comparisons has"):
        attempt(dpo.steps, replace(dpo.DpoConfig(**tables(tiny)), batches=BatchSettings(max_tokens=5)))
