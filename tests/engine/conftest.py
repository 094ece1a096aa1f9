"""Engines of all engine tests: a tiny model of random weights, and a real one that talks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etude.engine.engine import Engine
from tests.engine.tiny import open_tiny


@pytest.fixture
def tiny() -> Iterator[Engine]:
    with open_tiny() as engine:
        yield engine


@pytest.fixture(scope="module")
def chatting(smollm2: Path) -> Iterator[Engine]:
    with Engine.load(smollm2, context=512, cache_tokens=2048) as engine:
        yield engine
