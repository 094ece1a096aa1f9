"""The transformer: logits of transformers' tiny models; gradients of the textbook's; what must not matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from etude.model import attention, operators, segments
from etude.model.family import ModelConfig
from etude.model.segments import Layout, Segment
from etude.model.transformer import Transformer, load_transformer
from etude.records import EtudeError
from tests.model.naive_transformer import naive_logits
from tests.model.tiny_models import FIXTURES, NAMES, write_twin

LENGTHS = [
    (11, None),
    (5, 0),
    (5, 0),
    (7, 0),
    (3, None),
    (20, None),
    (1, 5),
    (20, 5),
    (4, 7),
    (6, 7),
    (13, None),
]
"""(tokens, parent): groups with two and three completions, one of them continued twice, and single roots."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def forest() -> Layout:
    parts, start = [], 0
    for length, parent in LENGTHS:
        parts.append(Segment(start, length, parent))
        start += length
    ids = np.random.default_rng(0).integers(3, 128, start)
    return Layout.of(parts, ids.tolist())


def path_ids(layout: Layout, index: int) -> list[int]:
    """The tokens that the last one of a segment sees."""
    parts = [layout.segments[i] for i in layout.chain(index)]
    return [int(i) for part in parts for i in layout.token_ids_T[part.start : part.start + part.length]]


def unshared(layout: Layout) -> tuple[Layout, Tensor]:
    """Every segment with a copy of its chain, as roots side by side; rows of the segments' own tokens."""
    sequences = [path_ids(layout, i) for i in range(len(layout.segments))]
    ends = np.cumsum([len(sequence) for sequence in sequences])
    rows = [torch.arange(end - s.length, end) for end, s in zip(ends, layout.segments, strict=True)]
    return Layout.roots(sequences), torch.cat(rows)


