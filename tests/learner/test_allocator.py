"""Freed memory is used again without page faults; a user's own settings win."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

from etude.learner.allocator import USERS_OWN, keep_freed_memory

SCRIPT = """
import resource
import torch
from etude.learner.allocator import keep_freed_memory

kept = keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(12 << 20), torch.ones(1 << 20)]  # 48 MiB is above what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(4):  # what lay in between finds its place
    faults()
print(kept, faults())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")


def told(**variables: str) -> tuple[bool, int]:
    """(whether it was done, page faults of memory that was there before), in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@glibc
def test_memory_is_used_again() -> None:
    pages = (48 << 20) // resource.getpagesize()
    kept, faults = told()
    assert kept and faults < pages / 10


@glibc
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=0")
    assert not keep_freed_memory()
