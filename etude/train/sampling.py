"""Where an algorithm's rollouts come from: problems in their order, groups of answers, held-out accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from etude.evals import evaluate
from etude.learner.learner import Sampler
from etude.records import Engine, Problem, Rollout, SamplingParams
from etude.rollout import Env, PromptWriter, collect
from etude.train.step_rows import mean_reward

HELD_OUT_AT_ONCE = 64
"""Problems that are sampled together."""


class SamplingEngine(Engine, Sampler, Protocol):
    """An engine whose weights a learner changes."""

    def release_cache(self) -> None:
        """Give the memory of keys and values back: an update makes them useless."""


Group = list[Rollout]
"""The answers to one prompt."""


@dataclass(frozen=True)
class RolloutSource:
    """What a step's rollouts are drawn from.

    order(start, n): the indices of n problems, from a position of the endless sequence on. seed: of the
    samples; those of a step depend on it, the step and the problem's place in it. counted_parts: names of the
    reward's parts that are summed, with their weights.
    """

    engine: SamplingEngine
    prompts: PromptWriter
    problems: Sequence[Problem]
    order: Callable[[int, int], list[int]]
    env: Env
    params: SamplingParams
    prompts_per_step: int
    samples_per_prompt: int
    seed: int = 0
    counted_parts: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> Mapping[str, Problem]:
        """The problems by their ids."""
        return {problem.id: problem for problem in self.problems}

    @property
    def max_tokens(self) -> int:
        """Of an answer."""
        assert self.params.max_tokens is not None
        return self.params.max_tokens

    @property
    def most_tokens(self) -> int:
        """Of all answers of a step together, at most."""
        return self.prompts_per_step * self.samples_per_prompt * self.max_tokens

    def draw(
        self, step: int, position: int, n_prompts: int, *, drawn: int = 0, adapter: str | None = None
    ) -> list[Group]:
        """Groups for the problems from `position` on. drawn: prompts that this step has sampled before."""
        chosen = [self.problems[index] for index in self.order(position, n_prompts)]
        rollouts = collect(
            self.engine,
            self.prompts,
            chosen,
            self.env,
            n=self.samples_per_prompt,
            params=self.params,
            seed=self.seed,
            step=step,
            first_index=drawn,
            adapter=adapter,
        )
        n = self.samples_per_prompt
        return [rollouts[start : start + n] for start in range(0, len(rollouts), n)]


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated on, and how. parts: which parts of the score say what is right, the strictest first;
    the first is `eval/accuracy`."""

    problems: Sequence[Problem]
    env: Env
    params: SamplingParams
    samples: int = 1
    parts: Sequence[str] = ()
    every: int = 0
    seed: int = 0

    def is_due(self, step: int, total_steps: int) -> bool:
        """Before training, after every so many steps, and at the end."""
        return step in (0, total_steps) or (self.every > 0 and step % self.every == 0)

    def measure(
        self, engine: SamplingEngine, prompts: PromptWriter, adapter: str | None
    ) -> tuple[dict[str, float], list[Rollout]]:
        """Accuracy and mean reward now, as the row of a step, and the answers. The seeds are the same each
        time: what changes is the model."""
        rollouts: list[Rollout] = []
        for start in range(0, len(self.problems), HELD_OUT_AT_ONCE):
            rollouts += collect(
                engine,
                prompts,
                self.problems[start : start + HELD_OUT_AT_ONCE],
                self.env,
                n=self.samples,
                params=self.params,
                seed=self.seed,
                first_index=start,
                adapter=adapter,
            )
        row = evaluate(rollouts, self.parts).metrics()
        return {**row, "eval/reward": mean_reward(rollouts)}, rollouts
