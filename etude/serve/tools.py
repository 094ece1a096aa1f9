"""The functions a request offers: how the template is told, what form a call must have, how it is read.

The seam to model/tool_calls.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etude.records import Grammar
from etude.serve.models import ServedModel
from etude.serve.parse import ToolParser
from etude.serve.types_openai import ChatRequest


def _no_parser() -> ToolParser | None:
    return None


@dataclass(frozen=True)
class Tools:
    """descriptions: for the template. grammar: what the answer must look like, if a call is required.
    special: calls are written with control tokens, so these are part of the text."""

    descriptions: list[dict[str, Any]] | None = None
    grammar: Grammar | None = None
    special: bool = False
    new_parser: Callable[[], ToolParser | None] = _no_parser


def tools_of(asked: ChatRequest, model: ServedModel) -> Tools:
    """What `tools` and `tool_choice` of a request mean for a model."""
    if not asked.tools or asked.tool_choice == "none":
        return Tools()
    return Tools([tool.model_dump(exclude_none=True) for tool in asked.tools])
