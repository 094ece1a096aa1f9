"""PPO (arXiv:1707.06347) with a critic, as RLHF has it (arXiv:1909.08593, InstructGPT: arXiv:2203.02155).

The actor π writes answers y to prompts x, something judges them (rules, or a reward model), and a critic V, a
model of its own with a scalar head, says before each token what reward is still to come:

    r_t = -β (log π(y_t | s_t) - log π_ref(y_t | s_t)) + 1[t = T] R(x, y)              token_rewards
    δ_t = r_t + γ V(s_t+1) - V(s_t),   A_t = δ_t + γλ A_t+1,   R_t = A_t + V(s_t)      advantages.gae
    L_π = E max( -A ρ, -A clip(ρ, 1-ε, 1+ε) ),   ρ = π(y_t | s_t) / π_old(y_t | s_t)   actor_loss
    L_V = E ½ max( (V - R)², (clip(V, V_old-ε_v, V_old+ε_v) - R)² )                    critic_loss

s_t = (x, y_<t), so V(s_t) belongs to the token before y_t. R lies on the last token, which is the end token
unless the answer was cut off; such an answer gets -1 in place of its score. π_old and V_old are computed by
the learners in a pass of their own, packed as the first update will be, so that the first ρ is exactly 1.
π_ref is the model as it was before training: a LoRA switched off, or a copy.

Where a network serves both, L_V has a coefficient (0.1 in lm-human-preferences); here actor and critic have
their own optimizers and learning rates, and Adam does not see a factor.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators, Learner, Loss, Metrics, Outputs, Policy
from etude.records import EtudeError, Rollout
from etude.train.advantages import gae, terminal_rewards, whiten
from etude.train.agreement import check_agreement, mismatch_row
from etude.train.corrections import penalise_unfinished, truncated, uncorrected
from etude.train.kl import AdaptiveKl, adapted, excess, k1, k3
from etude.train.losses import (
    clip_flags,
    clipped,
    clipped_value_loss,
    policy_loss,
    token_log_ratio,
    token_mean,
    value_loss,
)
from etude.train.minibatches import Split, minibatches, scored
from etude.train.moments import Moments, standardised, updated
from etude.train.ppo_settings import PpoSettings
from etude.train.rollout_metrics import rollout_metrics
from etude.train.run import Clock, Report, Run, Stopping, memory_bytes
from etude.train.sampling import HeldOut, RolloutSource
from etude.train.segments import masked, sequence_sums
from etude.train.step_rows import by_sample, speeds, stored_rows, update_row

F32 = NDArray[np.float32]
STORED = ("old_logprobs", "advantages", "old_values", "returns")
"""What is stored of each token, beside the ratio."""


def train(
    actor: Policy,
    critic: Learner,
    source: RolloutSource,
    settings: PpoSettings,
    run: Run,
    held_out: HeldOut | None = None,
) -> Iterator[Report]:
    """Train to the run's last step; a Report for each, and for step 0 if something is held out.

    EtudeError before the first update when engine and learner are not the same model. After Ctrl-C the step
    is finished, saved, and the last to be reported.
    """
    steps, engine = run.settings.steps, source.engine
    adapter = actor.publish(engine, run.step)
    if run.step == 0:
        run.state = {"position": 0, "beta": settings.kl_coefficient, "moments": [0, 0.0, 0.0]}
        if settings.kl_coefficient > 0 and adapter is None:
            actor.refresh_reference()  # a LoRA's reference is its base
        if held_out is not None:
            row, answers = held_out.measure(engine, source.prompts, adapter)
            yield Report(0, steps, row, answers, findings=run.record(0, row))
    with Stopping() as stopping:
        for step in range(run.step + 1, steps + 1):
            clock, state, draw = Clock(), run.state, random.Random(f"{source.seed}/{step}")
            # ── answers and their scores ──
            groups = source.draw(step, state["position"], source.prompts_per_step, adapter=adapter)
            state["position"] += source.prompts_per_step
            engine.release_cache()
            drawn = [rollout for group in groups for rollout in group]
            judged = [rollout for rollout in drawn if rollout.score.failure is None]
            clock.lap("sampling")
            samples = samples_of(judged)
            scores_S = torch.tensor([rollout.score.total for rollout in judged], dtype=torch.float64)
            finished_S = torch.tensor([rollout.finish in ("eos", "stop") for rollout in judged])
            scores_S, moments = final_scores(scores_S, finished_S, Moments(*state["moments"]), settings)
            # ── π_old, V_old and π_ref, in the minibatches of the first epoch ──
            if step == run.step + 1:
                check_agreement(actor, samples, settings.max_mismatch)
            split = minibatches(samples, settings.minibatches, draw)
            passes = passes_of(actor, critic, samples, split, with_reference=settings.kl_coefficient > 0)
            clock.lap("scoring")
            # ── GAE, then the updates of both ──
            found = experience(scores_S, passes, settings, beta=state["beta"])
            samples = with_experience(samples, passes, found)
            actor_learns = step > settings.critic_warmup_steps
            learnt = improve(actor if actor_learns else None, critic, samples, split, settings, draw)
            clock.lap("update")
            adapter = actor.publish(engine, step)
            clock.lap("publish")
            state["beta"] = next_beta(state["beta"], passes, settings)
            state["moments"] = [moments.count, moments.mean, moments.squares]
            # ── what there is to know about the step ──
            row = {**rollout_metrics(drawn, counted_parts=tuple(source.counted_parts)), **learnt.row}
            row |= experience_row(scores_S, passes, found) | {"kl/beta": state["beta"]}
            row |= mismatch_row(samples, by_sample(passes.old_C.float().numpy(), samples))
            row["epoch"] = state["position"] / len(source.problems)
            metric = None
            if held_out is not None and held_out.is_due(step, steps):
                found_held_out, _ = held_out.measure(engine, source.prompts, adapter)
                row |= found_held_out
                metric = row["eval/accuracy"]
                clock.lap("eval")
            if run.stores_rollouts(step):
                columns = {"ratios": learnt.ratios, **{name: column_of(samples, name) for name in STORED}}
                columns["entropies"] = by_sample(passes.entropy_C.float().numpy(), samples)
                run.writer.rollouts(step, stored_rows(drawn, judged, source.by_id, columns))
                clock.lap("storing")
            row |= clock.row() | speeds(row, clock) | {"memory_bytes": float(memory_bytes())}
            report = run.finish(step, row, drawn, metric=metric, stopped=stopping.asked)
            yield report
            if report.stopped:
                return


# ── the two losses ──


def actor_loss(*, clip: float) -> Loss:
    """L_π over the tokens of a minibatch, with what it does to the policy."""

    def loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
        old_C, advantages_C = batch.columns["old_logprobs"], batch.columns["advantages"]
        axes = (batch.mask_C, batch.sequence_C)
        loss_C = policy_loss(
            outputs["logprobs"],
            old_C,
            advantages_C,
            *axes,
            ratio=token_log_ratio,
            clip=partial(clipped, low=clip, high=clip),
            weights_C=batch.columns["weights"],
        )
        log_ratio_C = token_log_ratio(outputs["logprobs"].detach(), old_C, *axes)
        below_C, above_C = clip_flags(log_ratio_C, advantages_C, low=clip, high=clip)
        flags_C = (below_C | above_C).to(loss_C.dtype)
        return token_mean(loss_C, *axes, totals), {
            "clip_fraction": token_mean(flags_C, *axes, totals),
            "old_kl": token_mean(excess(log_ratio_C), *axes, totals),
            "ratio/deviation_max": (log_ratio_C.exp() - 1).abs().max(),
        }

    return loss


def critic_loss(*, clip: float) -> Loss:
    """L_V over the tokens of a minibatch; clip 0: ½ (V - R)²."""

    def loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
        values_C, axes = outputs["values"], (batch.mask_C, batch.sequence_C)
        old_C, returns_C = batch.columns["old_values"], batch.columns["returns"]
        if clip == 0:
            return token_mean(value_loss(values_C, returns_C), *axes, totals), {}
        loss_C = clipped_value_loss(values_C, old_C, returns_C, clip=clip)
        far_C = ((values_C.detach() - old_C).abs() > clip).to(loss_C.dtype)
        return token_mean(loss_C, *axes, totals), {"clip_fraction": token_mean(far_C, *axes, totals)}

    return loss


@dataclass(frozen=True)
class Learnt:
    """What the updates of a step did. ratios: of each sample, over its completion tokens, in the last epoch;
    None where the actor did not learn."""

    row: Mapping[str, float]
    ratios: Sequence[F32 | None]


def improve(
    actor: Learner | None,
    critic: Learner,
    samples: Sequence[Sample],
    split: Split,
    settings: PpoSettings,
    draw: random.Random,
) -> Learnt:
    """Epochs over the minibatches, a step of both optimizers for each. actor None: the critic alone.

    split: the minibatches of the first epoch; later ones are drawn anew.
    """
    losses = actor_loss(clip=settings.clip), critic_loss(clip=settings.value_clip)
    actor_updates: list[Metrics] = []
    critic_updates: list[Metrics] = []
    ratios: list[F32 | None] = [None] * len(samples)
    for epoch in range(settings.epochs):
        for indices in split if epoch == 0 else minibatches(samples, settings.minibatches, draw):
            part = [samples[i] for i in indices]
            totals = Denominators.of(part)
            if actor is not None:
                update = actor.update(part, losses[0], denominators=totals)
                actor_updates.append(update)
                for i, outputs in zip(indices, update.outputs, strict=True):
                    ratios[i] = np.exp(outputs["logprobs"] - samples[i].columns["old_logprobs"])
            update = critic.update(part, losses[1], outputs=("values",), denominators=totals)
            critic_updates.append(update)
    row = {f"critic/{name}": value for name, value in update_row(critic_updates).items()}
    row["critic/clip_fraction"] = mean_of(critic_updates, "clip_fraction")
    if actor_updates:
        row |= update_row(actor_updates)
        row |= {name: mean_of(actor_updates, name) for name in ("clip_fraction", "old_kl")}
        row["ratio/first_deviation"] = actor_updates[0].get("ratio/deviation_max", 0.0)
        row["ratio/deviation_max"] = max(update.get("ratio/deviation_max", 0.0) for update in actor_updates)
    return Learnt(row, ratios)


def mean_of(updates: Sequence[Metrics], name: str) -> float:
    return sum(update.get(name, 0.0) for update in updates) / len(updates)


# ── from scores to what the losses read ──


@dataclass(frozen=True)
class Passes:
    """What the models say about a rollout's tokens before the first update, on C, 0 where masked out.

    old_C: log π_old. entropy_C: of π_old. sampler_C: the engine's log π. reference_C: log π_ref, None without
    KL. values_C: V_old.
    """

    mask_C: Tensor
    sequence_C: Tensor
    old_C: Tensor
    entropy_C: Tensor
    sampler_C: Tensor
    reference_C: Tensor | None
    values_C: Tensor


@dataclass(frozen=True)
class Experience:
    """What both losses read, on C; and the rewards of tokens before they were whitened."""

    rewards_C: Tensor
    advantages_C: Tensor
    returns_C: Tensor
    weights_C: Tensor


def token_rewards(scores_S: Tensor, passes: Passes, *, beta: float) -> Tensor:
    """r_t = -β k1_t + 1[t = T] R. InstructGPT (arXiv:2203.02155) eq. 2 without its pretraining term."""
    rewards_C = terminal_rewards(scores_S, passes.mask_C, passes.sequence_C)
    if passes.reference_C is None:
        return rewards_C
    return rewards_C - beta * masked(k1(passes.old_C, passes.reference_C, passes.old_C), passes.mask_C)


def experience(scores_S: Tensor, passes: Passes, settings: PpoSettings, *, beta: float) -> Experience:
    """Rewards, GAE, returns and weights of a whole rollout; in double precision."""
    mask_C, sequence_C = passes.mask_C, passes.sequence_C
    rewards_C = token_rewards(scores_S, passes, beta=beta)
    used_C = whiten(rewards_C, mask_C, keep_mean=True) if settings.whiten_rewards else rewards_C
    advantages_C, returns_C = gae(
        used_C, passes.values_C, mask_C, sequence_C, gamma=settings.gamma, lam=settings.lam
    )
    correction = partial(truncated, maximum=settings.max_weight) if settings.max_weight else uncorrected
    return Experience(
        rewards_C=rewards_C,
        advantages_C=whiten(advantages_C, mask_C) if settings.whiten_advantages else advantages_C,
        returns_C=returns_C,
        weights_C=correction(passes.old_C, passes.sampler_C, mask_C, sequence_C),
    )


def final_scores(
    scores_S: Tensor, finished_S: Tensor, moments: Moments, settings: PpoSettings
) -> tuple[Tensor, Moments]:
    """R of each answer: its score, on one scale with earlier ones if that is wanted, or what an unfinished
    answer gets. And the moments of all scores so far."""
    if settings.standardise_scores:
        moments = updated(moments, scores_S)
        scores_S = standardised(scores_S, moments, clip=settings.score_limit)
    if settings.unfinished_reward is not None:
        scores_S = penalise_unfinished(scores_S, finished_S, penalty=settings.unfinished_reward)
    return scores_S, moments


def explained_variance(values_C: Tensor, returns_C: Tensor, mask_C: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the masked-in tokens: 1 for a perfect critic, 0 for a constant, below
    0 for a worse one; 0 where the returns do not vary."""
    returns_N = returns_C[mask_C].double()
    if len(returns_N) < 2 or float(returns_N.var()) == 0:
        return 0.0
    return float(1 - (returns_N - values_C[mask_C]).var() / returns_N.var())


