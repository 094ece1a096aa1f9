"""PPO: a step by hand, the textbook's formulas, the critic's place, a task that is learnt, and resuming."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.engine.engine import Engine
from etude.learner.batch import Sample, pack
from etude.learner.learner import Denominators
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.optimizer import AdamWSettings
from etude.model.heads import ScalarHead
from etude.model.transformer import load_transformer
from etude.records import EtudeError, Message, Problem, SamplingParams, Score
from etude.rollout import PromptWriter, single_turn
from etude.train.minibatches import minibatches, scored
from etude.train.moments import Moments
from etude.train.ppo import (
    Passes,
    actor_loss,
    answer_kl,
    critic_loss,
    experience,
    explained_variance,
    final_scores,
    improve,
    next_beta,
    passes_of,
    token_rewards,
    train,
    with_experience,
)
from etude.train.ppo_settings import PpoSettings, check_effects
from etude.train.run import Job, Report, opened
from etude.train.sampling import HeldOut, RolloutSource
from etude.train.settings import RunSettings
from tests.learner.tiny import learner_of, samples_of


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices are tiny: a second thread would only wait for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


PLAIN = PpoSettings(whiten_advantages=False, max_weight=0.0)


def passes(**changes: Any) -> Passes:
    """Two answers: three tokens, and two of which the first is the environment's."""
    made = Passes(
        mask_C=torch.tensor([True, True, True, False, True]),
        sequence_C=torch.tensor([0, 0, 0, 1, 1]),
        old_C=torch.tensor([-1.0, -2.0, -0.5, 0.0, -1.5], dtype=torch.float64),
        entropy_C=torch.ones(5, dtype=torch.float64),
        sampler_C=torch.tensor([-1.0, -2.0, -0.5, 0.0, -1.5], dtype=torch.float64),
        reference_C=torch.tensor([-1.5, -2.0, -0.25, 0.0, -1.0], dtype=torch.float64),
        values_C=torch.tensor([0.5, 0.25, 1.0, 0.0, -0.5], dtype=torch.float64),
    )
    return replace(made, **changes)


# ── by hand ──


def test_a_step_by_hand() -> None:
    """β = 0.1, γ = 1, λ = 0.5: KL k1 is 0.5, 0, -0.25 and -0.5; rewards 2 and -1 at the last tokens."""
    scores_S = torch.tensor([2.0, -1.0], dtype=torch.float64)
    rewards_C = token_rewards(scores_S, passes(), beta=0.1)
    assert rewards_C.tolist() == pytest.approx([-0.05, 0.0, 2.025, 0.0, -0.95])
    found = experience(scores_S, passes(), replace(PLAIN, lam=0.5), beta=0.1)
    # δ: 2.025 - 1 = 1.025; 0 + 1 - 0.25 = 0.75; -0.05 + 0.25 - 0.5 = -0.3; and -0.95 + 0.5 = -0.45
    third, second = 1.025, 0.75 + 0.5 * 1.025
    first = -0.3 + 0.5 * second
    assert found.advantages_C.tolist() == pytest.approx([first, second, third, 0.0, -0.45])
    assert found.returns_C.tolist() == pytest.approx([first + 0.5, second + 0.25, third + 1.0, 0.0, -0.95])
    assert found.weights_C.tolist() == [1.0, 1.0, 1.0, 0.0, 1.0]


def test_without_a_reference_there_is_no_kl() -> None:
    scores_S = torch.tensor([2.0, -1.0], dtype=torch.float64)
    alone = passes(reference_C=None)
    assert token_rewards(scores_S, alone, beta=0.1).tolist() == [0.0, 0.0, 2.0, 0.0, -1.0]
    assert answer_kl(alone) == 0.0


