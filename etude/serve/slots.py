"""GET /slots: what runs where; POST /slots/N?action=save, restore or erase: a prompt's cache by name.

Slots are slot_table.py's: numbers, not places. A cache is saved of what slot N wrote last, and found again by
every request that begins with it, in whatever slot. Files lie in the folder of --slot-save-path.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from etude.engine.cachefile import saved_ids
from etude.records import EtudeError
from etude.serve.errors import ApiError
from etude.serve.folders import is_plain
from etude.serve.models import ServedModel
from etude.serve.native_route import native_route, unsupported
from etude.serve.native_settings import Shown, brief_settings, kept_tokens, lora_of
from etude.serve.operations import Operation
from etude.serve.server import Server, server_of
from etude.serve.slot_table import Holder, Slot, SlotTable, Written
from etude.serve.sse import JsonResponse, until_gone
from etude.serve.types_native import SlotRequest

LOOK_AGAIN_S = 0.02


async def slots(request: HttpRequest) -> Response:
    """All slots of a model. With ?fail_on_no_slot=1 a 503 where none is free."""
    server = server_of(request)
    if not server.settings.shows_slots:
        raise unsupported("This server does not support slots endpoint. Start it with `--slots`")
    async with server.model(request.query_params.get("model")) as model:
        table = server.slots_of(model)
        if request.query_params.get("fail_on_no_slot") and table.n_busy == len(table.slots):
            raise ApiError(503, "no slot available")
        table.settle()
        return JsonResponse([slot_json(at, slot, model) for at, slot in enumerate(table.slots)])


def slot_json(at: int, slot: Slot, model: ServedModel) -> dict[str, Any]:
    """One slot: what it does, or did last."""
    found: dict[str, Any] = {
        "id": at,
        "n_ctx": model.engine.context,
        "speculative": False,
        "is_processing": slot.holder is not None,
    }
    if slot.holder is not None:
        return found | _running(slot.holder, model)
    return found if slot.last is None else found | _idle(slot.last, model)


def _running(holder: Holder, model: ServedModel) -> dict[str, Any]:
    generation = holder.generation
    request = generation.requests[holder.choice // generation.n]
    reading = generation.readings[holder.choice // generation.n]
    writing = generation.writings[holder.choice]
    limit = request.params.max_tokens
    shown = Shown(n_keep=kept_tokens(model), lora=lora_of(request, model))
    return {
        "id_task": holder.task,
        "n_prompt_tokens": reading.n_done + writing.n_tokens,
        "n_prompt_tokens_processed": reading.n_done - reading.n_cached,
        "n_prompt_tokens_cache": reading.n_cached,
        "params": brief_settings(request.params, model.engine.tokenizer, shown),
        "next_token": [
            {
                "has_next_token": True,
                "has_new_line": writing.has_new_line,
                "n_remain": -1 if limit is None else limit - writing.n_tokens,
                "n_decoded": writing.n_tokens,
            }
        ],
    }


def _idle(last: Written, model: ServedModel) -> dict[str, Any]:
    nothing = {"has_next_token": False, "has_new_line": False, "n_remain": -1, "n_decoded": 0}
    return {
        "id_task": last.task,
        "n_prompt_tokens": last.n_tokens,
        "n_prompt_tokens_processed": 0,
        "n_prompt_tokens_cache": 0,
        "params": brief_settings(last.params, model.engine.tokenizer, Shown(n_keep=kept_tokens(model))),
        "next_token": [nothing],
    }


# ── caches by name ──


async def act(request: HttpRequest) -> Response:
    """Save, restore or erase."""
    server = server_of(request)
    folder = server.settings.slot_folder
    if folder is None:
        raise unsupported("This server does not support slots action. Start it with `--slot-save-path`")
    action = request.query_params.get("action")
    if action not in ("save", "restore", "erase"):
        raise ApiError(400, "Invalid action")
    path = Path()
    if action != "erase":
        asked = await server.body(request, SlotRequest)
        if not is_plain(asked.filename):
            raise ApiError(400, "Invalid filename", param="filename")
        path = folder / asked.filename
    async with server.model(request.query_params.get("model")) as model:
        at, table = _number(request, server, model)
        slot = table.slots[at]
        await until_gone(request, _until_idle(table, slot))
        found = await asyncio.to_thread(ACTIONS[action], model, slot, path)
    return JsonResponse({"id_slot": at} | found)


def _number(request: HttpRequest, server: Server, model: ServedModel) -> tuple[int, SlotTable]:
    table, written = server.slots_of(model), request.path_params["id_slot"]
    if not written.isdecimal() or int(written) >= len(table.slots):
        raise ApiError(400, "Invalid slot ID")
    return int(written), table


async def _until_idle(table: SlotTable, slot: Slot) -> None:
    while slot.holder is not None:
        await asyncio.sleep(LOOK_AGAIN_S)
        table.settle()


def save(model: ServedModel, slot: Slot, path: Path) -> dict[str, Any]:
    """Write what the slot wrote last. Whole pages of the cache are: the rest is soon computed again."""
    ids, start_s = _last_ids(slot), time.perf_counter()
    n_tokens = model.engine.save_cache(path, ids)
    return {
        "filename": path.name,
        "n_saved": n_tokens,
        "n_written": path.stat().st_size,
        "timings": {"save_ms": 1e3 * (time.perf_counter() - start_s)},
    }


def restore(model: ServedModel, slot: Slot, path: Path) -> dict[str, Any]:
    """Read a file of `save`."""
    start_s = time.perf_counter()
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise ApiError(400, "Invalid filename", param="filename")
    try:
        n_tokens = model.engine.load_cache(path)
    except EtudeError as error:
        text = str(error).removeprefix(f"{path}: ")  # where the folder lies is no client's affair
        raise ApiError(400, f"Unable to restore slot: {text}") from error
    ids = saved_ids(path)
    slot.last = Written(-1, model.defaults.params, len(ids), ids)
    return {
        "filename": path.name,
        "n_restored": n_tokens,
        "n_read": path.stat().st_size,
        "timings": {"restore_ms": 1e3 * (time.perf_counter() - start_s)},
    }


def erase(model: ServedModel, slot: Slot, path: Path) -> dict[str, Any]:
    """Forget what the slot wrote last, as far as nobody else's prompt begins so."""
    n_erased = 0
    if slot.last is not None:
        n_erased = model.engine.erase_cache(_last_ids(slot))
        slot.last = None
    return {"n_erased": n_erased}


def _last_ids(slot: Slot) -> list[int]:
    if slot.last is None or slot.last.ids is None:
        raise ApiError(400, "the slot has written nothing yet")
    if slot.last.adapter is not None:
        raise ApiError(400, "the slot ran with an adapter; only caches of the bare model have files")
    ids: list[int] = slot.last.ids.tolist()
    return ids


ACTIONS = {"save": save, "restore": restore, "erase": erase}
ROUTES = [native_route("/slots", slots, "GET"), native_route("/slots/{id_slot}", act)]
OPERATIONS = (
    Operation("get", "/slots", "What runs where", query=("model", "fail_on_no_slot")),
    Operation(
        "post", "/slots/{id_slot}", "Save, restore or erase a cache", SlotRequest, query=("action", "model")
    ),
)
