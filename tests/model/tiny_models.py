"""Tiny models for tests: transformers' fixtures, their GGUF twins, and weights for the reference decoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.kernels import reference, reference_quants
from etude.model.checkpoint import HFFolder, MatrixWeights, to_f32, weights_of
from etude.model.family import FAMILIES, ModelConfig
from etude.model.gguf import GGMLType, GGUFFile, write_gguf
from etude.model.names import NORMS, Place, gguf_name, place_of_hf

FIXTURES = Path(__file__).parent.parent / "data" / "peers" / "families"
NAMES = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}


def f32_weights(source: GGUFFile | HFFolder, config: ModelConfig) -> dict[tuple[str, int], reference.F32]:
    """All weights as f32 in the native order of rows, for `reference.decoder_logits`."""
    weights = {}
    for weight in weights_of(source, config):
        if isinstance(weight, MatrixWeights):
            values = reference_quants.dequantize(weight.type, weight.data, (weight.n, weight.k))
            values = values if weight.row_order is None else values[weight.row_order]
        else:
            values = weight.values
        weights[weight.slot, weight.layer] = values
    return weights


def hyperparameters(config: ModelConfig) -> reference.Hyperparameters:
    return reference.Hyperparameters(**config.native_arguments())


def gguf_metadata(config: ModelConfig) -> dict[str, Any]:
    """What llama.cpp's converter writes for a model without rope scaling of its own."""
    heads, arch = config.attention, config.architecture
    metadata: dict[str, Any] = {
        "block_count": config.n_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": heads.n_heads,
        "attention.head_count_kv": heads.n_kv_heads,
        "attention.key_length": heads.head_dim,
        "attention.value_length": heads.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": heads.head_dim,
        "rope.freq_base": config.rope_tables[0].base,
    }
    if any(heads.windows):
        metadata["attention.sliding_window"] = max(heads.windows)
        metadata["attention.sliding_window_pattern"] = np.array(heads.windows) > 0
        metadata["rope.freq_base_swa"] = config.rope_tables[1].base
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in metadata.items()}


def pairs_from_halves(values: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """LlamaModel.permute of llama.cpp's conversion/llama.py, as it stands there."""
    return (
        values.reshape(n_heads, 2, values.shape[0] // n_heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def to_gguf(values: NDArray[Any], place: Place, config: ModelConfig) -> NDArray[np.float32]:
    """A Hugging Face tensor as the converter stores it: llama's q and k rows as pairs, gemma's norms + 1."""
    n_heads = {"attn_q": config.attention.n_heads, "attn_k": config.attention.n_kv_heads}
    stem = place.slot.removesuffix("_bias")
    if config.architecture == "llama" and stem in n_heads:
        values = pairs_from_halves(values, n_heads[stem])
    if place.slot in NORMS:
        values = values + np.float32(FAMILIES[config.architecture].hf_norm_offset)
    return np.ascontiguousarray(values, np.float32)


def write_twin(path: Path, folder: HFFolder, config: ModelConfig, **metadata: Any) -> None:
    """The folder's model as an F32 GGUF file. metadata: more keys, without the architecture's prefix."""

    def tensors() -> Iterator[tuple[str, NDArray[Any], GGMLType]]:
        for name in folder.files:
            place = place_of_hf(config.architecture, name)
            if place is not None and not (place.slot == "output" and config.tied_embeddings):
                yield gguf_name(place), to_gguf(to_f32(*folder.array(name)), place, config), GGMLType.F32

    more = {f"{config.architecture}.{key}": value for key, value in metadata.items()}
    write_gguf(path, gguf_metadata(config) | more, tensors())


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """A safetensors file; uint16 arrays are stored as BF16."""
    header, data = {}, b""
    for name, values in tensors.items():
        end = len(data) + values.nbytes
        dtype = SAFETENSORS_DTYPES[str(values.dtype)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), end]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
