"""Reward 1 if the answer is the gold text: a word, a name, a list in its order. Case and dressing aside.

For answers that are no mathematics: `math` would call "1, 2, 3" and "3, 2, 1" the same set.
"""

from __future__ import annotations

import re

from etude.records import EtudeError, Problem, Score
from etude.rewards.answer import is_opened
from etude.rewards.extract import Form, Parse, boxed, cued, lenient_region, strict_answer
from etude.rewards.numbers import plain
from etude.rewards.reward import Reward


def text_reward(parse: Parse = "strict", form: Form = "any") -> Reward:
    """parse, form: as for `math`. Lenient: the gold text may also stand behind "the answer is", or at the
    very end of the reply; never just anywhere, for then repeating the question would do."""
    if parse == "lenient" and form != "any":
        raise EtudeError(f"text: form={form!r} has no effect with parse='lenient', which looks everywhere")

    def text(problem: Problem, answer: str) -> Score:
        if problem.answer is None:
            raise EtudeError(f"problem {problem.id}: there is no gold answer for the reward `text`")
        golds = [words(gold) for gold in (problem.answer, *map(str, problem.columns.get("answers", ())))]
        if parse == "strict":
            found = strict_answer(answer, form, opened=is_opened(answer))
            if found is None:
                return Score(0.0, verdict="no answer")
            return _score(words(found) in golds, " ".join(words(found)))
        region = lenient_region(answer, opened=is_opened(answer))
        said = [words(part) for part in (boxed(region), cued(region), region) if part]
        if not said or not said[-1]:
            return Score(0.0, verdict="no answer")
        right = any(part in golds for part in said)
        ends = [gold for gold in golds if gold and said[-1][-len(gold) :] == gold]
        parsed = ends[0] if ends else said[0] if len(said) > 1 else said[0][-max(map(len, golds)) :]
        return _score(right or bool(ends), " ".join(parsed))

    return text


def words(text: str) -> list[str]:
    """What is compared: words and numbers, in lower case, with their signs.

    >>> words("**The  Sun**."), words("-3, 1.5; x"), words("don't")
    (['the', 'sun'], ['-3', '1.5', 'x'], ["don't"])
    """
    return re.findall(r"-?[0-9]+(?:\.[0-9]+)?|[^\W_]+(?:['’-][^\W_]+)*", plain(text).casefold())


def _score(right: bool, parsed: str) -> Score:
    return Score(float(right), parsed=parsed, verdict="equal" if right else "not equal")
