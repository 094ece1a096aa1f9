"""What llama.cpp reached on a known CPU: if it is far below that today, the run says nothing.

Lowest of several runs of build 11434 on two cores of an AMD EPYC (Zen 4), 2026; tokens per second. Groups
share a prompt of 128 tokens.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

MIN_SHARE = 0.85
REFERENCE = {
    "smollm2-135m Q8_0": {"prefill": 490, "stream": 117, 8: 223, 16: 314, 32: 346, 64: 364},
    "smollm2-135m Q4_0": {"prefill": 685, "stream": 162, 8: 338, 16: 403, 32: 454, 64: 414},
    "smollm2-135m Q4_1": {"prefill": 238, "stream": 96, 8: 159, 16: 167, 32: 178, 64: 194},
    "gemma3-270m Q4_K_M": {"prefill": 579, "stream": 66, 8: 137, 16: 163, 32: 195, 64: 193},
}


def cpu_description() -> str:
    """Model name and number of cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return f"{name}, {os.cpu_count()} cores"


def is_reference_cpu() -> bool:
    """Two cores of an EPYC with bf16 instructions, as Zen 4 has them."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    text = cpuinfo.read_text()
    return os.cpu_count() == 2 and "AMD EPYC" in text and "avx512_bf16" in text


def shortfall(model: str, work: str | int, speed: float) -> str | None:
    """A sentence if the peer is more than 15 % under the reference, else None."""
    expected = REFERENCE.get(model, {}).get(work)
    if expected is None or speed >= MIN_SHARE * expected:
        return None
    return (
        f"llama.cpp reaches {speed:.0f} tokens/s on {model}, {work}; at least {expected} is known on this CPU"
    )
