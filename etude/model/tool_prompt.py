"""Puts tools, calls and their results into a conversation so that a model's chat template renders them.

Templates differ: some take arguments as an object and some as text, some fail on a message without content
and some write an empty turn for one with it, some have no place for results, many know no tools at all. What
a template can do is found by rendering small conversations with it, never by its name. What it cannot is
written into the messages: the tools into the system message, calls into the answer as the model would write
them, results into a message of the user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from etude.model.chat import ChatTemplate, ChatTemplateError
from etude.model.tool_formats import GENERIC, ToolFormat, tool_format_of
from etude.records import EtudeError, Message

Form = Literal["text", "object"]
FORMS: tuple[Form, ...] = ("text", "object")
KEY, VALUE, RESULT, SYSTEM = "etude_key", "etude_value", "etude_result", "etude_system"
PROBE_ID = "etude0001"
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "etude_tool",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]},
    },
}


@dataclass(frozen=True)
class ToolPrompt:
    """How one template is given tools.

    tools: whether it renders descriptions itself. calls: what it wants as arguments; None: it renders no
    calls. mixed: whether it renders calls in a message that also has content. null_content: a message with
    nothing but calls has content None, not "". results: whether it
    renders messages of role "tool". system: whether it takes a system message.
    """

    format: ToolFormat
    tools: bool
    calls: Form | None
    mixed: bool
    null_content: bool
    results: bool
    system: bool

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """OpenAI's messages and tools -> the messages and the tools to render. EtudeError if a call in the
        messages is none."""
        prepared = [self._call_message(message) if message.tool_calls else message for message in messages]
        if self.results:
            prepared = [self._with_id(m) if m.role == "tool" else m for m in prepared]
        else:
            prepared = _results_as_user(prepared)
        if not tools or self.tools:
            return prepared, list(tools) if tools else None
        return self._with_description(prepared, self.description(tools)), None

    def description(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The system message that tells a model of its tools and how to call them."""
        functions = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
        example = self.format.written([("tool_name", '{"parameter": "value"}')])
        return (
            "You can call these tools, each described by a JSON schema:\n"
            + "\n".join(functions)
            + "\n\nWhen a tool helps, answer with nothing but its call, in exactly this form:\n"
            + example
            + "\n\nYou will be given what it returns. When no tool helps, answer as usual."
        )

    def _call_message(self, message: Message) -> Message:
        calls = [_checked(call) for call in message.tool_calls]
        if self.calls is None or (message.content and not self.mixed):
            written = self.format.written([(name, _object(arguments)) for _, name, arguments in calls])
            return replace(message, content=f"{message.content}\n{written}".lstrip("\n"), tool_calls=())
        rendered = tuple(
            {
                "id": self._id(id),
                "type": "function",
                "function": {"name": name, "arguments": self._arguments(arguments)},
            }
            for id, name, arguments in calls
        )
        extra = (
            {**message.extra, "content": None} if self.null_content and not message.content else message.extra
        )
        return replace(message, tool_calls=rendered, extra=extra)

    def _arguments(self, text: str) -> Any:
        """As the template wants them. Arguments that the model broke stay text: the model is shown what it
        wrote."""
        if self.calls == "text":
            return text
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            return text
        return value if isinstance(value, dict) else text

    def _id(self, id: str) -> str:
        """An id of the length that the format wants; the same one for the same id."""
        length = self.format.id_characters
        if not length or (len(id) == length and id.isalnum() and id.isascii()):
            return id
        return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:length]

    def _with_id(self, message: Message) -> Message:
        id = message.extra.get("tool_call_id")
        if not isinstance(id, str):
            return message
        return replace(message, extra={**message.extra, "tool_call_id": self._id(id)})

    def _with_description(self, messages: list[Message], text: str) -> list[Message]:
        """The description at the end of the system message, or at the beginning of the first message."""
        first = messages[0] if messages else None
        if first is not None and first.role == "system":
            return [replace(first, content=f"{first.content}\n\n{text}"), *messages[1:]]
        if self.system or first is None:
            return [Message("system", text), *messages]
        return [replace(first, content=f"{text}\n\n{first.content}"), *messages[1:]]


