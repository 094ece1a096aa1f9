"""Several callers at once: threads, asyncio and plain steps; Ctrl-C; failure. With the fake decoder."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import weakref

import pytest

from etude.engine.driver import Driver, Inbox
from etude.records import Request, SamplingParams
from tests.engine.fake import alone, check_pages, new_core, request


def run(driver: Driver, item: Request) -> tuple:
    """Submit, and wait for the one completion."""
    inbox = Inbox()
    driver.submit(driver.core.prepare(item), inbox)
    while True:
        for event in driver.wait(inbox):
            if event.finish:
                return event.completion


def test_many_threads():
    driver = Driver(new_core(n_pages=40))
    items = [request([1 + i] * 6, max_tokens=5 + i, seed=i) for i in range(12)]
    results: dict[int, tuple] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: run(driver, items[i])})) for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for i, item in enumerate(items):
        assert results[i].token_ids == tuple(alone(item)[0])
    assert not driver._inboxes and driver._driver is None
    check_pages(driver.core)


def test_completions_that_end_in_the_same_step_all_arrive():
    driver = Driver(new_core())
    inbox = Inbox()
    driver.submit(driver.core.prepare(request([1, 2], n=8, max_tokens=4)), inbox)
    ended = set()
    for _ in range(4):
        ended |= {event.index for event in driver.wait(inbox) if event.finish}
    assert ended == set(range(8)) and not driver._inboxes and driver.step() == []


def test_step_gives_only_the_events_of_plain_submits():
    driver = Driver(new_core())
    mine = driver.submit(driver.core.prepare(request([1, 2], max_tokens=30)))
    other = request([3, 4], max_tokens=5)
    assert run(driver, other).token_ids == tuple(alone(other)[0])
    ids = []
    while True:
        events = driver.step()
        assert {event.request_id for event in events} == {mine}
        ids += [token for event in events for token in event.token_ids]
        if events[-1].finish:
            break
    assert ids == alone(request([1, 2], max_tokens=30))[0]
    assert driver.step() == []


async def run_async(driver: Driver, item: Request) -> tuple:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue = asyncio.Queue()
    inbox = Inbox(lambda event: loop.call_soon_threadsafe(queue.put_nowait, event))
    driver.submit(driver.core.prepare(item), inbox)
    while True:
        event = await queue.get()
        if isinstance(event, BaseException):
            raise event
        if event.finish:
            return event.completion


def test_asyncio_beside_a_thread():
    driver = Driver(new_core(n_pages=60))
    items = [request([1 + i] * 6, max_tokens=20 + i, seed=i) for i in range(8)]
    other = request([9] * 5, max_tokens=50)
    found = {}

    async def main() -> list:
        thread = threading.Thread(target=lambda: found.update(other=run(driver, other)))
        thread.start()
        results = await asyncio.gather(*[run_async(driver, item) for item in items])
        await asyncio.to_thread(thread.join, 30)
        return results

    for item, result in zip(items, asyncio.run(main()), strict=True):
        assert result.token_ids == tuple(alone(item)[0])
    assert found["other"].token_ids == tuple(alone(other)[0])
    driver.close()


def test_a_dropped_driver_ends_its_thread():
    driver = Driver(new_core())
    asyncio.run(run_async(driver, request([1, 2], max_tokens=3)))
    thread = driver._background._thread
    gone = weakref.ref(driver)
    del driver
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_closed_event_loop_ends_its_requests():
    driver = Driver(new_core())
    core = driver.core

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        inbox = Inbox(lambda event: loop.call_soon_threadsafe(print, event))
        driver.submit(core.prepare(Request((1, 2), SamplingParams(max_tokens=None))), inbox)

    asyncio.run(leave())
    for _ in range(2000):
        if not core.has_work and not driver._inboxes:
            break
        threading.Event().wait(0.005)
    assert not driver._inboxes
    driver.close()


def test_interrupts_wait_for_the_end_of_the_step():
    driver = Driver(new_core())
    core = driver.core
    step = core._decoder.step
    ended = []

    def interrupted(**given):
        signal.raise_signal(signal.SIGINT)
        output = step(**given)
        ended.append(True)
        return output

    core._decoder.step = interrupted
    item = request([1, 2, 3], max_tokens=9)
    driver.submit(core.prepare(item))
    with pytest.raises(KeyboardInterrupt):
        driver.step()
    assert ended == [True]
    check_pages(core)
    core._decoder.step = step
    ids = []
    for _ in range(9):
        ids += [token for event in driver.step() for token in event.token_ids]
    assert ids == alone(item)[0], "the interrupted step's event was not lost"


def test_a_pause_stops_all_who_drive_and_loses_nothing():
    """The background, a thread that waits, and plain steps; what is done between steps is done meanwhile."""
    driver = Driver(new_core(n_pages=60))
    step = driver.core._decoder.step

    def slow(**given):
        time.sleep(0.001)
        return step(**given)

    driver.core._decoder.step = slow
    background, waited = request([1, 2], max_tokens=100), request([3], max_tokens=90)
    found: dict[str, tuple] = {}

    async def main() -> tuple:
        running = asyncio.ensure_future(run_async(driver, background))
        thread = threading.Thread(target=lambda: found.update(waited=run(driver, waited)))
        thread.start()
        while driver.core.counters.drawn_tokens < 10:
            await asyncio.sleep(0)
        await asyncio.to_thread(driver.pause)
        drawn = driver.core.counters.drawn_tokens
        assert driver.step() == [] and await asyncio.to_thread(driver.between_steps, lambda: 7) == 7
        await asyncio.sleep(0.05)
        assert driver.core.counters.drawn_tokens == drawn and thread.is_alive() and not running.done()
        driver.resume()
        result = await running
        await asyncio.to_thread(thread.join, 30)
        return result

    assert asyncio.run(main()).token_ids == tuple(alone(background)[0])
    assert found["waited"].token_ids == tuple(alone(waited)[0])
    driver.pause()
    driver.close()  # does not wait for a resume


def test_what_is_done_between_steps_gets_its_turn():
    """However much runs: in the background, and in a thread that waits."""
    driver = Driver(new_core(n_pages=60))
    step = driver.core._decoder.step

    def slow(**given):  # without it all may be over before a thread has had its first turn
        time.sleep(0.002)
        return step(**given)

    driver.core._decoder.step = slow
    items = request([1, 2], max_tokens=200), request([3], max_tokens=200)

    async def main() -> None:
        running = asyncio.ensure_future(run_async(driver, items[0]))
        thread = threading.Thread(target=lambda: run(driver, items[1]))
        thread.start()
        seen = []
        while not running.done():
            seen.append(
                await asyncio.to_thread(driver.between_steps, lambda: driver.core.counters.drawn_tokens)
            )
        assert len(set(seen)) > 3, "only before and after"
        assert (await running).token_ids == tuple(alone(items[0])[0])
        await asyncio.to_thread(thread.join, 30)

    asyncio.run(main())
    driver.close()


def test_failure_is_told_to_everybody():
    driver = Driver(new_core())

    def broken(**given):
        raise ValueError("bad page")

    driver.core._decoder.step = broken
    with pytest.raises(ValueError, match="bad page"):
        run(driver, request([1, 2]))
    with pytest.raises(RuntimeError, match="bad page"):
        driver.step()
    with pytest.raises(RuntimeError, match="bad page"):
        driver.submit(driver.core.prepare(request([1, 2])))


def test_forgotten_requests_leave_nothing():
    driver = Driver(new_core())
    inbox = Inbox()
    forgotten = driver.submit(driver.core.prepare(request([1, 2], n=3, max_tokens=50)), inbox)
    driver.wait(inbox)
    driver.forget(forgotten)
    driver.forget(forgotten)
    run(driver, request([5, 6]))
    driver.forget(forgotten)
    assert driver.step() == []
    assert not driver._inboxes and not driver.core.has_work
    assert all(count <= 1 for count in driver.core.cache.references)
