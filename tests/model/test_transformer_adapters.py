"""Adapters beside the matrices: exact gradients, off = the base, and bases that are no tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from etude.model.family import slot_shape
from etude.model.names import LAYER_MATRICES, Place, hf_name
from etude.model.projections import Adapter, Linear
from etude.model.segments import Layout
from etude.model.transformer import Transformer, load_transformer
from tests.model.naive_transformer import naive_logits
from tests.model.tiny_models import FIXTURES

IDS = [5, 77, 12, 99, 100, 3, 45, 45, 60]
SCALE = 0.7
SKIPPED = ("attn_k", "ffn_up")
"""Without a pair: a fused product then has maps with and without one."""


class Doubled(Linear):
    """A frozen base that is computed when it is asked for."""

    def __init__(self, half: Tensor, bias: Tensor | None) -> None:
        super().__init__(None, (half.shape[0], half.shape[1]))
        self.half = half
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def fill(self, out_NK: Tensor) -> None:
        out_NK.copy_(2.0 * self.half)


def linears(model: Transformer) -> dict[Place, Linear]:
    found = {}
    for layer in range(model.config.n_layers):
        for slot in LAYER_MATRICES:
            name = hf_name(model.config.architecture, Place(slot, layer)).removesuffix(".weight")
            linear = model.get_submodule(name)
            assert isinstance(linear, Linear)
            found[Place(slot, layer)] = linear
    return found


def with_adapters(name: str) -> Transformer:
    torch.set_num_threads(1)
    model, _ = load_transformer(FIXTURES / name, torch.float64)
    generator = torch.Generator().manual_seed(4)
    for place, linear in linears(model).items():
        if place.slot not in SKIPPED:
            n, k = slot_shape(model.config, place.slot)
            a = torch.randn(3, k, generator=generator, dtype=torch.float64) * 0.2
            b = torch.randn(n, 3, generator=generator, dtype=torch.float64) * 0.2
            linear.adapter = Adapter(a, b, SCALE)
    return model


def naive_weights(model: Transformer) -> dict[str, Tensor]:
    weights = {name: tensor.clone().requires_grad_() for name, tensor in model.weights()}
    for place, linear in linears(model).items():
        if linear.adapter is not None:
            for letter, half in (("a", linear.adapter.a), ("b", linear.adapter.b)):
                weights[f"{place.slot}.{place.layer}.{letter}"] = half.detach().clone().requires_grad_()
    return weights | {"scale": torch.tensor(SCALE, dtype=torch.float64)}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("name", ["llama_biases", "gemma3"])
def test_gradients_are_the_textbooks(name: str, adds: bool, frozen: bool) -> None:
    model = with_adapters(name)
    model.adds_to_grad = adds
    weights = naive_weights(model)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or ".adapter." in parameter_name)
    factors = torch.randn(len(IDS), 128, dtype=torch.float64)
    for _ in range(2):  # the second time into gradients that are there
        logits_TV = model.logits(model(Layout.roots([IDS])))
        (logits_TV * factors).sum().backward()
    expected_TV = naive_logits(weights, model.config, IDS)
    assert torch.allclose(logits_TV, expected_TV, rtol=0, atol=1e-12)
    (2 * expected_TV * factors).sum().backward()
    for place, linear in linears(model).items():
        halves = {} if linear.adapter is None else {"a": linear.adapter.a, "b": linear.adapter.b}
        for letter, half in halves.items():
            assert_near(half.grad, weights[f"{place.slot}.{place.layer}.{letter}"].grad)
    for weight_name, parameter in model.named_parameters():
        if ".adapter." not in weight_name:
            assert (parameter.grad is None) == frozen
            if not frozen:
                assert_near(parameter.grad, weights[weight_name].grad)


def assert_near(ours: Tensor | None, theirs: Tensor | None) -> None:
    assert ours is not None and theirs is not None
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.parametrize("name", ["llama", "qwen2_tied"])
def test_switched_off_is_the_base(name: str) -> None:
    model, layout = with_adapters(name), Layout.roots([IDS])
    base, _ = load_transformer(FIXTURES / name, torch.float64)
    with torch.no_grad():
        assert torch.equal(model(layout, adapters=False), base(layout))
        assert not torch.equal(model(layout), base(layout))
    assert [n for n, _ in model.weights()] == [n for n, _ in base.weights()]


def test_a_base_that_is_no_tensor() -> None:
    """Nothing made of it is kept, and its adapters get the gradients that they get beside a tensor."""
    dense, virtual = with_adapters("qwen2"), with_adapters("qwen2")
    for place, linear in linears(virtual).items():
        assert linear.weight is not None
        replacement = Doubled(linear.weight.detach() / 2, linear.bias)
        replacement.adapter = linear.adapter
        owner, _, name = hf_name("qwen2", place).removesuffix(".weight").rpartition(".")
        virtual.get_submodule(owner).add_module(name, replacement)
    results = []
    for model in (dense, virtual):
        hidden_TD = model(Layout.roots([IDS]))
        hidden_TD.square().sum().backward()
        pairs = [linear.adapter for linear in linears(model).values() if linear.adapter is not None]
        results.append((hidden_TD, [half.grad for pair in pairs for half in (pair.a, pair.b)]))
    assert torch.equal(results[0][0], results[1][0])
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert ours is not None and theirs is not None
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert not next(virtual.layers).qkv._made
