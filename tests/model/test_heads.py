"""Heads: logits with softcap and in bf16 with their gradients; a scalar for each row."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etude.model.heads import ScalarHead
from etude.model.transformer import Transformer, load_transformer
from tests.model.tiny_models import FIXTURES


def model_with(softcap: float, tied: bool = True) -> Transformer:
    torch.set_num_threads(1)
    source, _ = load_transformer(FIXTURES / "llama_tied")
    config = dataclasses.replace(source.config, logit_softcap=softcap, tied_embeddings=tied)
    model = Transformer(config, dtype=torch.float64)
    return model.initialize(torch.Generator().manual_seed(1), std=0.5)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_their_gradients(softcap: float, tied: bool) -> None:
    model = model_with(softcap, tied)
    hidden_ND = torch.randn(5, model.config.d_model, dtype=torch.float64, requires_grad=True)
    assert model.head_weight is not None
    weight_VD = model.head_weight.detach().clone().requires_grad_()
    other_ND = hidden_ND.detach().clone().requires_grad_()
    expected_NV = other_ND @ weight_VD.T
    if softcap:
        expected_NV = softcap * torch.tanh(expected_NV / softcap)
    logits_NV = model.logits(hidden_ND)
    assert torch.allclose(logits_NV, expected_NV, rtol=0, atol=1e-12)
    factors_NV = torch.randn_like(logits_NV)
    (logits_NV * factors_NV).sum().backward()
    (expected_NV * factors_NV).sum().backward()
    for ours, theirs in ((hidden_ND.grad, other_ND.grad), (model.head_weight.grad, weight_VD.grad)):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_bf16_logits_are_sums_of_f32() -> None:
    """The products of rounded values, summed and kept in f32: far closer to the truth than bf16 could say."""
    torch.set_num_threads(1)
    model, _ = load_transformer(FIXTURES / "llama_tied")
    hidden_ND = torch.randn(7, model.config.d_model, generator=torch.Generator().manual_seed(2))
    logits_NV = model.logits(hidden_ND, compute_dtype=torch.bfloat16)
    assert model.head_weight is not None
    rounded = [x.detach().to(torch.bfloat16).to(torch.float64) for x in (hidden_ND, model.head_weight)]
    assert logits_NV.dtype == torch.float32
    assert torch.allclose(logits_NV.double(), rounded[0] @ rounded[1].T, rtol=0, atol=1e-5)


def test_the_scalar_head_starts_at_zero_and_learns() -> None:
    head = ScalarHead(6)
    hidden_ND = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores_N = head(hidden_ND)
    assert scores_N.shape == (4,) and scores_N.dtype == torch.float32
    assert torch.equal(scores_N, torch.zeros(4))
    scores_N.sum().backward()
    assert head.weight.grad is not None and head.weight.grad.abs().max() > 0
    drawn = ScalarHead(4095).initialize(torch.Generator().manual_seed(0))
    assert drawn.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert set(head.state_dict()) == {"weight", "bias"}
