"""What a reward is, and one face for all of its forms.

A reward judges one answer, or the answers of a whole group, at once or asynchronously:

    def reward(problem, answer) -> float | Score
    def reward(problem, answers) -> list[float | Score]      # the second argument is called `answers`
    async def …                                              # either of them

`problem.columns` has everything its row had. A `Judge` calls any of them: what a reward does wrong (it
raises, hangs, returns None or nan) becomes a `Score` whose `failure` says so, which is counted and shown; it
is never a silent 0. Only an EtudeError, which the user can mend, is passed on.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

from etude.records import EtudeError, Problem, Score

Reward = Callable[[Problem, str], "Score | SupportsFloat"]
GroupReward = Callable[[Problem, Sequence[str]], "Sequence[Score | SupportsFloat]"]
AsyncReward = Callable[[Problem, str], "Awaitable[Score | SupportsFloat]"]
AsyncGroupReward = Callable[[Problem, Sequence[str]], "Awaitable[Sequence[Score | SupportsFloat]]"]
AnyReward = Reward | GroupReward | AsyncReward | AsyncGroupReward

TIMEOUT_S = 60.0
"""How long a reward may take, unless it is told otherwise."""

GROUP_NAMES = ("answers", "completions")
CONCURRENT = 64


@dataclass(frozen=True)
class Judge:
    """Any reward: `await judge.judge(problem, answers)` gives a Score for each answer.

    per_group: it wants all answers of a problem at once; otherwise any number does. direct: the same without
    an event loop, for rewards that keep limits of their own.
    """

    name: str
    judge: Callable[[Problem, Sequence[str]], Awaitable[list[Score]]]
    per_group: bool = False
    direct: Callable[[Problem, str], Score] | None = None

    def __call__(self, problem: Problem, answer: str) -> Score:
        """Judge one answer, here and now."""
        return self.direct(problem, answer) if self.direct else self.group(problem, [answer])[0]

    def group(self, problem: Problem, answers: Sequence[str]) -> list[Score]:
        """Judge the answers of one problem, here and now."""
        return score_all(self, [(problem, answers)])[0]


def judge_of(reward: AnyReward | Judge, name: str = "", *, timeout_s: float | None = TIMEOUT_S) -> Judge:
    """One face for a reward. timeout_s: how long a call may take; None: it keeps limits of its own."""
    if isinstance(reward, Judge):
        return reward
    name = name or getattr(reward, "__name__", type(reward).__name__)
    per_group = takes_group(reward, name)
    is_async = any(inspect.iscoroutinefunction(call) for call in (reward, type(reward).__call__))

    async def called(problem: Problem, given: Any) -> Any:
        """The bare result, or a Score that says why there is none."""
        if is_async:
            return await guarded(lambda: reward(problem, given), name, timeout_s)
        return await within(lambda: reward(problem, given), name, timeout_s)

    async def one_by_one(problem: Problem, answers: Sequence[str]) -> list[Score]:
        results = await asyncio.gather(*(called(problem, answer) for answer in answers))
        return [score_of(result, name) for result in results]

    async def whole_group(problem: Problem, answers: Sequence[str]) -> list[Score]:
        return _scores(await called(problem, list(answers)), len(answers), name)

    def direct(problem: Problem, answer: str) -> Score:
        try:
            return score_of(reward(problem, answer), name)
        except EtudeError:
            raise
        except Exception as error:  # as in attempt
            return Score(0.0, failure=f"{name}: {type(error).__name__}: {error}")

    is_direct = timeout_s is None and not per_group and not is_async
    return Judge(name, whole_group if per_group else one_by_one, per_group, direct if is_direct else None)


def takes_group(reward: Any, name: str) -> bool:
    """Whether the second parameter is a group's answers. EtudeError if it cannot take (problem, answer)."""
    if not callable(reward):
        raise EtudeError(f"{name}: got {type(reward).__name__}, a reward is a function (problem, answer)")
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):
        return False
    try:
        bound = signature.bind(None, None)
    except TypeError as error:
        raise EtudeError(
            f"{name}{signature}: a reward takes (problem, answer), or (problem, answers) for a whole group "
            f"({error})"
        ) from None
    names = list(bound.arguments)
    return len(names) > 1 and names[1] in GROUP_NAMES


def score_of(value: Any, name: str) -> Score:
    """What a reward returned, as a Score; anything but a finite number or such a Score is a failure.

    >>> score_of(True, "r").total, score_of(None, "r").failure
    (1.0, 'r: returned None, not a float or a Score')
    """
    if isinstance(value, Score):
        bad = [part for part in (value.total, *value.parts.values()) if not _is_finite(part)]
        return Score(0.0, failure=f"{name}: returned {bad[0]!r} in a Score") if bad else value
    if isinstance(value, str | bytes) or not isinstance(value, SupportsFloat):
        shown = repr(value)[:80]
        hint = " (is an `await` missing?)" if inspect.isawaitable(value) else ""
        if inspect.iscoroutine(value):
            value.close()
        return Score(0.0, failure=f"{name}: returned {shown}, not a float or a Score{hint}")
    if not _is_finite(value):
        return Score(0.0, failure=f"{name}: returned {value!r}, not a finite number")
    return Score(float(value))


