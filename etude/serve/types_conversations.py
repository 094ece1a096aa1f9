"""Bodies of /api/conversations…: what the chat page keeps on the server. Every text has a longest length.

Unknown fields are ignored, but for those of settings, timings and attachments, which are the page's own and
are kept as they come.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from etude.serve.types_openai import Body

MAX_TEXT = 8 << 20
MAX_ATTACHMENTS = 64
MAX_TOKENS = 200_000
MAX_MESSAGES = 20_000
MAX_KEPT = 1_000_000
"""Lists and objects of what was exported: tokens with their alternatives are many."""
EXPORT = "etude-conversations"

Title = Annotated[str, Field(max_length=500)]
Folder = Annotated[str, Field(max_length=200)]
Name = Annotated[str, Field(max_length=500)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Role = Literal["system", "user", "assistant", "tool"]
Seconds = Annotated[float, Field(ge=0, le=1e11)]
Id = Annotated[str, Field(max_length=100)]


class Attachment(Body):
    """A file whose text was taken out in the browser. Fields beside these are kept."""

    model_config = ConfigDict(extra="allow")

    name: Name
    text: Text = ""


class MessageFields(Body):
    """What a message is made of, and what may be rewritten. tokens: as the page shows them, one by one."""

    max_containers: ClassVar[int] = MAX_KEPT
    content: Text = ""
    reasoning: Text | None = None
    model: Name | None = None
    timings: dict[str, Any] | None = None
    tokens: Annotated[list[Any], Field(max_length=MAX_TOKENS)] | None = None
    attachments: Annotated[list[Attachment], Field(max_length=MAX_ATTACHMENTS)] | None = None


class NewMessage(MessageFields):
    """parent: what it answers; null: it begins the conversation."""

    role: Role
    parent: Id | None = None


class NewConversation(Body):
    """system goes into the settings."""

    title: Title = ""
    folder: Folder | None = None
    pinned: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)
    system: Text | None = None


class ChangedConversation(Body):
    """The fields that are there are changed. current: the message at which reading ends."""

    title: Title | None = None
    folder: Folder | None = None
    pinned: bool | None = None
    settings: dict[str, Any] | None = None
    current: Id | None = None


class ExportedMessage(NewMessage):
    """A message with its id."""

    id: Id
    created_at: Seconds = 0.0


class ExportedConversation(Body):
    """A conversation with all its messages."""

    id: Id = ""
    title: Title = ""
    folder: Folder | None = None
    pinned: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)
    current: Id | None = None
    created_at: Seconds = 0.0
    updated_at: Seconds = 0.0
    messages: Annotated[list[ExportedMessage], Field(max_length=MAX_MESSAGES)] = Field(default_factory=list)


class Export(Body):
    """The file of an export."""

    max_containers: ClassVar[int] = MAX_KEPT
    format: Literal["etude-conversations"]
    version: Literal[1]
    conversations: list[ExportedConversation]
