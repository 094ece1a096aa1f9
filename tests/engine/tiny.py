"""A tiny model in an engine, with room for eight contexts."""

from __future__ import annotations

from typing import Any

from etude.engine.engine import Engine
from etude.records import SamplingParams
from tests.model.tiny_models import FIXTURES

CONTEXT = 256
PROMPT = tuple(range(3, 63))
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def open_tiny(name: str = "llama", **settings: Any) -> Engine:
    return Engine.load(FIXTURES / name, **({"context": CONTEXT, "cache_tokens": 8 * CONTEXT} | settings))
