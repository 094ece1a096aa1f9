"""Perplexity and distributions on the text of tests/data/ppl, cut as llama-perplexity -c 512 does it.

    python -m tests.model.perplexity [smollm2 | gemma3] [--f32 | --against-f32] [--windows N]

measures the whole text, prints a line for docs/kernels.md, and fails if llama.cpp's perplexity is more than
0.5 % away. --against-f32: with the KL of int8 activations to f32 arithmetic on every scored position.

The ids of the text (BOS in front where the model wants one) are cut into windows of 512, each begins with BOS
where the model wants one, and the tokens at positions 257 to 511 of a window are scored: 255 of them
(tests/peers/make_perplexity_fixtures.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.model.gguf import GGUFFile
from etude.model.pull import resolve
from etude.model.quants import GGMLType
from etude.model.tokenizer import Tokenizer
from tests.kernels.native_model import Run, Seq, mean_kl
from tests.model.real_models import load

DATA = Path(__file__).parents[1] / "data"
PEERS = DATA / "peers"
N_CTX = 512
FIRST = N_CTX // 2
"""The position of the first row whose next token is scored."""
STEPS_PER_NAT = 4096
TOLERANCE = 0.005
PULLED = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}


def windows_of(path: Path) -> NDArray[np.int32]:
    """(W, 512) ids of the text in the model's tokens."""
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    text = (DATA / "ppl" / "alice.txt").read_text(encoding="utf-8").removesuffix("\n")
    ids = np.array(tokenizer.encode(text), np.int32)
    ids_WT = ids[: len(ids) // N_CTX * N_CTX].reshape(-1, N_CTX)
    if tokenizer.add_bos:
        ids_WT[:, 0] = tokenizer.bos_id
    return ids_WT


def peer(name: str) -> dict[str, Any]:
    """llama.cpp's `ppl`, `ppl_after_window`, `n_windows` and transformers' `surprise_of_window`."""
    record: dict[str, Any] = json.loads((PEERS / "perplexity.json").read_text())
    return dict(record["models"][name])


class Scorer:
    """A model that scores windows, with the f16 cache that llama.cpp has (f32 for f32 weights)."""

    def __init__(self, model: Any, *, cache: str = "f16", threads: int = 2) -> None:
        self.run = Run(model, n_pages=16, types=(cache, cache), threads=threads)

    def step(self, ids_T: NDArray[np.int32], want_logits: bool) -> Any:
        rows = np.arange(FIRST, N_CTX - 1, dtype=np.int32)
        seq = Seq(ids_T, 0, self.run.pages(N_CTX))
        return self.run.step([seq], rows=rows, targets=ids_T[FIRST + 1 :], want_logits=want_logits)

    def surprise(self, ids_T: NDArray[np.int32]) -> float:
        """-sum of the logprobs of the 255 scored tokens of a window, in nats."""
        return -float(self.step(ids_T, False).raw_logprobs.astype(np.float64).sum())

    def logits(self, ids_T: NDArray[np.int32]) -> NDArray[np.float32]:
        """(255, V)."""
        return np.asarray(self.step(ids_T, True).logits)


def perplexities(surprises: list[float]) -> NDArray[np.float64]:
    """Perplexity of the text so far after each window: exp(mean surprise of a token)."""
    counts = (N_CTX - 1 - FIRST) * np.arange(1, len(surprises) + 1)
    return np.asarray(np.exp(np.cumsum(surprises) / counts))


def peer_distributions(name: str) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """ids (2, 512) of llama.cpp's first windows, as cut from the text (it puts BOS in front of the second
    only afterwards); of each scored row its 64 likeliest tokens and their logprobs (2, 255, 64)."""
    with np.load(PEERS / f"perplexity_{name}.npz") as stored:
        return stored["ids_WT"], stored["top_ids_WPK"], stored["top_steps_WPK"] / -float(STEPS_PER_NAT)


def compare_with_peer(
    logits_PV: NDArray[np.float32], top_ids_PK: Any, top_logprobs_PK: Any
) -> tuple[float, float]:
    """(share of rows with the same likeliest token, mean KL of the peer to us). The tokens that the peer's
    file leaves out count as one."""
    shifted = logits_PV.astype(np.float64) - logits_PV.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    ours = np.take_along_axis(logprobs, top_ids_PK.astype(np.int64), axis=-1)
    p, q = np.exp(top_logprobs_PK), np.exp(ours)
    rest_p, rest_q = np.maximum(1 - p.sum(-1), 1e-9), np.maximum(1 - q.sum(-1), 1e-9)
    kl = (p * (top_logprobs_PK - ours)).sum(-1) + rest_p * np.log(rest_p / rest_q)
    return float((logits_PV.argmax(-1) == top_ids_PK[:, 0]).mean()), float(kl.mean())


def against_f32(scorer: Scorer, path: Path, windows: NDArray[np.int32]) -> str:
    """Mean KL of f32 arithmetic to the scorer's over all scored positions of the windows."""
    exact, kls, same = Scorer(load(path, GGMLType.F32), cache="f32"), [], []
    for window in windows:
        sure, rough = exact.logits(window), scorer.logits(window)
        kls.append(mean_kl(sure, rough))
        same.append((sure.argmax(-1) == rough.argmax(-1)).mean())
    return f"to f32: KL {np.mean(kls):.2e}, same likeliest token {100 * np.mean(same):.2f} %"


def measure(name: str, arguments: argparse.Namespace) -> bool:
    """Print a model's line; whether it is near enough to llama.cpp."""
    path, f32 = resolve(PULLED[name]), arguments.f32
    scorer = Scorer(load(path, GGMLType.F32 if f32 else None), cache="f32" if f32 else "f16")
    windows, theirs = windows_of(path)[: arguments.windows], peer(name)
    ours = perplexities([scorer.surprise(window) for window in windows])[-1]
    reference = theirs["ppl_after_window"][len(windows) - 1]
    stored = zip(windows[:2], *peer_distributions(name)[1:], strict=True)
    agreements = [compare_with_peer(scorer.logits(ids), tops, logprobs) for ids, tops, logprobs in stored]
    same, kl = np.mean(agreements, axis=0)
    print(
        f"{name} {'f32' if f32 else 'int8'}: {len(windows)} windows, {windows.size} tokens, perplexity "
        f"{ours:.4f}, llama.cpp {reference:.4f} ({100 * (ours / reference - 1):+.3f} %); in two windows "
        f"the same likeliest token {100 * same:.1f} %, KL {kl:.2e}",
        flush=True,
    )
    if arguments.against_f32:
        print(f"{name} {against_f32(scorer, path, windows)}", flush=True)
    return bool(abs(ours / reference - 1) < TOLERANCE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PULLED, []], help="models; both if none is named")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--f32", action="store_true", help="weights converted to f32, no int8 activations")
    how.add_argument("--against-f32", action="store_true", help="compare int8 activations with that")
    parser.add_argument("--windows", type=int, help="only the first so many windows")
    arguments = parser.parse_args()
    return 0 if all([measure(name, arguments) for name in arguments.names or PULLED]) else 1


if __name__ == "__main__":
    sys.exit(main())
