"""The models of etude/model/family.py in torch: packed tokens in, hidden states out, exact gradients.

    model, source = load_transformer("smollm2-135m")
    hidden_TD = model(Layout.roots([ids]))
    logits_NV = model.logits(hidden_TD[rows])

There is no cache and no padding, see segments.py. Parameters have Hugging Face's names, layout and order of
rows, so `weights()` is a checkpoint, and what `Engine.load_weights` takes. All that decides speed is in
projections.py (products), operators.py (everything between them) and attention.py.

T packed tokens, D width of the model, E values of a head, N chosen rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from etude.model.attention import AttentionPlan, attention, plan_attention
from etude.model.checkpoint import HFFolder, config_of, open_source
from etude.model.family import FAMILIES, ModelConfig, layer_slots, slot_shape
from etude.model.gguf import GGUFFile
from etude.model.heads import vocabulary_logits
from etude.model.hf_tensors import hf_tensors, places_of
from etude.model.names import LAYER_BIASES, Place, hf_name
from etude.model.operators import HeadShape, embedding, gated, gated_values, heads_of, rms_norm
from etude.model.projections import Adapter, Arithmetic, Linear, Projection, side_by_side
from etude.model.pull import resolve
from etude.model.rope import RopeTable, inv_freqs
from etude.model.segments import Layout, Segment
from etude.records import EtudeError

__all__ = ["Adapter", "Layout", "Linear", "Segment", "Transformer", "load_transformer"]

Source = GGUFFile | HFFolder

_PRODUCTS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""Slots whose matrices have the same input."""


@dataclass(frozen=True)
class Surroundings:
    """What a layer needs to know of a pack: rotations cos, sin, each (T, E/2), and attention's blocks."""

    cos_TF: Tensor
    sin_TF: Tensor
    plan: AttentionPlan