# ── from rollouts to passes, and what is logged ──


def samples_of(judged: Sequence[Rollout]) -> list[Sample]:
    """Rollouts as samples, those of a problem as a group. EtudeError if there are none."""
    if not judged:
        raise EtudeError("no answer of this step could be judged: mend the reward (the rollouts say why)")
    groups = {name: at for at, name in enumerate(dict.fromkeys(rollout.problem_id for rollout in judged))}
    return [
        Sample(
            prompt_ids=rollout.token_ids[: rollout.prompt_length],
            completion_ids=rollout.token_ids[rollout.prompt_length :],
            mask=rollout.mask[rollout.prompt_length :],
            group=groups[rollout.problem_id],
            columns={"sampler_logprobs": np.asarray(rollout.logprobs[rollout.prompt_length :], np.float32)},
        )
        for rollout in judged
    ]


def passes_of(
    actor: Learner, critic: Learner, samples: Sequence[Sample], split: Split, *, with_reference: bool
) -> Passes:
    """What actor, critic and reference say before the first update."""
    old = scored(actor, samples, split, ("logprobs", "entropy"))
    values = scored(critic, samples, split, ("values",))
    reference = scored(actor, samples, split, ("logprobs",), adapter=False) if with_reference else None
    lengths = torch.tensor([len(sample.completion_ids) for sample in samples])
    return Passes(
        mask_C=torch.tensor([inside for sample in samples for inside in sample.mask]),
        sequence_C=torch.repeat_interleave(torch.arange(len(samples)), lengths),
        old_C=on_C(old, "logprobs"),
        entropy_C=on_C(old, "entropy"),
        sampler_C=on_C([sample.columns for sample in samples], "sampler_logprobs"),
        reference_C=None if reference is None else on_C(reference, "logprobs"),
        values_C=on_C(values, "values"),
    )


