"""llama.cpp as the peer: runs its own benchmark programs, and finds the settings at which it is fastest.

A claim against a peer at a poor setting is worth nothing, so every setting that changes its CPU speed is
swept: flash attention, one cache for all sequences or one each, repacked weights, its tiled product, threads.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

RUN_TIMEOUT_S = 1200


@dataclass(frozen=True)
class Setting:
    """One way to run llama.cpp. `unified`: one cache for all sequences (matters to groups only)."""

    threads: int
    flash: bool = True
    repack: bool = True
    tiled: bool = True
    unified: bool = True

    def __str__(self) -> str:
        switches = [
            f"-t {self.threads}",
            f"-fa {'on' if self.flash else 'off'}",
            "--repack" if self.repack else "--no-repack",
            f"GGML_CPU_TILED_MM={int(self.tiled)}",
            "-kvu" if self.unified else "-no-kvu",
        ]
        return " ".join(switches)


@dataclass(frozen=True)
class Group:
    """Decoding `n` sequences together after one shared prompt of `n_prompt` tokens, `n_gen` tokens each."""

    n: int
    n_prompt: int
    n_gen: int


Work = str | Group  # "prefill", "stream", or a group


def neighbours(setting: Setting, cores: int, for_groups: bool) -> list[Setting]:
    """The settings that differ from this one in one switch."""
    found = [
        replace(setting, flash=not setting.flash),
        replace(setting, repack=not setting.repack),
        replace(setting, tiled=not setting.tiled),
    ]
    if for_groups:
        found.append(replace(setting, unified=not setting.unified))
    fewer = max(1, cores // 2)
    if fewer != cores:
        found.append(replace(setting, threads=fewer if setting.threads == cores else cores))
    return found


def all_settings(cores: int, for_groups: bool) -> list[Setting]:
    """The full product."""
    both = (True, False)
    threads = sorted({cores, max(1, cores // 2)}, reverse=True)
    unified = both if for_groups else (True,)
    return [Setting(*values) for values in itertools.product(threads, both, both, both, unified)]


class LlamaCpp:
    """The programs in one folder."""

    def __init__(self, folder: Path, cores: int) -> None:
        self.folder, self.cores = folder, cores
        missing = [
            name for name in ("llama-bench", "llama-batched-bench", "llama-quantize") if not self.has(name)
        ]
        if missing:
            raise SystemExit(f"--llama-bin {folder}: {', '.join(missing)} not found there")

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def run(self, name: str, *arguments: object, setting: Setting | None = None) -> str:
        """Standard output of one program. RuntimeError with its last lines where it fails."""
        command = [str(self.folder / name), *map(str, arguments)]
        environment = os.environ | ({"GGML_CPU_TILED_MM": str(int(setting.tiled))} if setting else {})
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=RUN_TIMEOUT_S)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-1500:]}")
        return done.stdout

    def version(self) -> str:
        command = [str(self.folder / "llama-bench"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("version:")]
        return lines[0].removeprefix("version:").strip() if lines else "unknown"

    def single(self, model: Path, setting: Setting, n_prompt: int, n_gen: int) -> dict[Work, float]:
        """Tokens per second of `prefill` and `stream`, those with a length above 0, in one llama-bench."""
        output = self.run(
            "llama-bench", "-m", model, "-p", n_prompt, "-n", n_gen, "-r", 1, "-o", "jsonl",
            "-t", setting.threads, "-fa", int(setting.flash), "--repack", int(setting.repack),
            setting=setting,
        )  # fmt: skip
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return {"prefill" if row["n_prompt"] else "stream": float(row["avg_ts"]) for row in rows}

    def groups(self, model: Path, setting: Setting, groups: list[Group]) -> dict[Work, float]:
        """Tokens per second while decoding, without the prompt; groups must share n_prompt and n_gen."""
        n_prompt, n_gen = groups[0].n_prompt, groups[0].n_gen
        sizes = [group.n for group in groups]
        context = max(sizes) * (n_prompt + n_gen + 1)
        output = self.run(
            "llama-batched-bench", "-m", model, "-c", context, "-b", 2048, "-ub", 512, "-pps",
            "-npp", n_prompt, "-ntg", n_gen, "-npl", ",".join(map(str, sizes)), "--output-format", "jsonl",
            "-t", setting.threads, "-fa", "on" if setting.flash else "off",
            "--repack" if setting.repack else "--no-repack",
            "-kvu" if setting.unified else "-no-kvu", setting=setting,
        )  # fmt: skip
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        by_size = {row["pl"]: float(row["speed_tg"]) for row in rows}
        if set(by_size) != set(sizes):
            raise RuntimeError(
                f"llama-batched-bench measured {sorted(by_size)}, not {sizes}: {output[-800:]}"
            )
        return {group: by_size[group.n] for group in groups}

    def quantize(self, source: Path, target: Path, kind: str) -> None:
        """llama-quantize to another type; the file appears only when it is whole."""
        partial = target.with_suffix(".partial")
        self.run("llama-quantize", "--allow-requantize", source, partial, kind, self.cores)
        os.replace(partial, target)


def best_setting(speeds: dict[Setting, float]) -> Setting:
    return max(speeds, key=lambda setting: speeds[setting])
