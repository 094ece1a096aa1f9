"""Rows → what supervised and preference training learn from: conversations, pairs, labelled answers.

{"messages": [...]}, {"conversations": [...]}                a conversation; the answers are learned
{"prompt": …, "completion": …}                               a prompt and what follows it (texts or messages)
{"question": …, "answer": …}, {"instruction", "input", "output"}   a question and its answer
{"text": …}                                                  plain text, all of it learned
{"prompt": …, "chosen": …, "rejected": …}                    a pair; without `prompt`, what both begin with
{"prompt": …, "completion": …, "label": true}                one answer, good or bad
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from etude.data.messages import TEXT, messages_of
from etude.data.problems import ANSWER_KEYS, QUESTION_KEYS, problem_of
from etude.data.rows import Row, read_rows
from etude.records import EtudeError, Message, Problem

Made = TypeVar("Made")


@dataclass(frozen=True)
class Example:
    """A conversation to learn from. learned: for each message, whether the loss counts it.

    Messages of role "text" are plain text, without a chat template.
    """

    id: str
    messages: tuple[Message, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True)
class Preference:
    """Two answers to the same messages, of which `chosen` is better (by `margin`, if that is known)."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """One answer and whether it is good (KTO), or safe."""

    id: str
    messages: tuple[Message, ...]
    completion: str
    label: bool
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_examples(
    source: str | Path, *, split: str = "train", config: str | None = None, limit: int | None = None
) -> list[Example]:
    """Conversations for SFT. EtudeError names the row at fault."""
    return _read(source, split, config, limit, example_of)


def read_preferences(
    source: str | Path, *, split: str = "train", config: str | None = None, limit: int | None = None
) -> list[Preference]:
    """Pairs for a reward model or DPO. EtudeError names the row at fault."""
    return _read(source, split, config, limit, preference_of)


def read_labelled(
    source: str | Path, *, split: str = "train", config: str | None = None, limit: int | None = None
) -> list[Labelled]:
    """Answers with a label, for KTO or a pointwise reward model. EtudeError names the row at fault."""
    return _read(source, split, config, limit, labelled_of)


def _read(
    source: str | Path, split: str, config: str | None, limit: int | None, make: Callable[[Row, str], Made]
) -> list[Made]:
    stem = Path(source).name.split(".")[0]
    rows = islice(read_rows(source, split=split, config=config), limit)
    made = [make(row, str(row.values.get("id", f"{stem}:{row.number}"))) for row in rows]
    if not made:
        raise EtudeError(f"{source} has no rows")
    return made


def example_of(row: Row, name: str) -> Example:
    """One row as a conversation to learn from."""
    values = row.values
    if values.get("prompt") is not None and values.get("completion") is not None:
        prompt = _part(row, "prompt", "user")
        completion = _part(row, "completion", "assistant")
        if prompt[0].role == TEXT != completion[0].role:
            raise row.error("prompt is a text and completion a list of messages; make both the same")
        return Example(name, (*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))
    for key in ("messages", "conversations"):
        if values.get(key) is not None:
            messages = messages_of(values[key], row, key)
            learned = tuple(message.role == "assistant" for message in messages)
            if not any(learned):
                raise row.error(f"{key} has no message of the assistant, so there is nothing to learn")
            return Example(name, messages, learned)
    if any(values.get(key) for key in QUESTION_KEYS) and any(values.get(key) for key in ANSWER_KEYS):
        problem = problem_of(row, name)
        answer = str(next(values[key] for key in ("output", *ANSWER_KEYS) if values.get(key)))
        return example_from(problem, answer)
    if isinstance(values.get("text"), str) and values["text"]:
        return Example(name, (Message(TEXT, values["text"]),), (True,))
    raise row.error(
        "there are no messages, no prompt with completion, no question with answer and no text; "
        f"its columns are {', '.join(values) or 'none'}"
    )


def example_from(problem: Problem, answer: str) -> Example:
    """A problem with an answer to learn."""
    role = TEXT if problem.messages[0].role == TEXT else "assistant"
    messages = (*problem.messages, Message(role, answer))
    return Example(problem.id, messages, (False,) * len(problem.messages) + (True,))


def preference_of(row: Row, name: str) -> Preference:
    """One row as a pair. Without a prompt, it is what chosen and rejected have in common at their start."""
    values = row.values
    for key in ("chosen", "rejected"):
        if not values.get(key):
            raise row.error(f"there is no {key}; its columns are {', '.join(values) or 'none'}")
    margin = values.get("margin", 0.0)
    if not isinstance(margin, int | float) or not math.isfinite(margin):
        raise row.error(f"margin is {margin!r}, it should be a number")
    prompt, chosen, rejected = _pair(row)
    if chosen == rejected:
        raise row.error("chosen and rejected are the same")
    used = ("prompt", "question", "instruction", "chosen", "rejected", "margin")
    columns = {key: value for key, value in values.items() if key not in used}
    return Preference(name, prompt, chosen, rejected, float(margin), columns)


def labelled_of(row: Row, name: str) -> Labelled:
    """One row as an answer with a label."""
    values = row.values
    label = values.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise row.error(f"label is {label!r}, it should be true or false")
    if not values.get("completion") or not values.get("prompt"):
        raise row.error(f"there is no prompt with completion; its columns are {', '.join(values) or 'none'}")
    columns = {key: value for key, value in values.items() if key not in ("prompt", "completion", "label")}
    answer = _answer(_part(row, "completion", "assistant"), row, "completion")
    return Labelled(name, _part(row, "prompt", "user"), answer, bool(label), columns)


def _pair(row: Row) -> tuple[tuple[Message, ...], str, str]:
    """(prompt, chosen, rejected)."""
    values = row.values
    chosen, rejected = _part(row, "chosen", "assistant"), _part(row, "rejected", "assistant")
    if values.get("prompt"):
        prompt = _part(row, "prompt", "user")
        if chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:  # repeated, as in UltraFeedback
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        elif prompt[0].role == TEXT and chosen[0].role != TEXT and len(chosen) > 1:
            prompt, chosen, rejected = _common(row, chosen, rejected)
    elif any(isinstance(values.get(key), str) and values[key] for key in QUESTION_KEYS):
        key = next(key for key in QUESTION_KEYS if values.get(key))
        prompt = (Message("user", values[key]),)
    else:
        prompt, chosen, rejected = _common(row, chosen, rejected)
    if prompt[0].role != TEXT:
        return prompt, _answer(chosen, row, "chosen"), _answer(rejected, row, "rejected")
    return prompt, "".join(m.content for m in chosen), "".join(m.content for m in rejected)


def _common(
    row: Row, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """A prompt that stands in both answers: equal messages, or equal text up to a word."""
    if chosen[0].role == TEXT and rejected[0].role == TEXT:
        good, bad = chosen[0].content, rejected[0].content
        same = next((at for at, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), len(good))
        common = good[:same]
        at = (
            max(common.rfind("\n\nAssistant:") + len("\n\nAssistant:"), 0)
            if "\n\nAssistant:" in common
            else 0
        )
        at = at or max(common.rfind(" "), common.rfind("\n")) + 1
        if at == 0:
            raise row.error("there is no prompt, and chosen and rejected do not begin with the same words")
        text = (Message(TEXT, good[:at]),)
        return text, (Message(TEXT, good[at:]),), (Message(TEXT, bad[at:]),)
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if n == 0:
        raise row.error("there is no prompt, and chosen and rejected do not begin with the same messages")
    if n == min(len(chosen), len(rejected)):
        raise row.error("chosen and rejected are the same")
    return chosen[:n], chosen[n:], rejected[n:]


def _part(row: Row, key: str, role: str) -> tuple[Message, ...]:
    """A column that is text or messages. role: of one bare message object."""
    value = row.values[key]
    if isinstance(value, str):
        return (Message(TEXT, value),)
    if isinstance(value, Mapping):
        value = [{"role": role, **value}]
    return messages_of(value, row, key)


def _answer(messages: Sequence[Message], row: Row, key: str) -> str:
    """The one message that an answer to a conversation is."""
    if len(messages) != 1 or messages[0].role not in ("assistant", TEXT):
        roles = ", ".join(message.role for message in messages)
        raise row.error(f"{key} has messages of {roles or 'nobody'}; an answer is one of the assistant")
    return messages[0].content