def tool_prompt_of(template: ChatTemplate) -> ToolPrompt:
    """What a template can do with tools; a few small renderings, so keep the result."""
    format = tool_format_of(template.source)
    if format == GENERIC:  # it may teach a form that nothing here reads
        return ToolPrompt(GENERIC, False, None, False, False, False, _takes_system(template))
    calls, null_content = _call_form(template)
    return ToolPrompt(
        format,
        tools=template.takes_tools and KEY in (_rendered(template, [Message("user", "x")], tools=True) or ""),
        calls=calls,
        mixed=calls is not None and _has_call(_with_call(template, calls, "Look:")),
        null_content=null_content,
        results=calls is not None and _takes_results(template, calls),
        system=_takes_system(template),
    )


def _probe_call(calls: Form, content: str | None) -> Message:
    arguments: Any = {KEY: VALUE}
    if calls == "text":
        arguments = json.dumps(arguments)
    call = {"id": PROBE_ID, "type": "function", "function": {"name": "etude_tool", "arguments": arguments}}
    return Message("assistant", content or "", tool_calls=(call,), extra={"content": content})


def _call_form(template: ChatTemplate) -> tuple[Form | None, bool]:
    """(what arguments have to be, whether missing content has to be None). Text comes first: it is rendered
    as the model wrote it."""
    for calls in FORMS:
        with_empty, with_null = _with_call(template, calls, ""), _with_call(template, calls, None)
        empty, null = _has_call(with_empty), _has_call(with_null)
        if empty or null:
            shorter = len(with_null or "") < len(with_empty or "")
            return calls, null and (shorter or not empty)  # it would write "" as a turn of its own
    return None, False


def _with_call(template: ChatTemplate, calls: Form, content: str | None) -> str | None:
    return _rendered(template, [Message("user", "x"), _probe_call(calls, content)], prompt=False)


def _has_call(text: str | None) -> bool:
    """Whether the arguments were rendered, and neither as Python nor as a string with JSON inside."""
    if text is None or KEY not in text or VALUE not in text:
        return False
    return f"'{KEY}'" not in text and f'\\"{KEY}' not in text


def _takes_results(template: ChatTemplate, calls: Form) -> bool:
    result = Message("tool", RESULT, extra={"tool_call_id": PROBE_ID, "name": "etude_tool"})
    for content in ("", None):
        text = _rendered(template, [Message("user", "x"), _probe_call(calls, content), result])
        if text and RESULT in text:
            return True
    return False


def _takes_system(template: ChatTemplate) -> bool:
    return SYSTEM in (_rendered(template, [Message("system", SYSTEM), Message("user", "x")]) or "")


def _rendered(
    template: ChatTemplate, messages: Sequence[Message], *, tools: bool = False, prompt: bool = True
) -> str | None:
    """None if the template refuses it."""
    try:
        return template.render(messages, add_generation_prompt=prompt, tools=[PROBE_TOOL] if tools else None)
    except ChatTemplateError:
        return None


def _checked(call: Mapping[str, Any]) -> tuple[str, str, str]:
    """(id, name, arguments) of a call of OpenAI's API."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise EtudeError(f"a tool call has a function with a name and arguments; got {json.dumps(call)[:80]}")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return str(call.get("id") or ""), function["name"], arguments or "{}"


def _object(text: str) -> str:
    """Arguments that are an object; what a model broke is shown as a string in one."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        value = None
    return text if isinstance(value, dict) else json.dumps({"arguments": text}, ensure_ascii=False)


def _results_as_user(messages: Sequence[Message]) -> list[Message]:
    """Results, and what the user says after them, as one message of the user: templates want roles that
    alternate."""
    found: list[Message] = []
    previous = ""
    for message in messages:
        if message.role == "tool":
            content = f"<tool_response>\n{message.content}\n</tool_response>"
            if previous == "tool":
                found[-1] = replace(found[-1], content=f"{found[-1].content}\n{content}")
            else:
                found.append(Message("user", content))
        elif message.role == "user" and previous == "tool":
            found[-1] = replace(found[-1], content=f"{found[-1].content}\n\n{message.content}")
        else:
            found.append(message)
        previous = message.role
    return found
