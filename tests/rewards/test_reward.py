"""One face for all rewards: forms, sums, and functions that do everything wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etude.records import EtudeError, Problem, Score
from etude.rewards import combine, judge_of, load_reward, load_rewards, score_all

PROBLEM = Problem("p", (), "4", {"level": 3})


def exact(problem: Problem, answer: str) -> float:
    return float(answer == problem.answer)


# ── forms ──


def test_every_form_gives_the_same() -> None:
    def group(problem: Problem, answers: list[str]) -> list[float]:
        return [exact(problem, answer) for answer in answers]

    async def one(problem: Problem, answer: str) -> Score:
        await asyncio.sleep(0)
        return Score(exact(problem, answer))

    async def whole(problem: Problem, completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return group(problem, completions)

    class Callable:
        async def __call__(self, problem: Problem, answer: str) -> float:
            return exact(problem, answer)

    for reward in (exact, group, one, whole, Callable(), lambda problem, answer: answer == "4"):
        judge = judge_of(reward)
        assert judge.per_group == (reward in (group, whole))
        assert [score.total for score in judge.group(PROBLEM, ["4", "5", "4"])] == [1.0, 0.0, 1.0]
        assert judge(PROBLEM, "4") == Score(1.0)
        assert judge_of(judge) is judge


def test_a_reward_gets_all_columns() -> None:
    assert judge_of(lambda problem, answer: problem.columns["level"])(PROBLEM, "").total == 3.0


def test_rewards_run_beside_each_other_and_keep_their_order() -> None:
    together = threading.Barrier(8, timeout=20)

    def waits(problem: Problem, answer: str) -> float:
        together.wait()
        return float(answer)

    scores = judge_of(waits).group(PROBLEM, [str(i) for i in range(8)])
    assert [score.total for score in scores] == list(range(8))


def test_an_event_loop_may_run_already() -> None:
    async def notebook() -> float:
        return judge_of(exact)(PROBLEM, "4").total

    assert asyncio.run(notebook()) == 1.0


def test_score_all_limits_what_runs_at_once() -> None:
    running, most = 0, 0

    async def counts(problem: Problem, answer: str) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return 1.0

    scores = score_all(judge_of(counts), [(PROBLEM, ["a"])] * 50, concurrent=5)
    assert len(scores) == 50 and most == 5


# ── hostile ones ──


def hang(problem: Problem, answer: str) -> float:
    while True:
        time.sleep(0.01)


async def never(problem: Problem, answer: str) -> float:
    await asyncio.sleep(1000)
    return 1.0


class Weird:
    def __float__(self) -> float:
        raise RuntimeError("no")


def raising(error: BaseException) -> Callable[..., Any]:
    def reward(problem: Problem, answer: str) -> float:
        raise error

    return reward


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raising(KeyError("label")), "r: KeyError: 'label'"), (raising(SystemExit(3)), "r: SystemExit: 3"),
        (raising(StopIteration()), "StopIteration"), (raising(RecursionError("deep")), "RecursionError"),
        (raising(TimeoutError("mine")), "r: TimeoutError: mine"), (raising(MemoryError()), "MemoryError"),
        (hang, "r: no score within 0.2 s"), (never, "r: no score within 0.2 s"),
        (lambda problem, answer: None, "r: returned None"), (lambda problem, answer: "1.0", "returned '1.0'"),
        (lambda problem, answer: float("nan"), "nan"), (lambda problem, answer: float("inf"), "inf"),
        (lambda problem, answer: [1.0], "returned [1.0]"), (lambda problem, answer: Weird(), "Weird"),
        (lambda problem, answer: Score(float("nan")), "nan in a Score"),
        (lambda problem, answer: Score(1.0, {"a": None}), "None in a Score"),
        (lambda problem, answer: np.array([1.0, 2.0]), "r: returned array"),
        (lambda problem, answer: never(problem, answer), "is an `await` missing?"),
    ],
)  # fmt: skip
def test_what_a_reward_does_wrong_is_a_counted_failure(reward: Any, message: str) -> None:
    score = judge_of(reward, "r", timeout_s=0.2)(PROBLEM, "4")
    assert score.total == 0.0 and score.failure is not None and message in score.failure, score


@pytest.mark.parametrize(
    ("value", "total"),
    [(True, 1.0), (2, 2.0), (np.float32(0.5), 0.5), (np.array(0.25), 0.25), (Score(3), 3.0)],
)
def test_what_counts_as_a_number(value: Any, total: float) -> None:
    score = judge_of(lambda problem, answer: value)(PROBLEM, "")
    assert (score.total, score.failure) == (total, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "returned 1 scores for 2 answers"), (None, "not a list of 2 scores"), ("ab", "not a list"),
        (1.0, "not a list"), (Score(1.0), "not a list"),
    ],
)  # fmt: skip
def test_what_a_group_reward_does_wrong(value: Any, message: str) -> None:
    def reward(problem: Problem, answers: list[str]) -> Any:
        return value

    for score in judge_of(reward, "r").group(PROBLEM, ["a", "b"]):
        assert score.failure is not None and message in score.failure

    mixed = judge_of(lambda problem, answers: [1.0, None], "r").group(PROBLEM, ["a", "b"])
    assert mixed[0].failure is None and mixed[1].failure is not None


def test_a_failure_of_one_answer_is_not_one_of_the_others() -> None:
    def reward(problem: Problem, answer: str) -> float:
        return 1 / int(answer)

    scores = judge_of(reward, "r").group(PROBLEM, ["1", "0", "2"])
    assert [score.total for score in scores] == [1.0, 0.0, 0.5]
    assert [score.failure is None for score in scores] == [True, False, True]


def test_a_reward_that_hangs_does_not_keep_the_program_alive() -> None:
    code = (
        "import time; from etude.rewards import judge_of; from etude.records import Problem\n"
        "def hang(problem, answer):\n    while True: time.sleep(1)\n"
        "print(judge_of(hang, 'h', timeout_s=0.1)(Problem('p', ()), '').failure)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("h: no score within 0.1 s\n", "")


@pytest.mark.parametrize("reward", [lambda: 1.0, lambda problem: 1.0, lambda a, b, c: 1.0, 5, "math"])
def test_what_is_no_reward_is_refused_at_once(reward: Any) -> None:
    with pytest.raises(EtudeError, match=r"\(problem, answer\)"):
        judge_of(reward, "r")


def test_what_the_user_can_mend_is_passed_on() -> None:
    with pytest.raises(EtudeError, match="fix me"):
        judge_of(raising(EtudeError("fix me")))(PROBLEM, "")


# ── sums ──


def test_equal_weights_as_in_r1_zero() -> None:
    judge = combine({"accuracy": load_reward("math"), "format": load_reward("format")})
    both = judge(PROBLEM, "<think>2 + 2</think> <answer>4</answer>")
    assert both.total == 2.0 and both.parts == {"accuracy": 1.0, "format": 1.0} and both.parsed == "4"
    assert judge(PROBLEM, "4").parts == {"accuracy": 1.0, "format": 0.0}
    assert judge(PROBLEM, "<think>a</think><answer>5</answer>").parts == {"accuracy": 0.0, "format": 1.0}
    assert judge(PROBLEM, "4").verdict == "accuracy: equal (number); format: no <think>"


def test_weights_and_nested_parts() -> None:
    inner = combine({"a": lambda problem, answer: 1.0, "b": lambda problem, answer: 3.0}, {"b": 0.0})
    judge = combine(
        {"inner": inner, "group": lambda problem, answers: [2.0] * len(answers)}, {"inner": 10, "group": 0.5}
    )
    assert judge.per_group and not inner.per_group
    assert judge(PROBLEM, "") == Score(11.0, {"inner": 1.0, "inner/a": 1.0, "inner/b": 3.0, "group": 2.0})


def test_a_part_that_fails_is_named_and_absent() -> None:
    judge = combine({"good": exact, "bad": raising(ValueError("x"))}, {"good": 0.5})
    score = judge(PROBLEM, "4")
    assert (score.total, score.parts, score.failure) == (0.5, {"good": 1.0}, "bad: ValueError: x")


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ({}, None, "no reward"), ({"a": exact}, {"b": 1.0}, "weight for 'b'; the rewards are a"),
        ({"a": exact}, {"a": float("nan")}, "not a finite number"),
    ],
)  # fmt: skip
def test_sums_that_make_no_sense(rewards: Any, weights: Any, message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        combine(rewards, weights)


# ── by name ──


def test_a_function_of_ones_own_file(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("BONUS = 0.5\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom neighbour import BONUS\n"
        "def polite(problem, answer, factor=1.0):\n    return factor * ('please' in answer) + BONUS\n"
        "def group(problem, answers):\n    return [len(set(answers)) / len(answers)] * len(answers)\n"
        "async def slow(problem, answer):\n    return 1.0\n"
        "@dataclass\nclass Data:\n    x: int\n"
    )
    assert load_reward(f"{file}:polite")(PROBLEM, "please").total == 1.5
    assert load_reward(f"{file}:polite?factor=3")(PROBLEM, "please").total == 3.5
    assert load_reward(f"{file}:group").group(PROBLEM, ["a", "a"])[0].total == 0.5
    assert load_reward(f"{file}:slow")(PROBLEM, "").total == 1.0
    judge = load_rewards({f"{file}:polite": 2.0, "math": 1.0})
    assert judge(PROBLEM, "4").parts == {"polite": 0.5, "math": 1.0}
    assert load_reward("operator:eq")(PROBLEM, "").total == 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "no reward 'maths'; did you mean math"), ("nothing", "Rewards: math, format"),
        ("math?parze=strict", "no option 'parze'; did you mean parse"),
        ("math?parse=loose", "allowed are strict"),
        ("math?timeout_s=long", "timeout_s='long'"), ("math?x", "cannot read 'x'"),
        ("length", r"length\?target=…"),
        ("length?target=0", "above 0"), ("length?target=9&unit=lines", "tokens, words, characters"),
        ("format?tags=answer,think", "'think,answer'"), ("format?partial=1", "type bool"),
        ("overlong?max_length=4&cache=5", "more than"), ("nowhere.py:f", "no file 'nowhere.py'"),
        ("etude_no_such:f", "cannot import 'etude_no_such'"), ("operator:eqq", "no function 'eqq'"),
        ("math?pool=3", "no option 'pool'"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(EtudeError, match=message):
        load_reward(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def reward(:\n", "cannot be run: SyntaxError"), ("import no_such_thing\n", "ModuleNotFoundError"),
        ("raise SystemExit(1)\n", "SystemExit"), ("def other(problem, answer): ...\n", "it has: other"),
        ("reward = 5\n", "no function 'reward'"),
        ("def reward(text): ...\n", r"reward\(text\): a reward takes"),
    ],
)  # fmt: skip
def test_files_that_are_broken(source: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(EtudeError, match=message):
        load_reward(f"{file}:reward")
