"""Numbers after the question mark."""

from __future__ import annotations

import re

from starlette.requests import Request

from etude.serve.errors import ApiError


def whole(request: Request, name: str, default: int | None, low: int, high: int = 1 << 53) -> int | None:
    """A whole number of the query. ApiError 400 for anything else."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if re.fullmatch(r"-?[0-9]{1,16}", text) and low <= int(text) <= high:
        return int(text)
    raise ApiError(400, f"{name} is {text!r}; it must be a whole number from {low} to {high}", param=name)
