"""The benchmark's modules import each other as scripts do: their folder is on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))


@pytest.fixture
def bench_folder() -> Path:
    return BENCH
