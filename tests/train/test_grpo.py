"""GRPO as a whole, on a tiny model: it learns, resumes to the bit, and each setting does something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.learner.lora import LoraSettings
from etude.recipes.grpo import GrpoConfig
from etude.records import EtudeError, Problem, Score
from etude.runlog import RunReader
from etude.train.grpo_settings import GrpoSettings, check_effects, name_and_numbers, objective_of
from etude.train.presets import PRESETS
from tests.train.small_runs import config_of, lasting, letters, means, train

LORA = LoraSettings(rank=4, alpha=8.0)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_reward_rises(tmp_path: Path) -> None:
    changes = {"sampling": {"samples_per_prompt": 8}, "run": {"final": "none", "checkpoint_every": 99}}
    reports = train(config_of(tmp_path, 14, **changes), tmp_path / "run", held_out=0)
    rewards = means(reports, "reward/mean")
    assert sum(rewards[:3]) < 0.3 and sum(rewards[-3:]) > 3 * sum(rewards[:3]), rewards


def test_a_run_leaves_everything_that_it_promises(tmp_path: Path) -> None:
    train(config_of(tmp_path, 2), tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    zero, one, two = reader.metrics()
    assert [row["step"] for row in (zero, one, two)] == [0, 1, 2]
    assert "eval/accuracy" in zero and "eval/accuracy" in two and "reward/mean" not in zero
    for name in (
        "reward/mean", "tokens/mean", "tokens/p95", "truncated", "entropy", "mismatch/k3", "grad_norm",
        "tokens_per_s/sampling", "seconds/sampling", "seconds/update", "memory_bytes",
    ):  # fmt: skip
        assert name in one, name
    row = next(row for row in reader.rollouts(1) if any(row["advantages"]))
    n = len(row["token_ids"])
    assert all(
        len(row[name]) == n
        for name in ("mask", "logprobs", "ratios", "advantages", "learner_logprobs", "entropies")
    )
    sampled = [i for i, chosen in enumerate(row["mask"]) if chosen]
    assert sampled and all(row["ratios"][i] == 1.0 for i in sampled)
    assert all(abs(row["logprobs"][i] - row["learner_logprobs"][i]) < 1e-4 for i in sampled)
    assert (
        len(reader.checkpoints()) >= 1 and (reader.folder / "final").is_dir() and reader.state == "finished"
    )


SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LORA},
    "minibatches, epochs, a refreshed reference": {
        "grpo": {"minibatches": 2, "epochs": 2, "kl_coefficient": 0.05, "reference_refresh": 0.4},
    },
    "dynamic sampling": {"grpo": {"dynamic_sampling": True}},
    "a cosine schedule": {"optimizer": {"schedule": "cosine", "warmup_steps": 1}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, shape: str) -> None:
    config = config_of(tmp_path, 5, **SHAPES[shape])
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop_after=3)
    train(config, tmp_path / "cut", resume=True)
    assert lasting(tmp_path / "cut") == lasting(tmp_path / "whole")
    for step in (1, 4, 5):
        assert RunReader(tmp_path / "cut").rollouts(step) == RunReader(tmp_path / "whole").rollouts(step)
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")


def test_a_run_that_died_between_checkpoints_repeats_the_steps_since(tmp_path: Path) -> None:
    config = config_of(tmp_path, 5, run={"steps": 5, "checkpoint_every": 2}, eval={"every": 0})
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop_after=3)
    assert RunReader(tmp_path / "cut").checkpoints()[-1].step == 2
    reports = train(config, tmp_path / "cut", resume=True)
    assert [report.step for report in reports] == [3, 4, 5]
    assert lasting(tmp_path / "cut") == lasting(tmp_path / "whole")


def final_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "final").iterdir() if path.is_file()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_a_step(tmp_path: Path, name: str) -> None:
    config = config_of(tmp_path, 1, grpo={"preset": name})
    [_, report] = train(config, tmp_path / "run")
    assert report.row["grad_norm"] > 0 and report.row["skipped"] == 0
    if PRESETS[name].minibatches > 1:
        assert report.row["updates"] == PRESETS[name].minibatches
        assert report.row["ratio/first_deviation"] == 0.0
    assert report.row["mismatch/k3"] < 1e-6
    assert ("kl" in report.row) is (PRESETS[name].kl_coefficient > 0)


OTHERS: dict[str, dict[str, Any]] = {
    "advantage": {"grpo": {"advantage": "group-std"}},
    "pass at k": {"grpo": {"advantage": "pass-at-k?k=2"}},
    "aggregation": {"grpo": {"aggregation": "sequence-sum"}},
    "kl in the loss": {"grpo": {"kl_coefficient": 0.5}},
    "kl estimator": {"grpo": {"kl_coefficient": 0.5, "kl": "k2"}},
    "full kl": {"grpo": {"kl_coefficient": 0.5, "kl": "full"}},
    "kl in the reward": {"grpo": {"kl_coefficient": 0.5, "kl_in_reward": True}},
    "minibatches": {"grpo": {"minibatches": 2}},
    "epochs": {"grpo": {"epochs": 2}},
    "truncated": {"grpo": {"mask_truncated_after": 0.0}},
    "dynamic": {"grpo": {"dynamic_sampling": True}},
    "rate": {"optimizer": {"learning_rate": 1e-3}},
    "warm-up": {"optimizer": {"warmup_steps": 5}},
    "decay": {"optimizer": {"weight_decay": 5.0}},
    "beta1": {"optimizer": {"beta1": 0.5}},
    "eps": {"optimizer": {"eps": 1e-2}},
    "clipping": {"optimizer": {"max_grad_norm": 1e-3, "eps": 1e-3}},
    "temperature": {"sampling": {"temperature": 0.7}},
    "prompts": {"sampling": {"prompts_per_step": 3}},
    "samples": {"sampling": {"samples_per_prompt": 6}},
    "tokens": {"sampling": {"max_tokens": 6}},
    "stop": {"sampling": {"stop": ("e",)}},
    "weight type": {"sampling": {"weight_type": "q8_0"}, "grpo": {"max_mismatch": 1.0}},
    "compute": {"compute": {"dtype": "bf16"}},
    "seed": {"run": {"seed": 1}},
    "template": {"model": {"chat_template": "none"}},
}
STOPPED = {"stop": ("e", "z")}
"""Answers of different lengths."""
OFF_POLICY: dict[str, dict[str, Any]] = {
    "clip": {"clip": "clip?low=0.001&high=0.001"},
    "dual clip": {"clip": "dual?low=0.2&high=0.28&bound=1.01"},
    "cispo": {"clip": "cispo?maximum=1"},
    "ratio": {"ratio": "sequence"},
}


def final_weights(tmp_path: Path, name: str, **changes: Any) -> bytes:
    """All that two steps have learnt."""
    small = {"final": "none", "checkpoint_every": 2, "rollouts_every": 0}
    changes["run"] = small | changes.get("run", {})
    train(config_of(tmp_path, 2, **changes), tmp_path / name, held_out=0)
    return (tmp_path / name / "checkpoints" / "000002" / "policy" / "learner.safetensors").read_bytes()


def test_each_setting_changes_what_is_learnt(tmp_path: Path) -> None:
    before = final_weights(tmp_path, "plain")
    assert final_weights(tmp_path, "again") == before
    for at, (name, changes) in enumerate(OTHERS.items()):
        assert final_weights(tmp_path, f"run{at}", **changes) != before, name
    before = final_weights(tmp_path, "stopped", sampling=STOPPED)
    longer = final_weights(tmp_path, "long", sampling=STOPPED, grpo={"overlong_buffer": 0.5})
    assert longer != before, "overlong"
    off = {"epochs": 4, "minibatches": 2}
    before = final_weights(tmp_path, "off", grpo=off)
    for at, (name, grpo) in enumerate(OFF_POLICY.items()):
        assert final_weights(tmp_path, f"off{at}", grpo=off | grpo) != before, name


@pytest.mark.parametrize("lora", [None, LORA])
def test_rollouts_say_which_weights_drew_them(tmp_path: Path, lora: LoraSettings | None) -> None:
    config = config_of(tmp_path, 3, lora=lora)
    train(config, tmp_path / "run", stop_after=2)
    train(config, tmp_path / "run", resume=True)
    reader = RunReader(tmp_path / "run")
    versions = [{row["weights_version"] for row in reader.rollouts(step)} for step in (1, 2, 3)]
    assert versions == [{0}, {1}, {2}]


def test_what_needs_no_gradient_is_not_computed(tmp_path: Path) -> None:
    def only_the_first(problem: Problem, answer: str) -> float:
        return letters(problem, answer) if problem.id == "p3" else 0.5

    config = config_of(tmp_path, 3)
    for report in train(config, tmp_path / "run", reward=only_the_first)[1:]:
        there = any(rollout.problem_id == "p3" for rollout in report.rollouts)
        assert report.row["samples_computed"] <= 4 * there
        if not there:
            assert report.row["grad_norm"] == 0.0 and report.row["tokens_computed"] == 0


@pytest.mark.parametrize("grpo", [{}, {"minibatches": 2}, {"mask_truncated_after": 0.0}])
def test_the_mismatch_is_known_in_every_step(tmp_path: Path, grpo: dict[str, Any]) -> None:
    """Also where no group has a signal, or every answer has left the loss: then one group is scored."""

    def at_first(problem: Problem, answer: str) -> float:
        return letters(problem, answer) if problem.id in ("p3", "p4") else 0.5

    reports = train(config_of(tmp_path, 3, grpo=grpo), tmp_path / "run", reward=at_first, held_out=0)
    rows = [report.row for report in reports]
    assert 0 in [row["samples_computed"] for row in rows], "a step that computes nothing"
    for row in rows:
        assert 0 < row["mismatch/tokens"] and row["mismatch/k3"] < 1e-6 and row["entropy"] > 0


def test_a_model_that_never_stops_still_learns(tmp_path: Path) -> None:
    """With the default every answer counts, cut off or not; left out of the loss they would teach nothing."""
    cut_off = {"run": {"final": "none", "checkpoint_every": 99}}
    rows = [report.row for report in train(config_of(tmp_path, 6, **cut_off), tmp_path / "run", held_out=0)]
    assert all(row["truncated"] > 0.8 and row["samples_computed"] > 8 for row in rows)
    assert all("truncated/masked" not in row for row in rows)
    masked = config_of(tmp_path, 6, grpo={"mask_truncated_after": 0.5}, **cut_off)
    rows = [report.row for report in train(masked, tmp_path / "masked", held_out=0)]
    assert [row["samples_computed"] > 8 for row in rows] == [True] * 3 + [False] * 3
    assert [row.get("truncated/masked") for row in rows] == [None] * 3 + [
        row["truncated"] for row in rows[3:]
    ]


def test_dynamic_sampling_draws_in_place_of_flat_groups(tmp_path: Path) -> None:
    def odd_ones(problem: Problem, answer: str) -> float:
        return letters(problem, answer) + len(answer) if int(problem.id[1:]) % 2 else 1.0

    config = config_of(tmp_path, 2, grpo={"dynamic_sampling": True})
    reports = train(config, tmp_path / "run", reward=odd_ones)[1:]
    assert all(report.row["prompts"] > 4 for report in reports)
    assert all(report.row["samples_computed"] > 8 for report in reports)  # of four groups of four
    ids = [rollout.problem_id for report in reports for rollout in report.rollouts[::4]]
    assert len(ids) <= 12 or len(set(ids[:12])) == 12  # no prompt twice before all were drawn


def test_an_answer_that_could_not_be_judged_teaches_nothing(tmp_path: Path) -> None:
    def broken(problem: Problem, answer: str) -> Score:
        if "e" in answer:
            return Score(0.0, failure="no verdict")
        return Score(letters(problem, answer))

    [_, report] = train(config_of(tmp_path, 1), tmp_path / "run", reward=broken)
    assert 0 < report.row["reward/failed"] < 1
    for row in RunReader(tmp_path / "run").rollouts(1):
        if row["score"]["failure"]:
            assert not any(row["advantages"])

    def always(problem: Problem, answer: str) -> Score:
        return Score(0.0, failure="no verdict")

    with pytest.raises(EtudeError, match="no verdict"):
        train(config_of(tmp_path, 1), tmp_path / "other", reward=always, held_out=0)


def test_parts_are_compared_one_by_one_with_gdpo(tmp_path: Path) -> None:
    config = config_of(tmp_path, 1, grpo={"advantage": "gdpo"})
    with pytest.raises(EtudeError, match="two rewards"):
        train(config, tmp_path / "run")
    weighted = replace(config, reward={"length?target=4&unit=characters": 1.0, "format": 0.5})
    [report] = train(weighted, tmp_path / "other", reward=None, held_out=0)
    assert report.row["grad_norm"] > 0 and "reward/part/length" in report.row


@pytest.mark.parametrize(
    ("settings", "written", "match"),
    [
        ({"clip": "clip?low=0.1&high=0.2"}, "clip", "ratio is exactly 1"),
        ({"ratio": "sequence"}, "ratio", "ratio is exactly 1"),
        ({"kl": "k2"}, "kl", "kl_coefficient is 0"),
        ({"reference_refresh": 0.5}, "reference_refresh", "kl_coefficient is 0"),
        ({"max_draws": 3}, "max_draws", "dynamic_sampling is off"),
        ({"preset": "rloo", "skip_flat_groups": False}, "skip_flat_groups", "KL in the reward"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], written: str, match: str) -> None:
    objective = objective_of(GrpoSettings(**settings))
    check_effects(objective, {}, 8)  # as a default it is no fault
    with pytest.raises(EtudeError, match=match):
        check_effects(objective, {f"grpo.{written}": "here"}, 8)


def test_settings_name_what_exists() -> None:
    with pytest.raises(EtudeError, match="'group-std'"):
        objective_of(GrpoSettings(advantage="grop-std"))
    with pytest.raises(EtudeError, match="no effect"):
        objective_of(GrpoSettings(clip="none?low=1"))
    with pytest.raises(EtudeError, match="needs a value"):
        objective_of(GrpoSettings(clip="clip?low=0.2"))
    with pytest.raises(EtudeError, match="'dapo'"):
        objective_of(GrpoSettings(preset="dappo"))
    with pytest.raises(EtudeError, match="at least 2"):
        check_effects(objective_of(GrpoSettings()), {}, 1)
    check_effects(objective_of(GrpoSettings(preset="reinforce++")), {}, 1)
    assert name_and_numbers("a?b=1&c=0.5", "x") == ("a", {"b": 1, "c": 0.5})


def test_minibatches_need_answers(tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match="16 answers"):
        train(config_of(tmp_path, 1, grpo={"minibatches": 17}), tmp_path / "run", held_out=0)


def test_the_config_of_a_run_says_what_was_used(tmp_path: Path) -> None:
    config: GrpoConfig = config_of(tmp_path, 1, grpo={"preset": "dapo"})
    train(config, tmp_path / "run", held_out=0)
    stored = RunReader(tmp_path / "run").config
    assert stored["grpo"]["preset"] == "dapo" and stored["sampling"]["max_tokens"] == 8
