"""compute.dtype "auto": measured once when a run begins, and kept by it ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from etude.cli import main
from etude.learner import local
from etude.learner.local import ComputeSettings, LocalLearner
from etude.model.transformer import load_transformer
from etude.recipes import sft
from etude.recipes.assembly import settled
from etude.recipes.sft import SftConfig
from etude.runlog import RunReader
from etude.terminal.config import read_config
from etude.train.epochs import BatchSettings, TextRunSettings, TextSettings
from etude.train.run import Job
from etude.train.settings import ModelSettings

Fastest = Callable[[torch.dtype | None], None]


@pytest.fixture
def fastest(monkeypatch: pytest.MonkeyPatch) -> Fastest:
    """Says what a measurement gives; None: there must be none."""

    def say(dtype: torch.dtype | None) -> None:
        def measured(device: str) -> torch.dtype:
            assert dtype is not None and device == "cpu"
            return dtype

        monkeypatch.setattr(local, "fastest_dtype", measured)

    return say


def config_of(tiny: Path, dtype: str = "auto") -> SftConfig:
    return SftConfig(
        model=ModelSettings(str(tiny)),
        compute=ComputeSettings(dtype=dtype),
        data=TextSettings("task:add?low=1&high=49&size=8"),
        batches=BatchSettings(steps=2, size=2),
        run=TextRunSettings(checkpoint_every=1),
    )


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float32, "f32")])
def test_a_new_run_measures(
    tiny: Path, tmp_path: Path, fastest: Fastest, dtype: torch.dtype, name: str
) -> None:
    fastest(dtype)
    config = config_of(tiny)
    assert config.compute == ComputeSettings()  # it is the default
    config, job = settled(config, Job(tmp_path, asdict(config), {"run.steps": "--run.steps"}))
    assert config == config_of(tiny, name)
    assert job == Job(tmp_path, asdict(config), {"run.steps": "--run.steps"})
    fastest(None)
    assert settled(config, job) == (config, job)  # once


@pytest.mark.parametrize("wanted", ["bf16", "f32"])
def test_what_the_user_wrote_is_not_measured(
    tiny: Path, tmp_path: Path, fastest: Fastest, wanted: str
) -> None:
    fastest(None)
    config, job = settled(config_of(tiny, wanted), Job(tmp_path, asdict(config_of(tiny, wanted))))
    assert config.compute.dtype == job.config["compute"]["dtype"] == wanted


@pytest.mark.parametrize("command", [True, False])
def test_a_resumed_run_goes_on_as_it_began(
    tiny: Path,
    tmp_path: Path,
    fastest: Fastest,
    command: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where a measurement would now say otherwise; from the command line, and from a program that gives the
    same settings again."""
    fastest(torch.bfloat16)
    folder, config = tmp_path / "run", config_of(tiny)
    steps = sft.steps(config, Job(folder, asdict(config)))
    next(steps)
    steps.close()
    assert RunReader(folder).config["compute"]["dtype"] == "bf16"
    fastest(torch.float32)
    if command:
        assert main(["sft", "--resume", str(folder)]) == 0
        assert "going on, products in bf16" in capsys.readouterr().err
    else:
        list(sft.steps(config, Job(folder, asdict(config), resume=True)))
    assert [row["step"] for row in RunReader(folder).metrics()] == [1, 2]
    assert RunReader(folder).config["compute"]["dtype"] == "bf16"


def test_config_files_may_say_auto(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[compute]\ndtype = "auto"\nmax_tokens = 64\n')
    read = read_config(SftConfig, [str(path)], {})
    assert read.config.compute == replace(ComputeSettings(), max_tokens=64)


def test_a_learner_made_by_hand_measures_too(tiny: Path, fastest: Fastest) -> None:
    transformer, source = load_transformer(tiny)
    source.close()
    fastest(torch.float32)
    assert LocalLearner(transformer).compute == ComputeSettings(dtype="f32")
