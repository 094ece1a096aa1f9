"""Settings → TOML, which Python reads but does not write."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.records import EtudeError


def to_toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML: tables, and values that are text, numbers, booleans or lists. None is left out.

    >>> print(to_toml({"model": "smollm2", "lr": 1e-5, "reward": {"math?parse=strict": 1.0}}), end="")
    model = "smollm2"
    lr = 1e-05
    <BLANKLINE>
    [reward]
    "math?parse=strict" = 1.0
    """
    return "".join(_toml_table(settings, ())).lstrip("\n")


def _toml_table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {
        key: value for key, value in table.items() if value is not None and not isinstance(value, Mapping)
    }
    if path and (plain or not table):
        yield f"\n[{'.'.join(map(_toml_key, path))}]\n"
    for key, value in plain.items():
        yield f"{_toml_key(key)} = {_toml_value(value)}\n"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml_table(value, (*path, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else repr(value).replace("Infinity", "inf")
    if isinstance(value, str | Path):
        return _toml_text(str(value))
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    raise EtudeError(f"a setting is {value!r}; a config holds text, numbers, true, false and lists of them")
