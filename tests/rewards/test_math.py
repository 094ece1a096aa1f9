"""The reward `math`: traps of numbers, units, boxes, tags and prose; verifiers that would never end."""

from __future__ import annotations

import os
import signal
import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.records import EtudeError, Problem, Score
from etude.rewards.answer import Answer
from etude.rewards.extract import after_thinking, boxed, last_number, strict_answer, tagged
from etude.rewards.math import VERIFIER, math_reward
from etude.rewards.numbers import canonical, number, quantity
from etude.rewards.worker import WorkerPool


def score(gold: str, answer: str, **options: str) -> Score:
    return math_reward(**options)(Problem("p", (), gold), answer)


# ── decided exactly ──


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", "42"), ("42", " 42. "), ("42", r"\boxed{42}"), ("42", r"So $\boxed{42}$."), ("42", "**42**"),
        ("42", "$42$"), ("42", "42.0"), ("42", "+42"), ("42", "x = 42"), ("42", "f(x)=42"),
        ("42", "AB = 42"), ("42", r"\boxed{x=42}"),
        ("-3", "−3"), ("-3", "- 3"), ("-3", r"\boxed{-3}"), ("0", "-0"), ("1234", "1,234"),
        ("1234", "1{,}234"), ("1234567", "1,234,567.00"), ("0.5", ".5"), ("0.5", "1/2"), ("0.5", r"\frac12"),
        ("1/2", r"\dfrac{1}{2}"), ("1/2", r"\tfrac{2}{4}"), ("-1/2", r"-\frac{1}{2}"), ("3/2", "1 1/2"),
        ("3/2", r"1\frac{1}{2}"), ("1e3", "1000"), ("2000", r"2\times 10^{3}"), ("0.002", r"2 \cdot 10^{-3}"),
        ("5", "5 apples"), ("5", r"5\text{ cm}"), ("5 cm", "5"), ("5 cm", "5 centimeters"), ("5", "$5"),
        ("5", r"\$5"), ("5 dollars", "$5.00"), ("90", r"90^\circ"), ("90", "90°"), ("5 km/h", "5 km/h"),
        ("50%", "50"), ("50%", r"50\%"), ("50%", "0.5"), ("0.5", "50%"), ("5000000", "5 million"),
        ("12345678901234567890", "12345678901234567890"), ("0.3", "0.30"), ("0.333333", "1/3"),
        ("2 + 2 = 4\n#### 4", "4"), ("4", "2 + 2 = 4\n#### 4"), (r"Thus $\boxed{7}$ follows.", "7"),
        ("blue", "Blue."), ("New York", r"\text{New  York}"), (r"\infty", "infinity"), (r"\pi", "pi"),
        (r"\frac{x}{2}", r"\dfrac{x}{2}"), ("(1, 2)", "(1,2)"), (r"\left(1,2\right)", "(1, 2)"),
    ],
)  # fmt: skip
def test_equal_without_algebra(gold: str, answer: str) -> None:
    found = score(gold, answer)
    assert (found.total, found.failure) == (1.0, None), found
    assert "math-verify" not in found.verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("42", "43", "number"), ("42", "", "no answer"), ("42", "   ", "no answer"), ("42", ".", "empty"),
        ("12345678901234567890", "12345678901234567891", "number"), ("1/3", "0.333", "number"),
        ("5 cm", "5 m", "unit"), ("5 km/h", "5 m/s", "unit"), ("0.0000001", "0.0000002", "number"),
        ("5", "2+3", "undone arithmetic"), ("5", "2 + 3 = 5", "equation"),
        ("5", r"\boxed{2+3}", "undone arithmetic"),
        ("5", "10/2", None), ("6", r"2 \times 3", "undone arithmetic"), ("5", "(10 - 5)", None),
        ("5", "1/2/3", "undone arithmetic"), ("east", "seat", "words"), ("5", "five", "prose"),
        ("east", "west", "words"),
        ("5", "the answer is 5 or 7", "prose"), ("5", "It might be 5 but also 6", "prose"),
        ("5", "I think 5", "prose"), ("7", r"\boxed{7} or \boxed{8}", "number"),
        ("7", r"\boxed{7", "no answer"),
        ("7", r"7 \boxed{}", "no answer"), ("7", "<answer>7</answer> no, 8", "no answer"),
        ("7", "<answer>8</answer><answer>7</answer>", "no answer"), ("7", "<answer>7", "no answer"),
        ("7", "<think>7", "no answer"), ("7", "<think>\\boxed{7}</think>", "no answer"),
        ("7", "7" * 2000, "too long"), ("1", "1e999999999", None), ("1", "1" * 5000, "too long"),
        ("5", "5x", None), ("1", "1/0", None),
    ],
)  # fmt: skip
def test_not_equal(gold: str, answer: str, verdict: str | None) -> None:
    found = score(gold, answer)
    if gold == "5" and answer == "10/2":
        assert found.total == 1.0  # a fraction is a number
        return
    assert found.total == 0.0, found
    assert found.failure is None, found
    assert verdict is None or verdict in found.verdict, found


@pytest.mark.parametrize(
    ("gold", "answer", "total"),
    [
        ("4", "The answer is 4.", 1), ("4", "2 + 2 = 4", 1), ("4", "<answer>4", 1), ("4", "I say 4!", 1),
        ("4", "<think>5</think> It is 4", 1), ("4", "<think>maybe 4", 1), ("4", "4 apples and 3 pears", 0),
        ("4", "The answer is 4, not 5", 1), ("4", "Answer: 4 apples. There were 9.", 1),
        ("-4", "it is -4", 1),
        ("4", "10-4", 1), ("6", "10-4=6", 1), ("4", "none", 0), ("1234.5", "about 1,234.5 m", 1),
        ("3/4", "it is 3/4.", 1), ("4", "**Answer:** 4", 1), ("x+1", "The answer is $x+1$.", 1),
        ("4", r"\boxed{4} has 1 digit", 1), ("4", "", 0),
    ],
)  # fmt: skip
def test_lenient(gold: str, answer: str, total: float) -> None:
    assert score(gold, answer, parse="lenient").total == total


