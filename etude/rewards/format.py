"""Reward 1 if an answer has the form of DeepSeek-R1-Zero: thoughts in tags, then the answer in tags.

    <think> … </think> <answer> … </answer>

Each tag exactly once, in this order, something inside, nothing but white space between and around. The
template `r1-zero` asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from etude.records import EtudeError, Problem, Score
from etude.rewards.answer import is_opened
from etude.rewards.extract import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from etude.rewards.reward import Reward

FORMS = {
    "think,answer": (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE),
    "think": (THINK_OPEN, THINK_CLOSE),
    "answer": (ANSWER_OPEN, ANSWER_CLOSE),
}


def format_reward(tags: str = "think,answer", partial: bool = False) -> Reward:
    """tags: "think,answer"; "think", which anything may follow; "answer", before which anything may stand.

    partial: otherwise, the share of the tags that occur exactly once, up to 0.5: for models that never hit
    the whole form.
    """
    if tags not in FORMS:
        raise EtudeError(f"format: got tags={tags!r}, allowed are {', '.join(map(repr, FORMS))}")

    def format(problem: Problem, answer: str) -> Score:
        fault = find_fault(answer, FORMS[tags], opened=is_opened(answer))
        if fault is None:
            return Score(1.0, verdict="formed")
        text = THINK_OPEN + answer if is_opened(answer) else answer
        share = sum(text.count(tag) == 1 for tag in FORMS[tags]) / len(FORMS[tags])
        return Score(0.5 * share if partial else 0.0, verdict=fault)

    return format


def find_fault(text: str, tags: Sequence[str], *, opened: bool = False) -> str | None:
    """The first thing that is wrong with the form; None if nothing is. opened: the prompt has the first tag.

    >>> find_fault("<think>2 + 2</think>\\n<answer>4</answer>", FORMS["think,answer"])
    >>> find_fault("<think>2 + 2</think> Sure! <answer>4</answer>", FORMS["think,answer"])
    'text between </think> and <answer>'
    >>> find_fault("2 + 2</think> 4", FORMS["think"], opened=True)
    """
    if opened:
        text = THINK_OPEN + text
    rest = text.strip()
    for tag in tags:
        if text.count(tag) != 1:
            return f"no {tag}" if tag not in text else f"{text.count(tag)} times {tag}"
    for at, tag in enumerate(tags):
        before, found, rest = rest.partition(tag)
        if not found:
            return f"{tag} before {tags[at - 1]}"
        if tag in (THINK_CLOSE, ANSWER_CLOSE) and not before.strip():
            return f"nothing before {tag}"
        if tag == THINK_OPEN and before.strip():
            return f"text before {tag}"
        if tag == ANSWER_OPEN and at and before.strip():
            return f"text between {tags[at - 1]} and {tag}"
    last = tags[-1]
    if last == ANSWER_CLOSE and rest.strip():
        return f"text after {last}"
    return f"nothing after {last}" if last == THINK_CLOSE and not rest.strip() else None
