"""Reward 1 if the right option of a multiple-choice question was chosen: a letter, or the option's own text.

math-verify misses "The answer is (C)."; hence a matcher of our own. A reply that names two letters has chosen
none.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from etude.records import EtudeError, Problem, Score
from etude.rewards.answer import is_opened
from etude.rewards.extract import Form, Parse, boxed, lenient_region, strict_answer
from etude.rewards.numbers import folded, plain
from etude.rewards.reward import Reward

DEFAULT_OPTIONS = 10
"""A to J, where the problem does not list its options."""

_LONE = re.compile(r"(?:option|choice|answer)?\s*[(\[]?\s*([A-Za-z])\s*[)\].:]*", re.IGNORECASE)
_LED = re.compile(r"[(\[]?([A-Z])(?:[)\]]\s*[.:]?|[.:])\s+\S.*", re.DOTALL)
_CUE = re.compile(
    r"(?:answer\s*(?:is|:|=)*|option|choice|choose|chose|pick|select|it\s+is|it's)(?:\s+(?:option|choice|is))*"
    r"[\s:*]*(?:\$|\\\(|\\text{|\\boxed{)*[(\[]?\s*([A-Za-z])(?![\w'])"
    r"(?!(?<=[AI])\s+(?!because|since|as\b|which|with)(?-i:[a-z]))"  # "A cat": an article
    r"(?!\s*(?:,|/|&|\bor\b|\band\b)\s*[(\[]?[A-Z](?!\w))",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\b(?:not|n't)\s+(?:option\s+|choice\s+)?[(\[]?[A-Z][)\]]?(?!\w)")
_EITHER = re.compile(r"(?<!\w)[A-Z][)\]]?\s*(?:,|/|&|or|and)\s*[(\[]?[A-Z](?!\w)")
_MARKED = re.compile(
    r"[(\[]([A-Z])[)\]]|(?:^|\s)([A-Z])(?=[).:]?\s*$)|\*\*\s*([A-Z])[).:]?\s*\*\*", re.MULTILINE
)


def choice_reward(parse: Parse = "strict", form: Form = "any") -> Reward:
    """parse, form: as for `math`. `problem.answer` is the letter, the option's index (when options are listed
    under `choices` or `options`) or its text."""
    if parse == "lenient" and form != "any":
        raise EtudeError(f"choice: form={form!r} has no effect with parse='lenient', which looks everywhere")

    def choice(problem: Problem, answer: str) -> Score:
        options = options_of(problem.columns)
        gold = gold_letter(problem, options)
        if parse == "strict":
            found = strict_answer(answer, form, opened=is_opened(answer))
            letter = None if found is None else letter_of(found, options)
        else:
            letter = lenient_letter(lenient_region(answer, opened=is_opened(answer)), options)
        if letter is None:
            return Score(0.0, verdict="no choice")
        return Score(
            float(letter == gold), parsed=letter, verdict="right" if letter == gold else f"not {gold}"
        )

    return choice


def options_of(columns: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of the options, if the row lists them: `choices` or `options`, a list or ARC's
    {"text": [...], "label": [...]}.

    >>> options_of({"choices": {"text": ["cat", "dog"], "label": ["A", "B"]}}), options_of({})
    (('cat', 'dog'), ())
    """
    listed = columns.get("choices", columns.get("options", ()))
    if isinstance(listed, Mapping):
        listed = listed.get("text", tuple(listed.values()))
    return tuple(map(str, listed)) if isinstance(listed, Sequence) and not isinstance(listed, str) else ()


def gold_letter(problem: Problem, options: Sequence[str]) -> str:
    """The right letter, in upper case. EtudeError if the problem does not say."""
    gold = (problem.answer or "").strip()
    if options and gold.isdecimal() and int(gold) < len(options) and gold not in options:
        return string.ascii_uppercase[int(gold)]
    letter = letter_of(gold, options)
    if letter is None:
        raise EtudeError(f"problem {problem.id}: the answer {problem.answer!r} is none of its options")
    return letter


def letter_of(text: str, options: Sequence[str] = ()) -> str | None:
    r"""The letter that a short answer is.

    >>> [letter_of(text) for text in ("C", "(c)", r"\text{C}", "C. Paris", "**C**", "Cat", "A or B")]
    ['C', 'C', 'C', 'C', 'C', None, None]
    >>> letter_of("the dog", ["A cat", "The dog"])
    'B'
    """
    bare = plain(text)
    last = string.ascii_uppercase[(len(options) or DEFAULT_OPTIONS) - 1]
    for at, option in enumerate(options):
        if folded(bare) == folded(option):
            return string.ascii_uppercase[at]
    match = _LONE.fullmatch(bare) or _LED.fullmatch(bare)
    letter = match[1].upper() if match else None
    return letter if letter is not None and letter <= last else None


def lenient_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter that was chosen, wherever it stands: boxed, behind "the answer is", in brackets, at the end
    of a line. None if two are as good.

    >>> lenient_letter("It is not (A). The answer is (C)."), lenient_letter("A dog is an animal.")
    ('C', None)
    >>> lenient_letter("Either (A) or (B)"), lenient_letter("The answer is A or B")
    (None, None)
    """
    last = string.ascii_uppercase[(len(options) or DEFAULT_OPTIONS) - 1]
    text = _NEGATED.sub(" ", text)
    content = boxed(text)
    whole = letter_of(content if content is not None else text, options)
    if whole is not None:
        return whole
    cued: list[str] = [letter for letter in _CUE.findall(text) if letter.isupper() and letter <= last]
    if cued:
        return cued[-1]
    if _EITHER.search(text):
        return None
    marked = {letter for groups in _MARKED.findall(text) for letter in groups if letter and letter <= last}
    return marked.pop() if len(marked) == 1 else None
