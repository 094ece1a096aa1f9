"""The one call of math-verify, inside a worker process (worker.py), whose limits are the only ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def same(gold: str, given: str) -> bool:
    """Whether math-verify finds `given` equal to `gold`, both as `$…$`. ValueError if it cannot read gold."""
    parse, verify = _math_verify()
    gold_read = parse(gold, parsing_timeout=None)
    if all(isinstance(reading, str) for reading in gold_read):
        raise ValueError(f"cannot read the gold answer {gold}")
    given_read = parse(given, parsing_timeout=None)
    return bool(given_read) and bool(verify(gold_read, given_read, timeout_seconds=None))


@functools.cache
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The import takes seconds."""
    from math_verify import parse, verify

    return parse, verify


def warm_up() -> None:
    """What a worker does before its first limit begins."""
    same("$x^2$", "$x^2$")
