"""Judges completions while others are still being sampled: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Generic, Self, TypeVar

CONCURRENT = 64
Key = TypeVar("Key")


class Judging(Generic[Key]):
    """Runs coroutines beside the caller; `done` gives (key, future) as they finish."""

    def __init__(self, concurrent: int = CONCURRENT) -> None:
        self._loop = asyncio.new_event_loop()
        self._limit = asyncio.Semaphore(concurrent)
        self._finished: queue.SimpleQueue[tuple[Key, Future[Any]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop.run_forever, name="etude-judging", daemon=True)
        self.n_open = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """What still runs is cancelled; a thread that hangs is left behind."""
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, key: Key, work: Callable[[], Awaitable[Any]]) -> None:
        """Begin something; its end will be in `done`."""

        async def limited() -> Any:
            async with self._limit:
                return await work()

        self.n_open += 1
        future = asyncio.run_coroutine_threadsafe(limited(), self._loop)
        future.add_done_callback(lambda done: self._finished.put((key, done)))

    def done(self, *, wait: bool) -> list[tuple[Key, Future[Any]]]:
        """What has finished since the last call. wait: for one, if there is none and something is open."""
        found: list[tuple[Key, Future[Any]]] = []
        while self.n_open:
            try:
                # in pieces, so that Ctrl-C is heard
                found.append(
                    self._finished.get(timeout=0.2) if wait and not found else self._finished.get_nowait()
                )
                self.n_open -= 1
            except queue.Empty:
                if not wait or found:
                    break
        return found


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
