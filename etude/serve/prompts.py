"""What a request says → token ids: conversations by the chat template, completions by text or by ids."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.model.chat import ChatTemplate
from etude.model.tokenizer import Tokenizer
from etude.records import EtudeError, Message
from etude.serve.errors import ApiError, context_exceeded
from etude.serve.models import ServedModel
from etude.serve.types_openai import ChatMessage, ChatRequest, ContentPart

SHRINKS = 3
"""Three characters of Hangul become one by Unicode's NFC: the most."""

MixedPrompt = str | Sequence[int | str]


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model reads it. opened: it ends inside a block of thoughts. prefill: what an
    assistant's message at the end began to say; it ends the prompt, and the answer goes on from there."""

    ids: tuple[int, ...]
    text: str
    opened: bool
    prefill: str = ""


def chat_prompt(
    model: ServedModel,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
    continues: bool = False,
) -> ChatPrompt:
    """Render a conversation. continues: its last message, an assistant's, is to be continued.

    EtudeError for a base model, and for what the template refuses.
    """
    template = template_of(model)
    last = messages[-1] if continues else None
    rendered = template.render(
        messages[:-1] if last is not None else messages,
        add_generation_prompt=generation_prompt or last is not None,
        tools=tools,
        **(variables or {}),
    )
    opened = rendered.rstrip().endswith(model.tags.open)
    prefill = "" if last is None else _prefill(last, model, opened)
    if prefill:
        rendered = rendered.extended(prefill)
    check_size(str(rendered), model.engine.tokenizer, model.engine.context, "messages")
    return ChatPrompt(tuple(model.engine.tokenizer.encode_rendered(rendered)), str(rendered), opened, prefill)


def given_prompt(model: ServedModel, ids: Sequence[int]) -> ChatPrompt:
    """A conversation that a client has rendered itself: whether it ends inside a block of thoughts is read
    off its text. ApiError 400 for ids that the vocabulary has not."""
    known = ids_of(ids, model.engine.tokenizer)
    text = model.engine.tokenizer.decode(known, special=True)
    return ChatPrompt(known, text, text.rstrip().endswith(model.tags.open))


def _prefill(message: Message, model: ServedModel, opened: bool) -> str:
    if not message.reasoning_content:
        return message.content
    thought = message.reasoning_content if opened else f"{model.tags.open}\n{message.reasoning_content}"
    return f"{thought}\n{model.tags.close}\n\n{message.content}" if message.content else thought


def template_of(model: ServedModel) -> ChatTemplate:
    """EtudeError for a base model."""
    if model.template is None:
        raise EtudeError(
            f"{model.name} is a base model without a chat template: use /v1/completions, or start the server "
            "with --chat-template"
        )
    return model.template


def chat_variables(asked: ChatRequest, model: ServedModel) -> dict[str, Any]:
    """Variables of the template: the usual ones, the server's, those of the request, and what
    `reasoning_effort` means. Those that the template does not read are passed over: clients send them to
    every model."""
    given = asked.chat_template_kwargs or {}
    variables = {**_usual_variables(asked), **model.defaults.variables, **given}
    if "enable_thinking" in variables and not isinstance(variables["enable_thinking"], bool):
        raise ApiError(
            400,
            "enable_thinking must be a boolean, true or false",
            param="chat_template_kwargs.enable_thinking",
        )
    if asked.reasoning_effort == "none":
        variables["enable_thinking"] = False
        variables.pop("reasoning_effort", None)
    elif asked.reasoning_effort:
        variables["reasoning_effort"] = asked.reasoning_effort
    known = model.template.variables if model.template else frozenset()
    return {name: value for name, value in variables.items() if name in known}


def _usual_variables(asked: ChatRequest) -> dict[str, Any]:
    """What llama.cpp gives every template: thoughts unless it is told otherwise, and the date in two forms;
    and the functions as text, for templates that have no `tools`."""
    now = datetime.datetime.now()
    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
    return {
        "enable_thinking": True,
        "date_string": now.strftime("%d %b %Y"),
        "datetime": now.strftime("%b %d %Y"),
        "functions": json.dumps(tools, ensure_ascii=False),
    }


def continues_last(asked: ChatRequest, model: ServedModel) -> bool:
    """Whether the last message is to be continued: because the request says so, or as llama.cpp does with an
    assistant's. ApiError 400 for what cannot be."""
    if not asked.messages:
        return False
    last = asked.messages[-1]
    is_assistant = last.role == "assistant"
    explicit = asked.continue_final_message
    if explicit and asked.add_generation_prompt:
        raise ApiError(400, "add_generation_prompt and continue_final_message cannot both be true")
    if explicit and not is_assistant:
        raise ApiError(400, "continue_final_message: the last message is not the assistant's")
    implied = explicit is None and is_assistant and model.defaults.prefill and not last.tool_calls
    if implied and len(asked.messages) > 1 and asked.messages[-2].role == "assistant":
        raise ApiError(400, "there cannot be two assistant messages at the end of the list", param="messages")
    if explicit and last.tool_calls:
        raise ApiError(400, "an assistant message with tool calls cannot be continued", param="messages")
    return bool(explicit or implied)


