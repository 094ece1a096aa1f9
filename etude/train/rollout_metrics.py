"""What a step's rollouts say about themselves, as numbers for metrics.jsonl; the doctor reads them there.

Pure and without torch. A group is the rollouts of one problem; if no problem has two, the step is one group.
Answers whose verifier failed count in `reward/failed` and in nothing else that has to do with rewards.

    reward/mean, std, min, max   over answers; std of the population
    reward/best                  mean over groups of the best answer: "pass@G" for rewards 0 and 1
    reward/part/NAME             mean of a part of the score
    reward/failed                share of answers whose verifier broke
    reward/length_correlation    of reward and tokens within groups (Pearson); absent where neither varies
    reward/collapsed             share of groups where different combinations of parts have one total
    groups/flat, flat_reward     share of groups whose rewards are all equal; the mean reward of these
    tokens/sampled, mean, p95    sampled tokens, of all answers and of one
    tokens/right, wrong          the same, of answers above and below the mean reward of their group
    truncated                    share of answers cut off at the limit
    repetition                   mean share of an answer's n-grams (of 4 tokens) that it has said before
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import sqrt

from etude.records import Rollout

NGRAM = 4


def rollout_metrics(rollouts: Sequence[Rollout], *, counted_parts: Sequence[str] = ()) -> dict[str, float]:
    """The numbers of the module's legend; those that have no meaning here are absent.

    counted_parts: names of the parts that are summed into the reward (not those of weight 0); only with two
    or more of them can different combinations have one total.
    """
    if not rollouts:
        return {}
    judged = [rollout for rollout in rollouts if rollout.score.failure is None]
    lengths = [float(sum(rollout.mask)) for rollout in rollouts]
    row = {
        "reward/failed": 1 - len(judged) / len(rollouts),
        "tokens/sampled": sum(lengths),
        "tokens/mean": mean(lengths),
        "tokens/p95": sorted(lengths)[max(0, -(-95 * len(lengths) // 100) - 1)],
        "truncated": mean(rollout.finish == "length" for rollout in rollouts),
        "repetition": mean(repetition(sampled_ids(rollout)) for rollout in rollouts),
    }
    if not judged:
        return row
    groups = groups_of(judged)
    return row | reward_numbers(judged) | group_numbers(groups) | collapse(groups, counted_parts)


def reward_numbers(judged: Sequence[Rollout]) -> dict[str, float]:
    """Of the rewards alone, and of their parts."""
    totals = [rollout.score.total for rollout in judged]
    row = {
        "reward/mean": mean(totals),
        "reward/std": deviation(totals),
        "reward/min": min(totals),
        "reward/max": max(totals),
    }
    names = sorted({name for rollout in judged for name in rollout.score.parts})
    for name in names:
        row[f"reward/part/{name}"] = mean(
            rollout.score.parts[name] for rollout in judged if name in rollout.score.parts
        )
    return row


def group_numbers(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """What comparing answers within their groups shows."""
    flat, best = [], []
    right, wrong = [], []
    rewards, lengths = [], []  # without the mean of their group
    for group in groups:
        totals = [rollout.score.total for rollout in group]
        sizes = [float(sum(rollout.mask)) for rollout in group]
        middle, middle_size = mean(totals), mean(sizes)
        best.append(max(totals))
        if max(totals) == min(totals):
            flat.append(middle)
            continue
        right += [size for total, size in zip(totals, sizes, strict=True) if total > middle]
        wrong += [size for total, size in zip(totals, sizes, strict=True) if total < middle]
        rewards += [total - middle for total in totals]
        lengths += [size - middle_size for size in sizes]
    row = {"reward/best": mean(best), "groups/flat": len(flat) / len(groups)}
    if flat:
        row["groups/flat_reward"] = mean(flat)
    if right and wrong:
        row |= {"tokens/right": mean(right), "tokens/wrong": mean(wrong)}
    scale = sqrt(sum(x * x for x in rewards) * sum(y * y for y in lengths))
    if scale > 0:
        together = sum(x * y for x, y in zip(rewards, lengths, strict=True))
        row["reward/length_correlation"] = together / scale
    return row


def collapse(groups: Sequence[Sequence[Rollout]], counted_parts: Sequence[str]) -> dict[str, float]:
    """Groups in which answers that differ in their parts get the same total (GDPO, arXiv:2601.05242)."""
    if len(counted_parts) < 2:
        return {}
    return {"reward/collapsed": mean(_has_collapsed(group, counted_parts) for group in groups)}


def _has_collapsed(group: Sequence[Rollout], names: Sequence[str]) -> bool:
    combinations: dict[float, set[tuple[float, ...]]] = {}
    for rollout in group:
        parts: Mapping[str, float] = rollout.score.parts
        same_total = combinations.setdefault(round(rollout.score.total, 9), set())
        same_total.add(tuple(parts.get(name, 0.0) for name in names))
    return any(len(different) > 1 for different in combinations.values())


def groups_of(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """The rollouts of each problem; all of them as one group where no problem has two."""
    ordered = sorted(rollouts, key=lambda rollout: rollout.problem_id)
    groups = [list(some) for _, some in groupby(ordered, key=lambda rollout: rollout.problem_id)]
    return groups if any(len(group) > 1 for group in groups) else [ordered]


def sampled_ids(rollout: Rollout) -> list[int]:
    """What the model said itself."""
    return [token for token, chosen in zip(rollout.token_ids, rollout.mask, strict=True) if chosen]


def repetition(ids: Sequence[int], n: int = NGRAM) -> float:
    """1 - distinct n-grams / n-grams; 0 for what is too short to have two.

    >>> repetition([1, 2, 3, 4, 5, 6]), repetition([7] * 7), repetition([7, 7, 7])
    (0.0, 0.75, 0.0)
    """
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def mean(values: Iterable[float]) -> float:
    """Of at least one value."""
    values = list(values)
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of the population."""
    middle = mean(values)
    return sqrt(mean((value - middle) ** 2 for value in values))
