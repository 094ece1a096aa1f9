"""Problems → rollouts: sample a group for each problem, judge what is finished while the rest is sampled.

One request per problem, so that its prompt is computed once; all of them at once, so that the engine is never
short of work. Seeds come from (run, step, problem), so a step that is repeated samples the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from etude.records import (
    Completion,
    Engine,
    EtudeError,
    Event,
    Finish,
    FinishedEvent,
    Message,
    Problem,
    Request,
    Rollout,
    SamplingParams,
    Score,
)
from etude.rewards.answer import Answer
from etude.rewards.reward import TIMEOUT_S, within
from etude.rollout.envs import Env, Episode, SingleTurn
from etude.rollout.judging import Judging
from etude.rollout.prompts import Prompt, PromptWriter

MAX_DRAIN_STEPS = 1000


def collect(
    engine: Engine,
    prompts: PromptWriter,
    problems: Sequence[Problem],
    env: Env,
    *,
    n: int,
    params: SamplingParams,
    seed: int,
    step: int = 0,
    first_index: int = 0,
    adapter: str | None = None,
    adapter_scale: float = 1.0,
    env_timeout_s: float = TIMEOUT_S,
    on_rollout: Callable[[Rollout], None] | None = None,
) -> list[Rollout]:
    """`n` rollouts of each problem, in the order of the problems and of their indices.

    params.seed is not read: the seed of a problem is derived from (seed, step, first_index + its position).
    first_index: how many problems of this step were sampled before, where a step samples again.
    env_timeout_s: how long one turn of an environment may take. on_rollout is called as each is finished, in
    no order. The engine must do nothing else meanwhile.

    EtudeError for a prompt without room and for what the engine cannot do. Whatever ends it early, Ctrl-C
    included, leaves no request in the engine.
    """
    if n < 1:
        raise EtudeError(f"n is {n}; each problem needs at least one completion")
    request = Request((0,), params, n, adapter, adapter_scale)
    with Judging[tuple[int, ...]]() as judging:
        collection = _Collection(engine, prompts, env, request, judging, env_timeout_s, on_rollout)
        try:
            for at, problem in enumerate(problems):
                collection.begin(problem, (seed, step, first_index + at))
            collection.run()
        except BaseException:
            collection.abort()
            raise
    return collection.rollouts()


def seed_of(*parts: int) -> int:
    """63 bits from whole numbers, the same for ever.

    >>> seed_of(0, 1, 2)
    1772749440416956875
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass
class _Running:
    """One episode on its way: what is known of its Rollout so far."""

    conversation: list[Message]
    episode: Episode | None
    opened: bool
    ids: list[int]
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish: Finish = "abort"
    version: int = 0
    turns: int = 0
    score: Score | None = None


@dataclass
class _Group:
    """A problem and its episodes. source: what its seeds come from."""

    problem: Problem
    source: tuple[int, int, int]
    prompt_length: int
    running: list[_Running]
    answers: dict[int, Answer] = field(default_factory=dict)


