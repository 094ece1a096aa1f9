"""Fixtures of all tests: the two real models, out of the cache that `make test` fills, and a tiny one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from etude.model.pull import resolve
from etude.records import EtudeError
from tests.terminal.tiny import write_tiny

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Doctests are looked for in the package and in test files, not in what tests run in another process."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


def _cached(name: str) -> Path:
    try:
        return resolve(name)
    except EtudeError as error:
        pytest.fail(f"{error} (`make test` does it before the tests)", pytrace=False)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a llama with a chat template."""
    return _cached("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma-3-270M, Q4_K_M (Q5_0, Q8_0, Q4_K, Q6_K inside): a base model."""
    return _cached("gemma3-270m")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 27 thousand random weights that knows bytes: fast, and without sense."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")
