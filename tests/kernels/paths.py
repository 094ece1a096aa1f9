"""Runs a test file again with each instruction-set path forced: the path is chosen once, at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from etude.kernels._native import isa

PATHS = ("avx512", "avx2", "portable")
REPOSITORY = Path(__file__).parents[2]


def on_every_path(file: str, *, but: str = "every_path") -> None:
    """Fails if a path that this machine has does not pass `file`; tests named like `but` are left out."""
    if "ETUDE_ISA" in os.environ:
        return
    for path in PATHS[PATHS.index(isa()) + 1 :]:  # the best one runs already
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-k",
            f"not {but}",
            file,
        ]
        environment = os.environ | {"ETUDE_ISA": path}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{path}:\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}"
