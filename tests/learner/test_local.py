"""The learner: gradients are the textbook's, and do not depend on how a step was cut; what costs nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from etude.learner.batch import Sample
from etude.learner.learner import Denominators
from etude.learner.local import ComputeSettings, LocalLearner
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings
from etude.model.heads import ScalarHead
from etude.records import EtudeError
from tests.learner.tiny import (
    STILL,
    WIDTH,
    assert_close,
    every_loss,
    gradients,
    learner_of,
    policy_loss,
    randomised,
    reordered,
    samples_of,
    skipped,
    transformer_of,
)
from tests.model.naive_transformer import naive_hidden, naive_logits

TOLERANCE = 2e-6
"""Of the largest gradient: what sums of f32 in another order may differ by, with room."""
ALL = ("logprobs", "entropy", "values", "scores")
LORA = LoraSettings(rank=4, alpha=8)


def updated(learner: LocalLearner, samples: list[Sample], outputs: tuple[str, ...] = ALL, **options: bool):
    metrics = learner.update(
        samples, every_loss, outputs=outputs, denominators=Denominators.of(samples), **options
    )
    return metrics, gradients(learner)


# ── equal to the textbook ──


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "gemma3", "mistral_window"])
def test_gradients_are_those_of_plain_sequences(name: str) -> None:
    """Against f64, one sequence after the other, by autograd."""
    samples = samples_of()
    learner = learner_of(name)
    metrics, found = updated(learner, samples, ("logprobs", "entropy"))
    weights = {n: p.detach().double().requires_grad_() for n, p in learner.transformer.named_parameters()}
    tokens = Denominators.of(samples).tokens
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        ids = sample.prompt_ids + sample.completion_ids
        logp = naive_logits(weights, learner.transformer.config, ids).log_softmax(-1)[
            len(sample.prompt_ids) - 1 : -1
        ]
        chosen = logp.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
        entropy = -(logp.exp() * logp).sum(-1)
        w = torch.tensor(np.asarray(sample.columns["weights"], np.float32)).double() * torch.tensor(
            sample.mask
        )
        advantage = float(np.float32(sample.columns["advantages"]))
        total = total + ((-advantage * chosen + entropy) * w).sum() / tokens
    total.backward()
    assert metrics["loss"] == pytest.approx(float(total.detach()), rel=1e-5)
    assert_close(found, {n: w.grad.float() for n, w in weights.items() if w.grad is not None}, 2e-5)


def test_scores_and_values_are_the_heads() -> None:
    """values: at the token before the one chosen. scores: at the last token, also where the mask is False."""
    learner = learner_of(head=True)
    samples = samples_of()
    weights = dict(learner.transformer.named_parameters())
    assert learner.head is not None
    for sample, found in zip(samples, learner.score(samples, ("values", "scores")), strict=True):
        with torch.no_grad():
            hidden = naive_hidden(
                weights, learner.transformer.config, sample.prompt_ids + sample.completion_ids
            )
            expected = learner.head(hidden)[len(sample.prompt_ids) - 1 :].numpy()
        np.testing.assert_allclose(found["scores"], expected[-1:], atol=1e-5)
        np.testing.assert_allclose(found["values"], np.where(sample.mask, expected[:-1], 0), atol=1e-5)


def test_temperature_divides_logits() -> None:
    sample = samples_of(1, 1)[0]
    learner = learner_of(temperature=0.5)
    [found] = learner.score([sample])
    ids = sample.prompt_ids + sample.completion_ids
    with torch.no_grad():
        logits = naive_logits(dict(learner.transformer.named_parameters()), learner.transformer.config, ids)
    logp = (logits[len(sample.prompt_ids) - 1 : -1] / 0.5).log_softmax(-1)
    chosen = logp.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(found["logprobs"], np.where(sample.mask, chosen, 0), atol=2e-5)


# ── the same however a step is cut ──


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_micro_batches_packing_and_order_change_nothing(lora: LoraSettings | None) -> None:
    samples = samples_of()
    learner = randomised(learner_of(head=True, lora=lora))
    metrics, expected = updated(learner, samples)
    assert metrics["micro_batches"] == 1
    for max_tokens, seed in ((4096, 1), (60, 2), (25, 3), (1, 4)):
        other = randomised(learner_of(head=True, lora=lora, max_tokens=max_tokens))
        again, found = updated(other, reordered(samples, seed))
        assert_close(found, expected, TOLERANCE)
        for name in ("loss", "logprob", "lowest_min", "grad_norm"):
            assert again[name] == pytest.approx(metrics[name], rel=1e-5)
    assert again["micro_batches"] == len(samples)


def test_activation_checkpointing_changes_nothing() -> None:
    samples = samples_of()
    _, expected = updated(learner_of(head=True), samples)
    _, found = updated(learner_of(head=True, checkpoint=True), samples)
    assert_close(found, expected, TOLERANCE)


def test_a_shared_prompt_has_the_gradient_of_prompts_computed_apart() -> None:
    shared, found = updated(learner_of(head=True), samples_of())
    apart, expected = updated(learner_of(head=True), samples_of(shared=False))
    assert_close(found, expected, TOLERANCE)
    assert shared["loss"] == pytest.approx(apart["loss"], rel=1e-5)
    assert shared["tokens_computed"] < 0.6 * apart["tokens_computed"]


def test_a_second_update_starts_from_zero() -> None:
    samples = samples_of()
    learner = learner_of()
    _, first = updated(learner, samples, ("logprobs",))
    _, second = updated(learner, samples, ("logprobs",))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ── what costs nothing ──


def test_a_group_without_advantage_is_no_work_and_no_gradient() -> None:
    """Skipped samples count in the denominators and are never computed."""
    samples = samples_of()
    idle = [skipped(s) if s.group == 1 else s for s in samples]
    metrics, found = updated(learner_of(), idle, ("logprobs",))
    zero = [replace(s, columns={**s.columns, "advantages": 0.0}) if s.group == 1 else s for s in samples]
    all_of_it, expected = updated(learner_of(), zero, ("logprobs",))
    assert_close(found, expected, TOLERANCE)
    _, without = updated(learner_of(), [s for s in samples if s.group != 1], ("logprobs",))
    rest = Denominators.of([s for s in samples if s.group != 1]).tokens / Denominators.of(samples).tokens
    assert_close(found, {name: value * rest for name, value in without.items()}, TOLERANCE)
    in_group = [s for s in samples if s.group == 1]
    cost = len(in_group[0].prompt_ids) + sum(s.n_computed for s in in_group)
    assert metrics["tokens_computed"] == all_of_it["tokens_computed"] - cost


def test_a_step_without_any_work_changes_nothing() -> None:
    learner = learner_of(optimizer=AdamWSettings(learning_rate=0.1, weight_decay=0.5))
    samples = samples_of()
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    before = {name: value.clone() for name, value in learner.weights()}
    metrics = learner.update(
        [skipped(s) for s in samples], policy_loss, denominators=Denominators.of(samples)
    )
    assert all(torch.equal(value, before[name]) for name, value in learner.weights())
    assert (metrics["tokens_computed"], metrics["grad_norm"], metrics["loss"]) == (0, 0, 0)
    assert learner.steps == 2
    assert all(not outputs["logprobs"].any() for outputs in metrics.outputs)


# ── score and update agree ──


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("max_tokens", [4096, 40])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_first_ratio_is_exactly_one(dtype: str, max_tokens: int, checkpoint: bool) -> None:
    samples = samples_of()
    learner = learner_of(dtype=dtype, max_tokens=max_tokens, checkpoint=checkpoint)
    scored = learner.score(samples)
    metrics = learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    for before, during in zip(scored, metrics.outputs, strict=True):
        assert np.array_equal(before["logprobs"], during["logprobs"])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_an_update_moves_the_logprobs_as_the_advantages_say(dtype: str, lora: LoraSettings | None) -> None:
    samples = samples_of()
    learner = learner_of(optimizer=AdamWSettings(learning_rate=1e-2), dtype=dtype, lora=lora)
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    before = learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    after = learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    assert after["loss"] < before["loss"]


def test_bf16_is_near_f32() -> None:
    samples = samples_of()
    _, expected = updated(learner_of(head=True), samples)
    _, found = updated(learner_of(head=True, dtype="bf16"), samples)
    flat = torch.cat([value.reshape(-1) for value in expected.values()])
    other = torch.cat([found[name].reshape(-1) for name in expected])
    assert (other - flat).norm() < 0.02 * flat.norm()


def test_outputs_are_zero_where_the_mask_is_false() -> None:
    samples = samples_of()
    for sample, found in zip(samples, learner_of().score(samples, ("logprobs", "entropy")), strict=True):
        inside = np.array(sample.mask)
        assert (found["logprobs"][inside] < 0).all() and not found["logprobs"][~inside].any()
        assert (found["entropy"][inside] > 0).all() and not found["entropy"][~inside].any()


# ── the reference ──


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_reference_is_the_model_as_it_was(lora: LoraSettings | None) -> None:
    samples = samples_of()
    learner = randomised(learner_of(optimizer=AdamWSettings(learning_rate=0.01), lora=lora))
    learner.refresh_reference()
    before = learner.score(samples)
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    reference, now = learner.score(samples, adapter=False), learner.score(samples)
    for first, other, moved in zip(before, reference, now, strict=True):
        assert np.array_equal(first["logprobs"], other["logprobs"])
        assert not first["logprobs"].any() or not np.array_equal(first["logprobs"], moved["logprobs"])
    learner.refresh_reference()
    [kl] = {
        float(np.abs(row["reference_kl"]).max()) < 1e-6 for row in learner.score(samples, ["reference_kl"])
    }
    assert kl


def test_kl_over_the_whole_vocabulary() -> None:
    samples = samples_of(1, 3)
    learner = learner_of(optimizer=AdamWSettings(learning_rate=0.01))
    learner.refresh_reference()
    start = {name: value.clone() for name, value in learner.weights()}
    learner.update(samples, policy_loss, denominators=Denominators.of(samples))
    found = learner.score(samples, ["reference_kl"])
    config = learner.transformer.config
    for sample, row in zip(samples, found, strict=True):
        ids = sample.prompt_ids + sample.completion_ids
        p, q = (
            naive_logits(weights, config, ids)[len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
            for weights in (dict(learner.weights()), start)
        )
        expected = np.where(sample.mask, (p.exp() * (p - q)).sum(-1).numpy(), 0)
        np.testing.assert_allclose(row["reference_kl"], expected, atol=1e-5)
    metrics = learner.update(
        samples, every_loss, outputs=("logprobs", "reference_kl"), denominators=Denominators.of(samples)
    )
    assert metrics["grad_norm"] > 0


def test_no_reference_before_there_is_one() -> None:
    with pytest.raises(EtudeError, match="refresh_reference"):
        learner_of().score(samples_of(), adapter=False)


# ── mistakes ──


def test_what_cannot_be_asked_for() -> None:
    samples = samples_of()
    with pytest.raises(EtudeError, match=r"\['logits'\]; allowed are logprobs"):
        learner_of().score(samples, ["logits"])
    with pytest.raises(EtudeError, match=r"outputs are \[\]; allowed"):
        learner_of().score(samples, [])
    with pytest.raises(EtudeError, match="need a scalar head"):
        learner_of().score(samples, ["values"])
    with pytest.raises(EtudeError, match="made for scoring"):
        learner_of(optimizer=None).update(samples, policy_loss, denominators=Denominators.of(samples))
    with pytest.raises(EtudeError, match="above 0"):
        learner_of(temperature=0.0)
    with pytest.raises(EtudeError, match="bf16, in f32, or auto"):
        ComputeSettings(dtype="f16")


def test_a_gradient_that_is_not_finite_is_counted() -> None:
    learner = learner_of(optimizer=AdamWSettings(learning_rate=0.1))
    samples = samples_of()
    before = {name: value.clone() for name, value in learner.weights()}
    broken = [replace(s, columns={**s.columns, "advantages": float("nan")}) for s in samples]
    metrics = learner.update(broken, policy_loss, denominators=Denominators.of(samples))
    assert metrics["skipped"] == 1
    assert all(torch.equal(value, before[name]) for name, value in learner.weights())


def test_a_critic_alone_computes_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = LocalLearner(transformer_of(), STILL, head=ScalarHead(WIDTH))
    monkeypatch.setattr(learner, "_head", None)
    samples = samples_of()

    def value_loss(outputs, batch, denominators):
        return (outputs["values"] - 1).square().sum() / denominators.tokens, {}

    metrics = learner.update(samples, value_loss, outputs=["values"], denominators=Denominators.of(samples))
    assert metrics["grad_norm"] > 0
