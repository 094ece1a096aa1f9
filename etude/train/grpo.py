"""GRPO, Group Relative Policy Optimization: DeepSeekMath (arXiv:2402.03300), DeepSeek-R1 (arXiv:2501.12948).

    for each step:
        for each of P questions q: draw answers o_1 … o_G ~ π_old(·|q), judge them: r_1 … r_G
        A_i = (r_i - mean(r)) / std(r), the same for every token of o_i
        for each minibatch of the answers: one step of AdamW on -J

    J(θ) = 1/G Σ_i 1/|o_i| Σ_t { min[ρ A, clip(ρ, 1 - ε, 1 + ε) A] - β D_KL[π_θ ‖ π_ref] }             (eq. 3)
    ρ_{i,t} = π_θ(o_{i,t} | q, o_{i,<t}) / π_old(o_{i,t} | q, o_{i,<t})
    D_KL = π_ref/π_θ - log π_ref/π_θ - 1                                                               (eq. 4)

What the successors changed are functions in an `Objective`: advantage, ratio, clip, mean, KL, correction
(presets.py names them, docs/algorithms.md derives them). The default takes one step for each rollout: π_old
is then π_θ itself, ρ is exactly 1, and no second pass is needed.

The engine that draws rounds otherwise than the learner. Their difference never meets the clip; it weighs the
loss (corrections.py), and is measured raw in every step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators, Loss, Metrics, Outputs, Policy, SampleOutputs
from etude.records import EtudeError, Rollout
from etude.train.advantages import token_advantages
from etude.train.agreement import check_agreement, mismatch_row
from etude.train.corrections import has_signal, overlong_penalty
from etude.train.grpo_settings import Objective
from etude.train.losses import policy_loss
from etude.train.minibatches import Split, minibatches, scored
from etude.train.rollout_metrics import rollout_metrics
from etude.train.run import Clock, Report, Run, Stopping, memory_bytes
from etude.train.sampling import Group, HeldOut, RolloutSource
from etude.train.step_rows import (
    by_sample,
    clip_row,
    entropy_row,
    first_ratio_row,
    kl_row,
    ratios_of,
    speeds,
    stored_rows,
    update_row,
)

F32 = NDArray[np.float32]


def train(
    policy: Policy,
    source: RolloutSource,
    objective: Objective,
    run: Run,
    held_out: HeldOut | None = None,
) -> Iterator[Report]:
    """Train to the run's last step; a Report for each, and for step 0 if something is held out.

    EtudeError before the first update when engine and learner are not the same model. After Ctrl-C the step
    is finished, saved, and the last to be reported.
    """
    preset, steps, engine = objective.preset, run.settings.steps, source.engine
    refresh_every = objective.refresh_every(steps)
    adapter = policy.publish(engine, run.step)
    if run.step == 0:
        run.state = {"position": 0}
        if preset.kl_coefficient > 0 and adapter is None:
            policy.refresh_reference()  # a LoRA's reference is its base
        if held_out is not None:
            row, answers_held_out = held_out.measure(engine, source.prompts, adapter)
            yield Report(0, steps, row, answers_held_out, findings=run.record(0, row))
    with Stopping() as stopping:
        for step in range(run.step + 1, steps + 1):
            clock = Clock()
            # ── questions, groups of answers, their rewards ──
            groups, n_drawn = draw_groups(source, objective, step, run.state["position"], adapter)
            drawn = [rollout for group in groups for rollout in group]
            run.state["position"] += n_drawn
            engine.release_cache()
            clock.lap("sampling")
            mask_truncated = step > preset.mask_truncated_after * steps
            answers = answers_of(kept(groups, objective), source, objective, mask_truncated)
            if step == run.step + 1:
                check_agreement(policy, as_sampled(answers), objective.max_mismatch)
                clock.lap("scoring")
            # ── advantages, then the updates ──
            learnt = improve(policy, answers, objective, random.Random(f"{source.seed}/{step}"), clock)
            if refresh_every and step % refresh_every == 0:
                policy.refresh_reference()
            adapter = policy.publish(engine, step)
            clock.lap("publish")
            # ── what there is to know about the step ──
            row = {**rollout_metrics(drawn, counted_parts=tuple(source.counted_parts)), **learnt.row}
            row |= {"prompts": float(n_drawn), "epoch": run.state["position"] / len(source.problems)}
            row |= masked_row(answers) if mask_truncated else {}
            metric = None
            if held_out is not None and held_out.is_due(step, steps):
                found_held_out, _ = held_out.measure(engine, source.prompts, adapter)
                row |= found_held_out
                metric = row["eval/accuracy"]
                clock.lap("eval")
            if run.stores_rollouts(step):
                rows = stored_rows(drawn, answers.rollouts, source.by_id, learnt.columns)
                run.writer.rollouts(step, rows)
                clock.lap("storing")
            row |= clock.row() | speeds(row, clock) | {"memory_bytes": float(memory_bytes())}
            report = run.finish(step, row, drawn, metric=metric, stopped=stopping.asked)
            yield report
            if report.stopped:
                return


def draw_groups(
    source: RolloutSource, objective: Objective, step: int, position: int, adapter: str | None
) -> tuple[list[Group], int]:
    """(groups of answers, prompts that were drawn). With dynamic sampling (DAPO, arXiv:2503.14476, eq. 11)
    further prompts are drawn in place of groups whose answers are all equally good, so many times."""
    wanted = source.prompts_per_step
    groups = source.draw(step, position, wanted, adapter=adapter)
    if objective.preset.dynamic_sampling:
        for _ in range(objective.max_draws - 1):
            missing = wanted - sum(map(carries_signal, groups))
            if not missing:
                break
            n = len(groups)
            groups += source.draw(step, position + n, missing, drawn=n, adapter=adapter)
    return groups, len(groups)


def kept(groups: Sequence[Group], objective: Objective) -> Sequence[Group]:
    """The groups that are learnt from: with dynamic sampling those with a signal, if there is any."""
    if not objective.preset.dynamic_sampling:
        return groups
    return [group for group in groups if carries_signal(group)] or groups


def carries_signal(group: Group) -> bool:
    """Whether its rewards differ."""
    rewards = [rollout.score.total for rollout in group if rollout.score.failure is None]
    return bool(rewards) and bool(has_signal(torch.tensor(rewards), torch.zeros(len(rewards))).any())


@dataclass(frozen=True)
class Answers:
    """The judged answers of a step, on flat axes (S answers, C their tokens): what advantages read, and the
    samples that the learner does. parts_SK: parts of the reward, times their weights_K."""

    rollouts: Sequence[Rollout]
    samples: Sequence[Sample]
    rewards_S: Tensor
    group_S: Tensor
    parts_SK: Tensor
    weights_K: Tensor
    mask_C: Tensor
    sequence_C: Tensor
    max_tokens: int


def answers_of(
    groups: Sequence[Group], source: RolloutSource, objective: Objective, mask_truncated: bool
) -> Answers:
    """Rollouts → answers. One whose verifier failed is left out, with its group's others it is not compared.

    mask_truncated: answers that were cut off stay in the comparison and leave the loss. EtudeError if no
    verifier has worked.
    """
    judged = [
        (g, rollout) for g, group in enumerate(groups) for rollout in group if not rollout.score.failure
    ]
    if not judged:
        raise EtudeError(f"no answer could be judged: {groups[0][0].score.failure}")
    rollouts = [rollout for _, rollout in judged]
    samples = []
    for group, rollout in judged:
        n = rollout.prompt_length
        leaves = mask_truncated and rollout.finish == "length"
        samples.append(
            Sample(
                prompt_ids=rollout.token_ids[:n],
                completion_ids=rollout.token_ids[n:],
                mask=tuple(chosen and not leaves for chosen in rollout.mask[n:]),
                group=group,
                columns={"sampler_logprobs": np.asarray(rollout.logprobs[n:], np.float32)},
            )
        )
    rewards_S = torch.tensor([rollout.score.total for rollout in rollouts], dtype=torch.float64)
    if objective.preset.overlong_buffer:
        lengths_S = torch.tensor([sum(rollout.mask) for rollout in rollouts])
        buffer = max(1, round(objective.preset.overlong_buffer * source.max_tokens))
        rewards_S = rewards_S + overlong_penalty(
            lengths_S, max_tokens=source.max_tokens, buffer_tokens=buffer
        )
    names = list(source.counted_parts)
    parts = [[rollout.score.parts.get(name, 0.0) for name in names] for rollout in rollouts]
    lengths = [len(sample.completion_ids) for sample in samples]
    return Answers(
        rollouts=rollouts,
        samples=samples,
        rewards_S=rewards_S,
        group_S=torch.tensor([group for group, _ in judged]),
        parts_SK=torch.tensor(parts, dtype=torch.float64).reshape(len(samples), len(names)),
        weights_K=torch.tensor(list(source.counted_parts.values()), dtype=torch.float64),
        mask_C=torch.tensor([inside for sample in samples for inside in sample.mask]),
        sequence_C=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths)),
        max_tokens=source.max_tokens,
    )


@dataclass(frozen=True)
class Prepared:
    """Answers with everything that the loss reads. advantages, old, reference: of each sample, over its
    completion tokens; old is π_old's log-probabilities and reference π_ref's, [] where nothing reads them;
    with the KL over the whole vocabulary, reference is that KL."""

    samples: Sequence[Sample]
    advantages: Sequence[F32]
    old: Sequence[F32]
    reference: Sequence[F32]


def prepare(
    policy: Policy, answers: Answers, objective: Objective, split: Sequence[Sequence[int]]
) -> Prepared:
    """Advantages; log-probabilities of π_old and π_ref as far as something reads them before the updates."""
    preset, samples = objective.preset, list(answers.samples)
    old: list[F32] = []
    reference: list[F32] = []
    penalty_C = torch.zeros(len(answers.mask_C), dtype=torch.float64)
    if objective.kl_in_reward:  # r_i - β Σ_t KL_t, or a reward for each token: the advantage decides
        old = one_scored(policy, samples, split)
        reference = one_scored(policy, samples, split, objective.reference_output, adapter=objective.full_kl)
        old_C, reference_C = (torch.from_numpy(np.concatenate(values)) for values in (old, reference))
        kl_C = reference_C if objective.full_kl else preset.kl(old_C, reference_C, torch.zeros_like(old_C))
        penalty_C = preset.kl_coefficient * kl_C.double()
    advantages = by_sample(advantages_of(answers, objective, penalty_C).float().numpy(), samples)
    skips = preset.skip_flat_groups and not objective.kl_in_reward
    for i, sample in enumerate(samples):
        columns = {**sample.columns, "advantages": advantages[i]}
        # without advantage no gradient: no forward and no backward either
        samples[i] = replace(sample, columns=columns, skip=skips and not advantages[i].any())
    if objective.updates > 1:
        old = old or one_scored(policy, samples, split)
        samples = with_column(samples, "old_logprobs", old)
    if objective.kl_in_loss and not objective.full_kl:
        reference = one_scored(policy, samples, split, adapter=False)
        samples = with_column(samples, "reference_logprobs", reference)
    return Prepared(samples, advantages, old, reference)


@dataclass(frozen=True)
class Learnt:
    """What the updates of a step did. Of each sample, over its completion tokens: advantages, the learner's
    log-probabilities and entropies before the step (None: not computed), ratios in the last epoch."""

    row: Mapping[str, float]
    advantages: Sequence[F32]
    logprobs: Sequence[F32 | None]
    entropies: Sequence[F32 | None]
    ratios: Sequence[F32]

    @property
    def columns(self) -> dict[str, Sequence[F32 | None]]:
        """As they are stored with the rollouts."""
        return {
            "advantages": self.advantages,
            "ratios": self.ratios,
            "learner_logprobs": self.logprobs,
            "entropies": self.entropies,
        }


def improve(
    policy: Policy, answers: Answers, objective: Objective, draw: random.Random, clock: Clock
) -> Learnt:
    """The updates of one step. draw: deals the answers into minibatches, anew in every epoch."""
    split = opening = minibatches(answers.samples, objective.preset.minibatches, draw)
    ready = prepare(policy, answers, objective, split)
    clock.lap("scoring")
    loss, samples = grpo_loss(objective), ready.samples
    outputs = (
        "logprobs",
        "entropy",
        *(("reference_kl",) if objective.full_kl and objective.kl_in_loss else ()),
    )
    updates: list[Metrics] = []
    first: dict[int, SampleOutputs] = {}
    last: dict[int, SampleOutputs] = {}
    for epoch in range(objective.epochs):
        if epoch:
            split = minibatches(samples, objective.preset.minibatches, draw)
        for indices in split:
            minibatch = [samples[i] for i in indices]
            totals = Denominators.of(minibatch, answers.max_tokens)
            updates.append(policy.update(minibatch, loss, outputs=outputs, denominators=totals))
            found = dict(zip(indices, updates[-1].outputs, strict=True))
            last |= found
            first = {**found, **first}
    clock.lap("update")
    before = ready.old or [first[i]["logprobs"] for i in range(len(samples))]
    now = [last[i]["logprobs"] for i in range(len(samples))]
    row = update_row(updates) | entropy_row(samples, first) | mismatch_row(samples, before)
    reference = ready.reference
    if objective.full_kl and not reference:
        reference = [first[i]["reference_kl"] for i in range(len(samples))]
    row |= kl_row(samples, before, reference, is_kl=objective.full_kl)
    if all(sample.idle for sample in samples):
        row |= first_group_row(policy, answers)
        clock.lap("scoring")
    ratios = [np.ones(len(sample.mask), np.float32) for sample in samples]
    if objective.updates > 1:
        ratios = ratios_of(samples, now, before)
        row |= first_ratio_row(opening[0], first, before)
        row |= clip_row(samples, now, before, ready.advantages, objective.preset)
    computed = [None if sample.idle else before[i] for i, sample in enumerate(samples)]
    entropies = [None if sample.idle else first[i]["entropy"] for i, sample in enumerate(samples)]
    return Learnt(row, ready.advantages, computed, entropies, ratios)


def first_group_row(policy: Policy, answers: Answers) -> dict[str, float]:
    """Entropy and mismatch of one group, for a step that has computed nothing: whether engine and learner
    still agree is known in every step."""
    group = [sample for sample in as_sampled(answers) if sample.group == answers.samples[0].group]
    found = policy.score(group, ("logprobs", "entropy"))
    agreement = mismatch_row(group, [outputs["logprobs"] for outputs in found])
    return entropy_row(group, dict(enumerate(found))) | agreement


def as_sampled(answers: Answers) -> list[Sample]:
    """The answers with every token that was chosen, also where it is left out of the loss."""
    return [
        replace(sample, mask=rollout.mask[rollout.prompt_length :], skip=False)
        for sample, rollout in zip(answers.samples, answers.rollouts, strict=True)
    ]


def masked_row(answers: Answers) -> dict[str, float]:
    """The share of answers that have left the loss because they were cut off."""
    return {
        "truncated/masked": sum(not any(sample.mask) for sample in answers.samples) / len(answers.samples)
    }


def grpo_loss(objective: Objective) -> Loss:
    """-J as the learner takes it: this micro-batch's share of the loss."""
    preset = objective.preset

    def loss(outputs: Outputs, batch: Batch, totals: Denominators) -> tuple[Tensor, Mapping[str, Tensor]]:
        logprobs_C, mask_C, sequence_C = outputs["logprobs"], batch.mask_C, batch.sequence_C
        # one update for each rollout: π_old is π itself, without a gradient, and ρ = 1
        old_C = logprobs_C.detach() if objective.updates == 1 else batch.columns["old_logprobs"]
        weights_C = preset.correction(old_C, batch.columns["sampler_logprobs"], mask_C, sequence_C)
        loss_C = policy_loss(
            logprobs_C,
            old_C,
            batch.columns["advantages"],
            mask_C,
            sequence_C,
            ratio=preset.ratio,
            clip=preset.clip,
            weights_C=weights_C,
        )
        if objective.kl_in_loss:
            if objective.full_kl:
                kl_C = outputs["reference_kl"]
            else:
                kl_C = preset.kl(logprobs_C, batch.columns["reference_logprobs"], logprobs_C - old_C)
            loss_C = loss_C + preset.kl_coefficient * kl_C
        return preset.aggregation(loss_C, mask_C, sequence_C, totals), {}

    return loss


