"""How near training's arithmetic comes to a large matrix product of the same machine.

    python bench/training_rate.py --json rate.json

Work: forward and backward of 8 x 128 packed completion tokens, without shared prompts and without activation
checkpointing, counted as 6 FLOPs a weight and token (4 with LoRA: the frozen matrices have no gradient).
Weights are those of the layers' matrices and of the head; attention, norms, the pairs of a LoRA and the
optimizer's step are not counted. Peak: torch's product of two 2048 x 2048 matrices, in bf16 (the measure of
the goal) and in the dtype that the work computes in, on as many threads.

Products and updates take turns. The best of the rounds counts on both sides: a shared machine only ever makes
one slower. Rows: {work, ours, peak, ratio, goal}, in GFLOP/s.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.learner.batch import Batch, Sample
from etude.learner.learner import Denominators
from etude.learner.local import COMPUTE_DTYPES, ComputeSettings
from etude.learner.lora import LoraSettings
from etude.learner.optimizer import AdamWSettings
from etude.recipes.assembly import Trained, learner_of
from etude.train.settings import ModelSettings

GOAL = 0.75
SEQUENCES, TOKENS = 8, 128
SIZE = 2048
WORKS = [(kind, dtype) for kind in ("full", "lora") for dtype in ("bf16", "f32")]


def main() -> None:
    parser = argparse.ArgumentParser(description="training's arithmetic against a large matrix product")
    parser.add_argument("--model", default="smollm2-135m", help="name, GGUF file or Hugging Face folder")
    parser.add_argument("--threads", type=int, help="default: as torch chooses, every core")
    parser.add_argument("--rounds", type=int, default=5, help="of each work; one more before them warms up")
    parser.add_argument(
        "--only", choices=[f"{kind}-{dtype}" for kind, dtype in WORKS], help="one of the works"
    )
    parser.add_argument("--json", type=Path, help="where the rows are written")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows = []
    for kind, dtype in WORKS:
        if given.only in (None, f"{kind}-{dtype}"):
            rows += measured(given.model, kind, dtype, given.rounds)
            print(table(rows[-2:], header=len(rows) == 2), flush=True)
    if given.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": platform.processor()}
        given.json.write_text(json.dumps({"rows": rows, "about": about}, indent=1) + "\n", encoding="utf-8")


def measured(model: str, kind: str, dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Rows of one work: against the bf16 product, and against that of its own dtype."""
    trained = learner_of(
        ModelSettings(model),
        ComputeSettings(dtype=dtype, max_tokens=2 * SEQUENCES * TOKENS),
        AdamWSettings(learning_rate=1e-6),
        LoraSettings() if kind == "lora" else None,
    )
    with closing(trained.source):
        samples = random_samples(trained.learner.transformer.config.n_vocab)
        flops = (4 if kind == "lora" else 6) * n_weights(trained) * SEQUENCES * TOKENS
        best_s, peaks = float("inf"), dict.fromkeys(COMPUTE_DTYPES, 0.0)
        for number in range(rounds + 1):
            for name, one in COMPUTE_DTYPES.items():
                peaks[name] = max(peaks[name], product_rate(one))
            metrics = trained.learner.update(samples, policy_loss, denominators=Denominators.of(samples))
            assert metrics["tokens"] == SEQUENCES * TOKENS and metrics["micro_batches"] == 1
            if number:
                best_s = min(best_s, metrics["seconds/forward"] + metrics["seconds/backward"])
    ours = flops / best_s / 1e9
    name = f"{'LoRA' if kind == 'lora' else 'full'}, {dtype}"
    return [
        row(f"{name}, against the bf16 product", ours, peaks["bf16"], GOAL),
        row(f"{name}, against its own product", ours, peaks[dtype], None),
    ]


def row(work: str, ours: float, peak: float, goal: float | None) -> dict[str, Any]:
    return {
        "work": work,
        "ours": round(ours, 1),
        "peak": round(peak, 1),
        "ratio": round(ours / peak, 3),
        "goal": goal,
    }


def random_samples(n_vocab: int) -> list[Sample]:
    """One prompt token each, no two in a group."""
    rng = np.random.default_rng(0)
    return [
        Sample(
            (int(rng.integers(n_vocab)),),
            tuple(rng.integers(0, n_vocab, TOKENS).tolist()),
            (True,) * TOKENS,
            group,
            {"advantage": float(rng.normal())},
        )
        for group in range(SEQUENCES)
    ]


def policy_loss(
    outputs: Mapping[str, Tensor], batch: Batch, denominators: Denominators
) -> tuple[Tensor, dict[str, Tensor]]:
    advantage_C = batch.columns["advantage"][batch.sequence_C]
    return -(advantage_C * outputs["logprobs"]).sum() / denominators.tokens, {}


def n_weights(trained: Trained) -> int:
    """Of the layers' matrices and of the head."""
    config = trained.learner.transformer.config
    layers = sum(
        n for name, n in matrices(trained).items() if "embed_tokens" not in name and "lm_head" not in name
    )
    return layers + config.n_vocab * config.d_model


def matrices(trained: Trained) -> dict[str, int]:
    """Values of each matrix that products are computed with, by name."""
    found = {}
    for name, module in trained.learner.transformer.named_modules():
        shape = getattr(module, "shape", None)
        if isinstance(shape, tuple) and len(shape) == 2:  # a Linear, of a tensor or of quantised blocks
            found[name] = shape[0] * shape[1]
    return found


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of one large product, the best of three."""
    a, b = (torch.randn(SIZE, SIZE, dtype=dtype) for _ in range(2))
    out = torch.empty(SIZE, SIZE, dtype=dtype)
    best_s = float("inf")
    for _ in range(3):
        start_s = time.perf_counter()
        torch.mm(a, b, out=out)
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2.0 * SIZE**3 / best_s / 1e9


def table(rows: list[dict[str, Any]], *, header: bool) -> str:
    lines = (
        ["| work | ours GFLOP/s | peak GFLOP/s | ratio | goal |", "|---|--:|--:|--:|--:|"] if header else []
    )
    for one in rows:
        goal = "" if one["goal"] is None else f"{one['goal']:.2f}"
        lines.append(
            f"| {one['work']} | {one['ours']:.0f} | {one['peak']:.0f} | {one['ratio']:.2f} | {goal} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
