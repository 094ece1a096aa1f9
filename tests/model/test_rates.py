"""Which dtype products are computed in, given how fast each is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from etude.model import rates


@pytest.fixture(autouse=True)
def _not_measured_yet() -> Iterator[None]:
    rates.fastest_dtype.cache_clear()
    yield
    rates.fastest_dtype.cache_clear()


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(2.0, torch.bfloat16), (1.1, torch.float32), (0.5, torch.float32)]
)
def test_bf16_must_be_worth_it(bf16: float, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measured(dtypes: tuple[torch.dtype, ...], device: str) -> list[float]:
        calls.append(device)
        return [{torch.bfloat16: bf16, torch.float32: 1.0}[dtype] for dtype in dtypes]

    monkeypatch.setattr(rates, "product_rates", measured)
    assert rates.fastest_dtype("cpu") == rates.fastest_dtype("cpu") == chosen
    assert calls == ["cpu"]  # once in a process


def test_a_disturbed_round_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still but for the products; each dtype is slow in all rounds but one."""
    now, product = 0.0, 0

    def clock() -> float:
        nonlocal now, product
        number, call = divmod(product, 4)  # two products a round, two readings a product
        if call % 2:
            now += 1.0 if (number, call) in ((2, 1), (3, 3)) else 50.0
        product += 1
        return now

    monkeypatch.setattr(rates.time, "perf_counter", clock)
    first, second = rates.product_rates((torch.float32, torch.bfloat16), size=8, rounds=4)
    assert first == second == 2.0 * 8**3


def test_rates_are_rates() -> None:
    for rate in rates.product_rates((torch.float32, torch.bfloat16), size=64, rounds=2):
        assert 1e6 < rate < 1e16