def on_C(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """A number of each sample's tokens, one sample after the other, in double precision."""
    return torch.from_numpy(np.concatenate([row[name] for row in rows])).double()


def with_experience(samples: Sequence[Sample], passes: Passes, found: Experience) -> list[Sample]:
    """The samples with the columns that the losses read; float32 holds what was computed in it exactly."""
    columns = {
        "old_logprobs": passes.old_C,
        "old_values": passes.values_C,
        "advantages": found.advantages_C,
        "returns": found.returns_C,
        "weights": found.weights_C,
    }
    cut = {name: by_sample(values_C.float().numpy(), samples) for name, values_C in columns.items()}
    return [
        replace(sample, columns={**sample.columns, **{name: values[i] for name, values in cut.items()}})
        for i, sample in enumerate(samples)
    ]


def column_of(samples: Sequence[Sample], name: str) -> list[F32]:
    """A column of samples that give a number for each token."""
    return [np.asarray(sample.columns[name], np.float32) for sample in samples]


def answer_kl(passes: Passes) -> float:
    """Mean over answers of Σ_t k1_t, nats; 0 without a reference."""
    if passes.reference_C is None:
        return 0.0
    k1_C = k1(passes.old_C, passes.reference_C, passes.old_C)
    samples = int(passes.sequence_C[-1]) + 1
    return float(sequence_sums(k1_C, passes.mask_C, passes.sequence_C, samples).mean())


def next_beta(beta: float, passes: Passes, settings: PpoSettings) -> float:
    """β for the next step: steered towards the KL that is wanted, or as it is."""
    if settings.kl_target_nats is None:
        return beta
    state = AdaptiveKl(beta, settings.kl_target_nats, settings.kl_horizon_samples)
    return adapted(state, answer_kl(passes), int(passes.sequence_C[-1]) + 1).beta


def experience_row(scores_S: Tensor, passes: Passes, found: Experience) -> dict[str, float]:
    """What the critic expected and what came. reward/final: scores as they were used, -1 for unfinished
    answers and so on; reward/with_kl: less the KL."""
    mask_C = passes.mask_C
    returns_N = found.returns_C[mask_C]
    row = {
        "entropy": float(passes.entropy_C[mask_C].mean()),
        "explained_variance": explained_variance(passes.values_C, found.returns_C, mask_C),
        "values/mean": float(passes.values_C[mask_C].mean()),
        "returns/mean": float(returns_N.mean()),
        "returns/std": float(returns_N.std(correction=0)),
        "weights/mean": float(found.weights_C[mask_C].mean()),
        "reward/final": float(scores_S.mean()),
        "reward/with_kl": float(found.rewards_C[mask_C].sum() / len(scores_S)),
    }
    if passes.reference_C is not None:
        k3_C = k3(passes.old_C, passes.reference_C, passes.old_C)
        row |= {"kl": float(k3_C[mask_C].mean()), "kl/answer": answer_kl(passes)}
    return row
