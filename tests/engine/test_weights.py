"""A trainer's tensors into the native model: converted to what a place holds, or refused before
anything changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.engine.loader import LoadedModel, load_model
from etude.engine.weights import converted, held_type, read_update, set_update
from etude.kernels.reference_quants import dequantize, quantize
from etude.model.checkpoint import HFFolder, MatrixWeights, to_f32
from etude.model.quants import GGMLType, block_bytes
from etude.records import EtudeError
from tests.engine.test_dlpack import bf16
from tests.model.tiny_models import FIXTURES, NAMES


def load(name: str, weight_type: str | None = None) -> LoadedModel:
    return load_model(FIXTURES / name, rope=None, weight_type=weight_type)


def tensors_of(name: str) -> dict[str, Any]:
    """What a trainer of a fixture would send, as f32."""
    with HFFolder.open(FIXTURES / name) as folder:
        return {tensor: np.array(to_f32(*folder.array(tensor))) for tensor in folder.files}


def update(model: LoadedModel, tensors: dict[str, Any]) -> None:
    set_update(model.native, read_update(model.config, model.native, tensors.items()))


def snapshot(model: LoadedModel) -> list[bytes]:
    slots = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    places = [
        ("token_embd", -1),
        *((slot, layer) for slot in slots for layer in range(model.config.n_layers)),
    ]
    return [model.native.dequantize(*place).tobytes() for place in places]


@pytest.mark.parametrize("name", NAMES)
def test_sending_all_tensors_is_loading_them(name: str) -> None:
    """The native model after an update equals one loaded from the same tensors, whatever it held before."""
    model, tensors = load(name), tensors_of(name)
    before = snapshot(model)
    update(model, {key: values * np.float32(0.5) for key, values in tensors.items()})
    assert snapshot(model) != before
    update(model, tensors)
    assert snapshot(model) == before


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("sent", ["f32", "f16", "bf16"])
def test_conversions(kind: str, sent: str) -> None:
    model = load("llama", kind)
    values = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    tensor = {"f32": values, "f16": values.astype(np.float16), "bf16": bf16(values)}[sent]
    exact = {
        "f32": values,
        "f16": values.astype(np.float16).astype(np.float32),
        "bf16": (values.view(np.uint32) >> 16 << 16).view(np.float32),
    }[sent]
    update(model, {"model.layers.1.mlp.down_proj.weight": tensor})
    wanted = GGMLType[kind.upper()]
    expected = dequantize(wanted, quantize(wanted, exact).reshape(-1), exact.shape)
    assert np.array_equal(model.native.dequantize("ffn_down", 1), expected)


def test_one_tensor_changes_one_place() -> None:
    model = load("llama")
    before = snapshot(model)
    update(model, {"model.layers.0.self_attn.q_proj.weight": np.zeros((64, 32), np.float32)})
    changed = [at for at, (old, new) in enumerate(zip(before, snapshot(model), strict=True)) if old != new]
    assert changed == [1]


def wrong(name: str, values: Any) -> dict[str, Any]:
    """A good tensor first, then a bad one."""
    return {"model.layers.0.self_attn.q_proj.weight": np.zeros((64, 32), np.float32), name: values}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            wrong("model.layers.0.mlp.gate.weight", np.zeros((2, 2), np.float32)),
            "is not part of a llama model",
        ),
        (wrong("model.layers.7.mlp.up_proj.weight", np.zeros((64, 32), np.float32)), "layer 7"),
        (wrong("model.layers.1.mlp.up_proj.weight", np.zeros((32, 64), np.float32)), r"shape \(32, 64\)"),
        (wrong("model.layers.1.mlp.up_proj.weight", np.zeros((64, 32))), "float64"),
        (
            wrong("language_model.model.layers.0.self_attn.q_proj.weight", np.zeros((64, 32), np.float32)),
            "comes twice",
        ),
    ],
)
def test_a_bad_tensor_changes_nothing(tensors: dict[str, Any], message: str) -> None:
    model = load("llama")
    before = snapshot(model)
    with pytest.raises(EtudeError, match=message):
        update(model, tensors)
    assert snapshot(model) == before


def test_a_quantised_place_says_how_to_load(smollm2: Path) -> None:
    model = load_model(smollm2, rope=None, weight_type=None)
    tensor = np.zeros((576, 576), np.float32)
    with pytest.raises(EtudeError, match=r"is held as Q4_1, .* load the model with weight_type='bf16'"):
        read_update(model.config, model.native, [("model.layers.0.self_attn.q_proj.weight", tensor)])


def test_rare_types_are_held_as_q8_0() -> None:
    """IQ2_XXS has no kernel of its own; eight bits keep its values to a quarter of a percent of a block's."""
    kind = GGMLType.IQ2_XXS
    data = np.random.default_rng(0).integers(0, 256, (4, 2, block_bytes(kind)), np.uint8)
    data[..., :2] = np.array([0.01], np.float16).view(np.uint8)  # the scale of each block
    weight = MatrixWeights("attn_q", 0, kind, 4, 512, data.reshape(-1), None, "blk.0.attn_q.weight")
    assert held_type(weight, None) == GGMLType.Q8_0
    assert held_type(weight, GGMLType.BF16) == GGMLType.BF16
    exact = dequantize(kind, weight.data, (4, 512))
    held = dequantize(GGMLType.Q8_0, converted(weight, GGMLType.Q8_0), (4, 512))
    assert np.abs(held - exact).max() <= np.abs(exact).max() / 250


def test_rows_that_q8_0_cannot_hold() -> None:
    weight = MatrixWeights(
        "attn_q", 0, GGMLType.F32, 2, 48, np.zeros(2 * 48 * 4, np.uint8), None, "blk.0.attn_q.weight"
    )
    with pytest.raises(EtudeError, match=r"rows of 48 values, which Q8_0 cannot hold .* weight_type='bf16'"):
        converted(weight, GGMLType.Q8_0)


def test_a_tied_head_must_equal_the_embedding() -> None:
    model, tensors = load("llama_tied"), tensors_of("llama_tied")
    embedding = tensors["model.embed_tokens.weight"]
    update(model, {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.copy()})
    with pytest.raises(EtudeError, match=r"lm_head.weight differs"):
        update(model, {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding + np.float32(1)})
    with pytest.raises(EtudeError, match=r"lm_head.weight differs .*or came without it"):
        update(model, {"lm_head.weight": embedding})
