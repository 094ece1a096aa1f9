"""The same request gives the same tokens and, to the bit, the same numbers, whatever the engine does
meanwhile.

Run on tiny models of two families (f32 weights, and int8 with a sliding window) and on a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from etude.engine.engine import Engine
from etude.records import Completion, Request, SamplingParams
from tests.model.tiny_models import FIXTURES

CONTEXT = 320


@pytest.fixture(scope="module", params=["llama f32", "gemma3 q8_0", "smollm2"])
def model(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of Engine.load for one model."""
    if request.param == "smollm2":
        return {"model": request.getfixturevalue("smollm2")}
    name, weight_type = request.param.split()
    return {"model": FIXTURES / name, "weight_type": weight_type}


def open_engine(model: dict[str, Any], **settings: Any) -> Engine:
    return Engine.load(**({"context": CONTEXT, "cache_tokens": 8 * CONTEXT, "threads": 2} | model | settings))


def prompt_of(length: int, kind: int = 0) -> tuple[int, ...]:
    """Token ids that every vocabulary has; prompts of one kind begin alike."""
    return tuple(3 + (kind * 31 + at * 7) % 100 for at in range(length))


REQUESTS = [
    Request(prompt_of(70), SamplingParams(max_tokens=9, seed=1, logprobs=2)),
    Request(prompt_of(5, 1), SamplingParams(max_tokens=30, seed=2, temperature=0.0), n=2),
    Request(prompt_of(100), SamplingParams(max_tokens=12, seed=3, top_k=20, ignore_eos=True), n=5),
    Request(prompt_of(33, 2), SamplingParams(max_tokens=20, seed=4, top_p=0.8), prompt_logprobs=1),
    Request(prompt_of(64), SamplingParams(max_tokens=6, seed=5, temperature=1.3), n=3),
]


def run(engine: Engine, requests: list[Request]) -> list[list[Completion]]:
    """All requests at once, through the protocol."""
    running = [engine.submit(request) for request in requests]
    done: dict[tuple[int, int], Completion] = {}
    while len(done) < sum(request.n for request in requests):
        for event in engine.step():
            if event.finish is not None:
                done[event.request_id, event.index] = event.completion
    return [
        [done[number, index] for index in range(request.n)]
        for number, request in zip(running, requests, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(model: dict[str, Any]) -> list[list[Completion]]:
    """Each request by itself on an engine that has seen nothing, one thread."""
    results = []
    for request in REQUESTS:
        with open_engine(model, threads=1) as engine:
            results += run(engine, [request])
    return results


@pytest.fixture(scope="module")
def engine(model: dict[str, Any]) -> Iterator[Engine]:
    with open_engine(model) as opened:
        yield opened


def test_a_batch_is_its_requests_one_by_one(engine: Engine, expected: list[list[Completion]]) -> None:
    """Other batch, other number of threads, shared prefixes of busy requests."""
    assert run(engine, REQUESTS) == expected


def test_what_is_cached_changes_nothing(engine: Engine, expected: list[list[Completion]]) -> None:
    run(engine, REQUESTS)
    reused = engine.counters.reused_tokens
    assert run(engine, REQUESTS[::-1]) == expected[::-1]
    assert engine.counters.reused_tokens > reused


@pytest.mark.parametrize(
    "settings",
    [
        {"step_tokens": 2, "max_sequences": 1},
        {"step_tokens": 17, "max_sequences": 5},
        {"threads": 3},
        {"page_tokens": 64},
        {"context": 160, "cache_tokens": 160},
    ],
    ids=lambda settings: " ".join(f"{key}={value}" for key, value in settings.items()),
)
def test_no_setting_changes_a_bit(
    model: dict[str, Any], settings: dict[str, Any], expected: list[list[Completion]]
) -> None:
    """Chunked prompts, waves, one sequence at a time, other pages, and a cache that holds two or three."""
    with open_engine(model, **settings) as engine:
        assert run(engine, REQUESTS) == expected


def test_preempted_completions_are_the_same(model: dict[str, Any], engine: Engine) -> None:
    """Five completions that grow to four pages each, in a cache of eight."""
    requests = [
        Request(prompt_of(20, kind), SamplingParams(max_tokens=100, seed=kind, ignore_eos=True))
        for kind in range(5)
    ]
    with open_engine(model, context=256, cache_tokens=256) as small:
        assert run(small, requests) == run(engine, requests)
        assert small.counters.preemptions > 0


def test_requests_may_come_at_any_time(engine: Engine, expected: list[list[Completion]]) -> None:
    running, done = [], {}
    for request in REQUESTS:
        running.append(engine.submit(request))
        for _ in range(3):
            for event in engine.step():
                done[event.request_id, event.index] = getattr(event, "completion", None)
    while not all(done.get((number, 0)) for number in running) or any(
        value is None for value in done.values()
    ):
        for event in engine.step():
            done[event.request_id, event.index] = getattr(event, "completion", None)
    for number, completions in zip(running, expected, strict=True):
        assert [done[number, index] for index in range(len(completions))] == completions


def test_decoding_is_reading(engine: Engine) -> None:
    """The raw logprobs of drawn tokens are those of the same tokens in a prompt, which is read in one go."""
    [completion] = run(engine, [Request(prompt_of(40), SamplingParams(max_tokens=50, seed=7))])[0]
    with_score = engine.score(prompt_of(40) + completion.token_ids)
    assert with_score[40:] == completion.raw_logprobs
    assert completion.logprobs == completion.raw_logprobs, "at temperature 1 nothing is truncated"


def test_completions_that_end_early_leave_the_others_alone(
    engine: Engine, expected: list[list[Completion]]
) -> None:
    running = [engine.submit(request) for request in (*REQUESTS, *REQUESTS)]
    done: dict[tuple[int, int], Completion] = {}
    for step in range(10_000):
        for event in engine.step():
            if event.finish is not None:
                done[event.request_id, event.index] = event.completion
        if step < len(REQUESTS):
            engine.abort(running[step])
        if len(done) == 2 * sum(request.n for request in REQUESTS):
            break
    for number, completions in zip(running[len(REQUESTS) :], expected, strict=True):
        assert [done[number, index] for index in range(len(completions))] == completions