def test_whitening() -> None:
    """Advantages: mean 0, deviation 1 over the masked-in tokens. Rewards: deviation 1, mean kept."""
    scores_S = torch.tensor([2.0, -1.0], dtype=torch.float64)
    plain = experience(scores_S, passes(), PLAIN, beta=0.1)
    white = experience(scores_S, passes(), replace(PLAIN, whiten_advantages=True), beta=0.1)
    mask_C = passes().mask_C
    chosen_N = white.advantages_C[mask_C]
    assert float(chosen_N.mean()) == pytest.approx(0, abs=1e-12)
    assert float(chosen_N.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert torch.equal(white.returns_C, plain.returns_C)  # the critic's target is not whitened
    assert torch.equal(white.rewards_C, plain.rewards_C)
    scaled = experience(scores_S, passes(), replace(PLAIN, whiten_rewards=True), beta=0.1)
    rewards_N = plain.rewards_C[mask_C]
    used_N = (rewards_N - rewards_N.mean()) / rewards_N.std(correction=0) + rewards_N.mean()
    expected_last = used_N[-1] - passes().values_C[-1]  # a single step: δ is the reward less V
    assert float(scaled.advantages_C[-1]) == pytest.approx(float(expected_last), abs=1e-6)


def test_engine_and_learner_apart_are_weighed() -> None:
    """TIS: min(π_old / μ, 2)."""
    apart = passes(sampler_C=passes().old_C + torch.tensor([0.0, 0.5, -3.0, 0.0, 0.0], dtype=torch.float64))
    found = experience(torch.zeros(2, dtype=torch.float64), apart, PpoSettings(), beta=0.0)
    assert found.weights_C.tolist() == pytest.approx([1.0, np.exp(-0.5), 2.0, 0.0, 1.0])


def test_scores_of_unfinished_answers() -> None:
    scores_S = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    finished_S = torch.tensor([True, False, True])
    final_S, moments = final_scores(scores_S, finished_S, Moments(), PpoSettings())
    assert final_S.tolist() == [1.0, -1.0, 5.0]
    assert moments == Moments()
    kept_S, _ = final_scores(scores_S, finished_S, moments, PpoSettings(unfinished_reward=None))
    assert kept_S.tolist() == [1.0, 3.0, 5.0]


def test_scores_on_one_scale() -> None:
    """Mean 3, deviation 2 after the first step; the second step knows both."""
    settings = PpoSettings(standardise_scores=True, unfinished_reward=None, score_limit=1.2)
    finished_S = torch.ones(3, dtype=torch.bool)
    first_S, moments = final_scores(torch.tensor([1.0, 3.0, 5.0]), finished_S, Moments(), settings)
    assert first_S.tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert (moments.count, moments.mean, moments.std) == (3, 3.0, 2.0)
    second_S, moments = final_scores(torch.tensor([3.0, 3.0, 30.0]), finished_S, moments, settings)
    assert moments.mean == pytest.approx(7.5)
    assert second_S[2] == pytest.approx(1.2)  # the limit


def test_the_coefficient_is_steered() -> None:
    """Summed k1: 0.25 and -0.5, so -0.125 an answer, far below 6: β falls by 20 % · n/horizon."""
    assert answer_kl(passes()) == pytest.approx(-0.125)
    steered = PpoSettings(kl_target_nats=6.0, kl_horizon_samples=10)
    assert next_beta(0.1, passes(), steered) == pytest.approx(0.1 * (1 - 0.2 * 2 / 10))
    assert next_beta(0.1, passes(), PpoSettings()) == 0.1


def test_explained_variance() -> None:
    returns_C, mask_C = torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False])
    assert explained_variance(returns_C + 5, returns_C, mask_C) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(4), returns_C, mask_C) == pytest.approx(0.0)
    assert explained_variance(-returns_C, returns_C, mask_C) == pytest.approx(-3.0)
    assert explained_variance(returns_C, torch.ones(4), mask_C) == 0.0


# ── the textbook ──


def numbered(seed: int = 0) -> list[Sample]:
    """Samples with all the columns that the losses read."""
    rng = np.random.default_rng(seed)
    names = ("old_logprobs", "advantages", "weights", "old_values", "returns", "sampler_logprobs")
    return [
        replace(
            sample, columns={name: rng.normal(size=len(sample.mask)).astype(np.float32) for name in names}
        )
        for sample in samples_of()
    ]


