"""The two real models as native weights, as they stand in their files or exactly converted to f32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etude.engine.weights import set_weight
from etude.kernels import _native
from etude.model.checkpoint import config_of, open_source, weights_of
from etude.model.quants import GGMLType

NAMES = ("smollm2", "gemma3")
"""Fixtures of tests/conftest.py, and stems of the peers' files."""


def load(path: Path, type: GGMLType | None = None) -> Any:
    """A `_native.Model`; type: convert all matrices to it. f32 holds every value of the quantised types."""
    with open_source(path) as source:
        config = config_of(source)
        model = _native.Model(**config.native_arguments())
        for weight in weights_of(source, config):
            set_weight(model, weight, type)
            source.release(weight.name)
    model.check()
    return model
