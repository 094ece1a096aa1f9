"""What a step of a run will take, from a few seconds of trying: `etude VERB --dry-run`.

The steps that are tried are the run's first, by the algorithm's own code: answers are really sampled and
judged, weights really go to the engine. Only of what the learner computes a part is done, and the rest is
taken to cost as much a token. Nothing stays. What depends on how the run goes (lengths, groups without a
signal) is taken to stay as it is at the start.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from etude.learner.batch import Sample
from etude.learner.learner import Denominators, Loss, Metrics, SampleOutputs, Sampler
from etude.learner.local import LocalLearner
from etude.train.run import Report, Run, memory_bytes, trial
from etude.train.sampling import HeldOut
from etude.train.settings import RunSettings

TRIAL_S = 5.0
"""How long steps are tried; one at least."""
PASS_S = 0.8
"""What passes of one kind may take in a step that is tried; one micro-batch at least."""
EVALUATED = 32
"""Problems of one evaluation that are tried."""
PHASES = ("sampling", "scoring", "update", "publish", "storing")


class Probed:
    """A learner that computes a part of each pass, and knows how long all of it would have taken.

    What is left out of a score gets the engine's log-probabilities in place of the learner's, and zeros. The
    first score or update is done twice: memory is taken and types are cast in the first, which does not
    count. checked: the first score is the check before a run's first step, which does not count either.
    """

    def __init__(self, learner: LocalLearner, *, checked: bool = False) -> None:
        self.learner = learner
        self.tokens = self.alive = self.samples = 0
        self._unpaid_s: defaultdict[str, float] = defaultdict(float)
        self._left_s: dict[str, float] = {}
        self._rates: dict[Any, tuple[float, int]] = {}
        self._optimizer_s = 0.0
        self._warm = False
        self._checked = checked

    def unpaid(self) -> Mapping[str, float]:
        """Seconds by phase that the step since the last call has not taken, but would have; below 0 where it
        has done what other steps do not. The next step begins."""
        found, self._unpaid_s, self._left_s = self._unpaid_s, defaultdict(float), {}
        return found

    def score(
        self, samples: Sequence[Sample], outputs: Sequence[str] = ("logprobs",), *, adapter: bool = True
    ) -> list[SampleOutputs]:
        kind = ("scoring", *outputs, adapter)
        part = self._part(samples, kind)
        start = time.perf_counter()
        rows = self.learner.score(only(samples, part), outputs, adapter=adapter)
        took_s = time.perf_counter() - start
        if self._checked:
            self._checked = False
            self._unpaid_s["scoring"] -= took_s
        else:
            self._paid("scoring", kind, samples, part, took_s, took_s)
        return filled(samples, part, rows)

    def update(
        self,
        samples: Sequence[Sample],
        loss: Loss,
        *,
        outputs: Sequence[str] = ("logprobs",),
        denominators: Denominators,
        whole_groups: bool = False,
    ) -> Metrics:
        def step(chosen: Sequence[Sample]) -> Metrics:
            return self.learner.update(
                chosen, loss, outputs=outputs, denominators=denominators, whole_groups=whole_groups
            )

        if not self._warm:  # as full as micro-batches get, also if most groups teach nothing now
            self._warm = True
            start = time.perf_counter()
            all_of_them = [replace(sample, skip=False) for sample in samples]
            step(only(all_of_them, self._part(all_of_them, "warm")))
            self._unpaid_s["update"] -= time.perf_counter() - start
        self.samples += len(samples)
        self.alive += sum(not sample.idle for sample in samples)
        self.tokens += packed(samples)
        part = self._part(samples, "update")
        start = time.perf_counter()
        metrics = step(only(samples, part))
        passes_s = metrics.get("seconds/forward", 0.0) + metrics.get("seconds/backward", 0.0)
        if part:
            self._optimizer_s = metrics["seconds/optimizer"]
        elif packed(samples):
            self._unpaid_s["update"] += self._optimizer_s
        self._paid("update", "update", samples, part, passes_s, time.perf_counter() - start)
        metrics.outputs = filled(samples, part, metrics.outputs)
        return metrics

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        return self.learner.weights()

    def publish(self, engine: Sampler, version: int) -> str | None:
        return self.learner.publish(engine, version)

    def refresh_reference(self) -> None:
        self.learner.refresh_reference()

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def restore(self, folder: Path) -> None:
        self.learner.restore(folder)

    def _part(self, samples: Sequence[Sample], kind: Any) -> set[int]:
        """Which samples are computed: whole groups, as many as the time that is left allows; one micro-batch
        if nothing is known yet, none if there is no time."""
        most = self.learner.compute.max_tokens
        if kind in self._rates:
            left_s = self._left_s.get(kind, PASS_S)
            if left_s <= 0:
                return set()
            seconds, tokens = self._rates[kind]
            most = max(most, int(left_s * tokens / seconds) // most * most)
        part: list[int] = []
        groups: dict[int, list[int]] = {}
        for i, sample in enumerate(samples):
            if not sample.idle:
                groups.setdefault(sample.group, []).append(i)
        for group in groups.values():
            if part and packed([samples[i] for i in [*part, *group]]) > most:
                break
            part += group
        return set(part)

    def _paid(
        self, phase: str, kind: Any, samples: Sequence[Sample], part: set[int], passes_s: float, took_s: float
    ) -> None:
        """Count what a part has taken, and what the whole would have."""
        done = packed(only(samples, part))
        seconds, tokens = self._rates.get(kind, (0.0, 0))
        if done:
            seconds, tokens = self._rates[kind] = seconds + passes_s, tokens + done
        if tokens:
            self._unpaid_s[phase] += (packed(samples) - done) * seconds / tokens
        self._left_s[kind] = self._left_s.get(kind, PASS_S) - took_s


def only(samples: Sequence[Sample], part: set[int]) -> list[Sample]:
    """The samples; those outside the part are skipped."""
    return [sample if i in part else replace(sample, skip=True) for i, sample in enumerate(samples)]


def filled(samples: Sequence[Sample], part: set[int], rows: Sequence[SampleOutputs]) -> list[SampleOutputs]:
    """The outputs, with the engine's log-probabilities where the learner's were left out."""
    return [
        {**row, "logprobs": np.asarray(sample.columns["sampler_logprobs"], np.float32)}
        if i not in part and not sample.idle and "logprobs" in row and "sampler_logprobs" in sample.columns
        else row
        for i, (sample, row) in enumerate(zip(samples, rows, strict=True))
    ]


def packed(samples: Sequence[Sample]) -> int:
    """Tokens that are computed: each prompt once a group."""
    alive = [sample for sample in samples if not sample.idle]
    prompts = {(sample.group, sample.prompt_ids) for sample in alive}
    return sum(len(ids) for _, ids in prompts) + sum(sample.n_computed for sample in alive)


@dataclass(frozen=True)
class Estimate:
    """Of one step. sampled: tokens drawn; computed: tokens of the updates' passes, prompts counted once a
    group. signal: share of the answers that teach something. eval_s: of one evaluation, 0 for none."""

    sampled: int
    computed: int
    signal: float
    seconds: Mapping[str, float]
    eval_s: float
    memory_bytes: int

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    def text(self, steps: int, eval_every: int) -> str:
        """For a run of so many steps, as RunSettings and EvalSettings have them.

        >>> seconds = {"sampling": 1.0, "update": 2.5, "publish": 0.04}
        >>> print(Estimate(1000, 2000, 0.5, seconds, 6.0, 3 << 30).text(60, 20))
        a step: 1,000 tokens sampled, 2,000 computed in updates; 50 % of the answers teach something
        time:   3.5 s a step (sampling 1.0, update 2.5, publish 0.0), 6.0 s an evaluation; 4 min for 60 steps
        memory: 3.0 GiB
        <BLANKLINE>
        """
        sampled = f"{self.sampled:,} tokens sampled, " if self.sampled else ""
        signal = f"; {100 * self.signal:.0f} % of the answers teach something" if self.sampled else ""
        phases = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        evaluation = f", {self.eval_s:.1f} s an evaluation" if self.eval_s else ""
        evals = 1 + math.ceil(steps / (eval_every or steps))
        in_all_s = self.step_s * steps + self.eval_s * evals
        in_all = f"{in_all_s:.0f} s" if in_all_s < 120 else f"{in_all_s / 60:.0f} min"
        return (
            f"a step: {sampled}{self.computed:,} computed in updates{signal}\n"
            f"time:   {self.step_s:.1f} s a step ({phases}){evaluation}; {in_all} for {steps} steps\n"
            f"memory: {self.memory_bytes / 2**30:.1f} GiB\n"
        )


def few(held_out: HeldOut | None) -> tuple[HeldOut | None, float]:
    """Some of what is held out, for one evaluation; and which share of it."""
    if held_out is None:
        return None, 1.0
    some = held_out.problems[:EVALUATED]
    return replace(held_out, problems=some, every=0), len(some) / len(held_out.problems)


def tried(
    settings: RunSettings,
    learners: Sequence[Probed],
    begin: Callable[[Run], Iterator[Report]],
    *,
    eval_share: float = 1.0,
) -> Estimate:
    """Try a run's first steps. learners: all that `begin` trains with; the first one's tokens are counted.
    eval_share: of what is held out, that `begin` measures.

    EtudeError as the first step of a run.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    sampled = steps = 0
    eval_s = 0.0
    start = last = time.perf_counter()
    with trial(settings) as run:
        for report in begin(run):
            now = time.perf_counter()
            unpaid: defaultdict[str, float] = defaultdict(float)
            for learner in learners:
                for phase, value in learner.unpaid().items():
                    unpaid[phase] += value
            if report.step == 0:
                eval_s = now - start + sum(unpaid.values())
                start = now
            elif not steps or "seconds/eval" not in report.row:
                steps += 1
                for phase in PHASES:
                    seconds[phase] += report.row.get(f"seconds/{phase}", 0.0) + unpaid[phase]
                sampled += int(report.row.get("tokens/sampled", 0))
            if steps and (now - start) + (now - last) / 2 > TRIAL_S:
                break
            last = now
    return Estimate(
        sampled=sampled // steps,
        computed=learners[0].tokens // steps,
        signal=learners[0].alive / max(1, learners[0].samples),
        seconds={phase: seconds[phase] / steps for phase in PHASES if seconds[phase]},
        eval_s=eval_s / eval_share,
        memory_bytes=memory_bytes(),
    )
