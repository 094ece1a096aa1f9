"""transformers' logits of both real models, with exactly the weights that stand in the GGUF files.

Why: llama.cpp rounds activations to 8 bits, so it cannot tell an error of 1e-4 from its own rounding; this
can. Computed in float64, because transformers' own float32 is 1e-4 off on these models; only the rotary
frequencies are the float32 values that transformers has.

logits_MODEL.npz, for prompt i (the ids come from llama.cpp's stored outputs): `ids_i` int32 (T,); `rows_i`
int32 (R,), the positions stored; `top_ids_i` int32 (R, 64), likeliest first, and their `top_logits_i`
float32; `log_sum_exp_i` float32 (R,); `logits_i` float32 (R, 64) of the ids in `some_ids`, the same for all
rows. logits.json says how far transformers' float32 is from these, `float32_max_difference`.
"""

from __future__ import annotations

import gzip
import json
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import transformers

from tests.peers.gguf_to_transformers import load_gguf
from tests.peers.inputs import file_sha256, read_inputs
from tests.peers.peer_record import write_peer_record

STORED = Path(__file__).parents[1] / "data" / "peers"
N_TOP = 64
CHAT = {"smollm2": "<|im_start|>system\n", "gemma3": "<bos><start_of_turn>"}
TEXTS = ("def f(x):", "The quick brown fox", "日本語")


def prompts(name: str) -> list[tuple[list[int], int]]:
    """(ids, how many of the last positions to store): a chat, some texts, a beginning, a long text.

    The last one is longer than Gemma's window of 512 tokens, so that it shows what the window hides.
    """
    with gzip.open(STORED / f"tokenizer_{name}.json.gz") as file:
        tokenizer = json.load(file)
    chosen = []
    for beginning in (CHAT[name], *TEXTS):
        index = next(i for i, text in enumerate(tokenizer["texts"]) if text.startswith(beginning))
        ids = tokenizer["ids_special"][index]
        chosen.append((ids if name == "smollm2" or ids[0] == 2 else [2, *ids], 12))
    with np.load(STORED / f"perplexity_{name}.npz") as windows:
        ids_WT = windows["ids_WT"]
    chosen.append((ids_WT[0, :48].tolist(), 24))
    chosen.append((ids_WT.reshape(-1)[:700].tolist(), 24))
    return chosen


def logits_of(model: torch.nn.Module, ids: list[int], n_rows: int) -> np.ndarray:
    """(n_rows, V): the last rows of a forward pass over the whole prompt."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False, logits_to_keep=n_rows).logits[0].numpy()


def logits_in_float64(model: torch.nn.Module, ids: list[int], n_rows: int) -> np.ndarray:
    """The same without the casts to float32 that transformers has in norms, softmax and rotary embedding."""
    with (
        patch.object(torch, "float32", torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        logits = logits_of(model, ids, n_rows)
    if logits.dtype != np.float64:
        raise RuntimeError(f"transformers computed in {logits.dtype}")
    return logits


def store(name: str, path: Path, out: Path) -> dict[str, float]:
    """Write logits_NAME.npz; how far transformers' float32 is from it."""
    model, cases = load_gguf(path), prompts(name)
    rough = [logits_of(model, ids, min(n, len(ids))) for ids, n in cases]
    model = model.double()
    exact = [logits_in_float64(model, ids, len(r)) for (ids, _), r in zip(cases, rough, strict=True)]
    n_vocab = exact[0].shape[1]
    some_ids = np.sort(np.random.default_rng(3).choice(n_vocab, 64, replace=False)).astype(np.int32)
    arrays: dict[str, np.ndarray] = {"some_ids": some_ids}
    for i, ((ids, _), logits_RV) in enumerate(zip(cases, exact, strict=True)):
        top_ids_RK = np.argsort(-logits_RV, axis=-1, kind="stable")[:, :N_TOP].astype(np.int32)
        log_sum_exp_R = torch.logsumexp(torch.from_numpy(logits_RV), -1).numpy()
        arrays |= {
            f"ids_{i}": np.array(ids, np.int32),
            f"rows_{i}": np.arange(len(ids) - len(logits_RV), len(ids), dtype=np.int32),
            f"top_ids_{i}": top_ids_RK,
            f"top_logits_{i}": np.take_along_axis(logits_RV, top_ids_RK, axis=-1).astype(np.float32),
            f"log_sum_exp_{i}": log_sum_exp_R.astype(np.float32),
            f"logits_{i}": logits_RV[:, some_ids].astype(np.float32),
        }
    np.savez_compressed(out / f"logits_{name}.npz", **arrays)
    errors = [float(abs(a - b).max()) for a, b in zip(exact, rough, strict=True)]
    return {"n_prompts": len(cases), "float32_max_difference": max(errors)}


def main() -> None:
    inputs = read_inputs(__doc__)
    models = {}
    for name, path in inputs.models.items():
        models[name] = store(name, path, inputs.out) | {"model_sha256": file_sha256(path)}
        print(name, models[name])
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "gguf": version("gguf"),
    }
    command = "python -m tests.peers.make_logits_fixtures --smollm2 FILE --gemma3 FILE --out FOLDER"
    write_peer_record(inputs.out / "logits.json", versions, command, models=models)


if __name__ == "__main__":
    main()
