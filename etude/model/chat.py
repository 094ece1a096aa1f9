"""Messages → prompt, by the chat template that comes with a model or by a built-in one.

A template is a Jinja program out of the model's file: it runs in a sandbox with limits (sandbox.py). A model
without one is a base model, which completes text and does not chat. The built-in templates stand in
templates/ under llama.cpp's names, for files that lack theirs; `r1-zero` is the one of DeepSeek-R1-Zero, for
base models.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta

from etude.model.rendered import RenderedPrompt, mark_specials
from etude.model.sandbox import BUDGET, Budget, TemplateEnvironment
from etude.model.thinking import KNOWN_TAGS, ThinkingTags
from etude.records import EtudeError, Message

TEMPLATES = Path(__file__).parent / "templates"
KEY = "tokenizer.chat_template"
MAX_SOURCE_CHARACTERS = 1 << 20
PROVIDED = frozenset({"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"})


class ChatTemplateError(EtudeError):
    """A chat template that is no template, refuses the conversation, or runs into a limit."""


class ChatTemplate:
    """A compiled template.

    variables: the names that the template reads and a caller may set, such as `enable_thinking`. tags: what
    it writes around thoughts, None if it knows none.
    """

    def __init__(self, source: str, special_texts: Mapping[str, str] | None = None) -> None:
        """special_texts: bos_token and the like, by their names in templates. ChatTemplateError if it is
        invalid."""
        self.source = source
        self._special_texts = dict(special_texts or {})
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError(f"the chat template has more than {MAX_SOURCE_CHARACTERS} characters")
        environment = TemplateEnvironment()
        try:
            read = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.compile_source(source)
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template is invalid in line {error.lineno}: {error}"
            ) from error
        except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise ChatTemplateError(f"the chat template cannot be compiled: {error}") from error
        self.takes_tools = "tools" in read
        self.variables = frozenset(read - PROVIDED - self._special_texts.keys())
        self.tags: ThinkingTags | None = next((tags for tags in KNOWN_TAGS if tags.close in source), None)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], name: str | None = None) -> ChatTemplate | None:
        """The template of a file (the one of that name, if it has several), or None for a base model."""
        found = template_sources(metadata)
        if name is None and not found:
            return None
        if (name or "default") not in found:
            raise ChatTemplateError(
                f"the model has no chat template {name or 'default'!r}; it has: {', '.join(found) or 'none'}"
            )
        return cls(found[name or "default"], special_texts(metadata))

    def for_model(self, metadata: Mapping[str, Any]) -> ChatTemplate:
        """The same template with the bos_token and the like of a model that it was not made for."""
        return ChatTemplate(self.source, special_texts(metadata) | self._special_texts)

    @classmethod
    def builtin(cls, name: str) -> ChatTemplate:
        """One of `names()`."""
        if name not in cls.names():
            raise ChatTemplateError(
                f"there is no built-in chat template {name!r}. Names: {', '.join(cls.names())}"
            )
        return cls((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))

    @staticmethod
    def names() -> list[str]:
        """The names of the built-in templates."""
        return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> RenderedPrompt:
        """The prompt for a conversation; for `Tokenizer.encode_rendered`, or to look at.

        tools: JSON descriptions of functions. variables: what else the template reads. ChatTemplateError if
        it reads no such thing, if it refuses the conversation (its own words), or runs into a limit.
        """
        unknown = sorted(variables.keys() - self.variables)
        if unknown:
            known = ", ".join(sorted(self.variables)) or "none"
            raise ChatTemplateError(f"the chat template reads no variable {unknown[0]!r}; it reads: {known}")
        if tools and not self.takes_tools:
            raise ChatTemplateError("the chat template of this model has no place for tools")
        given = {
            "messages": [_as_dict(message) for message in messages],
            "tools": list(tools) if tools else None,
        }
        given |= variables
        now = datetime.datetime.now()

        def run(given: Mapping[str, Any]) -> str:
            set_here = {"add_generation_prompt": add_generation_prompt, "strftime_now": now.strftime}
            return self._run({**given, **set_here})

        text = run(given)

        def render_marked(specials: Collection[str], mark: str) -> str:
            marked = _mapped(given, lambda value: mark_specials(value, specials, mark))
            return text if marked == given else run(marked)

        return RenderedPrompt(text, render_marked)

    def opens_thinking(self, prompt: str) -> bool:
        """Whether the prompt ends inside a block of thoughts, so that the reply begins there."""
        return self.tags is not None and prompt.rstrip().endswith(self.tags.open)

    def _run(self, given: Mapping[str, Any]) -> str:
        variables = {**self._special_texts, **given, "raise_exception": _refuse, BUDGET: Budget()}
        try:
            return "".join(self._template.root_render_func(self._template.new_context(variables)))
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template of the model: {error}") from error
        except Exception as error:  # a stranger's program fails in any way
            raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error


def template_sources(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates in a file's metadata by name: "default" and, in some files, others such as "tool_use"."""
    found = {
        key.removeprefix(KEY).removeprefix(".") or "default": value
        for key, value in metadata.items()
        if (key == KEY or key.startswith(f"{KEY}.")) and isinstance(value, str) and value.strip()
    }
    return dict(sorted(found.items(), key=lambda item: item[0] != "default"))


def special_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like, as far as the file has them."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for key, name in names.items()}
    return {
        name: tokens[index]
        for name, index in ids.items()
        if isinstance(index, int) and 0 <= index < len(tokens)
    }


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as templates know it: keys that it does not use are absent."""
    result: dict[str, Any] = {"role": message.role, "content": message.content, **message.extra}
    if message.reasoning_content is not None:
        result["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        result["tool_calls"] = list(message.tool_calls)
    return result


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
    """A value with `function` applied to every text in it, keys too."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {_mapped(key, function): _mapped(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, function) for item in value]
    return value


def _refuse(message: str) -> None:
    """`raise_exception` of templates: a conversation that they are not made for."""
    raise TemplateError(message)
