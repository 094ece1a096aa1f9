"""The kernel tests again on every instruction-set path, each forced by ETUDE_ISA in a process of its own.

A path that this machine cannot run is a skipped test with the reason in it, never a pass; the portable one
runs everywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etude.kernels._native import isa

PATHS = ("avx512", "avx2", "portable")
FILES = ("test_matmul.py", "test_decoder.py", "test_decoder_cache.py", "test_decoder_adapters.py",
         "test_decoder_output.py", "test_vocab.py", "test_sampler.py",
         "test_sampler_extremes.py")  # fmt: skip
FOLDER = Path(__file__).parent
FORCED = os.environ.get("ETUDE_ISA")


def run_on(path: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ETUDE_ISA": path}
    command = (sys.executable, *command)
    return subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)


def import_on(path: str) -> subprocess.CompletedProcess[str]:
    return run_on(path, "-c", "from etude.kernels._native import isa; print(isa())")


@pytest.mark.parametrize("path", PATHS)
def test_the_kernel_tests_pass_on_every_path(path: str) -> None:
    if FORCED:
        pytest.skip(f"ETUDE_ISA={FORCED} is set: only that path is under test")
    if path == isa():
        return  # what the tests of this process run on
    found = import_on(path)
    if path != "portable" and "cannot run on this machine" in found.stderr:
        pytest.skip(f"this machine cannot run {path}: NOT TESTED")
    assert found.stdout.strip() == path, found.stderr
    files = [str(FOLDER / name) for name in FILES]
    done = run_on(path, "-m", "pytest", "-q", "-x", "-rs", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, f"{path}:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}"
    assert "SKIPPED" not in done.stdout, done.stdout[-1000:]


def test_this_process_runs_the_path_that_was_forced_or_the_best() -> None:
    assert isa() == (FORCED or next(path for path in PATHS if import_on(path).returncode == 0))


def test_a_path_that_does_not_exist_is_refused() -> None:
    refused = import_on("avx1024")
    assert refused.returncode != 0
    assert "ETUDE_ISA=avx1024 cannot run on this machine; it has: " in refused.stderr
    assert "portable" in refused.stderr
