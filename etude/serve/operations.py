"""What the OpenAPI document says of a route; each route module has `OPERATIONS` beside its `ROUTES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel


@dataclass(frozen=True)
class Operation:
    """One method of one path. body: what is read. streams: the answer may be events. public: it needs
    no key. query: names of parameters after the question mark. answer: what is given back, where that has
    a schema."""

    method: Literal["get", "post", "put", "patch", "delete"]
    path: str
    summary: str
    body: type[BaseModel] | None = None
    streams: bool = False
    public: bool = False
    query: tuple[str, ...] = ()
    answer: type[BaseModel] | None = None
