"""Engine and learner: a start between different models is refused, with what is probably wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from etude.learner.batch import Sample
from etude.learner.learner import SampleOutputs
from etude.records import EtudeError
from etude.train.agreement import check_agreement, mismatch_row

LENGTH = 6


def samples_of(gap: Sequence[float], n: int = 5) -> list[Sample]:
    """Answers whose sampler differs from a learner of -1 everywhere by `gap` at each place."""
    logprobs = np.float32(-1) - np.asarray(gap, np.float32)
    mask = (True,) * LENGTH
    return [Sample((1,), (2,) * LENGTH, mask, 0, {"sampler_logprobs": logprobs}) for _ in range(n)]


class Minus:
    """A learner that gives every token the log-probability -1."""

    def score(
        self, samples: Sequence[Sample], outputs: Sequence[str] = ("logprobs",), *, adapter: bool = True
    ) -> list[SampleOutputs]:
        return [{"logprobs": np.full(len(sample.mask), -1, np.float32)} for sample in samples]


@pytest.mark.parametrize(
    ("gap", "cause"),
    [
        ([0, 0, 0, 0, 0, 1.5], "ends an answer"),
        ([2, -2, 2, 2, -2, 2], "different models"),
        ([0, 0.4, -0.4, 0.4, 0.4, -0.4], "positions or the cache"),
        ([0.3, -0.3, 0.3, 0.3, -0.3, 0.3], "too coarse"),
    ],
)
def test_a_gap_is_refused_with_its_cause(gap: list[float], cause: str) -> None:
    with pytest.raises(EtudeError, match=cause) as error:
        check_agreement(Minus(), samples_of(gap), 1e-2)
    assert "nats a token" in str(error.value) and "0.01" in str(error.value)


def test_rounding_is_let_through() -> None:
    found = check_agreement(Minus(), samples_of([0.01, -0.01, 0.01, 0, 0, 0]), 1e-2)
    assert found.tokens == 5 * LENGTH and 0 < found.mean_k3 < 1e-4


def test_the_row_counts_what_was_computed() -> None:
    computed, idle = samples_of([0.1] * LENGTH, 1)[0], samples_of([9.0] * LENGTH, 1)[0]
    idle = Sample(idle.prompt_ids, idle.completion_ids, idle.mask, 0, idle.columns, skip=True)
    learner = [np.full(LENGTH, -1, np.float32)] * 2
    row = mismatch_row([computed, idle], learner)
    assert row["mismatch/k3"] == pytest.approx(np.exp(0.1) - 1.1, rel=1e-4)
    assert mismatch_row([idle], learner[:1]) == {}
