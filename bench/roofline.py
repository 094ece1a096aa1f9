"""Measures the machine's ceilings: int8 GOP/s (two operations a product) and GB/s read from memory.

A small C++ program, compiled for this machine when it is asked for, because the ceiling must not depend on
the code that is measured against it. `python bench/roofline.py [THREADS]` prints it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("roofline.cpp")


@dataclass(frozen=True)
class Roofline:
    """`instruction` names what the int8 peak was reached with."""

    threads: int
    instruction: str
    int8_gops: float
    read_gb_per_s: float


def measure_roofline(threads: int) -> Roofline:
    """Compile and run the probe (about five seconds). CalledProcessError without a C++ compiler."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "roofline"
        compiler = os.environ.get("CXX", "c++")
        options = ["-O3", "-march=native", "-std=c++17", "-pthread"]
        subprocess.run([compiler, *options, str(SOURCE), "-o", str(program)], check=True)
        done = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
    return Roofline(**json.loads(done.stdout))


if __name__ == "__main__":
    print(measure_roofline(int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1))
