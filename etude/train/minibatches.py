"""A rollout in minibatches, and what a learner says about it, packed as the updates will be.

How samples are packed decides the last bits of their log-probabilities. So π_old is computed minibatch by
minibatch, and the first ratio π/π_old is exactly 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from etude.learner.batch import Sample
from etude.learner.learner import Learner, SampleOutputs
from etude.records import EtudeError

Split = Sequence[Sequence[int]]
"""For each minibatch, which samples are in it."""


def minibatches(samples: Sequence[Sample], n: int, draw: random.Random) -> list[list[int]]:
    """The samples in n parts of nearly equal size; groups in random order, and together as far as that allows
    (their prompt is computed once). EtudeError for fewer samples than parts."""
    if n == 1:
        return [list(range(len(samples)))]
    if len(samples) < n:
        raise EtudeError(f"minibatches is {n}, but a step has {len(samples)} answers: lower it")
    groups = sorted({sample.group for sample in samples})
    draw.shuffle(groups)
    place = {group: at for at, group in enumerate(groups)}
    order = sorted(range(len(samples)), key=lambda i: place[samples[i].group])
    return [sorted(part.tolist()) for part in np.array_split(np.asarray(order), n)]


def scored(
    learner: Learner, samples: Sequence[Sample], split: Split, outputs: Sequence[str], *, adapter: bool = True
) -> list[SampleOutputs]:
    """Outputs of each sample, computed in minibatches."""
    found: dict[int, SampleOutputs] = {}
    for indices in split:
        rows = learner.score([samples[i] for i in indices], outputs, adapter=adapter)
        found |= dict(zip(indices, rows, strict=True))
    return [found[i] for i in range(len(samples))]
