"""Bodies by their JSON schema valid ones of small numbers and short texts, and others with one field wrong.

A short stand-in for schemathesis, the same at every run; tests/peers/api_schema.py runs schemathesis itself.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from typing import Any

TEXTS = ("a", "abc", "é~")
WRONG: tuple[Any, ...] = (
    None,
    True,
    -7,
    1.5,
    1e308,
    "",
    "x",
    "\x00",
    [],
    [[]],
    {},
    {"a": {}},
    2**63,
    "[" * 200,
)
MAX_DEPTH = 6


class Bodies:
    """Draws values of schemas of one OpenAPI document. without: properties left out; always: those that are
    never left out, nor null; both where the schema leaves them open. texts: of properties that are any text.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        seed: int = 0,
        *,
        without: Collection[str] = (),
        always: Collection[str] = (),
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self._schemas = document["components"]["schemas"]
        self._draw = random.Random(seed)
        self._without, self._always, self._texts = without, always, texts or {}

    def valid(self, schema: Mapping[str, Any], depth: int = 0) -> Any:
        """A value of the schema. Optional properties are there with a chance that falls with the depth."""
        schema = self._resolved(schema)
        for key in ("const", "default"):
            if key in schema and (key == "const" or self._draw.random() < 0.3):
                return schema[key]
        if "enum" in schema:
            return self._draw.choice(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.valid(self._draw.choice(self._fitting(schema[key], depth)), depth)
        kind = schema.get("type")
        kind = self._draw.choice(kind) if isinstance(kind, list) else kind
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return self._plain(schema, kind)

    def wrong(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """Valid bodies with one property replaced by something of any kind."""
        properties = self._resolved(schema).get("properties", {})
        for name in properties:
            body = self.valid(schema)
            if isinstance(body, dict):
                yield body | {name: self._draw.choice(WRONG)}

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema

    def _fitting(self, choices: list[Any], depth: int) -> list[Any]:
        """Deep inside, those that go no deeper, if there are any."""
        flat = [each for each in choices if self._resolved(each).get("type") not in ("object", "array")]
        return flat if depth >= MAX_DEPTH and flat else choices

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        chance = 0.35 / (depth + 1)
        made: dict[str, Any] = {}
        for name, inner in schema.get("properties", {}).items():
            wanted = name in required or name in self._always
            if wanted or (name not in self._without and self._draw.random() < chance):
                is_text = inner.get("type") == "string" and not {"enum", "const"} & set(inner)
                made[name] = (
                    self._texts[name] if is_text and name in self._texts else self.valid(inner, depth + 1)
                )
                while name in self._always and made[name] is None:
                    made[name] = self.valid(inner, depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.valid(inner, depth + 1) for inner in schema["prefixItems"]]
        n = max(schema.get("minItems", 0), 1 if depth < MAX_DEPTH else 0)
        return [self.valid(schema.get("items", {"type": "string"}), depth + 1) for _ in range(n)]

    def _plain(self, schema: Mapping[str, Any], kind: str | None) -> Any:
        if kind == "null":
            return None
        if kind == "boolean":
            return self._draw.random() < 0.5
        if kind in ("integer", "number"):
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + (kind == "integer"))
            high = schema.get("maximum", schema.get("exclusiveMaximum", 4) - 1)
            value = self._draw.uniform(max(low, -2), min(max(low, 0) + 3, max(high, low)))
            return round(value) if kind == "integer" else value
        return self._draw.choice(TEXTS) if kind == "string" else {}