def advantages_of(answers: Answers, objective: Objective, penalty_C: Tensor) -> Tensor:
    """A_{i,t} of every token, in double precision; GDPO's come from the parts of the reward."""
    advantage = objective.preset.advantage
    if objective.parts_advantage is not None:
        if answers.parts_SK.shape[1] < 2:
            raise EtudeError("the advantage gdpo compares parts of a reward: give two rewards or more")
        values_S = objective.parts_advantage(answers.parts_SK, answers.group_S, answers.weights_K)
        advantage = partial(token_advantages, advantage=lambda rewards_S, group_S: values_S)
    return advantage(answers.rewards_S, answers.group_S, penalty_C, answers.mask_C, answers.sequence_C)


def one_scored(
    policy: Policy,
    samples: Sequence[Sample],
    split: Split,
    output: str = "logprobs",
    *,
    adapter: bool = True,
) -> list[F32]:
    """One output of each sample, computed in the minibatches of the updates."""
    rows = scored(policy, samples, split, (output,), adapter=adapter)
    return [row[output] for row in rows]


def with_column(samples: Sequence[Sample], name: str, values: Sequence[F32]) -> list[Sample]:
    """The samples with one more column."""
    return [
        replace(sample, columns={**sample.columns, name: value})
        for sample, value in zip(samples, values, strict=True)
    ]