def test_the_losses_are_the_textbooks() -> None:
    samples = numbered()
    totals = Denominators.of(samples)
    [batch] = pack(samples, max_tokens=10_000)
    generator = torch.Generator().manual_seed(1)
    logprobs_C = batch.columns["old_logprobs"] + 0.5 * torch.randn(len(batch.mask_C), generator=generator)
    values_C = torch.randn(len(batch.mask_C), generator=generator)
    found, metrics = actor_loss(clip=0.2)({"logprobs": logprobs_C}, batch, totals)
    mask_C, columns = batch.mask_C, batch.columns

    adv, ratio = columns["advantages"], torch.exp(logprobs_C - columns["old_logprobs"])
    surrogate = torch.min(ratio * adv, torch.clamp(ratio, 1 - 0.2, 1 + 0.2) * adv)
    assert float(found) == pytest.approx(float(-(columns["weights"] * surrogate)[mask_C].mean()), abs=1e-6)
    clipped = (surrogate != ratio * adv)[mask_C].double().mean()
    assert float(metrics["clip_fraction"]) == pytest.approx(float(clipped))
    assert float(metrics["ratio/deviation_max"]) == pytest.approx(float((ratio - 1).abs()[mask_C].max()))
    assert float(metrics["old_kl"]) == pytest.approx(
        float((ratio - 1 - ratio.log())[mask_C].mean()), abs=1e-6
    )

    value, _ = critic_loss(clip=0.2)({"values": values_C}, batch, totals)
    old, ret = columns["old_values"], columns["returns"]
    v_clip = old + torch.clamp(values_C - old, -0.2, 0.2)
    expected = 0.5 * torch.max((values_C - ret) ** 2, (v_clip - ret) ** 2)
    assert float(value) == pytest.approx(float(expected[mask_C].mean()), abs=1e-6)
    plain, _ = critic_loss(clip=0.0)({"values": values_C}, batch, totals)
    assert float(plain) == pytest.approx(float((0.5 * (values_C - ret) ** 2)[mask_C].mean()), abs=1e-6)


def test_the_value_belongs_to_the_token_before() -> None:
    """V(s_t) does not know y_t: another token changes the values after it and no other."""
    critic = learner_of(head=True)
    sample = Sample((1, 2, 3), (10, 11, 12, 13), (True,) * 4, group=0)
    other = replace(sample, completion_ids=(10, 50, 12, 13))
    first, second = (critic.score([one], ("values",))[0]["values"] for one in (sample, other))
    assert np.array_equal(first[:2], second[:2])
    assert not np.isclose(first[2:], second[2:]).any()
    prompt = replace(sample, prompt_ids=(1, 2, 4))
    assert not np.isclose(critic.score([prompt], ("values",))[0]["values"], first).any()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_first_ratio_is_exactly_one(dtype: str) -> None:
    """Old log-probabilities come from a pass of their own, in minibatches and micro-batches."""
    settings = PpoSettings(minibatches=2, epochs=2)
    rate = AdamWSettings(learning_rate=1e-2)
    actor = learner_of(optimizer=rate, dtype=dtype, max_tokens=40)
    critic = learner_of(optimizer=rate, dtype=dtype, head=True)
    actor.refresh_reference()
    samples = [
        replace(sample, columns={"sampler_logprobs": np.zeros(len(sample.mask), np.float32)})
        for sample in samples_of()
    ]
    split = minibatches(samples, 2, random.Random(0))
    found = passes_of(actor, critic, samples, split, with_reference=True)
    assert torch.equal(found.old_C, found.reference_C)  # there is a reference
    columned = with_experience(
        samples, found, experience(torch.ones(len(samples)).double(), found, settings, beta=0.1)
    )
    learnt = improve(actor, critic, columned, split, settings, random.Random(1))
    assert learnt.row["ratio/first_deviation"] == 0.0
    assert learnt.row["ratio/deviation_max"] > 0.0
    assert learnt.row["updates"] == learnt.row["critic/updates"] == 4.0


