"""`etude ppo` from settings to a run folder; where the critic comes from; its learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from etude.cli import main
from etude.learner.batch import Sample
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings, trained_pairs
from etude.learner.optimizer import AdamWSettings
from etude.learner.quantized import load_frozen
from etude.model.heads import ScalarHead
from etude.model.transformer import load_transformer
from etude.recipes.grpo import Given
from etude.recipes.ppo import PpoConfig, actor_of, check_vocabularies, critic_of, critic_optimizer, ppo
from etude.records import EtudeError, Message, Problem
from etude.runlog import RunReader
from etude.terminal.config import read_config
from etude.train.judge import RewardRecord, save_reward_model
from etude.train.ppo_settings import PpoSettings, check_effects
from etude.train.settings import ModelSettings, OptimizerSettings, RunSettings, SamplingSettings
from tests.model.tiny_models import FIXTURES

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
F32 = ComputeSettings(dtype="f32")
SAMPLING = SamplingSettings(
    prompts_per_step=4, samples_per_prompt=2, max_tokens=6, threads=1, weight_type="f32"
)
SAMPLE = Sample((5, 6, 7), (10, 11, 12), (True,) * 3, group=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(tiny: Path, tmp_path: Path, **changes: object) -> PpoConfig:
    made = PpoConfig(
        model=ModelSettings(str(tiny)),
        compute=F32,
        optimizer=OptimizerSettings(learning_rate=1e-3),
        ppo=PpoSettings(minibatches=2, unfinished_reward=None),
        sampling=SAMPLING,
        run=RunSettings(steps=2, folder=str(tmp_path / "runs"), name="try"),
    )
    return replace(made, **changes)  # names of its fields


def test_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ppo.toml").write_text(
        f'reward = "length?target=4"\n[model]\nname = "{tiny}"\n[compute]\ndtype = "f32"\n'
        "[ppo]\nminibatches = 2\nunfinished_reward = 0.5\n"
        '[data]\ntrain = "task:add?low=1&high=9&size=8"\nheld_out_size = 2\ncheck = false\n'
        "[sampling]\nprompts_per_step = 4\nsamples_per_prompt = 2\nmax_tokens = 6\nthreads = 1\n"
        f'weight_type = "f32"\n[run]\nsteps = 2\nfolder = "{tmp_path}"\nname = "try"\nfinal = "gguf"\n'
    )
    code = main(["ppo", str(tmp_path / "ppo.toml"), "--ppo.lam", "0.95"])
    assert (code, capsys.readouterr().out) == (0, f"{tmp_path / 'try'}\n")
    reader = RunReader(tmp_path / "try")
    assert reader.info.algorithm == "ppo"
    assert reader.config["ppo"]["lam"] == 0.95
    rows = reader.metrics()
    assert [row["step"] for row in rows] == [0, 1, 2]
    for name in ("kl", "kl/beta", "clip_fraction", "critic/loss", "explained_variance", "returns/mean"):
        assert np.isfinite(rows[2][name]), name
    stored = reader.rollouts(1)[0]
    for name in ("ratios", "advantages", "old_values", "returns", "old_logprobs", "entropies"):
        assert len(stored[name]) == len(stored["token_ids"]), name
    assert {path.name for path in reader.checkpoints()[-1].folder.iterdir()} >= {"actor", "critic"}
    assert (tmp_path / "try/final/model.gguf").is_file()


def test_the_examples(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ppo.toml runs, on a model of bytes; the one for RLHF is read, and runs in tests/test_rlhf.py."""
    small = {
        "model.name": tiny, "compute.dtype": "f32", "sampling.weight_type": "f32", "sampling.threads": 1,
        "sampling.prompts_per_step": 2, "sampling.samples_per_prompt": 2, "eval.limit": 2,
        "run.folder": tmp_path, "run.steps": 1, "run.final": "none", "optimizer.warmup_steps": 0,
    }  # fmt: skip
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert main(["ppo", str(EXAMPLES / "ppo.toml"), *words]) == 0, capsys.readouterr().err
    read = read_config(PpoConfig, [str(EXAMPLES / "rlhf-ppo.toml"), "--ppo.critic", "judge"], {})
    assert read.config.lora is not None and read.config.ppo.kl_coefficient > 0
    check_effects(read.config.ppo, read.written)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ppo.kl_horizon_samples", "5"], "ppo.kl_horizon_samples has no effect"),
        (["--ppo.lamda", "1"], "no such setting"),
        (["--ppo.clip", "-1"], "ppo.clip is -1.0"),
        (["--eval.every", "5"], "nothing is held out"),
    ],
)
def test_wrong_settings_are_refused(
    tiny: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    data = ["--data.train", "task:add?low=1&high=9&size=8", "--model.name", str(tiny)]
    assert main(["ppo", *data, *words]) != 0
    assert message in capsys.readouterr().err


def test_from_python_with_lora(tiny: Path, tmp_path: Path) -> None:
    """A reward of the program, problems of the program; LoRA on both sides; the base is the reference."""
    problems = [Problem(f"p{i}", (Message("user", f"Write {i}"),)) for i in range(4)]
    seen: list[int] = []
    config = config_of(tiny, tmp_path, lora=LoraSettings(rank=2, alpha=4.0))
    reader = ppo(
        config,
        lambda problem, answer: float(len(answer)),
        Given(problems),
        on_step=lambda report: seen.append(report.step),
    )
    assert seen == [1, 2]
    first, second = reader.metrics()
    assert first["kl"] == 0.0 < second["kl"]
    assert first["ratio/first_deviation"] == second["ratio/first_deviation"] == 0.0
    assert (reader.folder / "final/adapter_config.json").is_file()


def reward_model(tiny: Path, folder: Path, *, lora: bool) -> float:
    """A reward model with noise in its head (and pairs) in `folder`; its raw score of SAMPLE."""
    generator = torch.Generator().manual_seed(1)
    transformer, source = (load_frozen if lora else load_transformer)(tiny)
    settings = LoraSettings(rank=2, alpha=6.0) if lora else None
    head = ScalarHead(transformer.config.d_model).initialize(generator)
    learner = LocalLearner(transformer, AdamWSettings(), compute=F32, lora=settings, head=head)
    with closing(source):
        with torch.no_grad():
            for _, parameter in trained_pairs(transformer):
                parameter.normal_(0.0, 0.2, generator=generator)
        record = RewardRecord(mean=0.5, std=2.0, base=str(tiny) if lora else None)
        save_reward_model(folder, learner, source, record, dtype="f32")
        return float(learner.score([SAMPLE], ("scores",))[0]["scores"][0])


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_becomes_the_critic(tiny: Path, tmp_path: Path, lora: bool) -> None:
    """V after the whole answer is its normalised score, and a LoRA stays one."""
    raw = reward_model(tiny, tmp_path / "judge", lora=lora)
    critic = critic_of(config_of(tiny, tmp_path, ppo=PpoSettings(critic=str(tmp_path / "judge"))))
    with closing(critic.source):
        score = critic.learner.score([SAMPLE], ("scores",))[0]["scores"][0]
        assert score == pytest.approx((raw - 0.5) / 2.0, abs=1e-5)
        assert (critic.lora is not None) == lora
        assert (critic.lora is None) or (critic.lora.rank, critic.lora.alpha) == (2, pytest.approx(6.0))
        longer = replace(SAMPLE, completion_ids=(10, 11, 12, 13), mask=(True,) * 4)
        assert critic.learner.score([longer], ("values",))[0]["values"][3] == pytest.approx(score, abs=1e-5)


def test_a_reward_model_judges_and_is_the_critic(tiny: Path, tmp_path: Path) -> None:
    """RLHF's last stage: the folder is named as reward, alone or beside a rule, and as critic."""
    folder = str(tmp_path / "judge")
    reward_model(tiny, tmp_path / "judge", lora=True)
    problems = [Problem(f"p{i}", (Message("user", f"Write {i}"),)) for i in range(4)]
    settings = PpoSettings(minibatches=2, unfinished_reward=None, critic=folder)
    for reward, part in ((folder, "raw"), ({folder: 0.5, "length?target=4": 1.0}, "reward_model/raw")):
        config = config_of(tiny, tmp_path, ppo=settings, reward=reward, lora=LoraSettings(rank=2))
        config = replace(config, run=replace(config.run, name=part.replace("/", "-"), final="none"))
        rows = ppo(config, given=Given(problems, problems[:2])).metrics()
        assert [row["step"] for row in rows] == [0, 1, 2]
        assert np.isfinite(rows[1][f"reward/part/{part}"])
        if part == "raw":
            assert rows[1]["reward/mean"] == pytest.approx((rows[1]["reward/part/raw"] - 0.5) / 2.0, abs=1e-6)
        assert rows[2]["critic/grad_norm"] > 0


def test_what_is_no_reward_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    config = config_of(tiny, tmp_path, ppo=PpoSettings(critic=str(tmp_path)))
    with pytest.raises(EtudeError, match="is no reward model"):
        critic_of(config)


def test_a_critic_of_other_tokens_is_refused(tiny: Path, tmp_path: Path) -> None:
    ours = actor_of(config_of(tiny, tmp_path))
    other = actor_of(config_of(tiny, tmp_path, model=ModelSettings(str(FIXTURES / "llama"))))
    with closing(ours.source), closing(other.source):
        check_vocabularies(ours, ours)
        with pytest.raises(EtudeError, match="a vocabulary of"):
            check_vocabularies(ours, other)


def test_the_critics_learning_rate(tiny: Path, tmp_path: Path) -> None:
    """Its own; else the actor's; the default of its kind where the actor is of another kind."""
    config = config_of(tiny, tmp_path)

    def rates(config: PpoConfig, *, lora: bool = False, new_head: bool = True) -> tuple[float, float | None]:
        made = critic_optimizer(config, lora=lora, new_head=new_head)
        return made.learning_rate, made.head_learning_rate

    assert rates(config) == (1e-3, 1e-3)
    assert rates(config, lora=True)[0] == 1e-4
    own = replace(config, ppo=PpoSettings(critic_learning_rate=3e-4))
    assert rates(own)[0] == 3e-4
    unsaid = replace(config, optimizer=OptimizerSettings())
    assert rates(unsaid) == (1e-5, 1e-3)
    # a reward model's head has learnt already, and goes on as the rest; what is written counts for both
    assert rates(unsaid, new_head=False) == (1e-5, None)
    written = replace(config, optimizer=OptimizerSettings(head_learning_rate=2e-3))
    assert rates(written)[1] == rates(written, new_head=False)[1] == 2e-3
