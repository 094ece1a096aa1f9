"""Rows of the comparison with TRL: medians, goals, unequal numbers of sampled tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from step_rows import KINDS, Both, Kind, Step, rows_of

FULL, LORA, PURE = KINDS
OURS = Step(seconds=10.0, sampling_s=4.0, tokens=1000, prompt_tokens=400)
PEER = Step(seconds=60.0, sampling_s=20.0, tokens=1000, prompt_tokens=400)


def both(ours_tokens: float = 1000, ours_bytes: int = 2_000_000_000) -> Both:
    """Three rounds with one outlier on each side, which a median leaves out."""
    ours, peer = replace(OURS, tokens=ours_tokens), PEER
    slow_ours, slow_peer = replace(ours, seconds=100.0), replace(peer, seconds=600.0)
    return Both([slow_ours, ours, ours], [peer, peer, slow_peer], ours_bytes, 4_000_000_000)


def by_work(
    kind: Kind, measured: Both, *, goals: bool = True
) -> dict[str, tuple[float, float | None, bool | None]]:
    rows = rows_of(kind, "m", measured, "a setting", goals=goals)
    return {row.work.split(",")[0]: (row.ratio, row.goal, row.met) for row in rows}


def test_rows_of_a_full_fine_tune() -> None:
    found = by_work(FULL, both())
    assert found["GRPO step"] == (6.0, 5.0, True)
    assert found["sampling"] == (pytest.approx(250 / 50), None, None)
    assert found["training"] == (pytest.approx(40 / 6), None, None)
    assert found["peak memory"] == (2.0, pytest.approx(1 / 0.6), True)


def test_lora_has_a_higher_goal() -> None:
    assert by_work(LORA, both())["GRPO step"] == (6.0, 6.5, False)


def test_nothing_is_promised_against_bf16_weights_nor_for_other_work() -> None:
    for found in (by_work(PURE, both()), by_work(FULL, both(), goals=False)):
        assert {(goal, met) for _, goal, met in found.values()} == {(None, None)}


def test_too_much_memory_misses_the_goal() -> None:
    assert by_work(FULL, both(ours_bytes=2_500_000_000))["peak memory"][2] is False


def test_memory_is_left_out_where_it_is_not_known() -> None:
    assert "peak memory" not in by_work(FULL, both(ours_bytes=0))


@pytest.mark.parametrize(("ours_tokens", "factor"), [(1000, 1.0), (980, 1.0), (900, 0.9), (1100, 1.1)])
def test_seconds_are_per_token_where_the_sides_sampled_unequal_numbers(
    ours_tokens: int, factor: float
) -> None:
    """Who sampled a tenth less did a tenth less work: that must not look like speed."""
    rows = rows_of(FULL, "m", both(ours_tokens), "a setting")
    whole, training = rows[0], rows[2]
    assert whole.ratio == pytest.approx(6.0 * factor)
    assert training.ratio == pytest.approx(40 / 6 * factor)
    assert ("per sampled token" in whole.note) == (factor != 1.0)
    assert whole.ours == 10.0
