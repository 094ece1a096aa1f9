"""Calls of tools written as Python, `f(a=1, b="x")`, as some models do; read, never run."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

CONSTANTS = {"true": True, "false": False, "null": None}
"""JSON's words, which models write in Python too."""

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def python_calls(source: str, tools: Mapping[str, Mapping[str, Any]] | None) -> list[tuple[str, str]] | None:
    """(name, arguments as JSON) of each call in `source`; None if anything in it is not a plain call.

    tools: parameters by tool, in order, for arguments without a name; None: not known.

    >>> python_calls("[f(a=1, b='x'), g.h()]", None)
    [('f', '{"a": 1, "b": "x"}'), ('g.h', '{}')]
    """
    try:
        expressions = [statement.value for statement in _statements(source)]
        nodes = [item for expression in expressions for item in _listed(expression)]
        return [(_name(_call(node).func), _arguments(_call(node), tools)) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _on_one_line(quoted: re.Match[str]) -> str:
    """Models, and LFM2's template, write line breaks into strings as they are."""
    return quoted.group().replace("\\\n", "").replace("\n", "\\n")


def _statements(source: str) -> list[ast.Expr]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes such as "\\d"
        body = ast.parse(QUOTED.sub(_on_one_line, source.strip())).body
    found = [statement for statement in body if isinstance(statement, ast.Expr)]
    if len(found) != len(body):
        raise ValueError("not an expression")
    return found


def _listed(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.List | ast.Tuple) else [node]


def _call(node: ast.expr) -> ast.Call:
    """The call itself; one inside `print()`, as Gemma writes it."""
    if not isinstance(node, ast.Call):
        raise ValueError("not a call")
    if isinstance(node.func, ast.Name) and node.func.id == "print" and len(node.args) == 1:
        return _call(node.args[0])
    return node


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise ValueError("not a name")


def _arguments(call: ast.Call, tools: Mapping[str, Mapping[str, Any]] | None) -> str:
    names = list((tools or {}).get(_name(call.func), ()))[: len(call.args)]
    if len(names) < len(call.args):
        raise ValueError("arguments without names")
    values = dict(zip(names, map(_value, call.args), strict=True))
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in values:
            raise ValueError("not a plain argument")
        values[keyword.arg] = _value(keyword.value)
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def _value(node: ast.expr) -> Any:
    """A literal. ValueError for anything else."""
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    return ast.literal_eval(node)


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("not a key of JSON")