class _Collection:
    """The state of one call of `collect`."""

    def __init__(
        self,
        engine: Engine,
        prompts: PromptWriter,
        env: Env,
        request: Request,
        judging: Judging[tuple[int, ...]],
        env_timeout_s: float,
        on_rollout: Callable[[Rollout], None] | None,
    ) -> None:
        self._engine, self._prompts, self._env, self._request = engine, prompts, env, request
        self._judging, self._env_timeout_s, self._on_rollout = judging, env_timeout_s, on_rollout
        self._groups: list[_Group] = []
        self._live: dict[int, tuple[int, int | None]] = {}  # request → (group, index; None: all of them)
        self._left: dict[int, int] = {}  # request → completions that are not finished

    def begin(self, problem: Problem, source: tuple[int, int, int]) -> None:
        """Open the episodes of a problem and send its first request."""
        n = self._request.n
        single = isinstance(self._env, SingleTurn)
        episodes = [None if single else self._env(problem) for _ in range(n)]
        openings = [
            problem.messages if episode is None else _opening(problem, episode) for episode in episodes
        ]
        if any(opening != openings[0] for opening in openings):
            raise EtudeError(
                f"problem {problem.id}: the environment opened its {n} episodes differently; the rollouts of "
                "a problem share their first messages"
            )
        prompt = self._prompts.opening(problem, openings[0])
        self._check_room(problem, prompt)
        running = [
            _Running(list(openings[0]), episode, prompt.opened, list(prompt.ids)) for episode in episodes
        ]
        for one in running:
            one.mask, one.logprobs = [False] * len(prompt.ids), [0.0] * len(prompt.ids)
        self._groups.append(_Group(problem, source, len(prompt.ids), running))
        self._send(prompt.ids, n, seed_of(*source), (len(self._groups) - 1, None))

    def run(self) -> None:
        """Step the engine and the judges until every episode has its score."""
        while self._live or self._judging.n_open:
            if self._live:
                for event in self._engine.step():
                    self._take(event)
            for key, future in self._judging.done(wait=not self._live):
                self._judged(key, future.result())

    def abort(self) -> None:
        """Leave nothing of ours in the engine."""
        with suppress(Exception):  # an engine that has failed has nothing to leave
            for request_id in self._live:
                self._engine.abort(request_id)
            for _ in range(MAX_DRAIN_STEPS):
                if not self._live:
                    break
                for event in self._engine.step():
                    self._finished(event)
        for group in self._groups:
            for one in group.running:
                if one.episode is not None:
                    with suppress(Exception):  # it may be running, in a thread that hangs
                        one.episode.close()

    def rollouts(self) -> list[Rollout]:
        """All of them, in order."""
        return [_rollout(group, index) for group in self._groups for index in range(len(group.running))]

    def _send(self, ids: Sequence[int], n: int, seed: int, owner: tuple[int, int | None]) -> None:
        params = replace(self._request.params, seed=seed)
        request_id = self._engine.submit(replace(self._request, prompt_ids=tuple(ids), params=params, n=n))
        self._live[request_id], self._left[request_id] = owner, n

    def _finished(self, event: Event) -> tuple[int, int | None] | None:
        """Whose completion an event has ended; None if it has not, or is not ours."""
        owner = self._live.get(event.request_id)
        if owner is None or event.finish is None:
            return None
        self._left[event.request_id] -= 1
        if not self._left[event.request_id]:
            del self._live[event.request_id], self._left[event.request_id]
        return owner

    def _take(self, event: Event) -> None:
        """A completion that has ended goes to its judge, or to its environment."""
        owner = self._finished(event)
        if owner is None:
            return
        at, index = owner[0], event.index if owner[1] is None else owner[1]
        group = self._groups[at]
        completion = event.completion if isinstance(event, FinishedEvent) else None
        error = event.error if isinstance(event, FinishedEvent) else None
        if completion is None or error is not None or event.finish == "abort":
            raise EtudeError(f"problem {group.problem.id}: the engine ended it: {error or event.finish}")
        one = group.running[index]
        answer = _append(one, completion)
        if not isinstance(self._env, SingleTurn):
            assert one.episode is not None
            self._play(at, index, one.episode, Message("assistant", answer))
            return
        judge = self._env.judge
        group.answers[index] = answer
        if not judge.per_group:
            self._judging.submit((at, index), lambda: judge.judge(group.problem, [answer]))
        elif len(group.answers) == len(group.running):
            indices = range(len(group.running))
            answers = [group.answers[i] for i in indices]
            self._judging.submit((at, *indices), lambda: judge.judge(group.problem, answers))

    def _play(self, at: int, index: int, episode: Episode, reply: Message) -> None:
        """Send the reply to the environment, beside the engine."""

        def send() -> tuple[Message, ...] | Score:
            try:
                return _messages(episode.send(reply))
            except StopIteration as end:
                return _score(end.value)

        self._judging.submit((at, index), lambda: within(send, "environment", self._env_timeout_s))

    def _judged(self, key: tuple[int, ...], result: list[Score] | Score | tuple[Message, ...]) -> None:
        """Scores arrived for (group, *indices), or an environment's next messages."""
        at, *indices = key
        if isinstance(result, list):
            for index, score in zip(indices, result, strict=True):
                self._end(self._groups[at], index, score)
        elif isinstance(result, Score):
            self._end(self._groups[at], indices[0], result)
        else:
            self._continue(at, indices[0], result)

    def _continue(self, at: int, index: int, added: tuple[Message, ...]) -> None:
        """The next turn of an episode, if there is room for it."""
        group = self._groups[at]
        one = group.running[index]
        more = self._prompts.continuation(one.conversation, added, one.ids[-1])
        one.conversation += added
        context = self._prompts.context
        if context is not None and len(one.ids) + len(more.ids) >= context:
            assert one.episode is not None
            one.episode.close()
            one.finish = "length"
            self._end(group, index, Score(0.0, verdict="the context is full"))
            return
        one.ids += more.ids
        one.mask += [False] * len(more.ids)
        one.logprobs += [0.0] * len(more.ids)
        one.opened = more.opened
        self._send(one.ids, 1, seed_of(*group.source, index, one.turns), (at, index))

    def _end(self, group: _Group, index: int, score: Score) -> None:
        one = group.running[index]
        one.score = score
        if one.turns > 1:
            one.text = self._prompts.codec.decode(one.ids[group.prompt_length :], special=True)
        if self._on_rollout is not None:
            self._on_rollout(_rollout(group, index))

    def _check_room(self, problem: Problem, prompt: Prompt) -> None:
        context, most = self._prompts.context, self._request.params.max_tokens or 1
        if context is not None and len(prompt.ids) + most > context:
            raise EtudeError(
                f"problem {problem.id}: its prompt has {len(prompt.ids)} tokens, and with {most} for the "
                f"answer the context of {context} is too small"
            )