def weighted_sum(logits_TV: Tensor) -> Tensor:
    """A loss that every logit counts in, differently."""
    weights = torch.randn(logits_TV.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (logits_TV * weights.to(logits_TV.dtype)).sum()


def gradients(
    model: Transformer, layout: Layout, rows: Tensor | None = None, **how: object
) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    hidden_TD = model(layout, **how)
    weighted_sum(model.logits(hidden_TD if rows is None else hidden_TD[rows])).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of a gradient, as a share of the largest value of its tensor."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max()) for n in ours)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str) -> None:
    model, _ = load_transformer(FIXTURES / name)
    with np.load(FIXTURES / name / "expected.npz") as expected, torch.no_grad():
        logits_STV = model.logits(model(Layout.roots(expected["ids_ST"].tolist()))).view(2, 64, -1).numpy()
        assert np.abs(logits_STV[0] - expected["logits_TV"]).max() <= 1e-4
        assert np.abs(logits_STV[:, -1] - expected["last_logits_SV"]).max() <= 1e-4


@pytest.mark.parametrize("name", ["gemma3", "llama_biases", "llama_rope_yarn", "qwen2", "qwen3_tied"])
def test_a_gguf_file_is_the_same_model(name: str, tmp_path: Path) -> None:
    folder_model, folder = load_transformer(FIXTURES / name)
    rope = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    rope |= {"rope.scaling.yarn_beta_fast": 4.0, "rope.scaling.yarn_beta_slow": 0.5}
    write_twin(tmp_path / "twin.gguf", folder, folder_model.config, **(rope if "yarn" in name else {}))
    model, _ = load_transformer(tmp_path / "twin.gguf")
    for (ours, a), (theirs, b) in zip(sorted(model.weights()), sorted(folder_model.weights()), strict=True):
        assert ours == theirs
        assert torch.equal(a, b)


@pytest.mark.parametrize("piece_tokens", [256, 4])
@pytest.mark.parametrize("kept_keys", [256, 0])
@pytest.mark.parametrize("name", ["gemma3_rope_linear", "llama_biases", "mistral_window", "qwen3_tied"])
def test_gradients_are_the_textbooks(
    name: str, kept_keys: int, piece_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed forest in f64 against each path alone, unfused and differentiated by autograd.

    mistral_window and gemma3 see 8 tokens, fewer than the prompts have. Also with segments cut into pieces
    of 4, and with probabilities computed again in the backward.
    """
    monkeypatch.setattr(segments, "PIECE_TOKENS", piece_tokens)
    monkeypatch.setattr(attention, "KEPT_KEYS", kept_keys)
    model, _ = load_transformer(FIXTURES / name, torch.float64)
    _assert_exact(model, forest())


def test_attention_softcap() -> None:
    """No family switches it on, but a config can hold it, and the engine computes it."""
    model, _ = load_transformer(FIXTURES / "llama_tied", torch.float64)
    capped = dataclasses.replace(model.config.attention, softcap=0.7)
    twin = Transformer(dataclasses.replace(model.config, attention=capped), dtype=torch.float64)
    twin.load_state_dict(model.state_dict())
    _assert_exact(twin, forest())


def _assert_exact(model: Transformer, layout: Layout) -> None:
    weights = {name: tensor.clone().requires_grad_() for name, tensor in model.weights()}
    expected_TV = expected_logits(weights, model.config, layout)
    with torch.no_grad():
        assert (model.logits(model(layout)) - expected_TV).abs().max() < 1e-12
    weighted_sum(expected_TV).backward()
    theirs = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    assert furthest(gradients(model, layout), theirs) < 1e-12


def expected_logits(weights: dict[str, Tensor], config: ModelConfig, layout: Layout) -> Tensor:
    rows = [
        naive_logits(weights, config, path_ids(layout, index))[-segment.length :]
        for index, segment in enumerate(layout.segments)
    ]
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["gemma3", "llama", "mistral_window", "qwen2_rope_yarn"])
def test_a_shared_prompt_is_an_unshared_one(name: str) -> None:
    """Logits and all gradients, in f32."""
    model, _ = load_transformer(FIXTURES / name)
    layout = forest()
    copies, rows = unshared(layout)
    with torch.no_grad():
        difference = model.logits(model(layout)) - model.logits(model(copies)[rows])
    assert difference.abs().max() < 1e-5
    assert furthest(gradients(model, layout), gradients(model, copies, rows)) < 1e-5


def test_packed_is_one_by_one() -> None:
    model, _ = load_transformer(FIXTURES / "qwen3")
    sequences = [np.random.default_rng(n).integers(3, 128, n).tolist() for n in (1, 17, 60, 16, 60, 33)]
    with torch.no_grad():
        packed = model(Layout.roots(sequences))
        alone = torch.cat([model(Layout.roots([sequence])) for sequence in sequences])
    assert (packed - alone).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gemma3", "llama"])
def test_the_gate_works_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """99 tokens in parts of 16: not a bit changes."""
    model, _ = load_transformer(FIXTURES / name)
    whole = gradients(model, forest())
    monkeypatch.setattr(operators, "CACHED_BYTES", 1)
    parts = gradients(model, forest())
    assert all(torch.equal(whole[n], parts[n]) for n in whole)


def test_many_scores_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_transformer(FIXTURES / "llama")
    with torch.no_grad():
        whole = model(forest())
        monkeypatch.setattr(segments, "BLOCK_SCORES", 50)
        assert (model(forest()) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gemma3", "llama_biases"])
def test_checkpointing_changes_nothing(name: str) -> None:
    """Not a bit; and the layers' tensors are really dropped."""
    model, _ = load_transformer(FIXTURES / name)
    plain = gradients(model, forest())
    again = gradients(model, forest(), checkpoint=True)
    assert all(torch.equal(plain[n], again[n]) for n in plain)
    assert saved_values(model, checkpoint=True) < 0.3 * saved_values(model, checkpoint=False)


def saved_values(model: Transformer, checkpoint: bool) -> int:
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(forest(), checkpoint=checkpoint)
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_can_be_added_in_place(dtype: torch.dtype | None) -> None:
    """Two micro-batches: into `.grad` inside the products, or by autograd."""
    model, _ = load_transformer(FIXTURES / "qwen2_tied")
    sums = []
    for adds in (False, True):
        model.adds_to_grad = adds
        model.zero_grad(set_to_none=True)
        for seed in (0, 1):
            ids = np.random.default_rng(seed).integers(3, 128, (2, 20)).tolist()
            hidden_TD = model(Layout.roots(ids), compute_dtype=dtype)
            weighted_sum(model.logits(hidden_TD, compute_dtype=dtype)).backward()
        sums.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert furthest(sums[1], sums[0]) < (1e-5 if dtype is None else 2e-3)


def test_frozen_weights_get_no_gradient() -> None:
    model, _ = load_transformer(FIXTURES / "qwen2_tied")
    whole = gradients(model, forest())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("k_proj" in name)
    part = gradients(model, forest())
    assert part.keys() == {name for name in whole if "k_proj" in name}
    assert furthest(part, {name: whole[name] for name in part}) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2_tied", "gemma3"])
def test_bf16_stays_near_f32(name: str) -> None:
    """Products in bf16: logits within 2 % of their spread, gradients within 3 % of their tensor's norm."""
    model, _ = load_transformer(FIXTURES / name)
    layout = forest()
    with torch.no_grad():
        exact = model.logits(model(layout))
        rough = model.logits(model(layout, compute_dtype=torch.bfloat16), compute_dtype=torch.bfloat16)
    assert 0 < (rough - exact).square().mean().sqrt() < 0.02 * exact.std()
    ours, theirs = gradients(model, layout, compute_dtype=torch.bfloat16), gradients(model, layout)
    for parameter, gradient in theirs.items():
        assert (ours[parameter] - gradient).norm() < 0.03 * gradient.norm(), parameter


def test_copies_follow_the_weights() -> None:
    """The bf16 matrices are made anew after a weight changed, and only then."""
    model, _ = load_transformer(FIXTURES / "llama")
    layout = forest()

    def hidden() -> Tensor:
        with torch.no_grad():
            return model(layout, compute_dtype=torch.bfloat16)

    before = hidden()
    qkv = next(model.layers).qkv
    made = qkv.matrix(torch.bfloat16, torch.device("cpu"))
    hidden()
    assert qkv.matrix(torch.bfloat16, torch.device("cpu")) is made
    changed = [p for name, p in model.named_parameters() if "v_proj" in name]
    with torch.no_grad():
        torch._foreach_mul_(changed, 1.5)
    fresh = Transformer(model.config)
    fresh.load_state_dict(model.state_dict())
    assert not torch.equal(hidden(), before)
    with torch.no_grad():
        assert torch.equal(hidden(), fresh(layout, compute_dtype=torch.bfloat16))


def test_the_matrices_of_one_input_are_not_copied() -> None:
    model, _ = load_transformer(FIXTURES / "qwen2")
    layer = next(model.layers)
    for projection in (layer.qkv, layer.gate_up):
        matrix = projection.matrix(torch.float32, torch.device("cpu"))
        assert matrix.data_ptr() == projection.linears[0].weight.data_ptr()
        assert torch.equal(matrix, torch.cat([linear.weight for linear in projection.linears]))


def test_scattered_matrices_work_too() -> None:
    """As after `.to(device)` or a copy of the module: no longer side by side."""
    model, _ = load_transformer(FIXTURES / "qwen2")
    with torch.no_grad():
        expected = model(forest())
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        assert torch.equal(model(forest()), expected)


def test_a_layout_is_checked() -> None:
    for parts in (
        [Segment(0, 2, None), Segment(3, 1, None)],
        [Segment(0, 3, None), Segment(3, 1, 1)],
        [Segment(0, 4, None), Segment(4, 0, None)],
        [Segment(0, 3, None)],
    ):
        with pytest.raises(EtudeError, match="segments"):
            Layout.of(parts, [1, 2, 3, 4])


def test_sharing_costs_what_it_should() -> None:
    """Attention blocks: the children of one prompt are one block, and its prompt no part of their queries."""
    layout = Layout.of(
        [Segment(0, 512, None), *(Segment(512 + 32 * i, 32, 0) for i in range(8))], [1] * (512 + 256)
    )
    blocks = segments.plan(layout, 0)
    assert [(block.n_pieces, block.n_tokens, block.prefix) for block in blocks] == [
        (1, 256, ()), (1, 256, ((0, 256),)), (8, 32, ((0, 512),))
    ]  # fmt: skip
    trimmed = segments.plan(layout, 100)[-1]
    assert (trimmed.prefix, trimmed.prefix_position) == (((413, 512),), 413)