def test_minibatches_hold_everything_once() -> None:
    samples = samples_of(groups=5, size=3)
    split = minibatches(samples, 4, random.Random(0))
    assert sorted(i for part in split for i in part) == list(range(15))
    assert {len(part) for part in split} == {3, 4}
    assert split != minibatches(samples, 4, random.Random(1))
    assert minibatches(samples, 1, random.Random(0)) == [list(range(15))]
    with pytest.raises(EtudeError, match="minibatches is 16, but a step has 15 answers"):
        minibatches(samples, 16, random.Random(0))
    rows = scored(learner_of(), samples, split, ("logprobs",))
    whole = learner_of().score(samples)
    for row, expected in zip(rows, whole, strict=True):
        assert np.allclose(row["logprobs"], expected["logprobs"], atol=1e-5)


# ── settings ──


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lam": 1.5}, "ppo.lam is 1.5; it must be from 0 to 1"),
        ({"clip": 0.0}, "ppo.clip is 0.0; it must be above 0"),
        ({"minibatches": 0}, "ppo.minibatches is 0"),
        ({"kl_coefficient": -0.1}, "ppo.kl_coefficient is -0.1; it must be at least 0"),
        ({"kl_coefficient": 0.0, "kl_target_nats": 6.0}, "cannot be steered"),
    ],
)
def test_settings_are_checked(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        PpoSettings(**changes)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kl_horizon_samples", PpoSettings()),
        ("score_limit", PpoSettings()),
        ("clip", PpoSettings(minibatches=1)),
        ("value_clip", PpoSettings(minibatches=1)),
    ],
)
def test_a_setting_without_effect_is_refused(name: str, settings: PpoSettings) -> None:
    with pytest.raises(EtudeError, match=f"ppo.{name} has no effect"):
        check_effects(settings, {f"ppo.{name}": f"--ppo.{name}"})
    check_effects(settings, {})


# ── a task that is learnt ──

STEPS = 20
LETTERS = set("abcdefghijklmnopqrstuvwxyz")


def letters(problem: Problem, answer: str) -> Score:
    """The share of lower-case letters: a tiny model of bytes begins at one in ten."""
    share = sum(character in LETTERS for character in answer) / max(1, len(answer))
    return Score(share, {"letters": share})


class Setting:
    """Engine, actor and critic on one tiny model; closed by `close`."""

    def __init__(self, model: Path) -> None:
        self.engine = Engine.load(model, threads=1, cache_type_k="f32", cache_type_v="f32")
        compute = ComputeSettings(dtype="f32")
        transformers = []
        for _ in range(2):
            transformer, source = load_transformer(model)
            source.close()
            transformers.append(transformer)
        self.actor = LocalLearner(transformers[0], AdamWSettings(learning_rate=3e-3), compute=compute)
        head = ScalarHead(transformers[1].config.d_model)
        self.critic = LocalLearner(
            transformers[1], AdamWSettings(learning_rate=3e-3), compute=compute, head=head
        )
        problems = [Problem(f"p{i}", (Message("user", f"Write {i}"),)) for i in range(8)]
        env = single_turn(letters)
        params = SamplingParams(max_tokens=8)
        self.source = RolloutSource(
            engine=self.engine,
            prompts=PromptWriter(self.engine.tokenizer, self.engine.chat, context=self.engine.context),
            problems=problems,
            order=lambda start, n: [(start + i) % len(problems) for i in range(n)],
            env=env,
            params=params,
            prompts_per_step=4,
            samples_per_prompt=8,
            seed=3,
        )
        self.held_out = HeldOut(problems[:2], env, params)

    def run(
        self,
        folder: Path,
        settings: PpoSettings,
        *,
        steps: int,
        resume: bool = False,
        stop: int | None = None,
    ) -> list[Report]:
        """Reports up to step `stop`, where the process "dies"."""
        run_settings = RunSettings(steps=steps, checkpoint_every=1, final="none")
        learners = {"actor": self.actor, "critic": self.critic}
        job = Job(folder, {"steps": steps}, resume=resume)
        reports = []
        with opened(job, run_settings, "ppo", learners) as run:
            for report in train(self.actor, self.critic, self.source, settings, run, self.held_out):
                reports.append(report)
                if report.step == stop:
                    break
        return reports

    def weights(self) -> dict[str, torch.Tensor]:
        named = {f"actor.{name}": value for name, value in self.actor.weights()}
        return named | {f"critic.{name}": value for name, value in self.critic.weights()}

    def close(self) -> None:
        self.engine.close()


