"""Clients that go, that read slowly, that are too many; models that come and go."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from etude.engine.engine import Engine
from etude.records import EtudeError, Request, SamplingParams
from etude.serve.errors import ApiError
from etude.serve.generation import Generation
from etude.serve.models import ModelDefaults, ModelPool, ModelSpec, ServedModel
from tests.serve.live import Live, app_of, live_of, load, until
from tests.terminal.tiny import write_tiny

PATH = "/v1/completions"
ENDLESS = {"prompt": "a", "ignore_eos": True, "max_tokens": 4000}


def shifting(spec: ModelSpec) -> Engine:
    """An engine that writes for ever."""
    return Engine.load(spec.path, context=64, threads=1, context_shift=True)


def endless_app(path: Path, **settings: Any) -> Any:
    return app_of(path, load=shifting, **settings)


def first_bytes(connection: socket.socket) -> bytes:
    return connection.recv(4096)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_ends_its_work(tiny: Path, streams: bool) -> None:
    with live_of(endless_app(tiny)) as live:
        connection = live.post(PATH, ENDLESS | {"max_tokens": 10**7, "stream": streams, "n": 2})
        if streams:
            assert b"200 OK" in first_bytes(connection)
        until(lambda: live.drawn > 20)
        connection.close()
        until(lambda: not live.server.active)
        assert live.server.n_running == 0
        until(lambda: still(live))
        assert live.server.totals.aborted == 1


def still(live: Live) -> bool:
    """Whether nothing is written any more."""
    before = live.drawn
    threading_pause()
    return live.drawn == before


def threading_pause() -> None:
    asyncio.run(asyncio.sleep(0.1))


def test_others_do_not_notice_clients_that_go(tiny: Path) -> None:
    body = {"prompt": "abc", "max_tokens": 30, "seed": 3}
    with live_of(app_of(tiny)) as live:
        expected = answer_of(live, body)["choices"][0]["text"]
        going = [live.post(PATH, {"prompt": "b", "max_tokens": 200, "stream": True}) for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(answer_of, live, body) for _ in range(16)]
            for connection in going:
                connection.close()
            assert {answer.result()["choices"][0]["text"] for answer in answers} == {expected}
        until(lambda: not live.server.active)


def answer_of(live: Live, body: Any) -> Any:
    with live.post(PATH, body) as connection:
        received = b""
        while True:
            received += connection.recv(65536)
            head, _, rest = received.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            if lengths and len(rest) >= int(lengths[0].split(b":")[1]):
                return json.loads(rest)


def test_a_full_queue_is_said(tiny: Path) -> None:
    with live_of(endless_app(tiny, max_queue=3)) as live:
        running = [live.post(PATH, ENDLESS | {"max_tokens": 10**7, "stream": True}) for _ in range(3)]
        for connection in running:
            assert b"200 OK" in first_bytes(connection)
        connection = live.post(PATH, ENDLESS)
        refused = first_bytes(connection) + first_bytes(connection)
        assert b" 429 " in refused and b"retry-after:" in refused.lower()
        assert b"rate_limit_exceeded" in refused
        for connection in running:
            connection.close()
        until(lambda: live.server.n_running == 0)
        assert b"200 OK" in first_bytes(live.post(PATH, ENDLESS | {"max_tokens": 2}))
        assert b" 400 " in first_bytes(live.post(PATH, ENDLESS | {"n": 4}))


def test_a_client_that_reads_nothing_is_dropped(tiny: Path) -> None:
    with live_of(endless_app(tiny, write_timeout_s=0.5)) as live:
        body = ENDLESS | {"max_tokens": 10**7, "stream": True, "n": 4, "logprobs": 20}
        connection = live.post(PATH, body)
        until(lambda: live.server.totals.aborted == 1)
        assert live.server.n_running == 0
        connection.close()


def test_what_a_reader_does_not_take_is_merged(tiny: Path) -> None:
    """Nothing is lost, and there is one delta per choice however much arrived."""

    async def run() -> None:
        engine = load(ModelSpec("tiny", tiny))
        model = ServedModel(ModelSpec("tiny", tiny), engine, ModelDefaults())
        params = SamplingParams(max_tokens=50, seed=1, ignore_eos=True, logprobs=2)
        request = Request((100, 101), params, n=3)
        generation = Generation(model, [request])
        await generation.start()
        while generation._n_open:
            await asyncio.sleep(0.01)
        deltas = [delta async for delta in generation.deltas()]
        generation.close()
        [expected] = await engine.agenerate([[100, 101]], params, n=3)
        assert [delta.choice for delta in deltas] == [0, 1, 2]
        for delta, completion in zip(deltas, expected, strict=True):
            assert delta.completion is not None and delta.text == completion.text
            assert tuple(delta.token_ids) == completion.token_ids
            assert tuple(delta.raw_logprobs) == completion.raw_logprobs
            assert tuple(delta.top_logprobs) == completion.top_logprobs
        engine.close()

    asyncio.run(run())


def test_an_engine_that_stops_is_told_to_whoever_waits(tiny: Path) -> None:
    async def run() -> None:
        engine = load(ModelSpec("tiny", tiny))
        model = ServedModel(ModelSpec("tiny", tiny), engine, ModelDefaults())
        generation = Generation(model, [Request((100,), SamplingParams(ignore_eos=True))])
        await generation.start()
        await asyncio.to_thread(engine.close)
        with pytest.raises(RuntimeError, match="stopped"):
            await generation.completions()
        generation.close()

    asyncio.run(run())


# ── models ──


def specs(folder: Path, n: int) -> list[ModelSpec]:
    return [ModelSpec(f"m{i}", write_tiny(folder / f"m{i}.gguf", seed=i), (f"alias{i}",)) for i in range(n)]


def test_models_are_loaded_when_asked_for_and_make_room(tmp_path: Path) -> None:
    loads: list[str] = []

    def counted(spec: ModelSpec) -> Engine:
        loads.append(spec.name)
        return load(spec)

    async def run() -> None:
        pool = ModelPool(specs(tmp_path, 3), counted, max_loaded=2)
        async with pool.use("m0"), pool.use("alias0"), pool.use(None):
            assert loads == ["m0"]
        async with pool.use("m1") as busy:
            async with pool.use("m2"):  # m0, which nobody uses, makes room
                assert {model.name for model in pool.all_loaded} == {"m1", "m2"}
                waiting = asyncio.ensure_future(pool.acquire("m0"))
                await asyncio.sleep(0.05)
                assert not waiting.done()  # both are in use
            pool.release(await waiting)
            assert {model.name for model in pool.all_loaded} == {"m1", "m0"} and busy.uses == 1
        same = await asyncio.gather(*(pool.acquire("m2") for _ in range(5)))
        assert len({id(model) for model in same}) == 1 and loads.count("m2") == 2
        with pytest.raises(ApiError, match="does not exist"):
            await pool.acquire("other")
        await pool.close()
        assert not pool.all_loaded

    asyncio.run(run())


def test_idle_models_are_unloaded_and_come_back(tmp_path: Path) -> None:
    async def run() -> None:
        pool = ModelPool(specs(tmp_path, 1), load, idle_s=0.05)
        async with pool.use() as model:
            await asyncio.sleep(0.1)
            await pool.unload_idle()
            assert pool.all_loaded == [model]
        await pool.unload_idle()
        assert pool.all_loaded == [model]  # idle, but not for long
        await asyncio.sleep(0.1)
        await pool.unload_idle()
        assert not pool.all_loaded
        async with pool.use("any name, as there is one model") as again:
            assert again is not model and again.engine.generate([[100]], max_tokens=1)
        await pool.close()

    asyncio.run(run())


def test_two_models_of_one_name(tmp_path: Path) -> None:
    [spec] = specs(tmp_path, 1)
    with pytest.raises(EtudeError, match="two models are called"):
        ModelPool([spec, spec], load)
