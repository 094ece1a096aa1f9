"""/api/runs…: what the run pages show. Reads run folders, and never writes.

    GET /api/runs                            all runs, the newest first, with their last numbers
    GET /api/runs/NAME                       settings, checkpoints, what the doctor said, where time went
    GET /api/runs/NAME/metric-names          the numbers that it has
    GET /api/runs/NAME/metrics               their columns, binned for the screen
    GET /api/runs/NAME/rollouts/STEP         what was sampled in a step, token by token
    GET /api/runs/NAME/events                steps as they are written
    GET /api/runs-diff?a=NAME&b=NAME         settings that differ

A run may be written meanwhile: a line that is not whole yet is shown when it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from etude.runlog import RunReader
from etude.runlog.rows import rows_of
from etude.runlog.tail import Tail
from etude.serve.errors import ApiError
from etude.serve.operations import Operation
from etude.serve.query import whole
from etude.serve.run_store import RunStore, settings_of
from etude.serve.run_summary import details, summaries
from etude.serve.run_tokens import SORTS, plain, rollout_page, with_texts
from etude.serve.server import Server, server_of
from etude.serve.sse import EventStream, JsonResponse, event

LOOK_S, LOOK_STOPPED_S = 0.5, 3.0
"""Between two looks at a run for its events: while it runs, and when it does not."""


async def list_runs(request: Request) -> Response:
    """All runs."""
    store = _store(request)
    return JsonResponse({"runs": await asyncio.to_thread(summaries, store)})


async def one_run(request: Request) -> Response:
    """Everything but curves and rollouts."""
    store, reader = _store(request), await _reader(request)
    return JsonResponse(await asyncio.to_thread(details, store, reader))


async def metric_names(request: Request) -> Response:
    """The names of the numbers that a run has."""
    store, reader = _store(request), await _reader(request)
    table = await asyncio.to_thread(store.table, reader)
    return JsonResponse({"names": table.names, "rows": len(table)})


async def metrics(request: Request) -> Response:
    """Columns. names: several times, or separated by commas; NAME* is all that begin so; none: all."""
    store, reader = _store(request), await _reader(request)
    asked = request.query_params.getlist("names")
    after, before = whole(request, "after", None, -1), whole(request, "before", None, 0)
    points = whole(request, "max_points", 2000, 1, 100_000) or 2000

    def read() -> dict[str, Any]:
        table = store.table(reader)
        wanted = [part for text in asked for part in ([text] if text in table.names else text.split(","))]
        return table.columns(wanted, after=after, before=before, max_points=points)

    return JsonResponse(await asyncio.to_thread(read))


async def rollouts(request: Request) -> Response:
    """What was sampled in a step. problem: one group only."""
    store, reader = _store(request), await _reader(request)
    query = request.query_params
    step = _step(request)
    sort, order = query.get("sort", "reward"), query.get("order", "desc")
    if sort not in SORTS:
        raise ApiError(400, f"sort is {sort!r}; it must be one of {', '.join(SORTS)}", param="sort")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order is {order!r}; it must be asc or desc", param="order")
    offset = whole(request, "offset", 0, 0) or 0
    limit = whole(request, "limit", 50, 1, 1000) or 50

    def read() -> dict[str, Any]:
        page = rollout_page(
            store.rollouts(reader, step),
            sort=sort,
            descending=order == "desc",
            problem=query.get("problem"),
            offset=offset,
            limit=limit,
        )
        return {"step": step, **with_texts(page, store.tokenizers, reader)}

    return JsonResponse(await asyncio.to_thread(read))


async def differences(request: Request) -> Response:
    """The settings in which two runs differ, by dotted names; null where one has none."""
    store = _store(request)
    names = [request.query_params.get(side, "") for side in ("a", "b")]
    readers = [await asyncio.to_thread(store.reader, name) for name in names]
    a, b = (dict(flat(plain(settings_of(reader)))) for reader in readers)
    keys = [*a, *(key for key in b if key not in a)]
    found = [
        {"key": key, "a": a.get(key), "b": b.get(key)}
        for key in keys
        if a.get(key) != b.get(key) or (key in a) != (key in b)
    ]
    return JsonResponse({"a": names[0], "b": names[1], "differences": found})


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Tables as dotted names.

    >>> flat({"run": {"seed": 1}, "lora": {}})
    [('run.seed', 1), ('lora', {})]
    """
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