@pytest.fixture()
def setting(tiny: Path) -> Iterator[Setting]:
    made = Setting(tiny)
    yield made
    made.close()


CHANGING = PpoSettings(
    kl_coefficient=0.05,
    kl_target_nats=1.0,
    kl_horizon_samples=200,
    standardise_scores=True,
    unfinished_reward=None,
    minibatches=2,
    epochs=2,
)
"""Settings whose state (β, moments) must survive a resume."""


def test_the_reward_rises(setting: Setting, tmp_path: Path) -> None:
    settings = PpoSettings(kl_coefficient=0.001, minibatches=2, epochs=2, unfinished_reward=None, lam=0.95)
    reports = setting.run(tmp_path / "run", settings, steps=STEPS)
    assert [report.step for report in reports] == list(range(STEPS + 1))
    rewards = [report.row["reward/mean"] for report in reports[1:]]
    assert sum(rewards[:3]) / 3 < 0.25
    assert sum(rewards[-3:]) / 3 > 0.6
    last = reports[-1].row
    assert last["explained_variance"] > 0.0
    assert last["entropy"] < reports[1].row["entropy"]
    assert last["eval/reward"] > reports[0].row["eval/reward"]
    for report in reports[1:]:
        assert report.row["ratio/first_deviation"] == 0.0
        assert report.row["mismatch/k3"] < 1e-6
    assert reports[1].row["kl"] == 0.0 < last["kl"]


def test_a_resumed_run_is_the_uninterrupted_one(setting: Setting, tiny: Path, tmp_path: Path) -> None:
    whole = setting.run(tmp_path / "whole", CHANGING, steps=5)
    first, second = Setting(tiny), Setting(tiny)
    try:
        before = first.run(tmp_path / "parts", CHANGING, steps=5, stop=3)
        after = second.run(tmp_path / "parts", CHANGING, steps=5, resume=True)
        assert [report.step for report in before + after] == [0, 1, 2, 3, 4, 5]
        for one, other in zip(whole, before + after, strict=True):
            assert timeless(one.row) == timeless(other.row)
            assert [r.token_ids for r in one.rollouts] == [r.token_ids for r in other.rollouts]
        for name, value in setting.weights().items():
            assert torch.equal(value, second.weights()[name]), name
    finally:
        first.close()
        second.close()
    states = [
        json.loads((tmp_path / name / "checkpoints/000005/state.json").read_text())
        for name in ("whole", "parts")
    ]
    assert states[0] == states[1]
    assert states[0]["beta"] != CHANGING.kl_coefficient
    assert states[0]["moments"][0] == 5 * 32


def timeless(row: Mapping[str, float]) -> dict[str, float]:
    """Without what a clock or the process decides."""
    return {
        key: value
        for key, value in row.items()
        if not key.startswith(("seconds", "critic/seconds", "tokens_per_s", "memory"))
    }


def test_the_critic_may_begin_alone(setting: Setting, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in setting.weights().items()}
    reports = setting.run(tmp_path / "run", replace(CHANGING, critic_warmup_steps=2), steps=3, stop=2)
    after = setting.weights()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("actor."), name
    assert "ratio/first_deviation" not in reports[1].row
    assert reports[1].row["critic/grad_norm"] > 0
