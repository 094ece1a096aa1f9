"""Rows → problems. TRL's and verl's rows are read as they are:

    {"prompt": "2 + 2 =", "answer": "4"}                                 a text to complete (TRL's standard)
    {"prompt": [{"role": "user", "content": "2 + 2?"}], "solution": "4"} a conversation (TRL)
    {"prompt": [...], "reward_model": {"ground_truth": "4"}, …}          a conversation (verl)
    {"question": "2 + 2?", "answer": "4"}                                a question to ask (GSM8K, MATH …)
    {"messages": [...]}                                                  a conversation; its end is gold

Everything else of a row goes into `columns`, which rewards get.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from etude.data.messages import TEXT, messages_of
from etude.data.rows import Row, read_rows
from etude.records import EtudeError, Message, Problem

PROMPT_KEYS = ("prompt", "messages", "conversations")
QUESTION_KEYS = ("question", "problem", "instruction", "query")
ANSWER_KEYS = (
    "answer", "solution", "ground_truth", "final_answer", "expected_answer", "target", "answerKey", "output"
)  # fmt: skip
Form = Literal["row", "chat", "text"]
"""How a prompt that is one text is taken: "row": `prompt` to be completed, `question` to be asked; or always
as a chat message, or always as text."""


def read_problems(
    source: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    form: Form = "row",
    system: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """The problems of a file, folder or data set. system: a message that goes before each conversation.

    Ids are the column `id` if each row has its own, else "NAME:NUMBER". EtudeError names the row at fault.
    """
    if form not in get_args(Form):
        raise EtudeError(f"form is {form!r}; allowed are {', '.join(get_args(Form))}")
    rows = list(islice(read_rows(source, split=split, config=config), limit))
    if not rows:
        raise EtudeError(f"{source} has no rows")
    stem = Path(source).name.split(".")[0]
    own_ids = [row.values.get("id") for row in rows]
    named = all(isinstance(value, str | int) for value in own_ids)
    if named and len(set(own_ids)) < len(own_ids):
        twice = next(at for at, value in enumerate(own_ids) if value in own_ids[:at])
        first = rows[own_ids.index(own_ids[twice])]
        raise rows[twice].error(f"the id {own_ids[twice]!r} was given to {first.where} already")
    return [
        problem_of(row, str(row.values["id"]) if named else f"{stem}:{row.number}", form=form, system=system)
        for row in rows
    ]


def problem_of(row: Row, name: str, *, form: Form = "row", system: str | None = None) -> Problem:
    """One row as a problem."""
    values = row.values
    key = next((key for key in (*PROMPT_KEYS, *QUESTION_KEYS) if values.get(key)), None)
    if key is None:
        raise row.error(
            f"there is no {', '.join(PROMPT_KEYS)}, {' or '.join(QUESTION_KEYS)}; "
            f"its columns are {', '.join(values) or 'none'}"
        )
    answer_key, answer, accepted = gold_of(row)
    if isinstance(values[key], str):
        messages = _of_text(row, key, form)
    else:
        messages = messages_of(values[key], row, key)
        if messages[-1].role == "assistant":
            if answer is None:
                answer, accepted = messages[-1].content, (messages[-1].content,)
            messages = messages[:-1]
        if not messages:
            raise row.error(f"{key} has no message before the answer")
    if system is not None and messages[0].role not in ("system", TEXT):
        messages = (Message("system", system), *messages)
    columns: dict[str, Any] = {name: value for name, value in values.items() if name not in (key, answer_key)}
    if len(accepted) > 1:
        columns["answers"] = accepted
    return Problem(name, messages, answer, columns)


def gold_of(row: Row) -> tuple[str, str | None, tuple[str, ...]]:
    """(column, gold answer, all accepted answers); the answer is None where the row has none.

    >>> gold_of(Row({"reward_model": {"style": "rule", "ground_truth": 4}}, "x", 0))
    ('', '4', ('4',))
    >>> gold_of(Row({"answer": ["4", "four"]}, "x", 0))
    ('answer', '4', ('4', 'four'))
    """
    model = row.values.get("reward_model")
    if isinstance(model, Mapping) and model.get("ground_truth") is not None:
        accepted = _accepted(model["ground_truth"], row, "reward_model.ground_truth")
        return "", accepted[0], accepted
    key = next((key for key in ANSWER_KEYS if row.values.get(key) is not None), None)
    if key is None:
        return "", None, ()
    accepted = _accepted(row.values[key], row, key)
    return key, accepted[0], accepted


def _accepted(value: Any, row: Row, key: str) -> tuple[str, ...]:
    if isinstance(value, Mapping) and "target" in value:  # verl's searches: {"target": ["a", "b"]}
        value = value["target"]
    if isinstance(value, str | int | float):
        if not str(value).strip():
            raise row.error(f"{key} is empty")
        return (str(value),)
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        found = tuple(part for item in value for part in _accepted(item, row, key))
        if found:
            return found
    raise row.error(f"{key} is {value!r:.80}, an answer is a text, a number or a list of them")


def _of_text(row: Row, key: str, form: Form) -> tuple[Message, ...]:
    """A prompt that is one text."""
    values = row.values
    text = values[key]
    if key == "instruction" and isinstance(values.get("input"), str) and values["input"].strip():
        text = f"{text}\n\n{values['input']}"  # Alpaca's form
    if form == "text" or (form == "row" and key == "prompt"):
        return (Message(TEXT, text),)
    question = Message("user", text)
    system = values.get("system")
    return (Message("system", system), question) if isinstance(system, str) and system else (question,)
