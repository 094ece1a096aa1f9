"""Format, choice, text, length, reasoning-gym's scorers: each with its traps."""

from __future__ import annotations

from typing import Any

import pytest

from etude.records import EtudeError, Problem, Score
from etude.rewards import Answer, load_reward


def total(name: str, answer: str, gold: str | None = None, **columns: Any) -> float:
    score = load_reward(name)(Problem("p", (), gold, columns), answer)
    assert score.failure is None, score
    return score.total


# ── format ──


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("<think>a</think><answer>b</answer>", "formed"),
        (" <think>\na\n</think>\n\n<answer>\nb\n</answer>\n", "formed"),
        ("", "no <think>"), ("b", "no <think>"), ("<think>a</think>b", "no <answer>"),
        ("<think>a</think><answer>b", "no </answer>"),
        ("<answer>b</answer><think>a</think>", "text before <think>"),
        ("Sure! <think>a</think><answer>b</answer>", "text before <think>"),
        ("<think>a</think> so <answer>b</answer>", "text between"),
        ("<think>a</think><answer>b</answer> Bye", "text after"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "2 times <answer>"),
        ("<think>a<think>b</think></think><answer>c</answer>", "2 times <think>"),
        ("<think></think><answer>b</answer>", "nothing before </think>"),
        ("<think>a</think><answer>  </answer>", "nothing before </answer>"),
        ("<think>a<answer>b</think></answer>", "</think>"),
        ("<THINK>a</THINK><ANSWER>b</ANSWER>", "no <think>"),
        ("<think>a</answer></think><answer>b", "</answer> before"),
    ],
)  # fmt: skip
def test_the_form_of_r1(answer: str, verdict: str) -> None:
    score = load_reward("format")(Problem("p", ()), answer)
    assert verdict in score.verdict and score.total == float(verdict == "formed"), score


def test_forms_with_fewer_tags_and_partial_credit() -> None:
    assert total("format?tags=think", "<think>a</think> b") == 1.0
    assert total("format?tags=think", "<think>a</think>") == 0.0
    assert total("format?tags=answer", "well, <answer>b</answer>") == 1.0
    assert total("format?tags=answer", "<answer>b</answer> well") == 0.0
    assert total("format?partial=true", "<think>a</think>") == 0.25
    assert total("format?partial=true", "<think><think><think>") == 0.0
    assert total("format", Answer("a</think><answer>b</answer>", opened=True)) == 1.0
    assert total("format", Answer("<think>a</think><answer>b</answer>", opened=True)) == 0.0


# ── choice ──


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("C", 1), ("(C)", 1), ("c", 1), ("C.", 1), (r"\boxed{C}", 1), (r"\boxed{\text{(C)}}", 1),
        ("**C**", 1),
        ("C) Paris", 1), ("C: Paris", 1), ("Option C", 1), ("<answer>C</answer>", 1), ("Paris", 1),
        ("paris.", 1),
        ("B", 0), ("Can be", 0), ("A or C", 0), ("Z", 0), ("", 0), ("The answer is (C).", 0), ("ABCD", 0),
        ("(A) (B) (C) (D)", 0),
    ],
)  # fmt: skip
def test_strict_choice(answer: str, right: float) -> None:
    assert total("choice", answer, "C", choices=["Rome", "Bonn", "Paris", "Oslo"]) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The answer is (C).", 1), ("The answer is C", 1), ("Answer: C", 1), ("**Answer:** C", 1),
        ("I choose C.", 1),
        ("The correct option is C because …", 1), ("It is not A. It is C.", 1), ("so (C)", 1),
        ("Thus,\nC", 1),
        ("<think>A? B?</think> The answer is C", 1), (r"Thus $\boxed{C}$", 1),
        ("The answer is $\\text{C}$.", 1),
        ("The answer is A or C", 0), ("Either (A) or (C)", 0), ("(A), (B), (C), (D)", 0), ("A cat sat.", 0),
        ("The answer is a cat", 0), ("The answer is not C", 0), ("I am sure", 0), ("", 0),
        ("The answer is Caesar", 0),
        ("The answer is C, not A", 1), ("The answer is A. No, the answer is C.", 1),
    ],
)  # fmt: skip
def test_lenient_choice(answer: str, right: float) -> None:
    assert total("choice?parse=lenient", answer, "C") == right


