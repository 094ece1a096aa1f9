"""Log-probabilities, entropy and KL from hidden states and their gradients, against autograd in f64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from etude.learner import distribution
from etude.learner.distribution import Head, Reference, statistics
from etude.model.projections import Linear
from etude.model.scratch import Scratch

M, D, V = 13, 16, 50


def head_of(weight_VD: Tensor, dtype: torch.dtype, **options: object) -> Head:
    """A head whose matrix is this tensor itself, if it is trained."""
    linear = Linear(None, (len(weight_VD), weight_VD.shape[1]))
    linear.weight = torch.nn.Parameter(weight_VD.detach())
    if weight_VD.requires_grad:
        weight_VD.grad = torch.zeros_like(weight_VD)
        linear.weight.grad = weight_VD.grad
    return Head.of(linear, dtype, **options)


def plain(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    targets_M: Tensor,
    other: tuple[Tensor, Tensor],
    softcap: float,
    t: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """log p, H, KL(p || q) by their definitions."""

    def logp(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = hidden @ weight.T
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        return (logits / t).log_softmax(-1)

    p, q = logp(hidden_MD, weight_VD), logp(*other)
    return p.gather(1, targets_M[:, None])[:, 0], -(p.exp() * p).sum(-1), (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("wanted", ["logprobs", "all"])
@pytest.mark.parametrize("small", [False, True], ids=["kept", "computed again"])
def test_values_and_gradients(
    softcap: float, temperature: float, wanted: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "CHUNK_VALUES", 4 * V)
    if small:
        monkeypatch.setattr(distribution, "KEEP_BYTES", 5 * V * 8)
    torch.manual_seed(0)
    f64 = torch.float64
    hidden, weight = torch.randn(M, D, dtype=f64), torch.randn(V, D, dtype=f64)
    other = (torch.randn(M, D, dtype=f64), torch.randn(V, D, dtype=f64))
    targets, upstream = torch.randint(V, (M,)), torch.randn(3, M, dtype=f64)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    head = head_of(w, f64, trained=True, softcap=softcap, temperature=temperature)
    reference = Reference(
        other[0], head_of(other[1], f64, trained=False, softcap=softcap, temperature=temperature)
    )
    everything = wanted == "all"
    found = statistics(h, targets, head, entropy=everything, reference=reference if everything else None)
    he, we = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = plain(he, we, targets, other, softcap, temperature)
    loss = (found.logprobs * upstream[0]).sum()
    expected_loss = (expected[0] * upstream[0]).sum()
    if everything:
        assert found.entropy is not None and found.reference_kl is not None
        loss = loss + (found.entropy * upstream[1]).sum() + (found.reference_kl * upstream[2]).sum()
        expected_loss = expected_loss + (expected[1] * upstream[1]).sum() + (expected[2] * upstream[2]).sum()
    loss.backward()
    expected_loss.backward()
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(h.grad, he.grad, rtol=2e-5, atol=2e-5)  # probabilities are f32 inside
    torch.testing.assert_close(w.grad, we.grad, rtol=2e-5, atol=2e-5)


def test_a_gradient_of_one_output_alone() -> None:
    torch.manual_seed(0)
    h = torch.randn(M, D, requires_grad=True)
    weight, targets = torch.randn(V, D), torch.randint(V, (M,))
    statistics(
        h, targets, head_of(weight, torch.float32, trained=False), entropy=True
    ).logprobs.sum().backward()
    he = h.detach().clone().requires_grad_()
    (he @ weight.T).log_softmax(-1).gather(1, targets[:, None]).sum().backward()
    torch.testing.assert_close(h.grad, he.grad)


def test_gradients_of_the_matrix_add_up() -> None:
    """In place of its own tensor: two calls give the sum."""
    torch.manual_seed(0)
    weight = torch.randn(V, D, requires_grad=True)
    hidden, targets = torch.randn(M, D), torch.randint(V, (M,))
    head = head_of(weight, torch.float32, trained=True)
    statistics(hidden, targets, head).logprobs.sum().backward()
    assert weight.grad is not None
    once = weight.grad.clone()
    statistics(hidden, targets, head).logprobs.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_bf16_products_give_f32_logprobs() -> None:
    """The shift takes what bf16 rounds off a logit of 20 out of the tokens that matter."""
    torch.manual_seed(0)
    d, v = 256, 1000
    weight = (torch.randn(v, d) / 16).bfloat16()
    hidden = (torch.randn(200, d) * 8).bfloat16()
    logits = hidden.double() @ weight.double().T
    expected = logits.log_softmax(-1)
    targets = torch.multinomial(expected.exp(), 1)[:, 0]
    found = statistics(
        hidden.float(), targets, head_of(weight.float(), torch.bfloat16, trained=False), entropy=True
    )
    wanted = expected.gather(1, targets[:, None])[:, 0]
    rounded = (hidden @ weight.T).double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    error = (found.logprobs.double() - wanted).square().mean().sqrt()
    assert logits.max() > 20
    assert error < 2e-3 < 0.1 * (rounded - wanted).square().mean().sqrt()
    assert found.entropy is not None
    torch.testing.assert_close(
        found.entropy.double(), -(expected.exp() * expected).sum(-1), rtol=0, atol=0.02
    )


def test_bf16_gradients() -> None:
    torch.manual_seed(0)
    weight = torch.randn(V, D).bfloat16().float().requires_grad_()
    h = torch.randn(M, D).bfloat16().float().requires_grad_()
    targets, upstream = torch.randint(V, (M,)), torch.randn(M)
    (
        statistics(h, targets, head_of(weight, torch.bfloat16, trained=True)).logprobs * upstream
    ).sum().backward()
    he, we = h.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    ((he @ we.T).log_softmax(-1).gather(1, targets[:, None])[:, 0] * upstream).sum().backward()
    for ours, theirs in ((h.grad, he.grad), (weight.grad, we.grad)):
        assert ours is not None and theirs is not None
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_extreme_logits_stay_finite() -> None:
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    hidden = torch.tensor([[500.0], [-500.0]], requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        head = head_of(weight, dtype, trained=False, temperature=0.5)
        found = statistics(hidden, torch.tensor([1, 1]), head, entropy=True)
        assert found.logprobs.tolist() == [-2000.0, 0.0]
        assert found.entropy is not None and found.entropy.tolist() == [0.0, 0.0]
        found.logprobs.sum().backward()
        assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_logits_of_two_calls_do_not_share_memory_while_both_are_kept() -> None:
    """The second forward comes before the first backward; and memory that is free again is taken again."""
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    head = Head(None, weight, 8, softcap=0.0, temperature=1.0)
    targets = torch.arange(6)
    hiddens = [torch.randn(6, 8, requires_grad=True) for _ in range(2)]
    sums = [statistics(hidden, targets, head).logprobs.sum() for hidden in hiddens]
    for hidden, total in zip(hiddens, sums, strict=True):
        total.backward()
        wanted = (torch.nn.functional.one_hot(targets, 50) - (hidden @ weight.T).softmax(-1)) @ weight
        torch.testing.assert_close(hidden.grad, wanted)
    scratch, cpu = Scratch(), torch.device("cpu")
    first = scratch.matrix((4, 50), torch.float32, cpu)
    place = first.data_ptr()
    assert scratch.matrix((4, 50), torch.float32, cpu).data_ptr() != place
    del first
    assert scratch.matrix((3, 50), torch.float32, cpu).data_ptr() == place
