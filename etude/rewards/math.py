r"""Reward 1 if the answer is mathematically the gold answer, else 0.

Most answers are decided exactly and at once: numbers as rationals, equal spellings, plain words. Only what is
left (expressions, sets, intervals) goes to math-verify, which may think for ever about `9^9^9^9` and
`(1000000!)!`: it does so in a process that the kernel ends (worker.py). An answer that no verifier could
judge is a `Score` with `failure`, not a wrong answer.

What is refused although it is equal: arithmetic that was left undone, `2 + 3` for 5, which a model learns by
repeating the question; `2 + 3 = 5` and prose, with the gold answer somewhere in them.
"""

from __future__ import annotations

import re
from fractions import Fraction

from etude.records import EtudeError, Problem, Score
from etude.rewards.answer import is_opened
from etude.rewards.extract import (
    Form,
    Parse,
    boxed,
    cued,
    hashes,
    last_inline,
    last_number,
    lenient_region,
    strict_answer,
)
from etude.rewards.numbers import Quantity, folded, number, plain, quantity
from etude.rewards.reward import Reward
from etude.rewards.worker import WorkerFailure, WorkerPool, worker_pool

MAX_CHARACTERS = 1000
"""Longer answers are wrong without being looked at."""

DECIMALS = 6
"""Two numbers of which one is a rounded decimal are equal if they agree to this many places."""

_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '’-]+[^\W\d_]+)*")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTIONS = frozenset("sin cos tan cot sec csc log exp max min mod gcd lcm det sqrt frac inf".split())
_UNDONE = re.compile(r"[0-9.,\s+*×÷()/:-]*|(?:[0-9.,\s+*×÷()/:-]|\\times|\\cdot|\\div)*")
_OPERATOR = re.compile(r"(?<=[0-9)])\s*(?:[+*×÷:-]|\\times|\\cdot|\\div)\s*(?=[-+0-9.(])|/.*/")
_CONSTANTS = {"infinity": r"\infty", "infty": r"\infty", "pi": r"\pi", "π": r"\pi", "∞": r"\infty"}

VERIFIER = "etude.rewards.math_verify_call:same"


def math_reward(
    parse: Parse = "strict", form: Form = "any", timeout_s: float = 2.0, pool: WorkerPool | None = None
) -> Reward:
    """A reward that compares with `problem.answer`.

    parse: "strict" takes the answer where it was asked for (form: "tag", "boxed", "hashes", "whole", or "any"
    of them), "lenient" wherever one can be found. timeout_s: CPU time of math-verify for one answer.
    """
    if parse == "lenient" and form != "any":
        raise EtudeError(f"math: form={form!r} has no effect with parse='lenient', which looks everywhere")

    def math(problem: Problem, answer: str) -> Score:
        if problem.answer is None:
            raise EtudeError(f"problem {problem.id}: there is no gold answer for the reward `math`")
        golds = gold_answers(problem)
        opened = is_opened(answer)
        if parse == "strict":
            given = strict_answer(answer, form, opened=opened)
        else:
            numeric = all(number(gold) is not None for gold in golds)
            given = lenient_answer(answer, numeric=numeric, opened=opened)
        if given is None:
            return Score(0.0, verdict="no answer")
        return judge(golds, given, pool or worker_pool(VERIFIER, timeout_s))

    return math


def gold_answers(problem: Problem) -> tuple[str, ...]:
    r"""The accepted answers: `problem.answer`, without the solution around it, and `columns["answers"]`.

    >>> gold_answers(Problem("", (), "2 + 2 = 4\n#### 4")), gold_answers(Problem("", (), r"so $\boxed{4}$."))
    (('4',), ('4',))
    """
    texts = [problem.answer or "", *map(str, problem.columns.get("answers", ()))]
    return tuple(hashes(text) or boxed(text) or text for text in texts)


def lenient_answer(text: str, *, numeric: bool, opened: bool = False) -> str | None:
    """The answer wherever one can be found. numeric: the gold answer is a number.

    >>> lenient_answer("I say 3, no, the answer is 4 apples, not 5.", numeric=True)
    '4 apples'
    >>> lenient_answer("2 + 2 = 4, and that is it", numeric=True), lenient_answer("No idea.", numeric=True)
    ('4', None)
    """
    region = lenient_region(text, opened=opened)
    found = boxed(region) or hashes(region)
    if found is not None:
        return found
    clause = cued(region)
    if numeric:
        if clause is not None and number(clause) is not None:
            return clause
        whole = region.strip()
        return whole if number(whole) is not None else last_number(region)
    lines = region.strip().splitlines()
    return clause or last_inline(region) or (lines[-1].strip() if lines else None)


