"""Typed reading of records that came from a file: GGUF metadata, config.json, adapter_config.json.

Such a record is not to be trusted: a count may be missing, a string, a list, negative, NaN or as large as
2^63. Every read names the key, what stands there and what is allowed, and every number comes with its limits,
so that nothing later divides by zero or allocates by a number that a file made up.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.records import EtudeError

_REQUIRED = object()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Fields:
    """`values` under keys that start with `prefix` ("llama." or ""); `source` names the record in errors.

    >>> Fields({"llama.block_count": 30}, "model.gguf", "llama.").integer("block_count", 1, 512)
    30
    """

    values: Mapping[str, Any]
    source: str
    prefix: str = ""

    def __contains__(self, key: str) -> bool:
        return self.values.get(self.prefix + key) is not None

    def error(self, key: str, allowed: str) -> EtudeError:
        """The error to raise when `key` is missing or is not what is `allowed`."""
        name = self.prefix + key
        value = self.values.get(name)
        if value is None:
            return EtudeError(f"{self.source}: {name} is missing; expected {allowed}")
        return EtudeError(f"{self.source}: {name} is {_shown(value)}; allowed is {allowed}")

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands; null counts as absent, as in config.json."""
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def integer(self, key: str, low: int, high: int, default: Any = _REQUIRED) -> int:
        """An integer in [low, high]. A list with one value per layer is taken when all of them are equal."""
        value = self.raw(key, default)
        allowed = f"a whole number from {low} to {high}"
        if isinstance(value, (list, tuple, np.ndarray)):
            value = self._uniform(key, value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            number = operator.index(value)
        except TypeError:
            raise self.error(key, allowed) from None
        if isinstance(value, (bool, np.bool_)) or not low <= number <= high:
            raise self.error(key, allowed)
        return number

    def number(self, key: str, low: float, high: float, default: Any = _REQUIRED) -> float:
        """A finite number in [low, high]."""
        value = self.raw(key, default)
        allowed = f"a number from {low:g} to {high:g}"
        if isinstance(value, (bool, np.bool_)) or not isinstance(
            value, (int, float, np.integer, np.floating)
        ):
            raise self.error(key, allowed)
        if not low <= value <= high or not math.isfinite(value):
            raise self.error(key, allowed)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, (bool, np.bool_)):
            raise self.error(key, "true or false")
        return bool(value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def choice(self, key: str, allowed: Iterable[str], default: Any = _REQUIRED) -> str:
        names = sorted(allowed)
        value = self.text(key, default)
        if value not in names:
            raise self.error(key, "one of " + ", ".join(names))
        return value

    def record(self, key: str) -> Fields:
        """The JSON object under `key`; an absent one is empty."""
        value = self.raw(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "a JSON object")
        return Fields(value, f"{self.source}: {self.prefix}{key}")

    def _uniform(self, key: str, values: Any) -> Any:
        items = list(values)
        if not items or any(item != items[0] for item in items):
            raise self.error(key, "one value, or the same value for every layer")
        return items[0]
