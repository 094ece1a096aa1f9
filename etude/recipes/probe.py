"""What a step of a run will take, from a few seconds of trying: `etude grpo --dry-run`.

One step's answers are really sampled and judged, one micro-batch of them is really learnt from, and the
weights go to the engine once. Nothing is written. What depends on how the run goes (lengths, groups without a
signal) is taken to stay as it is at the start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from etude.learner.batch import Sample
from etude.learner.learner import Denominators, Policy
from etude.train.grpo import answers_of, draw_groups, grpo_loss, prepare
from etude.train.grpo_settings import Objective
from etude.train.run import memory_bytes
from etude.train.sampling import RolloutSource


@dataclass(frozen=True)
class Estimate:
    """Of one step. sampled: tokens drawn; computed: tokens of one pass over what is learnt from, prompts
    counted once a group. signal: share of the answers that teach something."""

    sampled: int
    computed: int
    signal: float
    sampling_s: float
    scoring_s: float
    update_s: float
    publish_s: float
    memory_bytes: int

    @property
    def step_s(self) -> float:
        return self.sampling_s + self.scoring_s + self.update_s + self.publish_s

    def text(self, steps: int) -> str:
        """
        >>> print(Estimate(1000, 2000, 0.5, 1.0, 0.0, 2.0, 0.5, 3 << 30).text(60))
        a step: 1,000 tokens sampled, 2,000 computed in the update; 50 % of the answers teach something
        time:   3.5 s a step (sampling 1.0, scoring 0.0, update 2.0, weights to the engine 0.5), 4 min for 60
        memory: 3.0 GiB
        <BLANKLINE>
        """
        return (
            f"a step: {self.sampled:,} tokens sampled, {self.computed:,} computed in the update; "
            f"{100 * self.signal:.0f} % of the answers teach something\n"
            f"time:   {self.step_s:.1f} s a step (sampling {self.sampling_s:.1f}, scoring "
            f"{self.scoring_s:.1f}, update {self.update_s:.1f}, weights to the engine {self.publish_s:.1f}), "
            f"{self.step_s * steps / 60:.0f} min for {steps}\n"
            f"memory: {self.memory_bytes / 2**30:.1f} GiB\n"
        )


def estimate(policy: Policy, source: RolloutSource, objective: Objective, max_tokens: int) -> Estimate:
    """max_tokens: of a micro-batch. Changes the policy; EtudeError as the first step of a run."""
    adapter = policy.publish(source.engine, 0)
    if objective.preset.kl_coefficient > 0 and adapter is None:
        policy.refresh_reference()
    start = time.perf_counter()
    groups, _ = draw_groups(source, objective, 0, 0, adapter)
    sampling_s = time.perf_counter() - start
    answers = answers_of(groups, source, objective, mask_truncated=False)
    split = [list(range(len(answers.samples)))]
    start = time.perf_counter()
    ready = prepare(policy, answers, objective, split)
    scoring_s = time.perf_counter() - start
    learnt = [sample for sample in ready.samples if not sample.idle]
    signal = len(learnt) / len(ready.samples)
    if not learnt:  # all groups are flat at the start: as if everything taught something
        learnt = [replace(sample, skip=False) for sample in ready.samples]
    part = _one_micro_batch(learnt, max_tokens)
    loss = grpo_loss(objective)
    outputs = ("logprobs", "entropy", *(("reference_kl",) if objective.full_kl else ()))
    totals = Denominators.of(part, answers.max_tokens)
    policy.update(part[:1], loss, outputs=outputs, denominators=totals)  # memory is taken, types are cast
    measured = policy.update(part, loss, outputs=outputs, denominators=totals)
    share = _packed(learnt) / _packed(part)
    passes_s = (measured["seconds/forward"] + measured["seconds/backward"]) * share * objective.epochs
    start = time.perf_counter()
    policy.publish(source.engine, 1)
    publish_s = time.perf_counter() - start
    return Estimate(
        sampled=sum(sum(rollout.mask) for rollout in answers.rollouts),
        computed=_packed(learnt),
        signal=signal,
        sampling_s=sampling_s,
        scoring_s=scoring_s,
        update_s=passes_s + measured["seconds/optimizer"] * objective.updates,
        publish_s=publish_s,
        memory_bytes=memory_bytes(),
    )


def _packed(samples: Sequence[Sample]) -> int:
    """Tokens that are computed: each prompt once a group."""
    prompts = {(sample.group, sample.prompt_ids) for sample in samples}
    return sum(len(ids) for _, ids in prompts) + sum(sample.n_computed for sample in samples)


def _one_micro_batch(samples: Sequence[Sample], max_tokens: int) -> list[Sample]:
    """As many of the first samples as fit one; at least one."""
    chosen = list(samples[:1])
    for sample in samples[1:]:
        if _packed([*chosen, sample]) > max_tokens:
            break
        chosen.append(sample)
    return chosen
