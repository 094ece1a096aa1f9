"""Etude runs quantised language models and teaches them by reinforcement learning.

    from etude import Engine

    with Engine.load("smollm2-135m") as engine:
        [completions] = engine.generate(["Once upon a time"], n=8, max_tokens=64)

`Engine` is imported when it is first used, so that `import etude` costs nothing; so is training, `grpo`:

    from etude import grpo

    grpo("smollm2-135m", data="task:add", reward=lambda problem, answer: float(problem.answer in answer))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from etude.records import (
    Completion,
    Dry,
    DynamicTemperature,
    EtudeError,
    Event,
    Grammar,
    Message,
    Mirostat,
    Penalties,
    Request,
    SamplingParams,
    Xtc,
)

if TYPE_CHECKING:
    from etude.engine.engine import Engine

__all__ = [
    "Completion",
    "Dry",
    "DynamicTemperature",
    "Engine",
    "EtudeError",
    "Event",
    "Grammar",
    "Message",
    "Mirostat",
    "Penalties",
    "Request",
    "SamplingParams",
    "Xtc",
]


_LATER = {"Engine": "etude.engine.engine", "grpo": "etude.recipes.grpo"}


def __getattr__(name: str) -> Any:
    """The names that are too costly to import before they are used."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'etude' has no attribute {name!r}")
