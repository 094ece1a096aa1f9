"""The most memory that `etude grpo` takes with a LoRA on a model of 1.5 billion weights in Q4_K.

    python bench/lora_memory.py --json memory.json

One whole step as a user starts it, run folder and all: the engine samples, in the same process and from the
same file, the learner computes log-probabilities, gradients and the update, and the pairs go to the engine.
Weights are random (bench/random_model.py), so every answer is as long as it may be. Memory is the most that
all processes of the tree together had resident. A row {work, ours, limit, ratio, goal} in GiB, and ratio is
limit / ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType
from random_model import write_random_model
from workers import tree_bytes

from etude.model.pull import cache_folder

LIMIT_GIB = 6.0
POLL_S = 0.1


def noise(problem: Any, answer: str) -> float:
    """A reward that differs from answer to answer: a group is never flat, and everything is computed."""
    return zlib.crc32(answer.encode()) % 1000 / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="peak memory of GRPO with a LoRA on 1.5B weights in Q4_K")
    default = cache_folder() / "bench" / "random-1.5b-q4_k.gguf"
    parser.add_argument("--model", type=Path, default=default, help="made if missing")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of a step")
    parser.add_argument("--samples", type=int, default=4, help="answers to each")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dtype", choices=("auto", "bf16", "f32"), default="auto", help="of the products")
    parser.add_argument("--no-checkpoint", action="store_true", help="keep all activations")
    parser.add_argument("--json", type=Path, help="where the row is written")
    given = parser.parse_args()
    if not given.model.exists():
        given.model.parent.mkdir(parents=True, exist_ok=True)
        write_random_model(given.model, GGMLQuantizationType.Q4_K)
    with tempfile.TemporaryDirectory() as folder:
        peak_bytes, seconds, metrics = watched(command(given, Path(folder)), Path(folder))
    peak_gib = peak_bytes / 2**30
    row = {
        "work": f"GRPO step with LoRA, {given.model.stem}: {given.prompts} x {given.samples} answers of "
        f"{given.tokens} tokens{', all activations kept' if given.no_checkpoint else ', checkpointing'}",
        "ours": round(peak_gib, 2),
        "limit": LIMIT_GIB,
        "ratio": round(LIMIT_GIB / peak_gib, 2),
        "goal": 1.0,
    }
    parts = {name: round(value, 1) for name, value in metrics.items() if name.startswith("seconds/")}
    print(f"{row['work']}: {row['ours']} GiB of {LIMIT_GIB:g} at most; {seconds:.0f} s in all, {parts}")
    if given.json:
        record = {"rows": [row], "metrics": metrics, "file_bytes": given.model.stat().st_size}
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def command(given: argparse.Namespace, folder: Path) -> list[str]:
    settings = {
        "model.name": given.model,
        "lora.rank": 16,
        "compute.dtype": given.dtype,
        "compute.checkpoint": str(not given.no_checkpoint).lower(),
        "data.train": f"task:add?low=1&high=99&size={8 * given.prompts}",
        "data.check": "false",
        "reward": f"{Path(__file__).resolve()}:noise",
        "sampling.prompts_per_step": given.prompts,
        "sampling.samples_per_prompt": given.samples,
        "sampling.max_tokens": given.tokens,
        "run.steps": given.steps,
        "run.folder": folder,
        "run.name": "memory",
        "run.final": "none",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "etude", "grpo", *words]


def watched(words: list[str], folder: Path) -> tuple[int, float, dict[str, float]]:
    """(most bytes of the process tree, seconds, the last step's numbers). SystemExit if it fails."""
    start_s, peak_bytes = time.perf_counter(), 0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, *tree_bytes(process.pid))
            time.sleep(POLL_S)
    finally:
        process.kill()
        _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"etude grpo failed ({process.returncode}):\n{errors[-3000:]}")
    lines = (folder / "memory" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last: dict[str, float] = json.loads(lines[-1])
    return peak_bytes, time.perf_counter() - start_s, last


if __name__ == "__main__":
    main()
