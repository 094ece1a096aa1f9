"""Watches a run: reads its numbers after each step and says in words what goes wrong and what to change.

    for finding in examine(history, rollouts):      # after each step; history: all rows of metrics.jsonl
        writer.doctor(finding.step, finding.row())

Pure and without torch. `examine` gives what is new at the last row: a sign is named once, and again only
after it has been gone for CLEARED_AFTER steps. As nothing else is remembered, a resumed run says what the
uninterrupted one says. Rows are those of `rollout_metrics`, of the learner (`grad_norm`, `entropy`, `kl` …)
and of evaluations (`eval/…`); docs/doctor.md has the table of signs.

That the loss of GRPO is near 0 is no sign: on-policy it always is, and it does not measure progress.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from etude.records import Rollout
from etude.train import signs
from etude.train.signs import History, Rule, Thresholds

CLEARED_AFTER = 5
EXAMPLES = 3
EXAMPLE_CHARACTERS = 300

RULES: dict[str, Rule] = {
    "zero-reward": signs.zero_reward,
    "too-hard": signs.too_hard,
    "too-easy": signs.too_easy,
    "broken-verifier": signs.broken_verifier,
    "collapsed-rewards": signs.collapsed_rewards,
    "format-only": signs.format_only,
    "reward-hacking": signs.reward_hacking,
    "length-hacking": signs.length_hacking,
    "length-bias": signs.length_bias,
    "truncation": signs.truncation,
    "entropy-collapse": signs.entropy_collapse,
    "entropy-explosion": signs.entropy_explosion,
    "repetition": signs.repeats,
    "kl-spike": signs.kl_spike,
    "gradient-spike": signs.gradient_spike,
    "critic": signs.critic_fails,
    "mismatch": signs.mismatch,
    "ratio": signs.ratio_off,
}

SHOWN: dict[str, Callable[[Rollout], bool]] = {
    "zero-reward": lambda rollout: True,
    "too-hard": lambda rollout: True,
    "broken-verifier": lambda rollout: rollout.score.failure is not None,
    "truncation": lambda rollout: rollout.finish == "length",
    "repetition": lambda rollout: True,
    "entropy-explosion": lambda rollout: True,
}
"""Signs that are shown with answers, and which."""


@dataclass(frozen=True)
class Finding:
    """One sign at one step. examples: answers that show it."""

    step: int
    sign: str
    seen: str
    advice: str
    examples: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Everything in one line, without the examples."""
        return f"{self.seen} {self.advice}"

    def row(self) -> dict[str, Any]:
        """For doctor.jsonl; the run log adds the step."""
        return {
            "sign": self.sign,
            "seen": self.seen,
            "advice": self.advice,
            "text": self.text,
            "examples": list(self.examples),
        }


def examine(
    history: History, rollouts: Sequence[Rollout] = (), thresholds: Thresholds | None = None
) -> list[Finding]:
    """The signs that are new at the last row. rollouts: of that step, for examples."""
    t = thresholds or Thresholds()
    findings = []
    for sign, rule in RULES.items():
        seen = rule(history, t)
        if seen and not any(rule(history[:-back], t) for back in range(1, CLEARED_AFTER + 1)):
            examples = _examples(SHOWN[sign], rollouts) if sign in SHOWN else ()
            findings.append(Finding(int(history[-1].get("step", 0)), sign, *seen, examples))
    return findings


def standing(history: History, thresholds: Thresholds | None = None) -> list[str]:
    """The signs that are there now, new or not."""
    t = thresholds or Thresholds()
    return [sign for sign, rule in RULES.items() if rule(history, t)]


def _examples(fits: Callable[[Rollout], bool], rollouts: Sequence[Rollout]) -> tuple[str, ...]:
    return tuple(example(rollout) for rollout in [r for r in rollouts if fits(r)][:EXAMPLES])


def example(rollout: Rollout) -> str:
    """An answer, how it ended, and what its judge made of it."""
    text = rollout.text
    if len(text) > EXAMPLE_CHARACTERS:
        half = EXAMPLE_CHARACTERS // 2
        text = f"{text[:half]} […] {text[-half:]}"
    score = rollout.score
    judged = f"failed: {score.failure}" if score.failure else f"parsed {score.parsed!r}, {score.verdict}"
    return f"{text!r} ({rollout.finish}; {judged.rstrip(', ')}; reward {score.total:g})"
