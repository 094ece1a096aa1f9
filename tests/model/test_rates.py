"""Which dtype products are computed in, given how fast each is."""

from __future__ import annotations

import pytest
import torch

from etude.model import rates


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(2.0, torch.bfloat16), (1.1, torch.float32), (0.5, torch.float32)]
)
def test_bf16_must_be_worth_it(bf16: float, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "product_rate", lambda dtype, device: bf16 if dtype == torch.bfloat16 else 1.0)
    assert rates.fastest_dtype() == chosen


def test_rates_are_rates() -> None:
    assert 1e6 < rates.product_rate(torch.float32, size=64) < 1e16
