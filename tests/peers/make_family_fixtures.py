"""Tiny random models of every family, as Hugging Face folders, with the logits that transformers gives.

Why: our step must equal an implementation nobody here wrote, for every switch a family has (biases, q/k
norms, windows, rope variants, tied heads), and a model of 30,000 weights shows a wrong switch as well as a
real one does. The weights are exact in bfloat16, so a bf16 path can be held against the same numbers; some
folders are written as transformers 4 wrote them (`rope_theta`, `rope_scaling`), some as transformers 5 does
(`rope_parameters`), because users have both.

Every folder holds config.json, safetensors, a tokenizer.json whose ids are bytes (ASCII), and expected.npz:
`ids_ST` int32 (2, 64), `logits_TV` float32 (64, 128) of the first row, `last_logits_SV` (2, 128).
"""

from __future__ import annotations

import argparse
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tests.peers.peer_record import write_peer_record

N_VOCAB = 128
N_TOKENS = 64
BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
SIZES = {
    "vocab_size": N_VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2,
    "use_cache": True, "attention_dropout": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One folder: what config.json says beside SIZES, and how the file is laid out."""

    model_type: str
    architecture: str
    config: dict[str, Any]
    dtype: torch.dtype = torch.float32
    n_shards: int = 1
    without: tuple[str, ...] = field(default=())  # keys of SIZES that such files leave out


def llama(**config: Any) -> Family:
    base = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
    return Family("llama", "LlamaForCausalLM", base | config)


def mistral(**config: Any) -> Family:
    base = {"hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False}
    return Family("mistral", "MistralForCausalLM", base | config)


def qwen2(dtype: torch.dtype = torch.float32, **config: Any) -> Family:
    base = {
        "hidden_act": "silu", "use_sliding_window": False, "sliding_window": 32, "max_window_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return Family("qwen2", "Qwen2ForCausalLM", base | config, dtype, without=("head_dim",))


def qwen3(n_shards: int = 1, **config: Any) -> Family:
    base = {
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
    }
    return Family("qwen3", "Qwen3ForCausalLM", base | config, n_shards=n_shards)


def gemma3(**config: Any) -> Family:
    base = {
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True,
        "num_hidden_layers": 3, "intermediate_size": 32, "query_pre_attn_scalar": 24, "sliding_window": 8,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "rope_theta": 10000.0, "rope_local_base_freq": 100.0,
    }  # fmt: skip
    return Family("gemma3_text", "Gemma3ForCausalLM", base | config)


# Chosen so that, of 8 frequencies, some stay, some are interpolated and some are divided by the factor.
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 4.0, "beta_slow": 0.5,
}  # fmt: skip
OLD_YARN_ROPE = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
NEW_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 100000.0}

FAMILIES: dict[str, Family] = {
    "llama": llama(rope_theta=10000.0, rope_scaling=None),
    "llama_tied": llama(rope_parameters=NEW_PLAIN_ROPE, tie_word_embeddings=True),
    "llama_biases": llama(rope_theta=10000.0, attention_bias=True, num_key_value_heads=4, rms_norm_eps=1e-5),
    "llama_rope_llama3": llama(rope_theta=10000.0, rope_scaling=LLAMA3_ROPE, max_position_embeddings=512),
    "llama_rope_linear": llama(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0}),
    "llama_rope_yarn": llama(rope_parameters=YARN_ROPE, max_position_embeddings=128),
    "mistral": mistral(sliding_window=None),
    "mistral_window": mistral(sliding_window=8),
    "qwen2": qwen2(rope_theta=1000000.0, tie_word_embeddings=False),
    "qwen2_tied": qwen2(torch.bfloat16, hidden_size=64, num_attention_heads=4, num_key_value_heads=2),
    "qwen2_rope_yarn": qwen2(rope_scaling=OLD_YARN_ROPE),
    "qwen3": qwen3(n_shards=2, rope_theta=1000000.0, tie_word_embeddings=False),
    "qwen3_tied": qwen3(
        rope_parameters=NEW_PLAIN_ROPE, tie_word_embeddings=True,
        head_dim=32, num_attention_heads=2, num_key_value_heads=1,
    ),
    "gemma3": gemma3(layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "gemma3_rope_linear": gemma3(
        sliding_window_pattern=2, rope_scaling={"rope_type": "linear", "factor": 8.0},
        query_pre_attn_scalar=16, final_logit_softcapping=3.0,
    ),
}  # fmt: skip


def config_of(family: Family) -> dict[str, Any]:
    """config.json as a dictionary, with the dtype key of the transformers version whose style it has."""
    sizes = {key: value for key, value in SIZES.items() if key not in family.without}
    dtype = str(family.dtype).removeprefix("torch.")
    is_new = "rope_parameters" in family.config
    dtype_key, version = ("dtype", "5.0.0") if is_new else ("torch_dtype", "4.51.0")
    return {
        "architectures": [family.architecture], "model_type": family.model_type, **sizes, **family.config,
        dtype_key: dtype, "transformers_version": version,
    }  # fmt: skip


def random_weight(name: str, shape: tuple[int, ...], gemma: bool, rng: np.random.Generator) -> torch.Tensor:
    """Values exact in bfloat16, sized so that every switch shows, and that a relative error of half a percent
    in the matrices (what 8 bits per value cost) stays below a mean KL of 1e-3."""
    if "norm" in name:
        values = rng.normal(0.0 if gemma else 1.0, 0.2, shape)
    elif name.endswith(".bias"):
        values = rng.normal(0.0, 0.5, shape)
    elif "embed_tokens" in name or "lm_head" in name:
        values = rng.normal(0.0, 0.2, shape)
    else:
        values = rng.normal(0.0, 1.0 / np.sqrt(shape[1]), shape)
    return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16).to(torch.float32)


def random_model(name: str, family: Family, folder: Path) -> torch.nn.Module:
    """A transformers model made from the folder's config.json, with weights that depend on the name only."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        # a tied lm_head appears once, as embed_tokens
        for weight_name, weight in model.named_parameters():
            is_gemma = family.model_type.startswith("gemma")
            weight.copy_(random_weight(weight_name, tuple(weight.shape), is_gemma, rng))
    return model.eval()


def save_weights(model: torch.nn.Module, family: Family, folder: Path) -> None:
    """model.safetensors, or the shards with their index as the hub has them."""
    tensors = {name: p.detach().to(family.dtype).contiguous() for name, p in model.named_parameters()}
    if family.n_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(family.n_shards):
        file_name = f"model-{shard + 1:05}-of-{family.n_shards:05}.safetensors"
        part = names[shard :: family.n_shards]
        save_file({name: tensors[name] for name in part}, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    total_size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def byte_level_symbol(byte: int) -> str:
    """GPT-2's printable stand-in for a byte: printable ASCII stays, the others move to 256 + their rank."""
    if 33 <= byte <= 126:
        return chr(byte)
    unprintable = [b for b in range(128) if not 33 <= b <= 126]
    return chr(256 + unprintable.index(byte))


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE without merges: id = ASCII code, except 0, 1 and 2, which are <unk>, <s> and </s>."""
    specials = ["<unk>", "<s>", "</s>"]
    vocabulary = {byte_level_symbol(b): b for b in range(3, N_VOCAB)} | {s: i for i, s in enumerate(specials)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": text} | flags for i, text in enumerate(specials)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": False},
        "post_processor": None,
        "decoder": BYTE_LEVEL | {"add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])), "merges": [],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def make_family(name: str, family: Family, folder: Path) -> None:
    """Write one folder; the logits come from the model loaded back from it, so the files are what was run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(family), indent=1) + "\n")
    save_weights(random_model(name, family, folder), family, folder)
    write_tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids_ST = np.random.default_rng(7).integers(3, N_VOCAB, (2, N_TOKENS)).astype(np.int32)
    with torch.no_grad():
        logits_STV = model(torch.from_numpy(ids_ST).long(), use_cache=False).logits.numpy()
    np.savez_compressed(
        folder / "expected.npz", ids_ST=ids_ST, logits_TV=logits_STV[0], last_logits_SV=logits_STV[:, -1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one folder per family")
    out: Path = parser.parse_args().out
    for name, family in FAMILIES.items():
        make_family(name, family, out / name)
        print(name)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    write_peer_record(out / "peers.json", versions, "python -m tests.peers.make_family_fixtures --out FOLDER")


if __name__ == "__main__":
    main()
