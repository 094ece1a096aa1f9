"""Preference losses: values by hand, finite differences, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from etude.train import preference

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bradley_terry": lambda c, r: preference.bradley_terry(c, r, margin_P=0.3, centring=0.01),
    "dpo": lambda c, r: preference.dpo(c, r, c.detach() - 1, r.detach() + 1, label_smoothing=0.1),
    "ipo": lambda c, r: preference.ipo(c, r, torch.zeros_like(c), torch.zeros_like(r)),
    "orpo": preference.orpo,
    "simpo": preference.simpo,
    "pointwise": lambda c, r: preference.pointwise(c, r < -1),
    "kto": lambda c, r: preference.kto(c - r, torch.arange(len(c)) % 2 == 0, 0.4, undesirable_weight=1.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name: str) -> None:
    chosen_P = torch.tensor([-0.4, -2.0, -1.1], dtype=torch.float64, requires_grad=True)
    rejected_P = torch.tensor([-0.9, -0.3, -3.0], dtype=torch.float64, requires_grad=True)
    if name == "dpo":  # its references are fixed numbers, not functions of the policy
        assert torch.autograd.gradcheck(
            lambda c, r: preference.dpo(c, r, torch.zeros(3), torch.ones(3), label_smoothing=0.1),
            (chosen_P, rejected_P),
        )
    else:
        assert torch.autograd.gradcheck(LOSSES[name], (chosen_P, rejected_P))


@pytest.mark.parametrize("name", LOSSES)
def test_extremes_stay_finite(name: str) -> None:
    chosen_P = torch.tensor([0.0, -1e4, 0.0, -1e-9], requires_grad=True)
    rejected_P = torch.tensor([-1e4, 0.0, 0.0, -1e-9], requires_grad=True)
    loss_P = LOSSES[name](chosen_P, rejected_P)
    assert bool(torch.isfinite(loss_P).all())
    loss_P.sum().backward()
    for leaf in (chosen_P, rejected_P):
        assert leaf.grad is None or bool(torch.isfinite(leaf.grad).all())


@pytest.mark.parametrize("name", ["bradley_terry", "dpo", "orpo", "simpo"])
def test_a_larger_lead_is_a_smaller_loss(name: str) -> None:
    rejected_P = torch.full((5,), -2.0, dtype=torch.float64)
    references = torch.zeros(5, dtype=torch.float64)
    chosen_P = torch.linspace(-3, -0.5, 5, dtype=torch.float64)
    losses_P = {
        "bradley_terry": preference.bradley_terry(chosen_P, rejected_P),
        "dpo": preference.dpo(chosen_P, rejected_P, references, references),
        "orpo": preference.orpo(chosen_P, rejected_P),
        "simpo": preference.simpo(chosen_P, rejected_P),
    }[name]
    assert bool((losses_P.diff() < 0).all())


def test_by_hand() -> None:
    a, b, zero = torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([0.0])
    assert float(preference.bradley_terry(a, b)) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(preference.bradley_terry(a, a, centring=0.5)) == pytest.approx(math.log(2) + 0.5 * 4)
    assert float(preference.bradley_terry(a, b, margin_P=2.0)) == pytest.approx(math.log(2))
    assert float(preference.dpo(a, b, a, b)) == pytest.approx(math.log(2))
    assert float(preference.dpo(a, b, zero, zero, beta=0.5)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(preference.ipo(a, b, zero, zero, tau=0.25)) == pytest.approx(0.0)
    assert float(preference.pointwise(zero, torch.tensor([True]))) == pytest.approx(math.log(2))
    assert float(preference.simpo(a, b, beta=1.0, gamma=2.0)) == pytest.approx(math.log(2))
    half = torch.tensor([math.log(0.5)])
    assert float(preference.orpo(half, half, weight=1.0)) == pytest.approx(2 * math.log(2))
    assert preference.kto(a, torch.tensor([True]), 1.0).tolist() == [0.5]
    assert float(preference.kto(b, torch.tensor([False]), 0.0, beta=1.0)) == pytest.approx(1 / (1 + math.e))


def test_label_smoothing_half_has_no_preference() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    lead = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    preference.dpo(lead, zero, zero, zero, label_smoothing=0.5).sum().backward()
    assert lead.grad is not None and float(lead.grad) == pytest.approx(0, abs=1e-12)


def test_all_pairs_of_a_prompt_weigh_as_one() -> None:
    """Four answers ranked give six pairs, two give one."""
    weights_P = preference.pair_weights(torch.tensor([5, 5, 9, 5, 5, 5, 5]))
    assert weights_P.tolist() == pytest.approx([1 / 6, 1 / 6, 1, 1 / 6, 1 / 6, 1 / 6, 1 / 6])


def test_kto_reference_point() -> None:
    assert float(preference.kto_reference_point(torch.tensor([-3.0, 1.0]))) == 0
    point = preference.kto_reference_point(torch.tensor([3.0, 1.0], requires_grad=True))
    assert float(point) == 2 and not point.requires_grad


@pytest.mark.parametrize("x", [-1e-6, -0.1, -math.log(2), -0.7, -5.0, -50.0, -1e4])
def test_log1mexp(x: float) -> None:
    ours = preference.log1mexp(torch.tensor(x, dtype=torch.float64))
    assert float(ours) == pytest.approx(math.log(-math.expm1(x)) if x > -30 else -math.exp(x), rel=1e-9)
