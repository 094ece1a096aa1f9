"""What all bodies of requests have in common: strict types, no NaN, one kind of whole number, few errors.

JSON knows one kind of number, and JSON Schema calls 40.0 an integer: programs in languages without integers
write it so. It is read so where it would be an error otherwise.
"""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema


def _end_at_first(schema: Any) -> None:
    """In all lists of a schema: a million wrong items would be a million errors."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _end_at_first(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _end_at_first(part)


class Body(BaseModel):
    """Strict, and without NaN. Unknown fields are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _end_at_first(schema)
        return schema

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            kinds = {each["type"] for each in error.errors(include_url=False, include_context=False)}
            rewritten = _with_whole_numbers(json_data) if "int_type" in kinds else None
            if rewritten is None:
                raise
        return super().model_validate_json(rewritten, **options)


def _with_whole_numbers(json_data: str | bytes | bytearray) -> str | None:
    """The same JSON with 40 for 40.0; None for what Python's reader does not take.

    >>> _with_whole_numbers('{"a": 40.0, "b": "40.0", "c": 0.5}')
    '{"a": 40, "b": "40.0", "c": 0.5}'
    """
    try:
        return json.dumps(json.loads(json_data, parse_float=_number))
    except (ValueError, RecursionError):
        return None


def _number(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
