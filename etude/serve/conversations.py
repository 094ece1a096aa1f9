"""/api/conversations…: what the chat page keeps, on the server, so that it follows its user to any browser.

    GET    /api/session                           who one is, sampling defaults, what there is
    GET    /api/conversations?query=&folder=      the list, newest first
    POST   /api/conversations
    GET    /api/conversations/ID                  with all its messages
    PATCH  /api/conversations/ID
    DELETE /api/conversations/ID
    POST   /api/conversations/ID/messages
    PUT    /api/conversations/ID/messages/MID
    DELETE /api/conversations/ID/messages/MID     with all that follows it
    GET    /api/export[?id=…]      POST /api/import

Each API key has conversations of its own; the file holds a slow hash of it. A server without keys has one
user.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from sqlite3 import Connection
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from etude.serve import conversation_store as store
from etude.serve.access import key_of
from etude.serve.conversation_file import ConversationFile, owner_of
from etude.serve.errors import ApiError
from etude.serve.native_settings import sampler_settings
from etude.serve.operations import Operation
from etude.serve.query import whole
from etude.serve.server import server_of
from etude.serve.sse import JsonResponse
from etude.serve.types_conversations import (
    ChangedConversation,
    Export,
    MessageFields,
    NewConversation,
    NewMessage,
)

Result = TypeVar("Result")
MAX_QUERY = 500


async def session(request: Request) -> Response:
    """user: a short mark of the key, null without keys. defaults: of sampling. runs: whether there are run
    pages."""
    server = server_of(request)
    owner = await _do(request, lambda db, owner: owner) if server.conversations is not None else ""
    return JsonResponse(
        {
            "user": owner[:8] or None,
            "models": [spec.name for spec in server.pool.specs],
            "defaults": sampler_settings(server.pool.defaults.params),
            "runs": server.runs is not None,
            "conversations": server.conversations is not None,
            "kept": server.settings.data_folder is not None,
            "version": version("etude"),
        }
    )


async def list_conversations(request: Request) -> Response:
    """query: words of titles and messages."""
    query = request.query_params.get("query", "")
    if len(query) > MAX_QUERY:
        raise ApiError(400, f"query has {len(query)} characters; {MAX_QUERY} are allowed", param="query")
    folder = request.query_params.get("folder") or None
    offset, limit = whole(request, "offset", 0, 0) or 0, whole(request, "limit", 1000, 1, 10_000) or 1000
    indexed = _file(request).indexed
    return JsonResponse(
        await _do(
            request,
            lambda db, owner: store.listed(
                db, owner, query=query, folder=folder, indexed=indexed, offset=offset, limit=limit
            ),
        )
    )


async def create(request: Request) -> Response:
    """A new conversation."""
    fields = (await server_of(request).body(request, NewConversation)).model_dump()
    return JsonResponse(await _change(request, lambda db, owner: store.created(db, owner, fields)))


async def read(request: Request) -> Response:
    """One with all its messages."""
    identity = request.path_params["id"]
    return JsonResponse(await _do(request, lambda db, owner: store.read(db, owner, identity)))


async def change(request: Request) -> Response:
    """Title, folder, pin, settings, where reading ends."""
    body = await server_of(request).body(request, ChangedConversation)
    identity, fields = request.path_params["id"], body.model_dump(exclude_unset=True)
    return JsonResponse(await _change(request, lambda db, owner: store.changed(db, owner, identity, fields)))


async def remove(request: Request) -> Response:
    """For good."""
    identity = request.path_params["id"]
    return JsonResponse(await _change(request, lambda db, owner: store.removed(db, owner, identity)))


async def add_message(request: Request) -> Response:
    """A message below `parent`; reading ends with it."""
    body = await server_of(request).body(request, NewMessage)
    identity = request.path_params["id"]
    return JsonResponse(
        await _change(
            request, lambda db, owner: store.added(db, owner, identity, body.parent, body.role, body)
        ),
    )


async def rewrite_message(request: Request) -> Response:
    """The fields that are given."""
    body = await server_of(request).body(request, MessageFields)
    identity, message = request.path_params["id"], request.path_params["message"]
    return JsonResponse(
        await _change(request, lambda db, owner: store.rewritten(db, owner, identity, message, body))
    )


async def remove_message(request: Request) -> Response:
    """With all that follows it."""
    identity, message = request.path_params["id"], request.path_params["message"]
    return JsonResponse(await _change(request, lambda db, owner: store.cut(db, owner, identity, message)))


async def export(request: Request) -> Response:
    """All of them, or those of `id`, as a file."""
    identities = store.unique(request.query_params.getlist("id"))
    found = await _do(request, lambda db, owner: store.exported(db, owner, identities))
    return JsonResponse(found, headers={"Content-Disposition": 'attachment; filename="conversations.json"'})


async def import_(request: Request) -> Response:
    """All of the file, or nothing."""
    body = await server_of(request).body(request, Export)
    return JsonResponse(
        await _change(request, lambda db, owner: store.imported(db, owner, body.conversations))
    )


def _file(request: Request) -> ConversationFile:
    file = server_of(request).conversations
    if file is None:
        raise ApiError(404, "this server keeps no conversations: it was started with --no-ui")
    return file


async def _do(request: Request, work: Callable[[Connection, str], Result], *, write: bool = False) -> Result:
    """Work in the file, for whom the request comes from."""
    file, server = _file(request), server_of(request)
    key = (key_of(request.headers) or "") if server.settings.api_keys else ""
    return await file.run(lambda db: work(db, owner_of(key, file.salt)), write=write)


async def _change(request: Request, work: Callable[[Connection, str], dict[str, Any]]) -> dict[str, Any]:
    return await _do(request, work, write=True)


_ONE, _MESSAGES = "/api/conversations/{id}", "/api/conversations/{id}/messages"
_MESSAGE = _MESSAGES + "/{message}"
ROUTES = [
    Route("/api/session", session),
    Route("/api/conversations", list_conversations),
    Route("/api/conversations", create, methods=["POST"]),
    Route(_ONE, read),
    Route(_ONE, change, methods=["PATCH"]),
    Route(_ONE, remove, methods=["DELETE"]),
    Route(_MESSAGES, add_message, methods=["POST"]),
    Route(_MESSAGE, rewrite_message, methods=["PUT"]),
    Route(_MESSAGE, remove_message, methods=["DELETE"]),
    Route("/api/export", export),
    Route("/api/import", import_, methods=["POST"]),
]
OPERATIONS = (
    Operation("get", "/api/session", "Who one is, and what there is"),
    Operation(
        "get",
        "/api/conversations",
        "The conversations, newest first",
        query=("query", "folder", "offset", "limit"),
    ),
    Operation("post", "/api/conversations", "A new conversation", NewConversation),
    Operation("get", _ONE, "A conversation with its messages"),
    Operation("patch", _ONE, "Change its title, folder, settings", ChangedConversation),
    Operation("delete", _ONE, "Delete it"),
    Operation("post", _MESSAGES, "Add a message", NewMessage),
    Operation("put", _MESSAGE, "Rewrite a message", MessageFields),
    Operation("delete", _MESSAGE, "Delete a message and what follows it"),
    Operation("get", "/api/export", "Conversations as a file", query=("id",)),
    Operation("post", "/api/import", "Take the conversations of a file", Export),
)
