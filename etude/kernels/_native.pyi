"""The native module as Python sees it.

All arrays are C-contiguous; sizes are checked, and a wrong one is a ValueError. Axes: T tokens of a step,
S sequences, R rows whose next-token distribution is wanted, P pages, V vocabulary.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]

def isa() -> str:
    """The instruction-set path: avx512, avx2 or portable. ETUDE_ISA forces one, at import."""

class Pool:
    """Persistent threads that spin briefly, then sleep."""

    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Model:
    """Hyperparameters and packed weights; rows of q and k are in Hugging Face's order (rope by halves).

    windows (n_layers,): sliding window in tokens, 0 is full attention. rope_of_layer (n_layers,): row of
    inv_freqs (tables, rope_dim / 2). rope_scales (tables,): factor on cos and sin. A softcap of 0 is off.
    activation: silu or gelu_tanh.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        d_ff: int,
        n_vocab: int,
        norm_eps: float,
        attention_scale: float,
        embedding_scale: float,
        logit_softcap: float,
        attention_softcap: float,
        activation: str,
        windows: I32,
        rope_of_layer: I32,
        inv_freqs: F32,
        rope_scales: F32,
    ) -> None: ...
    def set_matrix(
        self,
        slot: str,
        layer: int,
        ggml_type: int,
        n: int,
        k: int,
        data: U8,
        row_order: I32 | None = None,
    ) -> None:
        """Pack (n, k) blocks; packed row i comes from row row_order[i] of `data`.

        Slots: token_embd and output at layer -1 (without output, token_embd gives the logits too); attn_q
        attn_k attn_v attn_output ffn_gate ffn_up ffn_down.
        """

    def set_vector(self, slot: str, layer: int, values: F32) -> None:
        """output_norm at layer -1; attn_norm ffn_norm attn_q_norm attn_k_norm post_attention_norm
        post_ffw_norm attn_q_bias attn_k_bias attn_v_bias attn_output_bias. Norms are the multiplier itself.
        """

    def dequantize(self, slot: str, layer: int) -> F32:
        """(n, k): what the kernels multiply with."""

    def matrix_type(self, slot: str, layer: int) -> int: ...
    def check(self) -> None:
        """ValueError with the name of the first tensor that is missing."""

    @property
    def weight_bytes(self) -> int: ...