class Norm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight)."""

    def __init__(
        self, n: int, eps: float, offset: float, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, dtype=dtype, device=device))
        self.eps = eps
        self.offset = offset

    def forward(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        return rms_norm(x_TD, self.weight, self.offset, self.eps, dtype)

    def again(self, x_TD: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
        """Computes the same once more, without a gradient."""

        def values() -> Tensor:
            with torch.no_grad():
                y_TD: Tensor = self(x_TD.detach(), dtype)
            return y_TD

        return values

    def multiplier(self) -> Tensor:
        return self.weight + self.offset if self.offset else self.weight


class Layer(nn.Module):
    """One block; the order of norms is that of `etude.kernels.reference.decoder_hidden`."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        biases: frozenset[str],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.index = index
        self.activation = config.activation
        self.self_attn = nn.Module()
        self.mlp = nn.Module()
        heads = config.attention
        self.shape = HeadShape(heads.n_heads, heads.n_kv_heads, heads.head_dim, heads.scale, config.norm_eps)
        self._norms: dict[str, Norm] = {}
        for slot in layer_slots(config):
            shape = slot_shape(config, slot)
            if slot not in LAYER_BIASES and len(shape) == 1:
                offset = FAMILIES[config.architecture].hf_norm_offset
                self._norms[slot] = Norm(shape[0], config.norm_eps, offset, dtype, device)
                self._place(config, slot, self._norms[slot])
        self.qkv, self.out, self.gate_up, self.down = (
            self._projection(config, slots, biases, dtype, device) for slots in _PRODUCTS
        )

    def _place(self, config: ModelConfig, slot: str, module: nn.Module) -> tuple[nn.Module, str]:
        """Register a module under Hugging Face's name; its owner, and its name there."""
        path = hf_name(config.architecture, Place(slot, self.index)).split(".", 3)[3].removesuffix(".weight")
        owner_path, _, name = path.rpartition(".")
        owner = self.get_submodule(owner_path)
        owner.add_module(name, module)
        return owner, name

    def _projection(
        self,
        config: ModelConfig,
        slots: tuple[str, ...],
        biases: frozenset[str],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Projection:
        shapes = [slot_shape(config, slot) for slot in slots]
        biased = [f"{slot}_bias" in biases for slot in slots]
        linears = side_by_side([shape[0] for shape in shapes], shapes[0][1], biased, dtype, device)
        placed = [self._place(config, slot, linear) for slot, linear in zip(slots, linears, strict=True)]
        return Projection(placed[0][0], [name for _, name in placed])

    def forward(self, x_TD: Tensor, around: Surroundings, how: Arithmetic) -> Tensor:
        """The stream after this layer."""
        stream = x_TD.dtype
        attended_TD = self._attention(x_TD, around, how)
        if "post_attention_norm" in self._norms:
            attended_TD = self._norms["post_attention_norm"](attended_TD, stream)
        x_TD = x_TD + attended_TD
        norm = self._norms["ffn_norm"]
        gate_up_TN = self.gate_up(norm(x_TD, how.dtype), how, norm.again(x_TD, how.dtype))
        fed_TD = self.down(
            gated(gate_up_TN, self.activation),
            how,
            again=lambda: gated_values(gate_up_TN.detach(), self.activation),
        )
        if "post_ffw_norm" in self._norms:
            fed_TD = self._norms["post_ffw_norm"](fed_TD, stream)
        return x_TD + fed_TD

    def _attention(self, x_TD: Tensor, around: Surroundings, how: Arithmetic) -> Tensor:
        norm = self._norms["attn_norm"]
        q_norm, k_norm = self._norms.get("attn_q_norm"), self._norms.get("attn_k_norm")
        q, k, v = heads_of(
            self.qkv(norm(x_TD, how.dtype), how, norm.again(x_TD, how.dtype)),
            around.cos_TF,
            around.sin_TF,
            self.shape,
            None if q_norm is None else q_norm.multiplier(),
            None if k_norm is None else k_norm.multiplier(),
        )
        return self.out(attention(q, k, v, around.plan, how.dtype), how)


class Transformer(nn.Module):
    """A model of one of the families.

    adds_to_grad: weight gradients are added to `.grad` where there is one already, inside the products, and
    are not passed on (hooks and `torch.autograd.grad` do not see them). Saves a pass over all weights for
    each micro-batch after the first.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        biases: frozenset[str] | None = None,
    ) -> None:
        """Weights are not initialised: load them, or `initialize`. biases: slots of names.LAYER_BIASES that
        the layers have; None for those that the family requires."""
        super().__init__()
        self.config = config
        self.adds_to_grad = False
        self.biases = frozenset(LAYER_BIASES).intersection(layer_slots(config)) if biases is None else biases
        d, offset = config.d_model, FAMILIES[config.architecture].hf_norm_offset
        [embed] = side_by_side([config.n_vocab], d, [False], dtype, device)
        self.model = nn.Module()
        self.model.embed_tokens = embed
        layers = [Layer(config, index, self.biases, dtype, device) for index in range(config.n_layers)]
        self.model.layers = nn.ModuleList(layers)
        self.model.norm = Norm(d, config.norm_eps, offset, dtype, device)
        if not config.tied_embeddings:
            [self.lm_head] = side_by_side([config.n_vocab], d, [False], dtype, device)
        self._embedding = Projection(self.model, ["embed_tokens"])
        self._head = self._embedding if config.tied_embeddings else Projection(self, ["lm_head"])

    def initialize(self, generator: torch.Generator | None = None, std: float = 0.02) -> Transformer:
        """Random weights: normal matrices, neutral norms, zero biases."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, Norm):
                    module.weight.fill_(1.0 - module.offset)
                elif isinstance(module, Linear) and module.weight is not None:
                    module.weight.normal_(0.0, std, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
        return self

    @property
    def stream_dtype(self) -> torch.dtype:
        """Of the stream between layers, of norms, rotations and softmax: that of the norms' weights."""
        return self.final_norm.weight.dtype

    @property
    def final_norm(self) -> Norm:
        norm = self.model.norm
        assert isinstance(norm, Norm)
        return norm

    @property
    def head_weight(self) -> nn.Parameter | None:
        """The matrix (V, D) of the logits: the embedding where the two are tied."""
        return self._head.linears[0].weight

    @property
    def layers(self) -> Iterator[Layer]:
        return (layer for layer in self.model.get_submodule("layers").children() if isinstance(layer, Layer))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, tensor without gradient) of all weights held as tensors; no adapters."""
        for name, parameter in self.named_parameters():
            if ".adapter." not in name:
                yield name, parameter.detach()

    def forward(
        self,
        layout: Layout,
        *,
        checkpoint: bool = False,
        compute_dtype: torch.dtype | None = None,
        adapters: bool = True,
    ) -> Tensor:
        """hidden_TD after the final norm, in the stream's dtype.

        checkpoint: keep only the stream between layers, and compute each layer again in the backward.
        compute_dtype: of the products (None: the stream's). adapters: False is the model without them.
        """
        how = Arithmetic(
            compute_dtype or self.stream_dtype, adapters, self.adds_to_grad, remakes=not checkpoint
        )
        surroundings = self._surroundings(layout)
        x_TD = self._embedded(layout.token_ids_T, how)
        for layer in self.layers:
            if checkpoint and torch.is_grad_enabled():
                x_TD = checkpointed(layer, x_TD, surroundings[layer.index], how, use_reentrant=False)
            else:
                x_TD = layer(x_TD, surroundings[layer.index], how)
        hidden_TD: Tensor = self.final_norm(x_TD, self.stream_dtype)
        return hidden_TD

    def logits(self, hidden_ND: Tensor, *, compute_dtype: torch.dtype | None = None) -> Tensor:
        """logits_NV of the chosen rows, softcap applied, in the stream's dtype."""
        how = Arithmetic(
            compute_dtype or self.stream_dtype, adapters=False, adds=self.adds_to_grad, remakes=False
        )
        return vocabulary_logits(hidden_ND, self._head, how, self.config.logit_softcap)

    def forget_copies(self) -> None:
        """Give the memory of weights in the compute dtype back, until they are next needed."""
        self._embedding.forget()
        self._head.forget()
        for layer in self.layers:
            for projection in (layer.qkv, layer.out, layer.gate_up, layer.down):
                projection.forget()

    def _embedded(self, token_ids_T: Tensor, how: Arithmetic) -> Tensor:
        scale, [linear] = self.config.embedding_scale, self._embedding.linears
        if linear.weight is not None:
            return embedding(token_ids_T, linear.weight, scale, how.dtype, how.adds)
        return linear.rows(token_ids_T).to(self.stream_dtype).mul_(scale)

    def _surroundings(self, layout: Layout) -> list[Surroundings]:
        """By layer; layers with the same rotations and window share them."""
        config = self.config
        ropes = [self._rope(table, layout.positions_T) for table in config.rope_tables]
        plans = {
            window: plan_attention(layout, window, config.attention.softcap, self.stream_dtype)
            for window in set(config.attention.windows)
        }
        pairs = zip(config.rope_of_layer, config.attention.windows, strict=True)
        return [Surroundings(*ropes[rope], plans[window]) for rope, window in pairs]

    def _rope(self, table: RopeTable, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, (T, E/2). The angle is one f32 product, as in the engine."""
        frequency_F = torch.from_numpy(inv_freqs(table)).to(positions_T.device)
        angles_TF = (positions_T.to(torch.float32)[:, None] * frequency_F[None]).to(self.stream_dtype)
        return angles_TF.cos().mul_(table.magnitude), angles_TF.sin().mul_(table.magnitude)


def load_transformer(
    model: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    download: bool = True,
) -> tuple[Transformer, Source]:
    """A GGUF file (dequantised), a Hugging Face folder, or a name that `etude pull` knows.

    EtudeError as `resolve` and `config_of`. The source stays open: saving copies tokenizer and settings from
    it.
    """
    source = open_source(resolve(model, download=download))
    config = config_of(source)
    places = places_of(source, config)
    biases = frozenset(place.slot for place in places if place.slot in LAYER_BIASES)
    transformer = Transformer(config, dtype=dtype, device=device, biases=biases)
    missing = dict(transformer.named_parameters())
    with torch.no_grad():
        for name, values in hf_tensors(source, config):
            missing.pop(name).copy_(torch.from_numpy(np.ascontiguousarray(values)))
    if missing:
        raise EtudeError(
            f"{source.path}: {sorted(missing)[0]} is missing; some layers have it and some have not"
        )
    return transformer, source
