"""`etude grpo` on the command line: config files, overrides, errors that help, resuming."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from etude.cli import main
from etude.recipes.grpo import GrpoConfig
from etude.runlog import RunReader
from etude.terminal.config import read_config
from etude.terminal.live import Live, duration
from etude.terminal.options import UsageError
from etude.train.run import Report
from tests.terminal.tiny import write_tiny

REWARD = """
def letters(problem, answer):
    return sum(character in "abc" for character in answer) / 8
"""


def config_file(folder: Path, more: str = "") -> Path:
    model, reward = write_tiny(folder / "tiny.gguf"), folder / "mine.py"
    reward.write_text(REWARD)
    path = folder / "config.toml"
    path.write_text(f"""
reward = "{reward}:letters"
[model]
name = "{model}"
[compute]
dtype = "f32"
[data]
train = "task:add?size=20"
held_out_size = 4
[optimizer]
learning_rate = 5e-3
[sampling]
prompts_per_step = 3
samples_per_prompt = 4
max_tokens = 8
weight_type = "f32"
threads = 1
[run]
folder = "{folder / "runs"}"
steps = 3
{more}""")
    return path


def test_a_run_from_a_file_with_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file(tmp_path)
    assert main(["grpo", str(path), "--run.steps", "2", "--run.name=short"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "runs" / "short")
    assert "step 0/2" in err and "step 2/2" in err and "reward" in err and "done" in err
    reader = RunReader(tmp_path / "runs" / "short")
    assert reader.config["run"]["steps"] == 2 and reader.config["sampling"]["prompts_per_step"] == 3
    assert [row["step"] for row in reader.metrics()] == [0, 1, 2]


def test_a_lora_is_switched_on_by_its_table(tmp_path: Path) -> None:
    path = config_file(tmp_path, "[lora]\nrank = 2\n")
    assert main(["grpo", str(path), "--run.steps", "1", "--run.name", "lora"]) == 0
    names = {file.name for file in (tmp_path / "runs" / "lora" / "final").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_finished_run_is_not_resumed_and_an_unfinished_one_keeps_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(tmp_path)
    main(["grpo", str(path), "--run.steps", "1", "--run.name", "a"])
    folder = str(tmp_path / "runs" / "a")
    assert main(["grpo", "--resume", folder]) == 1
    assert "is finished" in capsys.readouterr().err
    assert main(["grpo", "--resume", folder, "--run.steps", "9"]) == 2
    assert "keeps the settings" in capsys.readouterr().err
    assert main(["grpo", str(path), "--run.name", "a"]) == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--run.stps", "3"], "did you mean run.steps?"),
        (["--steps", "3"], "did you mean run.steps?"),
        (["--run.steps", "many"], "run.steps"),
        (["--run.steps", "0"], "at least 1"),
        (["--grpo.preset", "dapoo"], "'dapo'"),
        (["--grpo.kl", "k2"], "kl_coefficient is 0"),
        (["--grpo.clip", "clip?low=0.1&high=0.1"], "ratio is exactly 1"),
        (["--data.held_out_size", "0", "--eval.every", "5"], "nothing is held out"),
        (["--optimizer.head_learning_rate", "1e-3"], "no scalar head"),
        (["--optimizer.final_fraction", "0.1"], "constant schedule"),
        (["--eval.samples", "4"], "all would be the same"),
        (["--model.chat_template", "nonsense"], "nonsense"),
        (["--reward", "mathh"], "did you mean math"),
        (["--data.train", "task:ad"], "did you mean add"),
        (["more.toml"], "one config file is enough"),
        (["--run.steps"], "a value is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(["grpo", str(config_file(tmp_path)), *words]) in (1, 2)
    assert text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/metrics.jsonl"))


def test_names_in_a_file_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for text, found in (
        ("[run]\nstep = 3\n", "did you mean run.steps?"),
        ("[rnu]\nsteps = 3\n", "did you mean run.steps?"),
        ("run = [", "no TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            read_config(GrpoConfig, [str(path)], {})
        assert found in str(error.value)
    with pytest.raises(UsageError, match="cannot read"):
        read_config(GrpoConfig, [str(tmp_path / "none.toml")], {})


def test_rewards_with_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[reward]\n"math?parse=strict" = 1.0\nformat = 0.5\n')
    assert read_config(GrpoConfig, [str(path)], {}).config.reward == {"math?parse=strict": 1.0, "format": 0.5}
    read = read_config(GrpoConfig, ["--reward", "math", "--lora.rank=4"], {})
    assert read.config.reward == "math" and read.config.lora is not None and read.config.lora.rank == 4
    assert set(read.written) == {"reward", "lora.rank"}


def test_a_dry_run_says_what_a_step_takes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grpo", str(config_file(tmp_path)), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "tokens sampled" in out and "s a step" in out and "GiB" in out
    assert not (tmp_path / "runs").exists()


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grpo", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ("--optimizer.learning_rate", "--grpo.preset (small)", "--lora.rank (16)", "--reward"):
        assert name in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_view_stays_in_place_on_a_terminal() -> None:
    out = Terminal()
    with Live("grpo x", out) as live:
        live.show(Report(1, 3, {"reward/mean": 0.25}))
        live.show(Report(2, 3, {"reward/mean": 0.5}))
    text = out.getvalue()
    assert text.count("\x1b[") == 2 and "step 2/3" in text and "0.25 → 0.5" in text
    lines = io.StringIO()
    Live("grpo x", lines).show(Report(1, 3, {"reward/mean": 0.25}))
    assert lines.getvalue().count("\n") == 1 and "\x1b" not in lines.getvalue()
    assert duration(3600) == "1 h 0 min"
