"""Problems → rollouts: order, seeds, masks, judges beside the engine, environments, and clean ends."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from etude.engine.engine import Engine
from etude.model.chat import ChatTemplate
from etude.records import EtudeError, FinishedEvent, Message, Problem, Request, Rollout, SamplingParams, Score
from etude.rewards import Answer, combine, load_reward
from etude.rollout import Episode, PromptWriter, check_prompts, collect, multi_turn, seed_of, single_turn
from tests.rollout.scripted_engine import EOS, Codec, ScriptedEngine
from tests.terminal.tiny import write_tiny

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PARAMS = SamplingParams(max_tokens=50)


def chat() -> PromptWriter:
    return PromptWriter(Codec(), ChatTemplate(TEMPLATE))


def problems(n: int) -> list[Problem]:
    return [Problem(f"p{at}", (Message("user", f"{at} + 1?"),), str(at + 1)) for at in range(n)]


def text_of(ids: Any) -> str:
    return Codec().decode(ids, special=True)


def right_if_even(request: Request, index: int) -> str:
    """Longer answers for later indices, so that they finish out of order."""
    number = text_of(request.prompt_ids).removeprefix("[user]").partition(" ")[0]
    return str(int(number) + 1) if index % 2 == 0 else "x" * (9 - index)


def run(engine: Any, env: Any, count: int = 3, n: int = 4, **options: Any) -> list[Rollout]:
    options = {"params": PARAMS, "seed": 7, **options}
    return collect(engine, options.pop("prompts", chat()), problems(count), env, n=n, **options)


# ── one turn ──


def test_rollouts_come_in_order_with_their_scores() -> None:
    engine = ScriptedEngine(right_if_even)
    seen: list[Rollout] = []
    rollouts = run(engine, single_turn(load_reward("math")), on_rollout=seen.append)
    assert [(r.problem_id, r.index) for r in rollouts] == [(f"p{at}", i) for at in range(3) for i in range(4)]
    assert [r.score.total for r in rollouts] == [1.0, 0.0] * 6
    assert rollouts[4].score.parsed == "2" and rollouts[4].text == "2"
    assert len(seen) == 12 and sorted(seen, key=lambda r: (r.problem_id, r.index)) == rollouts
    assert len(engine.requests) == 3 and all(request.n == 4 for request in engine.requests.values())


def test_what_a_rollout_says_of_its_tokens() -> None:
    first = run(ScriptedEngine(right_if_even), single_turn(lambda p, a: 1.0), 1, 2)[0]
    prompt = Codec().encode_rendered(ChatTemplate(TEMPLATE).render([Message("user", "0 + 1?")]))
    assert first.token_ids == (*prompt, ord("1"), EOS) and first.prompt_length == len(prompt)
    assert first.mask == (False,) * len(prompt) + (True, True)
    assert first.logprobs == (0.0,) * len(prompt) + (-0.5, -0.5)
    assert (first.finish, first.weights_version) == ("eos", 3)
    cut = run(
        ScriptedEngine(lambda r, i: "abcdef"),
        single_turn(lambda p, a: 1.0),
        1,
        1,
        params=SamplingParams(max_tokens=3),
    )
    assert (cut[0].finish, cut[0].text, sum(cut[0].mask)) == ("length", "abc", 3)


def test_a_reward_knows_how_the_answer_came_about() -> None:
    answers: list[Answer] = []

    def reward(problem: Problem, answer: Answer) -> float:
        answers.append(answer)
        return 1.0

    run(ScriptedEngine(lambda r, i: "abc"), single_turn(reward), 1, 1)
    assert (answers[0], answers[0].n_tokens, answers[0].finish, answers[0].opened) == ("abc", 4, "eos", False)
    opening = PromptWriter(
        Codec(), ChatTemplate(TEMPLATE + "{# </think> #}{% if add_generation_prompt %}<think>\n{% endif %}")
    )
    run(ScriptedEngine(lambda r, i: "a</think>b"), single_turn(reward), 1, 1, prompts=opening)
    assert answers[1].opened
    score = run(
        ScriptedEngine(lambda r, i: "a</think>1"), single_turn(load_reward("math")), 1, 1, prompts=opening
    )
    assert score[0].score.total == 1.0
    overlong = single_turn(load_reward("overlong?max_length=10&cache=10"))
    assert run(ScriptedEngine(lambda r, i: "abcd"), overlong, 1, 1)[0].score.total == -0.5


def test_seeds_come_from_run_step_and_problem() -> None:
    def seeds(**options: Any) -> list[int | None]:
        engine = ScriptedEngine(right_if_even)
        run(engine, single_turn(lambda p, a: 1.0), **options)
        return [request.params.seed for request in engine.requests.values()]

    assert seeds() == seeds() == [seed_of(7, 0, at) for at in range(3)]
    assert len({*seeds(), *seeds(step=1), *seeds(seed=8), *seeds(first_index=3)}) == 12
    assert seeds(first_index=1)[:2] == seeds()[1:]
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds())


def test_adapter_and_limits_reach_the_engine() -> None:
    engine = ScriptedEngine(right_if_even)
    run(
        engine,
        single_turn(lambda p, a: 1.0),
        adapter="policy",
        adapter_scale=0.5,
        params=SamplingParams(0.7, max_tokens=9),
    )
    for request in engine.requests.values():
        assert (request.adapter, request.adapter_scale, request.params.temperature) == ("policy", 0.5, 0.7)


def test_groups_are_judged_whole_and_in_order() -> None:
    groups = []

    def reward(problem: Problem, answers: list[str]) -> list[float]:
        groups.append((problem.id, list(answers)))
        return [float(at) for at in range(len(answers))]

    rollouts = run(ScriptedEngine(right_if_even), single_turn(reward))
    assert [r.score.total for r in rollouts] == [0.0, 1.0, 2.0, 3.0] * 3
    assert sorted(groups)[1] == ("p1", ["2", "x" * 8, "2", "x" * 6])
    both = single_turn(combine({"group": reward, "math": load_reward("math")}))
    assert run(ScriptedEngine(right_if_even), both)[2].score.parts == {"group": 2.0, "math": 1.0}


def test_judging_runs_beside_sampling() -> None:
    """A judge that waits for the engine to make steps: it would wait for ever if it held the engine up."""
    engine = ScriptedEngine(lambda request, index: "a" * (1 if index == 0 else 30))
    far = threading.Event()
    engine.before_step = lambda: far.set() if engine.n_steps > 10 else None

    def reward(problem: Problem, answer: str) -> float:
        return float(far.wait(timeout=30))

    assert all(r.score.total == 1.0 for r in run(engine, single_turn(reward), 1, 2))


def test_async_rewards_wait_together() -> None:
    running, most = 0, 0

    async def reward(problem: Problem, answer: str) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return 1.0

    assert len(run(ScriptedEngine(lambda r, i: "a"), single_turn(reward), 5, 4)) == 20
    assert most > 4


def test_failures_are_counted_and_the_others_judged() -> None:
    def reward(problem: Problem, answer: str) -> float:
        return 1.0 / (problem.id != "p1")

    rollouts = run(ScriptedEngine(right_if_even), single_turn(reward))
    failures = [r.score.failure for r in rollouts]
    assert failures == [None] * 4 + ["reward: ZeroDivisionError: float division by zero"] * 4 + [None] * 4


# ── several turns ──


def guessing(problem: Problem) -> Episode:
    reply = yield problem.messages
    turns = 1
    while reply.content != problem.answer and turns < 3:
        reply = yield [Message("user", f"No, not {reply.content}<end>.")]
        turns += 1
    return Score(1.0 / turns if reply.content == problem.answer else 0.0, {"turns": float(turns)})


def counting_up(request: Request, index: int) -> str:
    """'index' at first, then one more each turn."""
    return str(index + text_of(request.prompt_ids).count("No, not"))


def test_turns_are_made_of_sampled_ids_and_template_text() -> None:
    engine = ScriptedEngine(lambda r, i: str(text_of(r.prompt_ids).count("No, not")))
    (rollout,) = run(engine, guessing, 1, 1, prompts=chat())
    assert rollout.score == Score(0.5, {"turns": 2.0})
    shown = "[user]0 + 1?<end>[assistant]0<end>[user]No, not 0<end>.<end>[assistant]1<end>"
    assert text_of(rollout.token_ids) == shown
    sampled = [token for token, mine in zip(rollout.token_ids, rollout.mask, strict=True) if mine]
    assert sampled == [ord("0"), EOS, ord("1"), EOS]
    assert [bool(logprob) for logprob in rollout.logprobs] == list(rollout.mask)
    # the environment's "<end>" is text: five characters, and no end of a turn
    assert rollout.token_ids.count(EOS) == 4
    assert rollout.text == shown[rollout.prompt_length + 4 :]
    second = engine.requests[1]
    assert second.n == 1 and second.params.seed == seed_of(7, 0, 0, 0, 1)
    assert second.prompt_ids == rollout.token_ids[: len(second.prompt_ids)]


def test_episodes_of_a_group_go_their_own_ways() -> None:
    first = ScriptedEngine(lambda r, i: ["1", "0"][i] if r.n > 1 else "1")
    rollouts = run(first, guessing, 1, 2)
    assert [r.score.total for r in rollouts] == [1.0, 0.5] and len(first.requests) == 2
    assert (
        rollouts[0].token_ids[: rollouts[0].prompt_length]
        == rollouts[1].token_ids[: rollouts[1].prompt_length]
    )


def test_a_reply_that_was_cut_gets_the_templates_end() -> None:
    engine = ScriptedEngine(lambda r, i: "abcdef")
    (rollout,) = run(engine, guessing, 1, 1, params=SamplingParams(max_tokens=2))
    assert text_of(rollout.token_ids).startswith(
        "[user]0 + 1?<end>[assistant]ab<end>[user]No, not ab<end>.<end>"
    )
    assert sum(rollout.mask) == 6 and rollout.finish == "length"


def test_multi_turn_by_a_function_and_base_models() -> None:
    def respond(problem: Problem, conversation: Any) -> list[Message] | None:
        return None if conversation[-1].content == problem.answer else [Message("user", " No. ")]

    env = multi_turn(respond, load_reward("math"), max_turns=3)
    engine = ScriptedEngine(lambda r, i: str(text_of(r.prompt_ids).count("No")))
    base = PromptWriter(Codec(), None)
    (rollout,) = run(engine, env, 1, 1, prompts=base)
    assert rollout.score.total == 1.0 and rollout.score.parsed == "1"
    assert text_of(rollout.token_ids) == "0 + 1?0<end> No. 1<end>" and rollout.token_ids.count(0) == 1
    stubborn = run(ScriptedEngine(lambda r, i: "x"), env, 1, 1, prompts=base)[0]
    assert stubborn.score.total == 0.0 and sum(stubborn.mask) == 6


def test_an_episode_ends_where_the_context_does() -> None:
    prompts = PromptWriter(Codec(), ChatTemplate(TEMPLATE), context=60)
    (rollout,) = run(
        ScriptedEngine(lambda r, i: "9"), guessing, 1, 1, prompts=prompts, params=SamplingParams(max_tokens=9)
    )
    assert rollout.score.verdict == "the context is full" and rollout.finish == "length"


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("raise KeyError('x')", "environment: KeyError: 'x'"), ("return None", "returned None, not a Score"),
        ("yield 'hi'", "yielded 'hi', not a list of messages"), ("yield []", r"yielded \[\]"),
        ("import time; time.sleep(9)", "environment: no score within 0.2 s"),
    ],
)  # fmt: skip
def test_an_environment_that_fails_is_counted(last: str, message: str) -> None:
    names: dict[str, Any] = {}
    exec(f"def env(problem):\n    reply = yield problem.messages\n    {last}\n    return 1.0", names)
    for rollout in run(ScriptedEngine(right_if_even), names["env"], 2, 2, env_timeout_s=0.2):
        assert re.search(message, rollout.score.failure or ""), rollout.score


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('x')\n    yield", "problem p0: the environment cannot begin: KeyError"),
        ("return Score(1.0)\n    yield", "problem p0: the environment ended before the first reply"),
        ("yield [Message('user', str(next(counter)))]", "opened its 2 episodes differently"),
        ("yield 5", "cannot begin: TypeError: yielded 5"),
    ],
)  # fmt: skip
def test_an_environment_that_cannot_begin_is_an_error(body: str, message: str) -> None:
    names: dict[str, Any] = {"Score": Score, "Message": Message, "counter": iter(range(9))}
    exec(f"def env(problem):\n    {body}", names)
    with pytest.raises(EtudeError, match=message):
        run(ScriptedEngine(right_if_even), names["env"], 1, 2)


# ── ends ──


@pytest.mark.parametrize("where", ["engine", "judge", "callback"])
def test_whatever_ends_it_leaves_no_request(where: str) -> None:
    engine = ScriptedEngine(lambda request, index: "a" * (1 + 9 * index))
    error: type[BaseException] = KeyboardInterrupt if where == "engine" else EtudeError

    def interrupt() -> None:
        if engine.n_steps == 3 and where == "engine":
            raise KeyboardInterrupt
        time.sleep(0.01)  # the judges have time to fail while the engine is at work

    def fail(*arguments: Any) -> float:
        raise EtudeError("mend me")

    engine.before_step = interrupt
    reward = fail if where == "judge" else (lambda p, a: 1.0)
    with pytest.raises(error):
        run(engine, single_turn(reward), on_rollout=fail if where == "callback" else None)
    assert not engine.open and engine.aborted == set(engine.requests)
    assert not [thread for thread in threading.enumerate() if thread.name == "etude-judging"]


def test_what_the_engine_cannot_do_is_an_error() -> None:
    class Failing(ScriptedEngine):
        def step(self) -> Any:
            return [
                replace(event, error="out of memory") if isinstance(event, FinishedEvent) else event
                for event in super().step()
            ]

    with pytest.raises(EtudeError, match=r"problem p\d: the engine ended it: out of memory"):
        run(Failing(right_if_even), single_turn(lambda p, a: 1.0))
    with pytest.raises(EtudeError, match="n is 0"):
        run(ScriptedEngine(right_if_even), single_turn(lambda p, a: 1.0), n=0)


# ── prompts ──


def test_prompts_that_are_too_long_are_found_before_the_run() -> None:
    prompts = PromptWriter(Codec(), ChatTemplate(TEMPLATE), context=64)
    fine = problems(3)
    assert check_prompts(prompts, fine, max_tokens=20) == len(prompts.opening(fine[0]).ids)
    long = Problem("long", (Message("user", "x" * 50),))
    with pytest.raises(EtudeError, match=r"problem long: its prompt has \d+ tokens, .* for 1 of 4 problems"):
        check_prompts(prompts, [*fine, long], max_tokens=20)
    with pytest.raises(EtudeError, match="problem long: its prompt"):
        collect(
            ScriptedEngine(right_if_even),
            prompts,
            [long],
            single_turn(lambda p, a: 1.0),
            n=1,
            params=PARAMS,
            seed=0,
        )


def test_every_kind_of_prompt() -> None:
    question, text = problems(1)[0], Problem("t", (Message("text", "2 + 2 ="),))
    assert text_of(chat().opening(question).ids) == "[user]0 + 1?<end>[assistant]"
    assert chat().opening(text).ids == tuple(Codec().encode("2 + 2 ="))
    assert PromptWriter(Codec(), None).opening(question).ids == tuple(Codec().encode("0 + 1?"))
    zero = PromptWriter(Codec(), ChatTemplate.builtin("r1-zero"))
    shown = text_of(zero.opening(question).ids)
    assert shown.endswith("User: 0 + 1?. Assistant:") and "<think> reasoning process here </think>" in shown
    two = Problem("q", (Message("system", "s"), Message("user", "u")))
    with pytest.raises(
        EtudeError, match=r"problem q has 2 messages, and the model has no chat template.*r1-zero"
    ):
        PromptWriter(Codec(), None).opening(two)
    with pytest.raises(EtudeError, match=r"problem q: .*raise"):
        PromptWriter(Codec(), ChatTemplate("{{ raise_exception('I raise') }}")).opening(two)
    with pytest.raises(EtudeError, match="problem e: there are no messages"):
        chat().opening(Problem("e", ()))
    with pytest.raises(EtudeError, match="one turn only"):
        forgetful = PromptWriter(Codec(), ChatTemplate("{{ messages[-1].content }}"))
        forgetful.continuation(
            [Message("user", "a"), Message("assistant", "b")], [Message("user", "c")], None
        )


# ── the real engine ──


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.load(write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf"), threads=1) as engine:
        yield engine


def test_the_engine_gives_the_same_rollouts_again(tiny: Engine) -> None:
    prompts = PromptWriter(tiny.tokenizer, tiny.chat, context=tiny.context)
    options: dict[str, Any] = {"n": 3, "params": SamplingParams(max_tokens=12), "seed": 3}
    env = single_turn(lambda problem, answer: len(answer))
    first = collect(tiny, prompts, problems(4), env, **options)
    assert first == collect(tiny, prompts, problems(4), env, **options)
    assert first != collect(tiny, prompts, problems(4), env, step=1, **options)
    alone = collect(tiny, prompts, problems(4)[2:3], env, first_index=2, **options)
    assert alone == first[6:9]
    for rollout in first:
        prompt, sampled = (
            rollout.token_ids[: rollout.prompt_length],
            rollout.token_ids[rollout.prompt_length :],
        )
        request = Request(prompt, replace(options["params"], max_tokens=0), prompt_logprobs=0)
        assert prompt == prompts.opening(problems(4)[int(rollout.problem_id[1])]).ids and request
        assert len(sampled) == sum(rollout.mask) and all(
            logprob < 0 for logprob in rollout.logprobs[len(prompt) :]
        )


def test_ctrl_c_leaves_the_real_engine_clean(tiny: Engine) -> None:
    prompts = PromptWriter(tiny.tokenizer, tiny.chat, context=tiny.context)
    options: dict[str, Any] = {"n": 4, "params": SamplingParams(max_tokens=30, ignore_eos=True), "seed": 3}

    def interrupt(rollout: Rollout) -> None:
        raise KeyboardInterrupt

    several = multi_turn(lambda problem, conversation: [Message("user", "on")], lambda p, a: 1.0, max_turns=2)
    before = collect(tiny, prompts, problems(3), several, **options)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny, prompts, problems(3), several, on_rollout=interrupt, **options)
    assert tiny.step() == []
    assert collect(tiny, prompts, problems(3), several, **options) == before
