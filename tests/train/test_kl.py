"""KL: precision near 0, no overflow far away, expectations over a whole distribution, the controller."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from etude.train import kl

getcontext().prec = 50


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-10)])
@settings(max_examples=60, deadline=None)
@given(st.floats(-19, 19), st.integers(-12, 0))
def test_excess_is_precise(dtype: torch.dtype, tolerance: float, mantissa: float, exponent: int) -> None:
    x = torch.tensor(mantissa * 10.0**exponent, dtype=dtype)
    exact = Decimal(float(x)).exp() - 1 - Decimal(float(x))
    if float(exact) > torch.finfo(dtype).tiny:
        assert float(kl.excess(x)) == pytest.approx(float(exact), rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(st.floats(-1e4, 1e4))
def test_k3_is_never_negative_and_finite(dtype: torch.dtype, gap: float) -> None:
    x = torch.tensor(gap, dtype=dtype, requires_grad=True)
    value = kl.excess(x)
    value.backward()
    assert float(value.detach()) >= 0 and math.isfinite(float(value.detach()))
    assert x.grad is not None and math.isfinite(float(x.grad))


def test_excess_far_away() -> None:
    """A line below, a constant above 20."""
    x = torch.tensor([-1e4, 25.0, 1e4], dtype=torch.float64, requires_grad=True)
    value = kl.excess(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(value, torch.tensor([9999.0, math.exp(20) - 21, math.exp(20) - 21]).double())
    assert gradient.tolist() == [-1.0, 0.0, 0.0]


def test_the_two_branches_meet() -> None:
    for edge in (kl.SERIES_BELOW, -kl.SERIES_BELOW):
        x = torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9)], dtype=torch.float64, requires_grad=True)
        value = kl.excess(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert float(value[0].detach()) == pytest.approx(float(value[1].detach()), rel=1e-8)
        assert float(gradient[0]) == pytest.approx(float(gradient[1]), rel=1e-7)


def distributions() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    policy, old, reference = (torch.randn(6, generator=rng, dtype=torch.float64) for _ in range(3))
    return policy.requires_grad_(), old.log_softmax(0), reference.log_softmax(0)


def expectation(
    estimator: Callable[..., Tensor], *, drawn_from_old: bool
) -> tuple[float, Tensor, float, Tensor]:
    """Value and gradient of an estimator, summed over all tokens, and those of the KL itself."""
    theta, old_V, reference_V = distributions()
    log_V = theta.log_softmax(0)
    drawn_V = old_V.exp() if drawn_from_old else log_V.detach().exp()
    ratio_V = log_V - (old_V if drawn_from_old else log_V.detach())
    value = (drawn_V * estimator(log_V, reference_V, ratio_V)).sum()
    exact = (log_V.exp() * (log_V - reference_V)).sum()
    (gradient,) = torch.autograd.grad(value, theta, retain_graph=True)
    (right,) = torch.autograd.grad(exact, theta)
    return float(value.detach()), gradient, float(exact.detach()), right


def test_what_the_estimators_estimate() -> None:
    value, gradient, exact, right = expectation(kl.k1, drawn_from_old=False)
    assert value == pytest.approx(exact)
    torch.testing.assert_close(gradient, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    value, gradient, exact, right = expectation(kl.k2, drawn_from_old=False)
    assert value != pytest.approx(exact, rel=0.05)
    torch.testing.assert_close(gradient, right)
    value, gradient, exact, right = expectation(kl.k3, drawn_from_old=False)
    assert value == pytest.approx(exact)
    assert not torch.allclose(gradient, right, rtol=0.05)
    theta, _, reference_V = distributions()
    backward = (reference_V.exp() * (reference_V - theta.log_softmax(0))).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(backward, theta)[0])


@pytest.mark.parametrize("drawn_from_old", [False, True])
def test_unbiased_has_the_right_value_and_gradient(drawn_from_old: bool) -> None:
    value, gradient, exact, right = expectation(kl.unbiased, drawn_from_old=drawn_from_old)
    assert value == pytest.approx(exact)
    torch.testing.assert_close(gradient, right)


def test_full_vocabulary() -> None:
    theta, _, reference_V = distributions()
    ours = kl.full(theta.log_softmax(0)[None], reference_V[None])
    assert float(ours.detach()) == pytest.approx(expectation(kl.k1, drawn_from_old=False)[2])
    assert torch.autograd.gradcheck(lambda x: kl.full(x.log_softmax(0)[None], reference_V[None]), theta)


def test_full_vocabulary_with_impossible_tokens() -> None:
    """A token that both exclude (a grammar) adds nothing, and no NaN to the gradient."""
    logits_V = torch.tensor([0.0, 1.0, -torch.inf], requires_grad=True)
    reference_V = torch.tensor([1.0, 0.0, -torch.inf]).log_softmax(0)
    value = kl.full(logits_V.log_softmax(0)[None], reference_V[None]).sum()
    value.backward()
    assert float(value.detach()) == pytest.approx(math.tanh(0.5))
    assert logits_V.grad is not None and bool(torch.isfinite(logits_V.grad).all())


@pytest.mark.parametrize("estimator", [kl.k1, kl.k2, kl.k3, kl.unbiased])
def test_a_refreshed_reference_is_at_zero(estimator: Callable[..., Tensor]) -> None:
    logprobs_C = torch.tensor([-0.1, -5.0, -1e4, 0.0])
    assert not estimator(logprobs_C, logprobs_C.clone(), torch.zeros(4)).any()


@pytest.mark.parametrize(
    ("measured", "factor"), [(60.0, 1.2), (6.6, 1.1), (6.0, 1.0), (5.4, 0.9), (0.0, 0.8)]
)
def test_adaptive_coefficient(measured: float, factor: float) -> None:
    before = kl.AdaptiveKl(beta=0.1, target_nats=6.0, horizon_samples=32)
    after = kl.adapted(before, measured, samples=32)
    assert after.beta == pytest.approx(0.1 * factor)
    assert before.beta == 0.1
