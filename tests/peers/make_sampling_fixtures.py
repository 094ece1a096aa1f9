"""Distributions that llama.cpp's samplers leave of random logits, for random chains.

Runs tests/peers/llama_sampling.cpp and writes sampling.json.gz: `cases` (tests/kernels/sampling_cases.py)
with, for each, `n_left` tokens of probability >= 1e-30 and the likeliest of them as `top`: [[id,
probability], …].
"""

from __future__ import annotations

import gzip
import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.kernels.sampling_cases import Case, case_logits, random_case
from tests.peers.llama_programs import compile_program, read_llama_inputs

N_CASES = 540
N_TOP = 60
LEAST = 1e-30
OFF = {"dynamic_range": 0.0, "dynamic_exponent": 1.0, "min_keep": 0, "mirostat_eta": 0.1}


def step_words(name: str, s: dict[str, Any]) -> list[object]:
    """A step as llama_sampling.cpp reads it."""
    keep = s["min_keep"]
    parameters: dict[str, list[str]] = {
        "penalties": ["repeat_penalty", "frequency_penalty", "presence_penalty", "penalty_last_n"],
        "top_n_sigma": ["top_n_sigma"],
        "top_k": ["top_k"],
        "typ_p": ["typical_p", "min_keep"],
        "top_p": ["top_p", "min_keep"],
        "min_p": ["min_p", "min_keep"],
        "xtc": ["xtc_probability", "xtc_threshold", "min_keep"],
        "dynamic_temperature": ["temperature", "dynamic_range", "dynamic_exponent"],
        "mirostat1": ["mirostat_tau", "mirostat_eta"],
        "mirostat2": ["mirostat_tau", "mirostat_eta"],
        "temperature": ["temperature"],
    }
    if name == "dry":
        breakers = [word for breaker in s["dry_breakers"] for word in (len(breaker), *breaker)]
        words = [s["dry_multiplier"], s["dry_base"], s["dry_allowed_length"], s["dry_last_n"]]
        return [name, *words, len(s["dry_breakers"]), *breakers]
    if name == "logit_bias":
        return [name, len(s[name]), *(word for pair in s[name] for word in pair)]
    assert keep >= 0
    return [name, *(s[parameter] for parameter in parameters[name])]


def case_text(case: Case) -> str:
    """A case as llama_sampling.cpp reads it."""
    settings = {**OFF, **case.settings}
    steps = ["logit_bias"] if "logit_bias" in settings else []
    steps += ["dynamic_temperature" if step == "temperature" else step for step in case.steps]
    if "mirostat" in settings:
        steps = ["temperature", f"mirostat{settings['mirostat']}"]
    logits = [float(x).hex() for x in case_logits(case.seed, case.n_vocab)]
    words = [case.n_vocab, *logits, len(case.history), *case.history, len(steps)]
    for step in steps:
        words += step_words(step, settings)
    return " ".join(str(word) for word in words)


def read_left(line: str) -> dict[str, object]:
    """What a line of llama_sampling.cpp says."""
    words = line.split()[1:]
    left = [(int(i), float(p)) for i, p in zip(words[::2], words[1::2], strict=True) if float(p) >= LEAST]
    return {"n_left": len(left), "top": sorted(left, key=lambda token: (-token[1], token[0]))[:N_TOP]}


def main() -> None:
    inputs = read_llama_inputs(__doc__)
    cases = [random_case(seed) for seed in range(N_CASES)]
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(inputs, "llama_sampling.cpp", Path(folder) / "llama_sampling")
        text = "\n".join(case_text(case) for case in cases)
        done = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True)
    record = {
        "peers": {"llama.cpp": inputs.version},
        "command": "tests/peers/llama_sampling.cpp, linked with libllama.a, on the cases below",
        "cases": [
            asdict(case) | read_left(line) for case, line in zip(cases, done.stdout.splitlines(), strict=True)
        ],
    }
    data = json.dumps(record, separators=(",", ":")).encode()
    (inputs.out / "sampling.json.gz").write_bytes(gzip.compress(data, mtime=0))
    print("sampling", len(cases), len(data))


if __name__ == "__main__":
    main()