def judge(golds: tuple[str, ...], given: str, pool: WorkerPool) -> Score:
    """Compare with each gold answer; the first that is equal decides."""
    if len(given) > MAX_CHARACTERS:
        return Score(0.0, parsed=given[:MAX_CHARACTERS], verdict="too long")
    parsed = plain(given)
    failure = None
    verdict = ""
    for gold in golds:
        decided = decide(gold, given)
        if decided is None:
            try:
                decided = (bool(pool.call(dressed(gold), dressed(given))), "math-verify")
            except WorkerFailure as error:
                failure = f"math-verify: {error}"
                continue
        equal, how = decided
        if equal:
            return Score(1.0, parsed=parsed, verdict=f"equal ({how})")
        verdict = f"not equal ({how})"
    return Score(0.0, parsed=parsed, verdict=verdict if failure is None else "", failure=failure)


def decide(gold: str, given: str) -> tuple[bool, str] | None:
    r"""(whether they are equal, by what), as far as that is certain without algebra; else None.

    >>> decide("0.5", r"\frac{1}{2}"), decide("1/3", "0.333"), decide("3 km", "3 m")
    ((True, 'number'), (False, 'number'), (False, 'unit'))
    >>> decide("5", "2 + 3"), decide("east", "seat"), decide("x^2", "X^2 "), decide("x^2", "x*x")
    ((False, 'undone arithmetic'), (False, 'words'), (True, 'text'), None)
    """
    gold_quantity, given_quantity = quantity(gold), quantity(given)
    if gold_quantity and given_quantity:
        return compare(gold_quantity, given_quantity)
    gold_text, given_text = folded(gold), folded(given)
    if _CONSTANTS.get(gold_text, gold_text) == _CONSTANTS.get(given_text, given_text):
        return True, "text"
    if not any(character.isalnum() for character in given_text):
        return False, "empty"
    if prose_words(given) > (0 if gold_quantity else 1) and prose_words(gold) < 2:
        return False, "prose"
    for text in (gold_text, given_text):
        if _WORDS.fullmatch(text) and text not in _CONSTANTS:
            return False, "words"
    if gold_quantity and _UNDONE.fullmatch(given_text) and _OPERATOR.search(given_text):
        return False, "undone arithmetic"
    if gold_quantity and "=" in given_text:
        return False, "equation"  # 2 + 3 = 5: the answer stands in it, and is not all of it
    return None


def compare(gold: Quantity, given: Quantity) -> tuple[bool, str]:
    """Units must agree where both have one; 50 % is 50 and 0.5, as graders of MATH accept it."""
    if gold.unit and given.unit and gold.unit != given.unit:
        return False, "unit"
    values = {given.value}
    if given.unit == "%" and gold.unit != "%":
        values.add(given.value / 100)
    elif gold.unit == "%" and given.unit != "%":
        values.add(given.value * 100)
    return any(_agree(gold.value, value) for value in values), "number"


def _agree(a: Fraction, b: Fraction) -> bool:
    """Equal; or equal to DECIMALS places, where rounding is unavoidable."""
    if a == b:
        return True
    rounded = a.denominator > 1 and b.denominator > 1
    return rounded and round(a, DECIMALS) == round(b, DECIMALS) and abs(a) > Fraction(1, 1000)


def prose_words(text: str) -> int:
    r"""How many words of a language stand in it that mathematics does not use.

    >>> prose_words("the answer is 5 or 7"), prose_words(r"\sin x or \frac{1}{2}"), prose_words("12 cm")
    (2, 0, 0)
    """
    words = _PROSE.findall(re.sub(r"\\(?:begin|end){[a-zA-Z*]+}", "", plain(text)))
    return len([word for word in words if word.lower() not in _FUNCTIONS | _CONSTANTS.keys()])


def dressed(text: str) -> str:
    """As math-verify expects it."""
    bare = plain(text)
    return f"${_CONSTANTS.get(bare.casefold(), bare)}$"