def message_of(message: ChatMessage, at: int = 0) -> Message:
    """A message of the API as templates know it. ApiError 400 for what is no text."""
    where = f"messages[{at}]"
    if message.content is None and not message.tool_calls and message.role != "assistant":
        raise ApiError(400, f"{where}.content is required of role {message.role!r}", param=f"{where}.content")
    extra = {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key)) is not None}
    calls = tuple(
        {
            "type": "function",
            "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            **({} if call.id is None else {"id": call.id}),
        }
        for call in message.tool_calls or ()
    )
    thought = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    return Message(message.role, text_of(message.content, where), thought, calls, extra)


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """All of a conversation. OpenAI's "developer" is what templates call "system"."""
    converted = [message_of(message, at) for at, message in enumerate(messages)]
    return [
        Message("system", each.content, each.reasoning_content, each.tool_calls, each.extra)
        if each.role == "developer"
        else each
        for each in converted
    ]


def text_of(content: str | list[ContentPart] | None, where: str) -> str:
    """The text of a message's content; parts stand in lines of their own."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for at, part in enumerate(content):
        if part.text is None or part.type not in ("text", "input_text", "output_text", "refusal"):
            raise ApiError(
                400,
                f"{where}.content[{at}] is of type {part.type!r}; this server reads text only",
                param=f"{where}.content",
            )
        texts.append(part.text)
    return "\n".join(texts)


def _arguments(arguments: str | dict[str, Any]) -> str:
    """As text, OpenAI's form."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def completion_prompts(
    prompt: str | Sequence[int | str | Sequence[int | str]],
    tokenizer: Tokenizer,
    add_special: bool = True,
    context: int | None = None,
) -> list[tuple[int, ...]]:
    """The token ids of each prompt of /v1/completions and llama.cpp's /completion.

    Text is one prompt; a list of texts is several; a list with ids in it is one, whose texts are tokenized in
    between; a list with lists in it is several. ApiError 400 for an empty one, and for one that cannot fit
    the context, if that is given.
    """
    if isinstance(prompt, str):
        prompts: list[MixedPrompt] = [prompt]
    elif all(isinstance(item, str) for item in prompt) or any(_is_list(item) for item in prompt):
        prompts = [[item] if isinstance(item, int) else item for item in prompt]
    else:
        prompts = [[item for item in prompt if isinstance(item, int | str)]]
    if context is not None:
        for each in prompts:
            for text in [each] if isinstance(each, str) else each:
                check_size(text if isinstance(text, str) else "", tokenizer, context, "prompt")
    found = [ids_of(each, tokenizer, add_special) for each in prompts]
    if not found or not all(found):
        raise ApiError(400, "the prompt has no tokens; give at least one", param="prompt")
    return found


def _is_list(item: object) -> bool:
    return isinstance(item, list | tuple)


def ids_of(prompt: MixedPrompt, tokenizer: Tokenizer, add_special: bool = True) -> tuple[int, ...]:
    """Ids of one prompt. Special tokens written in its text are read as such, as llama.cpp does: whoever
    completes text writes the template himself. The first text gets the model's BOS."""
    if isinstance(prompt, str):
        return tuple(tokenizer.encode(prompt, add_special=add_special, parse_special=True))
    ids: list[int] = []
    for at, item in enumerate(prompt):
        if isinstance(item, int):
            if not 0 <= item < tokenizer.n_vocab:
                raise ApiError(
                    400,
                    f"the prompt has token id {item}; the model's ids are 0 to {tokenizer.n_vocab - 1}",
                    param="prompt",
                )
            ids.append(item)
        else:
            ids += tokenizer.encode(item, add_special=add_special and at == 0, parse_special=True)
    return tuple(ids)


@functools.lru_cache(maxsize=4)
def longest_token(tokenizer: Tokenizer) -> int:
    """Bytes of the longest."""
    return max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.n_vocab))


def check_size(text: str, tokenizer: Tokenizer, context: int, param: str) -> None:
    """ApiError 400 for a text of more characters than the context holds of whatever tokens: nobody waits
    until megabytes have been tokenized to hear that. Some tokenizers make fewer characters of a text
    first."""
    check_characters(len(text), tokenizer, context, param)


def check_characters(n_characters: int, tokenizer: Tokenizer, context: int, param: str) -> None:
    """The same of texts that are not put together yet."""
    if n_characters <= SHRINKS * context:
        return
    n_least = n_characters // (SHRINKS * longest_token(tokenizer))
    if n_least > context:
        raise context_exceeded(n_least, context, param, least=True)


def check_length(model: ServedModel, ids: Sequence[int], max_tokens: int | None, param: str) -> None:
    """ApiError 400 for a prompt that leaves no room for a token."""
    context = model.engine.context
    if len(ids) + (max_tokens != 0) > context:
        raise context_exceeded(len(ids), context, param)
