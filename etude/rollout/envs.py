"""What happens around a model in an episode: it gets messages, replies, gets more, and is judged in the end.

An environment is a function that makes a generator for a problem: it yields messages, is sent the model's
reply, and returns a Score.

    def guess(problem: Problem) -> Episode:
        reply = yield problem.messages
        if reply.content != problem.answer:
            reply = yield [Message("user", "No. Try once more.")]
        return Score(float(reply.content == problem.answer))
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from etude.records import Message, Problem, Score
from etude.rewards.reward import AnyReward, Judge, judge_of

Episode = Generator[Sequence[Message], Message, Score]
Env = Callable[[Problem], Episode]


@dataclass(frozen=True)
class SingleTurn:
    """One reply, judged. The collector sees into it, to judge many at once and groups together."""

    judge: Judge

    def __call__(self, problem: Problem) -> Episode:
        reply = yield problem.messages
        return self.judge(problem, reply.content)


def single_turn(reward: AnyReward | Judge) -> SingleTurn:
    """The problem's messages, one reply, and its reward."""
    return SingleTurn(judge_of(reward))


Respond = Callable[[Problem, Sequence[Message]], "Sequence[Message] | None"]


def multi_turn(respond: Respond, reward: AnyReward | Judge, *, max_turns: int) -> Env:
    """A conversation. respond(problem, conversation so far): what the environment says next, or None to end
    it. The reward judges the last reply."""
    judge = judge_of(reward)

    def env(problem: Problem) -> Episode:
        reply = yield problem.messages
        conversation = [*problem.messages, reply]
        for _ in range(max_turns - 1):
            added = respond(problem, tuple(conversation))
            if added is None:
                break
            reply = yield added
            conversation += [*added, reply]
        return judge(problem, reply.content)

    return env
