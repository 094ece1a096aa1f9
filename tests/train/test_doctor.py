"""The doctor: one injected fault for each sign, and a healthy run on which it stays silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from etude.records import Rollout, Score
from etude.runlog import RunInfo, RunReader, RunWriter
from etude.train.doctor import CLEARED_AFTER, RULES, examine, standing
from etude.train.rollout_metrics import rollout_metrics
from etude.train.signs import Thresholds

STEPS = 40
GROUPS, SIZE = 4, 8
Rows = list[dict[str, Any]]


def answer(group: int, index: int, reward: float, length: int = 12, **changes: Any) -> Rollout:
    """A rollout of two prompt tokens and `length` sampled ones, all different."""
    ids = (1, 2, *range(100 * index + 10, 100 * index + 10 + length))
    rollout = Rollout(
        problem_id=f"p{group}",
        index=index,
        token_ids=ids,
        mask=(False, False) + (True,) * length,
        logprobs=(0.0,) * len(ids),
        prompt_length=2,
        finish="eos",
        weights_version=0,
        score=Score(reward, {"strict": reward}, str(reward), "right" if reward else "wrong"),
        text=f"answer {index}",
    )
    return replace(rollout, **changes)


def answers(rate: float, **changes: Any) -> list[Rollout]:
    """A step whose groups have that share of right answers, the first one more, the last one less."""
    rollouts = []
    for group in range(GROUPS):
        right = round(rate * SIZE) + (1 if group == 0 else -1 if group == GROUPS - 1 else 0)
        for index in range(SIZE):
            rollouts.append(answer(group, index, float(index < right), length=10 + index % 3, **changes))
    return rollouts


def healthy_row(step: int, rollouts: list[Rollout]) -> dict[str, Any]:
    """What a run that learns logs: GRPO on sums, entropy falling from 1.8 to 0.14 as it gets them right."""
    done = step / STEPS
    row: dict[str, Any] = {
        "step": step,
        **rollout_metrics(rollouts),
        "entropy": 1.8 * (0.14 / 1.8) ** done,
        "kl": 0.02 * done,
        "grad_norm": 0.8 + 0.3 * ((7 * step) % 5) / 5,
        "skipped": 0.0,
        "mismatch/k3": 2e-5,
        "mismatch/effective_samples": 0.99,
        "mismatch/max_probability_change": 0.01,
        "ratio/first_deviation": 0.0,
        "explained_variance": 0.6 * done,
    }
    if step % 10 == 0 or step == 1:
        accuracy = 0.3 + 0.5 * done
        row |= {
            "eval/accuracy": accuracy,
            "eval/accuracy/low": accuracy - 0.05,
            "eval/accuracy/high": accuracy + 0.05,
            "eval/accuracy/strict": accuracy,
            "eval/accuracy/lenient": accuracy + 0.05,
        }
    return row


def healthy() -> Rows:
    steps = range(1, STEPS + 1)
    return [healthy_row(step, answers(0.25 + 0.5 * step / STEPS)) for step in steps]


def findings_of(rows: Rows) -> list[tuple[int, str]]:
    """(step, sign) of everything the doctor says during a run."""
    return [
        (finding.step, finding.sign)
        for end in range(1, len(rows) + 1)
        for finding in examine(rows[:end], answers(0.5))
    ]


def with_rollouts(make: Callable[[int], list[Rollout]], **options: Any) -> Rows:
    """A run whose entropy stays, healthy but for what was sampled in each step."""
    rows = []
    for step in range(1, STEPS + 1):
        row = healthy_row(step, answers(0.5))
        sampled = ("reward/", "groups/", "tokens/", "truncated", "repetition")
        kept = {key: value for key, value in row.items() if not key.startswith(sampled)}
        rows.append({**kept, "entropy": 1.5, **rollout_metrics(make(step), **options)})
    return rows


def with_numbers(change: Callable[[int], dict[str, float]]) -> Rows:
    """A healthy run but for some numbers of each step."""
    return [{**row, **change(row["step"])} for row in healthy()]


def test_a_healthy_run_is_left_in_peace() -> None:
    rows = healthy()
    assert rows[-1]["entropy"] < 0.2 * rows[0]["entropy"]  # low entropy alone is no sign
    assert findings_of(rows) == []
    assert findings_of([{"step": 0, "eval/accuracy": 0.3}, *rows]) == []


REAL: dict[str, list[tuple[int, str]]] = {"demo-f32": [], "demo-q8_0": [(36, "mismatch")]}


@pytest.mark.parametrize("name", REAL)
def test_a_real_run_that_learns_is_left_in_peace(name: str) -> None:
    """`etude grpo examples/demo.toml --sampling.weight_type …` on SmolLM2-135M, its metrics.jsonl less times
    and rates. Entropy falls to a tenth and less, most answers are cut off at first, the best of a group gets
    worse, accuracy goes from 0 to 87 and 89 %. What is named is true: int8 products leave k3 above 0.01 for
    three steps near the end."""
    text = (Path(__file__).parents[1] / "data" / "metrics" / f"{name}.jsonl").read_text()
    assert findings_of([json.loads(line) for line in text.splitlines()]) == REAL[name]


def test_without_numbers_there_is_nothing_to_say() -> None:
    assert examine([]) == []
    assert examine([{"step": 1}]) == []
    assert examine([{"step": step, "loss": "x", "reward/mean": float("nan")} for step in range(40)]) == []


def failing(step: int) -> list[Rollout]:
    broken = Score(0.0, failure="math: no score within 60 s")
    return [*answers(0.5)[:-4], *(answer(3, 4 + k, 0.0, score=broken) for k in range(4))]


def unequal_parts(step: int) -> list[Rollout]:
    """In every group one answer is right without format and one has format without being right."""
    parts = ({"right": 1.0, "format": 0.0}, {"right": 0.0, "format": 1.0}, {"right": 1.0, "format": 1.0})
    return [
        answer(group, index, 0.0, score=Score(sum(parts[index % 3].values()), parts[index % 3]))
        for group in range(GROUPS)
        for index in range(SIZE)
    ]


def formatted(step: int) -> list[Rollout]:
    """Format is learnt within 10 steps; right are 2 of 8 before and after."""
    rollouts = []
    for group in range(GROUPS):
        for index in range(SIZE):
            parts = {"math": float(index % 4 == 0), "format": float(index < min(step, SIZE - 1))}
            rollouts.append(answer(group, index, 0.0, score=Score(sum(parts.values()), parts)))
    return rollouts


def growing(step: int) -> list[Rollout]:
    """Wrong answers grow by a token a step, right ones stay."""
    return [
        answer(group, index, float(index % 2), length=12 if index % 2 else 12 + step)
        for group in range(GROUPS)
        for index in range(SIZE)
    ]


def longer_pays(step: int) -> list[Rollout]:
    return [answer(g, index, 0.1 * index, length=10 + index) for g in range(GROUPS) for index in range(SIZE)]


def hacked(step: int) -> dict[str, float]:
    """From step 20 on held-out accuracy falls while the reward goes on rising."""
    if step % 10:
        return {}
    accuracy = 0.6 if step == 20 else 0.3
    return {"eval/accuracy": accuracy, "eval/accuracy/low": accuracy - 0.1, "eval/accuracy/high": 0.4}


def late(step: int, at: int, **numbers: float) -> dict[str, float]:
    return numbers if step >= at else {}


COLLAPSED = {"entropy": 0.1, "reward/mean": 0.2}

FAULTS: dict[str, tuple[Callable[[], Rows], int, int]] = {
    # sign: (the run, between which steps it must be named first)
    "zero-reward": (lambda: with_rollouts(lambda s: [answer(s % 3, k, 0.0) for k in range(8)]), 3, 3),
    "too-hard": (lambda: with_rollouts(lambda s: few_mixed(s, 0.0)), 5, 5),
    "too-easy": (lambda: with_rollouts(lambda s: few_mixed(s, 1.0)), 10, 10),
    "broken-verifier": (lambda: with_rollouts(failing), 1, 1),
    "collapsed-rewards": (lambda: with_rollouts(unequal_parts, counted_parts=("right", "format")), 5, 5),
    "format-only": (lambda: without_evals(with_rollouts(formatted)), 10, 25),
    "reward-hacking": (lambda: with_numbers(hacked), 30, 30),
    "length-hacking": (lambda: learned(with_rollouts(longer_pays)), 5, 5),
    "length-bias": (lambda: with_rollouts(growing), 10, 25),
    "truncation": (lambda: with_rollouts(lambda s: answers(0.5, finish="length")), 3, 3),
    "entropy-collapse": (lambda: with_numbers(lambda s: late(s, 20, **COLLAPSED)), 20, 30),
    "entropy-explosion": (lambda: with_numbers(lambda s: late(s, 20, entropy=4.5)), 22, 22),
    "repetition": (lambda: with_rollouts(lambda s: answers(0.5, **looping())), 3, 3),
    "kl-spike": (lambda: with_numbers(lambda s: late(s, 20, kl=0.9)), 20, 20),
    "gradient-spike": (lambda: with_numbers(lambda s: {"grad_norm": 50.0} if s == 20 else {}), 20, 20),
    "critic": (lambda: with_numbers(lambda s: {"explained_variance": -1.0}), 15, 15),
    "mismatch": (lambda: with_numbers(lambda s: late(s, 20, **{"mismatch/k3": 0.05})), 22, 22),
    "ratio": (lambda: with_numbers(lambda s: late(s, 20, **{"ratio/first_deviation": 1e-6})), 20, 20),
}  # fmt: skip


def few_mixed(step: int, reward: float) -> list[Rollout]:
    """One group of four has a difference."""
    others = [answer(group, index, reward) for group in range(1, 4) for index in range(SIZE)]
    return [answer(0, index, float(index % 2)) for index in range(SIZE)] + others


def looping() -> dict[str, Any]:
    return {"token_ids": (1, 2) + (7, 8, 9) * 4, "mask": (False,) * 2 + (True,) * 12}


def without_evals(rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if not key.startswith("eval/")} for row in rows]


def learned(rows: Rows) -> Rows:
    return [{**row, "reward/part/raw": 3.0} for row in rows]


def test_every_sign_has_a_fault() -> None:
    assert set(FAULTS) == set(RULES)


@pytest.mark.parametrize("sign", FAULTS)
def test_a_fault_is_named(sign: str) -> None:
    """In time, once as long as it lasts, and alone."""
    make, earliest, latest = FAULTS[sign]
    found = findings_of(make())
    assert [name for _, name in found] == [sign]
    assert earliest <= found[0][0] <= latest


def test_a_sign_is_named_again_when_it_was_gone() -> None:
    def truncated(step: int) -> list[Rollout]:
        gone = 10 <= step < 10 + CLEARED_AFTER or 25 <= step < 27
        return answers(0.5) if gone else answers(0.5, finish="length")

    rows = with_rollouts(truncated)
    assert findings_of(rows) == [
        (3, "truncation"),
        (17, "truncation"),
    ]  # two steps without it are no recovery
    assert standing(rows) == ["truncation"]
    assert standing(rows[:12]) == []


def test_format_is_told_from_content_in_evaluations() -> None:
    def change(step: int) -> dict[str, float]:
        if step % 10 and step != 1:
            return {}
        return {"eval/accuracy/strict": 0.1 + 0.02 * step, "eval/accuracy/lenient": 0.5}

    rows = with_numbers(change)
    assert [sign for _, sign in findings_of(rows)] == ["format-only"]
    finding = examine(rows[:10])[0]
    assert "eval/accuracy/strict rose by 0.18" in finding.seen


def test_a_rule_that_rewards_length_is_no_hack() -> None:
    """A task may ask for length; only a learned reward is suspected."""
    assert findings_of(with_rollouts(longer_pays)) == []


def test_noise_of_a_small_evaluation_is_no_hack() -> None:
    """The best is still inside the interval of what was measured last."""
    rows = with_numbers(lambda s: hacked(s) | ({"eval/accuracy/high": 0.65} if s % 10 == 0 else {}))
    assert findings_of(rows) == []


def test_mismatch_names_its_cause() -> None:
    start = with_numbers(lambda s: {"mismatch/k3": 0.05})
    stale = with_numbers(lambda s: late(s, 9, **{"mismatch/k3": 0.05}))
    few = with_numbers(lambda s: late(s, 9, **{"mismatch/effective_samples": 0.1}))
    assert "from the start" in examine(start[:3])[0].advice
    assert "stale" in examine(stale[:11])[0].advice
    assert "10 % effective samples" in examine(few[:11])[0].seen


def test_mismatch_that_grows_is_named_before_it_harms() -> None:
    """Stale weights, or a sampler that no longer follows: ten times what it was at the start, and lasting."""
    grows = with_numbers(lambda s: {"mismatch/k3": 2e-5 * 1.2 ** max(0, s - 5)})
    [(step, sign)] = findings_of(grows)
    assert sign == "mismatch" and 15 <= step <= 25 and grows[step - 1]["mismatch/k3"] < 0.001
    assert "at first 2e-05" in examine(grows[:step])[0].seen
    tiny = with_numbers(lambda s: {"mismatch/k3": 1e-9 if s < 9 else 5e-5})
    assert findings_of(tiny) == [], "f32 that becomes no worse than bf16"


def test_one_token_is_no_mismatch() -> None:
    """Few answers are computed at the end of a run; a single unlikely token then makes the mean of a step."""
    rows = with_numbers(
        lambda s: {"mismatch/k3": 0.04, "mismatch/effective_samples": 0.2} if s % 3 == 0 else {}
    )
    assert findings_of(rows) == []


def test_a_gradient_that_is_no_number() -> None:
    rows = with_numbers(lambda s: {"skipped": 1.0, "grad_norm": float("nan")} if s == 3 else {})
    assert findings_of(rows) == [(3, "gradient-spike")]
    assert "not finite" in examine(rows[:3])[0].seen


def test_entropy_collapse_by_answers_that_are_all_bad() -> None:
    stuck = {"entropy": 0.01, "groups/flat": 0.9, "groups/flat_reward": 0.0, "reward/mean": 0.05}
    signs = {sign for _, sign in findings_of(with_numbers(lambda s: late(s, 20, **stuck)))}
    assert signs == {"entropy-collapse", "too-hard"}


def test_entropy_collapse_by_a_reward_that_never_rose() -> None:
    constant = without_evals(with_rollouts(lambda s: answers(0.5)))
    rows = [{**row, "entropy": 1.5 * 0.85 ** row["step"]} for row in constant]
    assert [sign for _, sign in findings_of(rows)] == ["entropy-collapse"]
    assert "has not risen (0.5 → 0.5)" in examine(rows[:15])[0].seen
    # the same where held-out accuracy shows that something is learnt
    assert findings_of([{**row, "eval/accuracy": row["step"] / STEPS} for row in rows]) == []


def test_entropy_that_was_exchanged_for_reward_is_no_collapse() -> None:
    """pass@G falls to the mean as answers become one answer; the mean rises."""
    rows = with_numbers(lambda s: late(s, 10, **{"entropy": 0.05, "reward/best": max(0.8, 1 - 0.01 * s)}))
    assert findings_of(rows) == []


def test_a_model_that_learns_to_stop_is_left_in_peace() -> None:
    rows = with_numbers(lambda s: {"truncated": 0.8 * 0.85 ** (s - 1)})
    assert findings_of(rows) == []
    stays = with_numbers(lambda s: {"truncated": 0.5})
    assert findings_of(stays) == [(10, "truncation")]
    comes = with_numbers(lambda s: late(s, 20, truncated=0.4))
    assert findings_of(comes) == [(22, "truncation")]
    masked = with_numbers(lambda s: {"truncated": 0.95, "truncated/masked": 0.95})
    assert "left out of the loss" in examine(masked[:3])[0].advice


def test_examples_are_answers_with_their_verdicts() -> None:
    zero = [answer(0, index, 0.0, text="x" * 1000 if index == 0 else "no idea") for index in range(8)]
    rows = [{"step": step, **rollout_metrics(zero)} for step in (1, 2, 3)]
    (finding,) = examine(rows, zero)
    assert len(finding.examples) == 3
    assert len(finding.examples[0]) < 400
    assert finding.examples[1] == "'no idea' (eos; parsed '0.0', wrong; reward 0)"
    broken = failing(1)
    rows = [{"step": 1, **rollout_metrics(broken)}]
    assert all("failed: math: no score within 60 s" in text for text in examine(rows, broken)[0].examples)


def test_thresholds_decide() -> None:
    rows = with_rollouts(lambda s: answers(0.5, finish="length"))
    assert standing(rows, Thresholds(truncated=1.0)) == []


def test_findings_go_through_the_run_log(tmp_path: Path) -> None:
    """And a history that is read back gives the same findings."""
    rows = FAULTS["mismatch"][0]()
    with RunWriter.create(tmp_path / "run", {"steps": STEPS}, RunInfo("grpo", STEPS)) as writer:
        for end in range(1, STEPS + 1):
            writer.metrics(rows[end - 1]["step"], rows[end - 1])
            for finding in examine(rows[:end]):
                writer.doctor(finding.step, finding.row())
    reader = RunReader(tmp_path / "run")
    (row,) = reader.doctor()
    assert (row["step"], row["sign"]) == (22, "mismatch")
    assert row["text"].startswith("Engine and learner disagree")
    assert json.dumps(findings_of(reader.metrics())) == json.dumps(findings_of(rows))


def test_rollout_metrics_by_hand() -> None:
    """Two groups: rewards 1 0 with 4 and 8 tokens; 1 1; one failed verdict in the second."""
    rollouts = [
        answer(0, 0, 1.0, length=4),
        answer(0, 1, 0.0, length=8, finish="length"),
        answer(1, 0, 1.0, length=2),
        answer(1, 1, 1.0, length=6),
        answer(1, 2, 0.0, length=5, score=Score(0.0, failure="boom")),
    ]
    row = rollout_metrics(rollouts)
    assert row["reward/mean"] == 0.75
    assert row["reward/std"] == pytest.approx(0.1875**0.5)
    assert (row["reward/min"], row["reward/max"], row["reward/best"]) == (0.0, 1.0, 1.0)
    assert row["reward/part/strict"] == 0.75
    assert row["reward/failed"] == pytest.approx(0.2)
    assert (row["groups/flat"], row["groups/flat_reward"]) == (0.5, 1.0)
    assert (row["tokens/mean"], row["tokens/p95"]) == (5.0, 8.0)
    assert (row["tokens/right"], row["tokens/wrong"]) == (4.0, 8.0)
    assert row["reward/length_correlation"] == pytest.approx(-1.0)
    assert row["truncated"] == pytest.approx(0.2)
    assert row["repetition"] == 0.0
    assert rollout_metrics([]) == {}


def test_rollout_metrics_without_groups_and_without_verdicts() -> None:
    """One answer a problem, as PPO may have it: the step is the group. No verdict: no reward."""
    alone = [answer(group, 0, float(group % 2)) for group in range(6)]
    row = rollout_metrics(alone)
    assert (row["groups/flat"], row["reward/best"]) == (0.0, 1.0)
    failed = [replace(one, score=Score(0.0, failure="boom")) for one in alone]
    assert "reward/mean" not in rollout_metrics(failed)
    assert rollout_metrics(failed)["reward/failed"] == 1.0
