"""A pause: no tokens are drawn until it ends, so that a trainer may change the weights between two of them.

New requests wait, and count as waiting in the queue. What runs already is

    abort   ended where it is: its clients get what there is, with finish_reason "abort"
    wait    let finish, with the weights it began with
    keep    stopped after the step that runs; it goes on at the end of the pause, from the tokens it has, with
            whatever weights there are then

The names are vLLM's. A pause that stops or ends things holds as soon as it is answered; one after another is
fine, so what is kept can still be aborted.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from etude.serve.errors import ApiError
from etude.serve.server import Server

Mode = Literal["abort", "wait", "keep"]


async def pause(server: Server, mode: Mode) -> None:
    """Begin a pause, or change one. ApiError 409 if it was ended by somebody else before all had finished."""
    pool = server.pool
    pool.open.clear()
    engines = [model.engine for model in pool.all_loaded]
    if mode == "keep":
        await asyncio.gather(*(asyncio.to_thread(engine.pause) for engine in engines))
        return
    running = [each for each in server.active.values() if each.admitted]
    if mode == "abort":
        for generation in running:
            generation.abort()
    for engine in engines:  # what an earlier pause has kept must move to end
        engine.resume()
    await asyncio.gather(*(generation.ended.wait() for generation in running))
    if pool.open.is_set():
        raise ApiError(409, "the pause was ended by another request while this one waited", code="resumed")


def resume(server: Server) -> None:
    """End a pause, if there is one."""
    for model in server.pool.all_loaded:
        model.engine.resume()
    server.pool.open.set()


def is_paused(server: Server) -> bool:
    """Whether new work waits."""
    return not server.pool.open.is_set()
