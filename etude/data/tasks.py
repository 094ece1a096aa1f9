"""Small tasks with endless problems, for models that fit a laptop: `task:add`, `task:largest` …

The operands (numbers, words) are dealt to two sides once and for all; training draws from one, held-out
problems from the other. So no operand of a held-out problem ever occurs in training, and a model that only
remembers gets nothing right.

    task:add?low=1&high=99&size=2000          task:add?low=1&high=99&size=300&held_out=true
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.data.words import WORDS
from etude.records import EtudeError, Message, Problem

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NUMBER_ONLY = " Answer with the number only."
WORD_ONLY = " Answer with the word only."
HELD_OUT_SHARE = 0.2
MISSES = 200
"""Draws in a row that give a known problem again, after which a task is taken to be exhausted."""

Drawn = tuple[str, str, tuple[int | str, ...]]
"""(question, gold answer, operands)"""


@dataclass(frozen=True)
class Side:
    """What one side of a task draws from. second: where the two operands have ranges of their own."""

    draw: random.Random
    numbers: Sequence[int]
    second: Sequence[int]
    words: Sequence[str]


def add(side: Side) -> Drawn:
    a, b = side.draw.choice(side.numbers), side.draw.choice(side.second)
    return f"What is {a} + {b}?", str(a + b), (a, b)


def subtract(side: Side) -> Drawn:
    a, b = side.draw.choice(side.numbers), side.draw.choice(side.second)
    a, b = max(a, b), min(a, b)
    return f"What is {a} - {b}?", str(a - b), (a, b)


def successor(side: Side) -> Drawn:
    a = side.draw.choice(side.numbers)
    return f"Which number comes right after {a}?", str(a + 1), (a,)


def largest(side: Side) -> Drawn:
    a, b, c = side.draw.sample(side.numbers, 3)
    return f"Which of these numbers is the largest: {a}, {b}, {c}?", str(max(a, b, c)), (a, b, c)


def smallest(side: Side) -> Drawn:
    a, b, c = side.draw.sample(side.numbers, 3)
    return f"Which of these numbers is the smallest: {a}, {b}, {c}?", str(min(a, b, c)), (a, b, c)


def sort(side: Side) -> Drawn:
    numbers = side.draw.sample(side.numbers, 3)
    shown, answer = (", ".join(map(str, some)) for some in (numbers, sorted(numbers)))
    return f"Sort these numbers, the smallest first: {shown}.", answer, tuple(numbers)


def last_word(side: Side) -> Drawn:
    words = side.draw.sample(side.words, 4)
    return f"What is the last word of this list: {', '.join(words)}?", words[-1], tuple(words)


def first_word(side: Side) -> Drawn:
    words = side.draw.sample(side.words, 4)
    return f"What is the first word of this list: {', '.join(words)}?", words[0], tuple(words)


def letter(side: Side) -> Drawn:
    word = side.draw.choice(side.words)
    at = side.draw.randrange(len(word))
    return f'What is the {ORDINALS[at]} letter of the word "{word}"?', word[at], (word,)


@dataclass(frozen=True)
class Task:
    """make: draws one problem. instruction: asks for the strict form. reward: the name of what judges it."""

    make: Callable[[Side], Drawn]
    instruction: str
    reward: str
    low: int = 1
    high: int = 99


TASKS: Mapping[str, Task] = {
    "add": Task(add, NUMBER_ONLY, "math"),
    "subtract": Task(subtract, NUMBER_ONLY, "math", 1, 199),
    "successor": Task(successor, NUMBER_ONLY, "math", 1, 4999),
    "largest": Task(largest, NUMBER_ONLY, "math"),
    "smallest": Task(smallest, NUMBER_ONLY, "math"),
    "sort": Task(sort, " Answer with the numbers only.", "text"),
    "last_word": Task(last_word, WORD_ONLY, "text"),
    "first_word": Task(first_word, WORD_ONLY, "text"),
    "letter": Task(letter, " Answer with the letter only.", "text"),
}


def task_problems(name: str, **options: Any) -> list[Problem]:
    """The problems of a task; options as of `draw_problems`. EtudeError for what does not exist."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise EtudeError(f"there is no task {name!r}{hint} Tasks: {', '.join(TASKS)}")
    allowed = list(inspect.signature(draw_problems).parameters)[1:]
    for key, value in options.items():
        if key not in allowed:
            raise EtudeError(f"task:{name} has no option {key!r}; options: {', '.join(allowed)}")
        wanted = bool if key in ("held_out", "instruction") else int
        if type(value) is not wanted:
            raise EtudeError(f"task:{name}: got {key}={value!r}, it should be of type {wanted.__name__}")
    return draw_problems(name, **options)


def draw_problems(
    name: str,
    *,
    size: int = 2000,
    seed: int = 0,
    held_out: bool = False,
    low: int | None = None,
    high: int | None = None,
    low2: int | None = None,
    high2: int | None = None,
    instruction: bool = True,
) -> list[Problem]:
    """`size` different problems. low, high: the range of the numbers; low2, high2: that of the second one,
    if it differs. held_out: from the operands that training never sees. instruction: ask for the bare answer.

    Which operands are held out depends on the ranges alone, not on seed and size.
    """
    task = TASKS[name]
    low, high = task.low if low is None else low, task.high if high is None else high
    second = (low if low2 is None else low2, high if high2 is None else high2)
    if low >= high or second[0] >= second[1]:
        raise EtudeError(f"task:{name}: the range {low}..{high} or {second[0]}..{second[1]} is empty")
    side = Side(
        random.Random(f"{name}/{seed}/{held_out}"),
        dealt(range(low, high + 1), held_out),
        dealt(range(second[0], second[1] + 1), held_out),
        dealt(WORDS, held_out),
    )
    prefix = f"{name}-held-out" if held_out else name
    found: dict[str, Problem] = {}
    misses = 0
    while len(found) < size:
        question, answer, operands = task.make(side)
        if question in found:
            misses += 1
            if misses > MISSES:
                raise EtudeError(
                    f"task:{name} has about {len(found)} different problems in this range, {size} are "
                    "wanted: widen low..high or lower size"
                )
            continue
        misses = 0
        message = Message("user", question + task.instruction * instruction)
        columns = {"task": name, "operands": operands}
        found[question] = Problem(f"{prefix}:{seed}:{len(found)}", (message,), answer, columns)
    return list(found.values())


def dealt(operands: Sequence[Any], held_out: bool) -> list[Any]:
    """The operands of one side: a fifth is held out, by a fixed hash of their order.

    >>> training, held = dealt(range(100), False), dealt(range(100), True)
    >>> len(training), len(held), sorted(training + held) == list(range(100))
    (80, 20, True)
    """
    ranked = sorted(operands, key=lambda operand: hashlib.sha256(f"etude {operand}".encode()).digest())
    n_held = max(1, round(HELD_OUT_SHARE * len(ranked)))
    chosen = set(ranked[:n_held])
    return [operand for operand in operands if (operand in chosen) == held_out]