def test_gold_choices_in_all_forms() -> None:
    cities = ["Rome", "Bonn", "Paris"]
    for gold in ("C", "(C)", "c", "2", "Paris", "C. Paris"):
        assert total("choice", "C", gold, choices=cities) == 1.0, gold
    assert total("choice", "B", "1", options=["0", "1"]) == 1.0  # the text of an option beats its index
    with pytest.raises(EtudeError, match="problem p: the answer 'Berlin' is none of its options"):
        total("choice", "C", "Berlin", choices=cities)


# ── text ──


@pytest.mark.parametrize(
    ("name", "gold", "answer", "right"),
    [
        ("text", "sun", "Sun.", 1), ("text", "sun", "**sun**", 1), ("text", "sun", "the sun", 0),
        ("text", "sun", "", 0),
        ("text", "1, 2, 3", "1 2 3", 1), ("text", "1, 2, 3", "3, 2, 1", 0), ("text", "sun", "moon sun", 0),
        ("text", "-3", "3", 0), ("text", "New York", "new  york!", 1),
        ("text?parse=lenient", "sun", "The answer is sun. Or not?", 1),
        ("text?parse=lenient", "sun", "It is the sun", 1),
        ("text?parse=lenient", "sun", "sun, moon, star", 0), ("text?parse=lenient", "sun", "", 0),
        ("text?parse=lenient", "sun", "unsun", 0), ("text?parse=lenient", "1 2 3", "sorted: 1, 2, 3", 1),
        ("text?parse=lenient", "3", "13", 0), ("text?parse=lenient", "sun", r"\boxed{sun} it was", 1),
    ],
)  # fmt: skip
def test_text(name: str, gold: str, answer: str, right: float) -> None:
    assert total(name, answer, gold) == right


# ── length ──


@pytest.mark.parametrize(
    ("n", "expected"), [(0, 0.0), (25, 0.5), (50, 1.0), (75, 0.5), (100, 0.0), (999, 0.0)]
)
def test_length(n: int, expected: float) -> None:
    assert total("length?target=50", Answer("x", n_tokens=n)) == expected
    assert total("length?target=50&unit=words", "x " * n) == expected
    assert total("length?target=50&unit=characters", "x" * n) == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(0, 0.0), (12, 0.0), (13, -0.25), (16, -1.0), (17, -1.0), (99, -1.0)]
)
def test_overlong_is_dapos(n: int, expected: float) -> None:
    assert total("overlong?max_length=16&cache=4", Answer("x", n_tokens=n)) == expected


def test_tokens_of_a_bare_text_are_not_known() -> None:
    with pytest.raises(EtudeError, match="unit=words"):
        total("length?target=50", "some text")


# ── reasoning-gym ──


def item(dataset: str, gold: str | None, index: int = 0, **config: Any) -> Problem:
    column = {"dataset": dataset, "config": {"size": 5, "seed": 1, **config}, "index": index}
    return Problem("p", (), gold, {"reasoning_gym": column})


def test_its_own_scorers() -> None:
    from reasoning_gym import create_dataset

    reward = load_reward("reasoning_gym")
    for name in ("chain_sum", "leg_counting", "prime_factorization"):
        gold = create_dataset(name, size=5, seed=1)[2]["answer"]
        problem = item(name, gold, 2)
        assert reward(problem, gold).total == 1.0 and reward(problem, "").total == 0.0
        junk = reward(problem, "wrong zzz")
        assert junk.total < 0.5 and junk.failure is None, junk
        lenient = load_reward("reasoning_gym?parse=lenient")
        assert lenient(problem, f"The answer is {gold}").total == 1.0


def test_code_is_not_run() -> None:
    score = load_reward("reasoning_gym")(item("countdown", None), "__import__('os').system('true')")
    assert score.total == 0.0 and "refused" in score.verdict
    score = load_reward("reasoning_gym?timeout_s=0.3")(item("countdown", None), "9**9**9**9**9")
    assert isinstance(score, Score) and score.total < 0.1


def test_other_problems_are_refused() -> None:
    with pytest.raises(EtudeError, match="judges problems of reasoning_gym:NAME only"):
        total("reasoning_gym", "1", "1")
