"""Names of problem sets, as they stand in a config or on a command line → problems.

train.jsonl   data/train.parquet   FOLDER   owner/name            (rows.py), with options as in a URL:
train.jsonl?form=chat&limit=100    owner/name?split=test&config=main
task:add?low=1&high=99&held_out=true                              (tasks.py)
reasoning_gym:chain_sum?min_terms=2&size=500                      (gym.py)
human_eval                                                        (human_eval.py)

Conversations to learn from are named likewise; task: and reasoning_gym: give each problem with its answer.
Pairs and labelled answers come from files, or with exact labels from a task:

pairs:add?size=500&seed=1      pairs:add?size=500&faults=all      (pairs.py; all: unclean answers too)
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from etude.data.examples import (
    Example,
    Labelled,
    Preference,
    example_from,
    read_examples,
    read_labelled,
    read_preferences,
)
from etude.data.gym import gym_problems
from etude.data.human_eval import human_eval_problems
from etude.data.pairs import FAULTS, UNCLEAN, corrupted_pairs
from etude.data.problems import read_problems
from etude.data.rows import Row, read_rows
from etude.data.tasks import task_problems
from etude.records import EtudeError, Problem

Made = TypeVar("Made")
_NO_ROW = Row({}, "", 0)


def load_problems(name: str) -> list[Problem]:
    """The problems of that name, always the same ones in the same order. EtudeError if there are none."""
    bare, options = split_options(name)
    kind, colon, rest = bare.partition(":")
    if colon and kind == "task":
        return task_problems(rest, **options)
    if colon and kind == "reasoning_gym":
        return gym_problems(rest, **options)
    if bare == "human_eval":
        return _called(name, human_eval_problems, (), options)
    return _called(name, read_problems, (bare,), options)


def load_examples(name: str) -> list[Example]:
    """Conversations for SFT, always the same ones in the same order. EtudeError if there are none."""
    bare, options = split_options(name)
    if bare.partition(":")[0] in ("task", "reasoning_gym", "human_eval") and not Path(bare).exists():
        return [example_from(one, one.answer) for one in load_problems(name) if one.answer is not None]
    return _called(name, read_examples, (bare,), options)


def load_preferences(name: str) -> list[Preference]:
    """Pairs, likewise."""
    bare, options = split_options(name)
    kind, colon, task = bare.partition(":")
    if not colon or kind != "pairs":
        return _called(name, read_preferences, (bare,), options)
    faults = options.pop("faults", "wrong")
    if faults not in ("wrong", "all"):
        raise EtudeError(f"{name}: faults is {faults!r}; it is wrong or all")
    problems = task_problems(task, **options)
    seed = int(options.get("seed", 0))
    return corrupted_pairs(problems, seed=seed, faults=(*FAULTS, *(UNCLEAN if faults == "all" else ())))


def load_labelled(name: str) -> list[Labelled]:
    """Labelled answers, likewise; each pair of preferences gives two."""
    bare, options = split_options(name)
    if bare.partition(":")[0] != "pairs" and "label" in next(read_rows(bare), _NO_ROW).values:
        return _called(name, read_labelled, (bare,), options)
    return [
        Labelled(f"{pair.id}/{kind}", pair.messages, text, kind == "chosen", pair.columns)
        for pair in load_preferences(name)
        for kind, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]


def split_options(name: str) -> tuple[str, dict[str, Any]]:
    """A name and its options; a file whose name has a question mark is a file.

    >>> split_options("reasoning_gym:chain_sum?min_terms=2&x=a")
    ('reasoning_gym:chain_sum', {'min_terms': 2, 'x': 'a'})
    """
    if "?" not in name or Path(name).exists():
        return name, {}
    bare, _, query = name.rpartition("?")
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True)
    except ValueError:
        raise EtudeError(f"{name}: cannot read {query!r}; options look like ?key=value&key=value") from None
    return bare, {key: _value(text) for key, text in pairs}


def _called(
    name: str,
    function: Callable[..., list[Made]],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
) -> list[Made]:
    """function(*arguments, **options), if it takes these options."""
    allowed = list(inspect.signature(function).parameters)[len(arguments) :]
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise EtudeError(f"{name}: no option {key!r}{hint} Options: {', '.join(allowed)}")
    return function(*arguments, **options)


def _value(text: str) -> Any:
    """A number, true, false, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
