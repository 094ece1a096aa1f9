"""How chat models write calls of tools: one record a format, and which of them a template teaches.

A format is found by what stands in the source of the chat template, never by a model's name. A template that
teaches none of these gets GENERIC: a system message of ours describes the tools (tool_prompt.py).

The texts below are what templates write; the reader (tool_calls.py) forgives blanks between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Body = Literal["object", "named", "parameters", "python"]
"""How one call is written.

object: a JSON object, {"name": …, "arguments": {…}}, or a list of them
named: the name as plain text, then the arguments as a JSON object
parameters: the name in a tag, then a tag for each argument: <function=NAME><parameter=KEY>VALUE</parameter>
python: NAME(key=value, …), or a list of them
"""


@dataclass(frozen=True)
class ToolFormat:
    """Where calls begin and end, and how names and arguments are found.

    marks: the template's source has all the texts of one of these tuples; unlike: and none of these.
    tags: (what opens a call or a section of calls, what closes it); models may use any of them, and are told
    and held to the first. No opener begins like another. bare: a call may also stand at the beginning of an
    answer with no tag at all, if it names a tool that there is.
    call_open, call_close: around each call inside the section.
    before_name, after_name, after_arguments: around the name and the arguments, for body "named".
    arguments_keys: in an object, the first is the one to write. id_mark: between name and id, where the model
    writes one. id_characters: how many an id must have (0: any number). gap: between the tags and what they
    enclose. listed: calls are written as a list. separator: between two calls.
    """

    name: str
    body: Body
    marks: tuple[tuple[str, ...], ...] = ()
    unlike: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    bare: bool = False
    call_open: str = ""
    call_close: str = ""
    before_name: str = ""
    after_name: str = ""
    after_arguments: str = ""
    arguments_keys: tuple[str, ...] = ("arguments",)
    id_mark: str = ""
    id_characters: int = 0
    gap: str = ""
    listed: bool = False
    separator: str = ""

    @property
    def together(self) -> bool:
        """Whether one section holds all calls; else each has tags of its own."""
        return self.listed or (self.body == "named" and self.call_open != "")

    def section(self) -> tuple[str, str]:
        """What stands before and after the calls of a section."""
        open, close = self.tags[0]
        bracket = ("[", "]") if self.listed else ("", "")
        return f"{open}{self.gap}{bracket[0]}", f"{bracket[1]}{self.gap}{close}"

    def call(self, name: str) -> tuple[str, str]:
        """What stands before and after the arguments of a call."""
        if self.body == "object":
            return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments_keys[0]}": ', "}"
        if self.body == "named":
            return (
                f"{self.call_open}{self.before_name}{name}{self.after_name}",
                f"{self.after_arguments}{self.call_close}",
            )
        return (f"{name}(", ")") if self.body == "python" else (f"{self.call_open}{name}>\n", self.call_close)

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """(name, arguments as the JSON text of an object) of each call, as a model of this format writes it.

        >>> HERMES.written([("f", '{"a": 1}')])
        '<tool_call>\\n{"name": "f", "arguments": {"a": 1}}\\n</tool_call>'
        """
        texts = [self._call_text(name, arguments) for name, arguments in calls]
        before, after = self.section()
        if self.together:
            return f"{before}{self.separator.join(texts)}{after}"
        return self.separator.join(f"{before}{text}{after}" for text in texts)

    def _call_text(self, name: str, arguments: str) -> str:
        before, after = self.call(name)
        if self.body in ("object", "named"):
            return f"{before}{arguments}{after}"
        values = json.loads(arguments, strict=False)
        if self.body == "python":
            inner = ", ".join(
                f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
            )
        else:
            inner = "".join(
                f"<parameter={key}>\n{_plain(value)}\n</parameter>\n" for key, value in values.items()
            )
        return f"{before}{inner}{after}"


def _plain(value: object) -> str:
    """A string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


HERMES = ToolFormat(
    "hermes",
    "object",
    marks=(("<tool_call>", "arguments"),),
    unlike=("<arg_key>", "<function=", "<invoke", "<tool_calls>"),
    tags=(("<tool_call>", "</tool_call>"),),
    arguments_keys=("arguments", "parameters"),
    gap="\n",
    separator="\n",
)
"""Hermes, Qwen2.5, Qwen3, SmolLM3, Granite 4, MiMo."""