def combine(rewards: Mapping[str, AnyReward | Judge], weights: Mapping[str, float] | None = None) -> Judge:
    """Named parts, weighted and summed: total = sum of weight * part. Without weights all count 1, as
    accuracy and format do in R1-Zero. A part of weight 0 is only recorded.

    Parts of the sum are the bare totals; parts of a part are named "part/name". A part that fails is absent,
    adds nothing, and is named in `failure`.
    """
    if not rewards:
        raise EtudeError("combine: there is no reward")
    factors = dict.fromkeys(rewards, 1.0) | dict(weights or {})
    for name, weight in factors.items():
        if name not in rewards:
            raise EtudeError(f"combine: weight for {name!r}; the rewards are {', '.join(rewards)}")
        if not _is_finite(weight):
            raise EtudeError(f"combine: the weight of {name!r} is {weight!r}, not a finite number")
    judges = {name: judge_of(reward, name) for name, reward in rewards.items()}

    async def together(problem: Problem, answers: Sequence[str]) -> list[Score]:
        columns = await asyncio.gather(*(judge.judge(problem, answers) for judge in judges.values()))
        return [
            _sum(dict(zip(judges, scores, strict=True)), factors) for scores in zip(*columns, strict=True)
        ]

    def direct(problem: Problem, answer: str) -> Score:
        return _sum({name: judge(problem, answer) for name, judge in judges.items()}, factors)

    is_direct = all(judge.direct for judge in judges.values())
    per_group = any(judge.per_group for judge in judges.values())
    return Judge("+".join(rewards), together, per_group, direct if is_direct else None)


def score_all(
    judge: Judge, work: Iterable[tuple[Problem, Sequence[str]]], *, concurrent: int = CONCURRENT
) -> list[list[Score]]:
    """Judge many groups, `concurrent` at a time; here and now, also where an event loop runs (a notebook)."""

    async def all_of_it() -> list[list[Score]]:
        limit = asyncio.Semaphore(concurrent)

        async def limited(problem: Problem, answers: Sequence[str]) -> list[Score]:
            async with limit:
                return await judge.judge(problem, answers)

        return await asyncio.gather(*(limited(problem, answers) for problem, answers in work))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(all_of_it())
    results: list[list[list[Score]]] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(all_of_it())), daemon=True)
    thread.start()
    thread.join()
    return results[0]


def _sum(scores: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
    """The weighted sum of one answer's parts."""
    parts: dict[str, float] = {}
    for name, score in scores.items():
        if score.failure is None:
            parts[name] = score.total
            parts |= {f"{name}/{inner}": value for inner, value in score.parts.items()}
    return Score(
        total=sum(weights[name] * score.total for name, score in scores.items() if score.failure is None),
        parts=parts,
        parsed=next((score.parsed for score in scores.values() if score.parsed is not None), None),
        verdict="; ".join(f"{name}: {score.verdict}" for name, score in scores.items() if score.verdict),
        failure="; ".join(score.failure for score in scores.values() if score.failure) or None,
    )


def _scores(value: Any, n: int, name: str) -> list[Score]:
    """What a reward for groups returned, one Score for each answer."""
    if isinstance(value, Score) and value.failure is not None:
        return [value] * n
    if isinstance(value, str | bytes | Score) or not isinstance(value, Iterable):
        return [Score(0.0, failure=f"{name}: returned {value!r:.80}, not a list of {n} scores")] * n
    values = list(value)
    if len(values) != n:
        return [Score(0.0, failure=f"{name}: returned {len(values)} scores for {n} answers")] * n
    return [score_of(item, name) for item in values]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except Exception:  # float() of a stranger's object, such as a tensor of two elements
        return False


async def within(function: Callable[[], Any], name: str, timeout_s: float | None) -> Any:
    """The result of a blocking function, or a Score whose failure says why there is none."""
    return await guarded(lambda: _in_thread(function), name, timeout_s)


async def guarded(start: Callable[[], Any], name: str, timeout_s: float | None) -> Any:
    """The same for what `start()` gives to wait for."""

    async def attempt() -> Any:
        try:
            return await start()
        except (asyncio.CancelledError, EtudeError):
            raise
        except BaseException as error:  # a stranger's function fails in any way, sys.exit() included
            return Score(0.0, failure=f"{name}: {type(error).__name__}: {error}")

    try:
        return await asyncio.wait_for(attempt(), timeout_s)
    except TimeoutError:
        return Score(0.0, failure=f"{name}: no score within {timeout_s:g} s")


async def _in_thread(function: Callable[[], Any]) -> Any:
    """The result of a blocking function. A daemon thread each: one that hangs is left behind, and holds up
    neither the others nor the end of the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_result((result, error))

    def run() -> None:
        result, failed = None, None
        try:
            result = function()
        except BaseException as error:
            failed = error
        try:
            loop.call_soon_threadsafe(settle, result, failed)
        except RuntimeError:  # the loop was closed: nobody waits for it any more
            pass

    threading.Thread(target=run, name="etude-reward", daemon=True).start()
    result, error = await future
    if error is not None:
        raise RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
    return result
