"""The numbers of a step that come from the learner, and its rollouts as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.learner.batch import Sample
from etude.learner.learner import Metrics, SampleOutputs
from etude.records import Problem, Rollout
from etude.runlog import rollout_row
from etude.train.kl import excess
from etude.train.presets import Preset
from etude.train.run import Clock

F32 = NDArray[np.float32]


def by_sample(values_C: NDArray[Any], samples: Sequence[Sample]) -> list[NDArray[Any]]:
    """Values of the flat axis, cut into those of each sample."""
    ends = np.cumsum([len(sample.completion_ids) for sample in samples])
    return np.split(values_C, ends[:-1])


def token_mean(samples: Sequence[Sample], values: Sequence[F32]) -> float | None:
    """Mean over the tokens that were computed and are in the mask; None without any."""
    chosen = [
        value[np.asarray(sample.mask, np.bool_)]
        for sample, value in zip(samples, values, strict=True)
        if not sample.idle
    ]
    return float(np.concatenate(chosen).mean(dtype=np.float64)) if chosen else None


def update_row(updates: Sequence[Metrics]) -> dict[str, float]:
    """Of all updates of a step: means of the losses, the largest norm, sums of counts and seconds."""
    row = {
        "loss": sum(update["loss"] for update in updates) / len(updates),
        "grad_norm": max(update["grad_norm"] for update in updates),
        "learning_rate": updates[-1]["learning_rate"],
        "updates": float(len(updates)),
    }
    for name in (
        "skipped", "tokens_computed", "samples_computed", "micro_batches",
        "seconds/forward", "seconds/backward", "seconds/optimizer",
    ):  # fmt: skip
        row[name] = sum(update.get(name, 0.0) for update in updates)
    return row


def entropy_row(samples: Sequence[Sample], outputs: Mapping[int, SampleOutputs]) -> dict[str, float]:
    """Mean entropy of the policy before the step, nats a token; {} if nothing was computed."""
    mean = token_mean(samples, [outputs[i]["entropy"] for i in range(len(samples))])
    return {} if mean is None else {"entropy": mean}


def kl_row(
    samples: Sequence[Sample], logprobs: Sequence[F32], reference: Sequence[F32], *, is_kl: bool
) -> dict[str, float]:
    """Mean KL to the reference before the step, nats a token: k3 of the reference's logprobs, or (is_kl) the
    KL itself; {} without a reference ([])."""
    if not reference:
        return {}
    if not is_kl:
        reference = [
            excess(torch.from_numpy(other - own)).numpy()
            for own, other in zip(logprobs, reference, strict=True)
        ]
    mean = token_mean(samples, reference)
    return {} if mean is None else {"kl": mean}


def ratios_of(samples: Sequence[Sample], now: Sequence[F32], old: Sequence[F32]) -> list[F32]:
    """π/π_old of each token; 1 in samples that were not computed."""
    return [
        np.ones(len(sample.mask), np.float32) if sample.idle else np.exp(after - before)
        for sample, after, before in zip(samples, now, old, strict=True)
    ]


def first_ratio_row(
    opening: Sequence[int], first: Mapping[int, SampleOutputs], old: Sequence[F32]
) -> dict[str, float]:
    """By how much the ratios of the first minibatch, before anything was updated, differ from 1: exactly 0,
    unless what scores and what trains are not the same computation."""
    gaps = [float(np.abs(np.exp(first[i]["logprobs"] - old[i]) - 1).max(initial=0.0)) for i in opening]
    return {"ratio/first_deviation": max(gaps, default=0.0)}


def clip_row(
    samples: Sequence[Sample],
    logprobs: Sequence[F32],
    old: Sequence[F32],
    advantages: Sequence[F32],
    preset: Preset,
) -> dict[str, float]:
    """ratio/clipped: share of the tokens with an advantage from which the clip keeps the gradient away;
    ratio/mean, ratio/max. {} if nothing was computed."""
    chosen = [i for i, sample in enumerate(samples) if not sample.idle]
    if not chosen:
        return {}

    def flat(values: Sequence[F32]) -> Tensor:
        return torch.from_numpy(np.concatenate([values[i] for i in chosen]))

    lengths = [len(samples[i].mask) for i in chosen]
    mask_C = torch.from_numpy(np.concatenate([np.asarray(samples[i].mask, np.bool_) for i in chosen]))
    sequence_C = torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor(lengths))
    logprobs_C, advantages_C = flat(logprobs).requires_grad_(), flat(advantages)
    log_ratio_C = preset.ratio(logprobs_C, flat(old), mask_C, sequence_C)
    loss_C = preset.clip(log_ratio_C, advantages_C, logprobs_C)
    [gradient_C] = torch.autograd.grad(loss_C[mask_C].sum(), logprobs_C)
    ratio_N = log_ratio_C.detach()[mask_C].exp()
    row = {"ratio/mean": float(ratio_N.mean()), "ratio/max": float(ratio_N.max())}
    counts_C = mask_C & (advantages_C != 0)
    if bool(counts_C.any()):
        row["ratio/clipped"] = float((gradient_C[counts_C] == 0).double().mean())
    return row


def speeds(row: Mapping[str, float], clock: Clock) -> dict[str, float]:
    """Tokens a second: sampled in the sampling phase, computed in the updates (prompts too)."""
    found = {}
    if clock.seconds.get("sampling") and "tokens/sampled" in row:
        found["tokens_per_s/sampling"] = row["tokens/sampled"] / clock.seconds["sampling"]
    if clock.seconds.get("update") and row.get("tokens_computed"):
        found["tokens_per_s/update"] = row["tokens_computed"] / clock.seconds["update"]
    return found


def mean_reward(rollouts: Sequence[Rollout]) -> float:
    """Of the answers that could be judged."""
    totals = [rollout.score.total for rollout in rollouts if rollout.score.failure is None]
    return sum(totals) / max(1, len(totals))


def stored_rows(
    rollouts: Sequence[Rollout],
    learnt: Sequence[Rollout],
    problems: Mapping[str, Problem],
    columns: Mapping[str, Sequence[F32 | None]],
) -> list[dict[str, Any]]:
    """All rollouts of a step as they are stored. learnt: those that took part, with the columns by name, over
    their completion tokens; prompts, and those that took no part, have zeros."""
    place = {(rollout.problem_id, rollout.index, rollout.token_ids): i for i, rollout in enumerate(learnt)}
    rows = []
    for rollout in rollouts:
        at = place.get((rollout.problem_id, rollout.index, rollout.token_ids))
        values = {
            name: _whole(rollout, None if at is None else column[at]) for name, column in columns.items()
        }
        rows.append(rollout_row(rollout, problems.get(rollout.problem_id), **values))
    return rows


def _whole(rollout: Rollout, values: F32 | None) -> list[float]:
    if values is None:
        return [0.0] * len(rollout.token_ids)
    return [0.0] * rollout.prompt_length + [float(value) for value in values]