PARAMETERS = ToolFormat(
    "parameters",
    "parameters",
    marks=(("<tool_call>", "<function=", "<parameter="),),
    tags=(("<tool_call>", "</tool_call>"), ("<function=", "</tool_call>")),
    call_open="<function=",
    call_close="</function>",
    gap="\n",
    separator="\n",
)
"""Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5."""

SEED = ToolFormat(
    "seed",
    "parameters",
    marks=(("seed:tool_call", "<function="),),
    tags=(("<seed:tool_call>", "</seed:tool_call>"), ("<function=", "</seed:tool_call>")),
    call_open="<function=",
    call_close="</function>",
    gap="\n",
    separator="\n",
)

LLAMA = ToolFormat(
    "llama",
    "object",
    marks=(('"parameters": dictionary of argument name',),),
    tags=(("", ""), ("<|python_tag|>", "")),
    bare=True,
    arguments_keys=("parameters", "arguments"),
    separator="; ",
)
"""Llama 3.1 to 3.3."""

MISTRAL = ToolFormat(
    "mistral",
    "object",
    marks=(("[TOOL_CALLS]",),),
    unlike=("[ARGS]",),
    tags=(("[TOOL_CALLS]", ""),),
    listed=True,
    id_characters=9,
    separator=", ",
)
"""Mistral 7B v0.3, Nemo, Small 3.1."""

MISTRAL_ARGS = ToolFormat(
    "mistral-args",
    "named",
    marks=(("[TOOL_CALLS]", "[ARGS]"),),
    tags=(("[TOOL_CALLS]", ""),),
    after_name="[ARGS]",
    id_mark="[CALL_ID]",
    id_characters=9,
)
"""Mistral Small 3.2, Devstral, Magistral, Ministral 3."""

DEEPSEEK_R1 = ToolFormat(
    "deepseek-r1",
    "named",
    marks=(("<｜tool▁calls▁begin｜>", "```json"),),
    tags=(
        ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        ("<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>"),
        ("<｜tool_calls_begin｜>", "<｜tool▁calls▁end｜>"),  # distilled models misspell it
        ("<｜tool calls begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    call_open="<｜tool▁call▁begin｜>",
    call_close="<｜tool▁call▁end｜>",
    before_name="function<｜tool▁sep｜>",
    after_name="\n```json\n",
    after_arguments="\n```",
    separator="\n",
)
"""DeepSeek-R1, V3 and the distilled models."""

DEEPSEEK_V3_1 = ToolFormat(
    "deepseek-v3.1",
    "named",
    marks=(("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),),
    unlike=("```json",),
    tags=(
        ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        ("<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    call_open="<｜tool▁call▁begin｜>",
    call_close="<｜tool▁call▁end｜>",
    after_name="<｜tool▁sep｜>",
)

TOOL_CODE = ToolFormat(
    "tool-code",
    "python",
    marks=(("```tool_code",),),
    tags=(("```tool_code", "```"),),
    gap="\n",
    separator="\n",
)
"""Gemma 2 and 3, with templates that teach it (their own know no tools)."""

LFM2 = ToolFormat(
    "lfm2",
    "python",
    marks=(("<|tool_call_start|>",), ("<|tool_list_start|>",)),
    tags=(("<|tool_call_start|>", "<|tool_call_end|>"),),
    listed=True,
    separator=", ",
)

GENERIC = ToolFormat(
    "generic",
    "object",
    tags=(("", ""), ("```json", "```"), ("<tool_call>", "</tool_call>")),
    bare=True,
    separator="\n",
)
"""For a model whose template teaches none: JSON, as our system message asks for."""

FORMATS = (
    SEED, PARAMETERS, HERMES, LLAMA, MISTRAL_ARGS, MISTRAL, DEEPSEEK_R1, DEEPSEEK_V3_1, TOOL_CODE, LFM2,
)  # fmt: skip
"""In the order in which a template is tried."""


def tool_format_of(template_source: str) -> ToolFormat:
    """The format that a chat template teaches, GENERIC if it is none that is known here.

    >>> tool_format_of('<tool_call>{"name": <function-name>, "arguments": <object>}</tool_call>').name
    'hermes'
    """
    for format in FORMATS:
        marked = any(all(text in template_source for text in texts) for texts in format.marks)
        if marked and not any(text in template_source for text in format.unlike):
            return format
    return GENERIC
