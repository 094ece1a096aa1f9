"""The application with a tiny model, shared by tests that change nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.live import client_of


@pytest.fixture(scope="module")
def client(tiny: Path) -> Iterator[TestClient]:
    with client_of(tiny) as client:
        yield client
