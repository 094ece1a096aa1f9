"""The models of etude/model/family.py in torch: packed tokens in, hidden states out, exact gradients.

    model, source = load_transformer("smollm2-135m")
    hidden_TD = model(Layout.roots([ids]))
    logits_NV = model.logits(hidden_TD[rows])

There is no cache and no padding, see segments.py. Parameters have Hugging Face's names, layout and order of
rows, so `state_dict()` is a checkpoint, and `named_parameters()` what `Engine.load_weights` takes. A module
that stands in for a projection (LoRA) is called by itself: x_TK in the compute dtype -> y_TN in the same.

T packed tokens, D width of the model, H query heads, G key/value heads, N chosen rows, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from etude.model.checkpoint import HFFolder, config_of, open_source
from etude.model.family import FAMILIES, ModelConfig, layer_slots, slot_shape
from etude.model.gguf import GGUFFile
from etude.model.hf_tensors import hf_tensors, places_of
from etude.model.names import LAYER_BIASES, Place, hf_name
from etude.model.pull import resolve
from etude.model.rope import inv_freqs
from etude.model.segments import Layout, Segment
from etude.records import EtudeError

__all__ = ["Layout", "Segment", "Transformer", "load_transformer"]

Source = GGUFFile | HFFolder


class Linear(nn.Module):
    """y = x W^T + b, in the dtype of x."""

    def __init__(self, n: int, k: int, bias: bool, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, k, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(n, dtype=dtype, device=device)) if bias else None

    def forward(self, x_TK: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_TK.dtype)
        return F.linear(x_TK, self.weight.to(x_TK.dtype), bias)


class Norm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight), arXiv:1910.07467, in the dtype of the weight."""

    def __init__(
        self, n: int, eps: float, offset: float, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, dtype=dtype, device=device))
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return scaled * (self.weight + self.offset)


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
        self.config = config
        self.self_attn = nn.Module()
        self.mlp = nn.Module()
        offset = FAMILIES[config.architecture].hf_norm_offset
        for slot in layer_slots(config):
            if slot in LAYER_BIASES:
                continue
            module: nn.Module
            shape = slot_shape(config, slot)
            if len(shape) == 2:
                module = Linear(*shape, f"{slot}_bias" in biases, dtype, device)
            else:
                module = Norm(shape[0], config.norm_eps, offset, dtype, device)
            path = hf_name(config.architecture, Place(slot, index)).split(".", 3)[3]
            owner, _, name = path.removesuffix(".weight").rpartition(".")
            self.get_submodule(owner).add_module(name, module)

    def forward(
        self, x_TD: Tensor, layout: Layout, rope: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> Tensor:
        """The residual stream after this layer."""
        gemma = self.config.architecture == "gemma3"
        attended = self._attention(self.input_layernorm(x_TD).to(dtype), layout, rope)
        if gemma:
            x_TD = x_TD + self.post_attention_layernorm(attended)
            h_TD = self.pre_feedforward_layernorm(x_TD).to(dtype)
        else:
            x_TD = x_TD + attended.to(x_TD.dtype)
            h_TD = self.post_attention_layernorm(x_TD).to(dtype)
        act = F.silu if self.config.activation == "silu" else lambda x: F.gelu(x, approximate="tanh")
        fed = self.mlp.down_proj(act(self.mlp.gate_proj(h_TD)) * self.mlp.up_proj(h_TD))
        return x_TD + (self.post_feedforward_layernorm(fed) if gemma else fed.to(x_TD.dtype))

    def _attention(self, h_TD: Tensor, layout: Layout, rope: tuple[Tensor, Tensor]) -> Tensor:
        heads = self.config.attention
        attn = self.self_attn
        q_THE = attn.q_proj(h_TD).view(-1, heads.n_heads, heads.head_dim)
        k_TGE = attn.k_proj(h_TD).view(-1, heads.n_kv_heads, heads.head_dim)
        v_TGE = attn.v_proj(h_TD).view(-1, heads.n_kv_heads, heads.head_dim).to(rope[0].dtype)
        if hasattr(attn, "q_norm"):
            q_THE, k_TGE = attn.q_norm(q_THE), attn.k_norm(k_TGE)
        q_THE, k_TGE = rotated(q_THE, *rope), rotated(k_TGE, *rope)
        out = torch.cat(
            [self._segment(q_THE, k_TGE, v_TGE, layout, index) for index in range(len(layout.segments))]
        )
        return attn.o_proj(out.flatten(1).to(h_TD.dtype))

    def _segment(self, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout, index: int) -> Tensor:
        heads, window = self.config.attention, self.config.attention.windows[self.index]
        start, length, _ = layout.segments[index]
        parts = [layout.segments[i] for i in layout.chain(index)]
        rows = torch.cat([torch.arange(s.start, s.start + s.length) for s in parts]).to(q_THE.device)
        share = heads.n_heads // heads.n_kv_heads
        k_SHE = k_TGE[rows].repeat_interleave(share, 1)
        v_SHE = v_TGE[rows].repeat_interleave(share, 1)
        scores = torch.einsum("thd,shd->hts", q_THE[start : start + length], k_SHE) * heads.scale
        if heads.softcap:
            scores = heads.softcap * torch.tanh(scores / heads.softcap)
        positions = layout.positions_T
        distance = positions[start : start + length, None] - positions[rows][None]
        hidden = (distance < 0) | (distance >= window if window else False)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", weights, v_SHE)


def rotated(x_THE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + E/2) turned by their angles; (a, b) -> (a cos - b sin, b cos + a sin)."""
    a, b = x_THE.to(cos.dtype).chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


class Transformer(nn.Module):
    """A model of one of the families. `biases`: slots of names.LAYER_BIASES that its layers have."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        biases: frozenset[str] | None = None,
    ) -> None:
        """Weights are not initialised: load them, or `initialize`. biases None: those the family requires."""
        super().__init__()
        self.config = config
        if biases is None:
            biases = frozenset(LAYER_BIASES).intersection(layer_slots(config))
        self.biases = biases
        d, offset = config.d_model, FAMILIES[config.architecture].hf_norm_offset
        self.model = nn.Module()
        self.model.embed_tokens = Linear(config.n_vocab, d, False, dtype, device)
        self.model.layers = nn.ModuleList(
            Layer(config, index, biases, dtype, device) for index in range(config.n_layers)
        )
        self.model.norm = Norm(d, config.norm_eps, offset, dtype, device)
        if not config.tied_embeddings:
            self.lm_head = Linear(config.n_vocab, d, False, dtype, device)

    def initialize(self, generator: torch.Generator | None = None, std: float = 0.02) -> Transformer:
        """Random weights: normal matrices, neutral norms, zero biases."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, Norm):
                    module.weight.fill_(1.0 - module.offset)
                elif isinstance(module, Linear):
                    module.weight.normal_(0.0, std, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
        return self

    def forward(
        self, layout: Layout, *, checkpoint: bool = False, compute_dtype: torch.dtype | None = None
    ) -> Tensor:
        """hidden_TD after the final norm, in the dtype of the weights.

        checkpoint: keep only the stream between layers and compute each layer again in the backward.
        compute_dtype: of the products (default: the weights'); norms, rope and softmax stay in the weights'.
        """
        dtype = compute_dtype or self.model.norm.weight.dtype
        ropes = self._ropes(layout.positions_T)
        x_TD = F.embedding(layout.token_ids_T, self.model.embed_tokens.weight) * self.config.embedding_scale
        for layer in self.model.layers:
            rope = ropes[self.config.rope_of_layer[layer.index]]
            if checkpoint and torch.is_grad_enabled():
                x_TD = checkpointed(layer, x_TD, layout, rope, dtype, use_reentrant=False)
            else:
                x_TD = layer(x_TD, layout, rope, dtype)
        return self.model.norm(x_TD)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV of the chosen rows, softcap applied."""
        head = self.model.embed_tokens if self.config.tied_embeddings else self.lm_head
        logits_NV = head(hidden_ND)
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits_NV / cap) if cap else logits_NV

    def _ropes(self, positions_T: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(cos, sin), each (T, E/2), of every table. The angle is one f32 product, as in the engine."""
        ropes = []
        for table in self.config.rope_tables:
            inv_freq = torch.from_numpy(inv_freqs(table)).to(positions_T.device)
            angles = positions_T.to(torch.float32)[:, None] * inv_freq[None]
            dtype = self.model.norm.weight.dtype
            ropes.append(
                (angles.cos().mul(table.magnitude).to(dtype), angles.sin().mul(table.magnitude).to(dtype))
            )
        return ropes


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