# ── live ──


async def events(request: Request) -> Response:
    """A stream of `metrics` (a row), `finding` (of the doctor) and `state`, whenever one of its fields has
    changed: {"state", "step", "rollout_step": the last that is stored, "generation": grows when a resumed
    run has gone back, and rows are repeated}. after: begin with the rows after this step; without it with
    what is written from now on."""
    server, store, reader = server_of(request), _store(request), await _reader(request)
    watch = await asyncio.to_thread(Watch, store, reader, whole(request, "after", None, -1))
    return EventStream.of(server, _events(server, watch), lambda: None)


class Watch:
    """What one page has been told of a run."""

    def __init__(self, store: RunStore, reader: RunReader, after: int | None) -> None:
        self.store, self.reader = store, reader
        table = store.table(reader)
        self._generation = table.generation
        self._at = len(table) if after is None else table.place(after)
        self._told: dict[str, Any] = {}
        self._doctor = Tail(reader.folder / "doctor.jsonl")
        self._doctor.read()

    @property
    def running(self) -> bool:
        return self._told.get("state") == "running"

    def news(self) -> list[bytes]:
        """The events since the last look."""
        reader, found = self.reader, []
        table = self.store.table(reader)
        if table.generation != self._generation:
            self._generation, self._at = table.generation, 0
        self._at, rows = table.rows(self._at)
        found += [event(row, "metrics") for row in rows]
        anew, lines = self._doctor.read()
        if not anew:  # else they were told before the run was resumed
            found += [event(plain(row), "finding") for _, row in rows_of(lines)]
        state = {
            "state": reader.state,
            "step": table.last_step,
            "rollout_step": max(reader.rollout_steps(), default=None),
            "generation": table.generation,
        }
        if state != self._told:
            self._told = state
            found.append(event(state, "state"))
        return found


async def _events(server: Server, watch: Watch) -> AsyncIterator[bytes]:
    while not server.stopping:
        for one in await asyncio.to_thread(watch.news):
            yield one
        await asyncio.sleep(LOOK_S if watch.running else LOOK_STOPPED_S)


# ── requests ──


def _store(request: Request) -> RunStore:
    runs = server_of(request).runs
    if runs is None:
        raise ApiError(404, "this server shows no runs: start it with --runs FOLDER, or use `etude view`")
    return runs


async def _reader(request: Request) -> RunReader:
    return await asyncio.to_thread(_store(request).reader, request.path_params["name"])


def _step(request: Request) -> int:
    text = request.path_params["step"]
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ApiError(404, f"there is no step {text!r}", param="step", code="step_not_found")
    return int(text)


ROUTES = [
    Route("/api/runs", list_runs),
    Route("/api/runs-diff", differences),
    Route("/api/runs/{name}", one_run),
    Route("/api/runs/{name}/metric-names", metric_names),
    Route("/api/runs/{name}/metrics", metrics),
    Route("/api/runs/{name}/rollouts/{step}", rollouts),
    Route("/api/runs/{name}/events", events),
]
OPERATIONS = (
    Operation("get", "/api/runs", "The training runs"),
    Operation("get", "/api/runs-diff", "Settings in which two runs differ", query=("a", "b")),
    Operation("get", "/api/runs/{name}", "One run"),
    Operation("get", "/api/runs/{name}/metric-names", "The numbers that a run has"),
    Operation(
        "get",
        "/api/runs/{name}/metrics",
        "Columns of numbers over the steps",
        query=("names", "after", "before", "max_points"),
    ),
    Operation(
        "get",
        "/api/runs/{name}/rollouts/{step}",
        "What was sampled in a step",
        query=("sort", "order", "problem", "offset", "limit"),
    ),
    Operation("get", "/api/runs/{name}/events", "Steps as they are written", streams=True, query=("after",)),
)