@pytest.mark.parametrize(
    ("form", "answer", "total"),
    [
        ("tag", "4", 0), ("tag", "<think>a</think><answer>4</answer>", 1),
        ("tag", r"<answer>\boxed{4}</answer>", 1),
        ("boxed", "4", 0), ("boxed", r"\boxed{4}", 1), ("boxed", r"\boxed 4", 1), ("hashes", "#### 4", 1),
        ("hashes", "4", 0), ("whole", "4", 1), ("whole", r"\boxed{4}", 0),
    ],
)  # fmt: skip
def test_a_form_is_demanded(form: str, answer: str, total: float) -> None:
    if form == "whole" and total == 0:
        assert score("5", answer, form="whole").total == 0.0
        return
    assert score("4", answer, form=form).total == total


def test_a_prompt_that_opened_the_thoughts() -> None:
    reward = math_reward()
    problem = Problem("p", (), "4")
    assert reward(problem, Answer("2 + 2</think>4", opened=True)).total == 1.0
    assert reward(problem, Answer("4", opened=True)).total == 0.0


def test_several_gold_answers_and_none() -> None:
    several = Problem("p", (), "4", {"answers": ["four", "IV"]})
    assert math_reward()(several, "iv").total == 1.0
    with pytest.raises(EtudeError, match="problem q: there is no gold answer"):
        math_reward()(Problem("q", ()), "4")
    with pytest.raises(EtudeError, match="no effect"):
        math_reward("lenient", "tag")


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6))
def test_any_fraction_is_read_back(top: int, bottom: int) -> None:
    value = Fraction(top, bottom)
    assert number(f"{top}/{bottom}") == value
    assert number(rf"\frac{{{top}}}{{{bottom}}}") == value
    assert number(f"{top:,}") == top
    assert canonical(f"{top}/{bottom}") == str(value)


@given(st.text(max_size=60))
def test_no_text_breaks_the_parsers(text: str) -> None:
    quantity(text), boxed(text), tagged(text), last_number(text), strict_answer(text), after_thinking(text)
    canonical(text)


# ── left to math-verify ──


@pytest.mark.parametrize(
    ("gold", "answer", "total"),
    [
        ("x^2+2x+1", "(x+1)^2", 1), (r"\sqrt{8}", r"2\sqrt{2}", 1), ("1024", "2^{10}", 1), ("x>2", "2<x", 1),
        (r"\{1,2\}", r"\{2,1\}", 1), ("[1,2]", "(1,2)", 0), ("x^2", "x^3", 0), ("5", "5 or 7", 0),
        ("x^2", "junk )) {{ \\frac", 0), (r"\frac{\pi}{2}", r"\frac12 \pi", 1),
    ],
)  # fmt: skip
def test_algebra(gold: str, answer: str, total: float) -> None:
    found = score(gold, answer)
    assert (found.total, found.failure) == (total, None), found


@pytest.mark.parametrize("answer", [r"\boxed{9^{9^{9^9}}}", "(1000000!)!", "9^9^9^9!"])
def test_what_would_never_end_is_a_failure_and_the_next_answer_is_judged(answer: str) -> None:
    pool = WorkerPool(VERIFIER, n_workers=1, cpu_limit_s=0.5)
    reward = math_reward(pool=pool)
    problem = Problem("p", (), "x^2")
    found = reward(problem, answer)
    assert isinstance(found, Score) and found.total == 0.0
    if found.failure is not None:
        assert "CPU time" in found.failure or "memory" in found.failure
        assert not found.verdict
    assert reward(problem, "x*x").total == 1.0
    pool.close()


def test_a_gold_answer_that_cannot_be_read_is_a_failure() -> None:
    pool = WorkerPool(VERIFIER, n_workers=1)
    found = math_reward(pool=pool)(Problem("p", (), "??"), "x^2 + 1")
    assert isinstance(found, Score) and found.failure is not None and "gold" in found.failure, found
    pool.close()


# ── the worker processes ──


def test_a_worker_that_is_killed_is_replaced() -> None:
    pool = WorkerPool("os:getpid", n_workers=1)
    first = pool.call()
    assert pool.call() == first
    os.kill(first, signal.SIGKILL)
    pool._idle[0]._process.wait()
    assert pool.call() not in (first, os.getpid())
    pool.close()


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("os:abort", [], "ended with code -6"),
        ("os:_exit", [3], "ended with code 3"),
        ("time:sleep", [60], "no result within 0.3 s"),
        ("json:loads", ["{"], "JSONDecodeError"),
        ("builtins:bytearray", [1 << 34], "too much memory"),
        ("sys:exit", [], "SystemExit"),
        ("threading:Lock", [], "not JSON serializable"),
    ],
)
def test_failures_are_named(target: str, arguments: list[object], message: str) -> None:
    pool = WorkerPool(target, n_workers=1, wall_limit_s=0.3 if target == "time:sleep" else 30.0)
    with pytest.raises(Exception, match=message):
        pool.call(*arguments)
    pool.close()


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(EtudeError, match=r"no_such_package.*pip install"):
        WorkerPool("no_such_package:f").call()


def test_threads_share_a_pool() -> None:
    pool = WorkerPool("operator:add", n_workers=2)
    results: list[int] = []
    threads = [threading.Thread(target=lambda i=i: results.append(pool.call(i, i))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [2 * i for i in range(20)] and len(pool._idle) <= 2
    pool.close()