class Cache:
    """Keys and values in pages of `page_tokens` positions (a multiple of 32) of all layers.

    Types: f32, f16, bf16, q8_0. Which page belongs to whom is the caller's business.
    """

    def __init__(self, model: Model, n_pages: int, page_tokens: int, type_k: str, type_v: str) -> None: ...
    @property
    def n_pages(self) -> int: ...
    @property
    def page_tokens(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @staticmethod
    def bytes_per_page(model: Model, page_tokens: int, type_k: str, type_v: str) -> int: ...
    def copy_page(self, src: int, dst: int) -> None: ...
    def release(self) -> None:
        """Forget the contents of all pages, and give their memory back until they are written again."""

    def export_page(self, page: int) -> bytes: ...
    def import_page(self, page: int, data: bytes) -> None: ...
    def shift(
        self, model: Model, src_pages: I32, dst_pages: I32, length: int, keep: int, discard: int
    ) -> None:
        """Context shift: tokens [0, keep) stay, [keep + discard, length) move down by `discard`, K rotated.

        The tables may share whole leading pages below `keep`; all other pages must differ.
        """

class Adapter:
    """LoRA: y += request's scale * scale * B (A x); scale = alpha / rank."""

    def __init__(self, model: Model, scale: float) -> None: ...
    def set(self, slot: str, layer: int, a: F32, b: F32) -> None:
        """a (rank, k), b (n, rank). "output", -1 is the head, also where it is tied to the embedding."""

class Breakers:
    """DRY's sequence breakers as token sequences, shared by samplers."""

    def __init__(self, sequences: list[list[int]]) -> None: ...

class Sampler:
    """State of one completion; settings as in reference_sampler.OFF, and `samplers`, the order."""

    def __init__(self, n_vocab: int, seed: int, index: int, **chain: Any) -> None: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def reads_history(self) -> bool:
        """Whether prompt tokens matter: penalties and DRY."""

    def accept(self, token_id: int) -> None:
        """Sampled tokens are accepted by step()."""

    def accept_prompt(self, token_ids: I32) -> None: ...
    def sample(
        self, logits: F32, allowed: U32 | None = None, position: int = 0
    ) -> tuple[int, float, float, float]:
        """Token id (-1: a logit is NaN or inf, -2: nothing to draw), logprob, raw logprob, entropy."""

    def distribution(self, logits: F32, allowed: U32 | None = None, position: int = 0) -> tuple[I32, F32]: ...

class StepOutput:
    """token_ids (R,): drawn, or the target. logprobs of the distribution drawn from (raw for targets).

    entropies in nats, of the raw softmax. top_ids and top_logprobs (R, max n_top): raw, -1 padded.
    """

    @property
    def token_ids(self) -> I32: ...
    @property
    def logprobs(self) -> F32: ...
    @property
    def raw_logprobs(self) -> F32: ...
    @property
    def entropies(self) -> F32: ...
    @property
    def top_ids(self) -> I32: ...
    @property
    def top_logprobs(self) -> F32: ...
    @property
    def logits(self) -> F32 | None: ...
    @property
    def hidden(self) -> F32 | None: ...

class Decoder:
    """One model step a call, without the GIL."""

    def __init__(self, model: Model, cache: Cache, pool: Pool) -> None: ...
    def step(
        self,
        *,
        token_ids: I32,
        first_token: I32,
        first_position: I32,
        pages: I32,
        first_page: I32,
        adapters: list[Adapter | None],
        adapter_scales: F32,
        rows: I32,
        samplers: list[Sampler | None],
        targets: I32,
        masks: list[U32 | None],
        n_top: I32,
        want_logits: bool = False,
        want_hidden: bool = False,
    ) -> StepOutput:
        """token_ids (T,): the sequences' new tokens, one sequence after the other.

        first_token (S + 1,): sequence s has token_ids[first_token[s] : first_token[s + 1]], the first of them
        at first_position[s]. pages (P,), first_page (S + 1,): its page table, up to its last new token.
        adapters, adapter_scales (S,) or empty. rows (R,): indices into token_ids, ascending, repeats allowed.
        Each row draws with its sampler (which then accepts the token), or, where that is None, reports the
        logprob of its target. Target -1, with want_hidden: only the hidden state, no logits are computed
        (token_ids -1, logprobs and entropies NaN). masks: allowed tokens, bit i % 32 of word i // 32. n_top
        (R,): alternatives.
        """

def quantize(ggml_type: int, values: F32) -> U8:
    """Bytes of `values` (rows, inputs) as F16, BF16 or Q8_0, one row after the other: `quantize` of
    reference_quants.py, parallel. ValueError as there."""

# For the learner.
def dequantize_into(ggml_type: int, data: U8, out: F32, threads: int) -> None:
    """Blocks of (n, k) values -> out (n, k), the values that the engine multiplies with: `dequantize` of
    reference_quants.py, parallel. ValueError for a type without a kernel and for sizes that do not fit."""

def softmax_rows(logits: F32, threads: int) -> F32:
    """(3, n) of rows z (n, V): peak = max z, sum exp(z - peak), sum exp(z - peak) (z - peak). The peak is NaN
    where z has NaN or +inf."""

def softmax_gradient(logits: F32, peak: F32, factor: F32, threads: int) -> None:
    """z -> factor exp(z - peak) in place; peak and factor (n,)."""

# For tests: kernels and passes by themselves.
def matmul(ggml_type: int, w: U8, n: int, k: int, x: F32, threads: int) -> F32: ...
def pack_dequantize(ggml_type: int, w: U8, n: int, k: int) -> F32: ...
def encode_i8(x: F32) -> tuple[I8, F32]: ...
def score(logits: F32, token_id: int) -> tuple[int, float, float, float]: ...
def top_logprobs(logits: F32, n: int) -> tuple[I32, F32]: ...
def philox(seed: int, index: int, position: int) -> list[int]: ...
def vocab_max(x: F32) -> float: ...
def vocab_sum_exp(x: F32, peak: float, inverse_temperature: float) -> tuple[float, float]: ...
def vocab_pick(x: F32, peak: float, inverse_temperature: float, target: float) -> int: ...
def vocab_mask(x: F32, allowed: U32) -> F32: ...
def vocab_select(x: F32, threshold: float, capacity: int) -> tuple[int, list[int]]: ...