def _opening(problem: Problem, episode: Episode) -> tuple[Message, ...]:
    """The first messages of an episode. EtudeError if the environment fails already."""
    try:
        return _messages(next(episode))
    except StopIteration:
        raise EtudeError(f"problem {problem.id}: the environment ended before the first reply") from None
    except EtudeError:
        raise
    except Exception as error:  # a stranger's program fails in any way
        text = f"{type(error).__name__}: {error}"
        raise EtudeError(f"problem {problem.id}: the environment cannot begin: {text}") from error


def _append(one: _Running, completion: Completion) -> Answer:
    """A completion to an episode; returns the reply as its judge gets it."""
    one.ids += completion.token_ids
    one.mask += [True] * len(completion.token_ids)
    one.logprobs += completion.logprobs
    one.text, one.finish, one.version = completion.text, completion.finish, completion.weights_version
    one.turns += 1
    answer = Answer(
        completion.text, n_tokens=len(completion.token_ids), finish=completion.finish, opened=one.opened
    )
    one.conversation.append(Message("assistant", answer))
    return answer


def _messages(value: object) -> tuple[Message, ...]:
    """What an environment yielded."""
    if isinstance(value, Sequence) and value and all(isinstance(item, Message) for item in value):
        return tuple(value)
    raise TypeError(f"yielded {value!r:.80}, not a list of messages")


def _score(value: object) -> Score:
    """What an environment returned."""
    if isinstance(value, Score):
        return value
    return Score(0.0, failure=f"environment: returned {value!r:.80}, not a Score")


def _rollout(group: _Group, index: int) -> Rollout:
    one = group.running[index]
    assert one.score is not None
    return Rollout(
        problem_id=group.problem.id,
        index=index,
        token_ids=tuple(one.ids),
        mask=tuple(one.mask),
        logprobs=tuple(one.logprobs),
        prompt_length=group.prompt_length,
        finish=one.finish,
        weights_version=one.version,
        score=one.score,
        text=one.text,
    )
