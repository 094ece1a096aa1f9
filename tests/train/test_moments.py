"""Running moments equal those of everything at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.train.moments import Moments, standardised, updated

scores = st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), max_size=5)


@settings(max_examples=60, deadline=None)
@given(scores)
def test_in_parts_as_at_once(parts: list[list[float]]) -> None:
    moments = Moments()
    for part in parts:
        moments = updated(moments, torch.tensor(part, dtype=torch.float64) + 1e6)
    everything = torch.tensor([x for part in parts for x in part], dtype=torch.float64)
    assert moments.count == len(everything)
    if len(everything) > 1:
        assert moments.mean == pytest.approx(1e6 + float(everything.mean()), rel=1e-12)
        assert moments.std == pytest.approx(float(everything.std()), rel=1e-6, abs=1e-6)


def test_standardised() -> None:
    moments = updated(Moments(), torch.tensor([0.0, 2.0, 4.0]))
    assert standardised(torch.tensor([2.0, 4.0, 100.0, -100.0]), moments).tolist() == [0, 1, 5, -5]
    assert standardised(torch.tensor([3.0]), Moments(1, 2.0, 0.0)).tolist() == [1.0]
