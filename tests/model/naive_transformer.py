"""The transformer as a textbook has it: one unpacked sequence, a full mask, autograd's own gradients.

Written apart from etude/model/transformer.py, for any dtype; f64 is the truth that packed, shared and fused
computation is held against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from etude.model.family import FAMILIES, ModelConfig
from etude.model.names import Place, hf_name
from etude.model.rope import inv_freqs

Weights = Mapping[str, Tensor]


def naive_hidden(weights: Weights, config: ModelConfig, ids: Sequence[int]) -> Tensor:
    """hidden_TD of one sequence after the final norm."""
    get = _Layer(weights, config, -1)
    x_TD = get.weights["model.embed_tokens.weight"][torch.tensor(ids)] * config.embedding_scale
    for index in range(config.n_layers):
        layer = _Layer(weights, config, index)
        x_TD = x_TD + layer.norm("post_attention_norm", layer.attention(layer.norm("attn_norm", x_TD)))
        h_TD = layer.norm("ffn_norm", x_TD)
        act = torch.nn.functional.silu if config.activation == "silu" else _gelu
        fed = layer.linear("ffn_down", act(layer.linear("ffn_gate", h_TD)) * layer.linear("ffn_up", h_TD))
        x_TD = x_TD + layer.norm("post_ffw_norm", fed)
    return get.norm("output_norm", x_TD)


def naive_logits(weights: Weights, config: ModelConfig, ids: Sequence[int]) -> Tensor:
    """logits_TV of one sequence."""
    name = "model.embed_tokens.weight" if config.tied_embeddings else "lm_head.weight"
    logits_TV = naive_hidden(weights, config, ids) @ weights[name].T
    cap = config.logit_softcap
    return cap * torch.tanh(logits_TV / cap) if cap else logits_TV


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class _Layer:
    def __init__(self, weights: Weights, config: ModelConfig, index: int) -> None:
        self.weights, self.config, self.index = weights, config, index

    def find(self, slot: str) -> Tensor | None:
        try:
            return self.weights.get(hf_name(self.config.architecture, Place(slot, self.index)))
        except KeyError:
            return None

    def linear(self, slot: str, x: Tensor) -> Tensor:
        weight, bias = self.find(slot), self.find(slot + "_bias")
        assert weight is not None
        y = x @ weight.T
        adapter = self.weights.get(f"{slot}.{self.index}.a")
        if adapter is not None:
            y = y + self.weights["scale"] * (x @ adapter.T) @ self.weights[f"{slot}.{self.index}.b"].T
        return y if bias is None else y + bias

    def norm(self, slot: str, x: Tensor) -> Tensor:
        weight = self.find(slot)
        if weight is None:
            return x
        offset = FAMILIES[self.config.architecture].hf_norm_offset
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.config.norm_eps) * (weight + offset)

    def attention(self, x_TD: Tensor) -> Tensor:
        heads, n_tokens = self.config.attention, len(x_TD)
        table = self.config.rope_tables[self.config.rope_of_layer[self.index]]
        positions = torch.arange(n_tokens, dtype=torch.float32)
        angles = (positions[:, None] * torch.from_numpy(inv_freqs(table))).to(x_TD.dtype)[:, None]
        cos, sin = angles.cos() * table.magnitude, angles.sin() * table.magnitude

        def turned(slot: str, count: int) -> Tensor:
            x = self.norm(f"{slot}_norm", self.linear(slot, x_TD).view(n_tokens, count, heads.head_dim))
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        share = heads.n_heads // heads.n_kv_heads
        q, k = turned("attn_q", heads.n_heads), turned("attn_k", heads.n_kv_heads)
        v = self.linear("attn_v", x_TD).view(n_tokens, heads.n_kv_heads, heads.head_dim)
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = torch.einsum("thd,shd->hts", q, k) * heads.scale
        if heads.softcap:
            scores = heads.softcap * torch.tanh(scores / heads.softcap)
        window = heads.windows[self.index]
        distance = torch.arange(n_tokens)[:, None] - torch.arange(n_tokens)[None]
        hidden = (distance < 0) | ((distance >= window) if window else torch.tensor(False))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.linear("attn_output", torch.einsum("hts,shd->thd", weights, v).flatten(1))
