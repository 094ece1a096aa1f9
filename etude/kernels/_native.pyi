"""Contract of etude.kernels._native (nanobind). All arrays C-contiguous; sizes are checked, ValueError otherwise."""
from typing import Any
import numpy as np
from numpy.typing import NDArray
F32 = NDArray[np.float32]; I32 = NDArray[np.int32]; U8 = NDArray[np.uint8]; U32 = NDArray[np.uint32]

def isa() -> str: ...                     # "avx512" | "avx2" | "portable"; forced by ETUDE_ISA, at import

class Pool:                               # persistent threads: spin briefly, then sleep
    def __init__(self, threads: int) -> None: ...
    threads: int

class Model:                              # hyperparameters + packed weights, HF (NEOX) rope layout always
    def __init__(self, *, n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, d_ff: int, n_vocab: int,
                 norm_eps: float, attention_scale: float, embedding_scale: float, logit_softcap: float, attention_softcap: float,   # 0 = off
                 activation: str,         # "silu" | "gelu_tanh"
                 windows: I32,            # (n_layers,) sliding window in tokens, 0 = full attention
                 rope_of_layer: I32,      # (n_layers,) row of inv_freqs
                 inv_freqs: F32,          # (n_tables, rope_dim // 2)
                 rope_scales: F32,        # (n_tables,) factor on cos and sin (YaRN mscale), 1.0 otherwise
                 ) -> None: ...
    # slots, matrices: token_embd output attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down   (layer = -1 for the first two)
    # slots, vectors : output_norm(layer -1) attn_norm ffn_norm attn_q_norm attn_k_norm post_attention_norm post_ffw_norm
    #                  attn_q_bias attn_k_bias attn_v_bias attn_output_bias
    # norm vectors are the multiplier itself (GGUF layout: Gemma's "1 + w" is already in it)
    def set_matrix(self, slot: str, layer: int, ggml_type: int, n: int, k: int, data: U8, row_order: I32 | None = None) -> None: ...
        # packed row i comes from file row row_order[i]. Without "output", logits use token_embd (tied).
    def set_vector(self, slot: str, layer: int, values: F32) -> None: ...
    def dequantize(self, slot: str, layer: int) -> F32: ...      # (n, k), what the kernels multiply with
    def matrix_type(self, slot: str, layer: int) -> int: ...
    def check(self) -> None: ...          # ValueError naming the first missing or misshapen tensor
    weight_bytes: int

class Cache:                              # page = `page_tokens` positions of all layers; ids 0..n_pages-1, bookkeeping is Python's
    def __init__(self, model: Model, n_pages: int, page_tokens: int, type_k: str, type_v: str) -> None: ...   # "f32" "f16" "bf16" "q8_0"
    page_bytes: int; n_pages: int; page_tokens: int      # page_tokens: multiple of 32
    @staticmethod
    def bytes_per_page(model: Model, page_tokens: int, type_k: str, type_v: str) -> int: ...
    def copy_page(self, src: int, dst: int) -> None: ...
    def export_page(self, page: int) -> bytes: ...
    def import_page(self, page: int, data: bytes) -> None: ...
    def shift(self, model: Model, src_pages: I32, dst_pages: I32, length: int, keep: int, discard: int) -> None: ...
        # context shift: tokens [0,keep) copied, [keep+discard,length) moved down by `discard` with K re-rotated. dst tables may share leading
        # whole pages below `keep` with src; all others must be different pages.

class Adapter:                            # LoRA: y += scale * (alpha/rank) * B (A x)
    def __init__(self, model: Model, scale: float) -> None: ...                     # scale = alpha / rank
    def set(self, slot: str, layer: int, a: F32, b: F32) -> None: ...                # a (rank, k), b (n, rank), HF row order

class Breakers:                           # DRY's sequence breakers as token sequences, shared by samplers
    def __init__(self, sequences: list[list[int]]) -> None: ...

class Sampler:                            # state of one completion; settings as in reference_sampler.OFF, and `samplers`: the order
    def __init__(self, n_vocab: int, seed: int, index: int, **chain: Any) -> None: ...
    n_vocab: int
    reads_history: bool                   # whether prompt tokens matter: penalties and DRY
    def accept(self, token_id: int) -> None: ...     # sampled tokens are accepted by step()
    def accept_prompt(self, token_ids: I32) -> None: ...
    # tests only. sample: (token id or -1: NaN or inf in logits, -2: nothing to draw; logprob, raw logprob, entropy)
    def sample(self, logits: F32, allowed: U32 | None = None, position: int = 0) -> tuple[int, float, float, float]: ...
    def distribution(self, logits: F32, allowed: U32 | None = None, position: int = 0) -> tuple[I32, F32]: ...

class Decoder:
    def __init__(self, model: Model, cache: Cache, pool: Pool) -> None: ...
    def step(self, *,
             token_ids: I32,              # (T,) all sequences' new tokens, one after the other
             first_token: I32,            # (S + 1,) sequence s has token_ids[first_token[s]:first_token[s + 1]]
             first_position: I32,         # (S,) position of its first new token
             pages: I32, first_page: I32, # (P,), (S + 1,) its page table: must cover all positions up to the last new token
             adapters: list[Adapter | None], adapter_scales: F32,        # (S,) per-request scale; [] = none at all
             rows: I32,                   # (R,) indices into token_ids whose next-token distribution is wanted, ascending
             samplers: list[Sampler | None],     # (R,) draw with it, or …
             targets: I32,                # (R,) … report the logprob of this token id instead (samplers[r] is None)
             masks: list[U32 | None],     # (R,) allowed-token bitmask (llguidance layout: bit i%32 of word i//32), or None
             n_top: I32,                  # (R,) alternatives to report
             want_logits: bool = False,   # all R rows of logits (R, V) too
             want_hidden: bool = False,   # hidden state after the final norm (R, d_model)
             ) -> StepOutput: ...
    # exactly one native call per model step. Samplers are advanced (accept) by it. GIL released.

class StepOutput:
    token_ids: I32        # (R,) sampled, or the target
    logprobs: F32         # (R,) of the distribution sampled from (= raw for targets)
    raw_logprobs: F32     # (R,)
    entropies: F32        # (R,) nats, of the raw softmax
    top_ids: I32          # (R, max n_top), -1 padded
    top_logprobs: F32     # (R, max n_top), raw
    logits: F32 | None
    hidden: F32 | None

# tests only: each kernel by itself, on any shape
def matmul(ggml_type: int, w: U8, n: int, k: int, x: F32, threads: int) -> F32: ...     # (T,k) -> (T,n) through pack + activation quantisation
def pack_dequantize(ggml_type: int, w: U8, n: int, k: int) -> F32: ...                   # unpack to tiles and back
def score(logits: F32, token_id: int) -> tuple[int, float, float, float]: ...            # as Sampler.sample
def top_logprobs(logits: F32, n: int) -> tuple[I32, F32]: ...
def philox(seed: int, index: int, position: int) -> list[int]: ...                       # four 32-bit words
def vocab_max(x: F32) -> float: ...
def vocab_sum_exp(x: F32, peak: float, inverse_temperature: float) -> tuple[float, float]: ...
def vocab_pick(x: F32, peak: float, inverse_temperature: float, target: float) -> int: ...
def vocab_mask(x: F32, allowed: U32) -> F32: ...
def vocab_select(x: F32, threshold: float, capacity: int) -> tuple[int, list[int]]: ...
