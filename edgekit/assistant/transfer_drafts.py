"""Conversations from outside, checked and put into the history in one transaction.

A draft is what a file says. Nothing of it is trusted: ids are kept only where they are ours in
form and free here, a parent must be in the same conversation, and circles are refused. Either all
conversations of a file come in or none.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from edgekit.assistant import history_rows as rows
from edgekit.assistant.history import History, new_id
from edgekit.assistant.history_records import Conversation, Folder, Message, Role, State
from edgekit.errors import BadInputError

LONGEST_FILE = 256 << 20  # characters
MOST_MESSAGES = 1_000_000  # of one file
_ID = re.compile(r"[0-9a-f]{16}")


def _time(value: object) -> str:
    """An ISO-8601 time, in UTC as we write it."""
    if not isinstance(value, str):
        raise ValueError("must be a time such as 2026-01-31T12:00:00+00:00")
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC).isoformat(timespec="milliseconds")
    except OverflowError as error:
        raise ValueError("is outside the calendar") from error


Name = Annotated[str, Field(max_length=1000)]
Time = Annotated[str, PlainValidator(_time)]


class Draft(BaseModel):
    """Base: fields of later versions are ignored, types are not converted."""

    model_config = ConfigDict(extra="ignore", strict=True)


class DraftMessage(Draft):
    """A message; ``parent_id`` names another of the same conversation."""

    id: Name
    parent_id: Name | None = None
    role: Role
    content: str
    thinking: str = ""
    created: Time
    state: State = "complete"
    origin: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    sources: list[dict[str, Any]] = []
    tool_calls: list[dict[str, Any]] = []


class DraftConversation(Draft):
    """A conversation; ``folder`` is the name of its folder."""

    id: Name = ""
    title: Name = ""
    folder: Name | None = None
    pinned: bool = False
    created: Time
    updated: Time
    assistant_id: Name | None = None
    messages: list[DraftMessage] = []


def put(history: History, drafts: Sequence[DraftConversation]) -> list[str]:
    """Add conversations; the first becomes the last changed one. Returns their ids in order.

    Raises:
        BadInputError: a draft contradicts itself; nothing was added.
        OutOfResourcesError: the disk is full; nothing was added.
    """
    if sum(len(d.messages) for d in drafts) > MOST_MESSAGES:
        raise BadInputError(f"more than {MOST_MESSAGES:,} messages; import fewer at once")
    ids = []
    with history.write() as connection:
        folders = {row["name"]: row["id"] for row in connection.execute("SELECT * FROM folders")}
        used = {row[0] for row in connection.execute("SELECT id FROM messages")}
        used.update(row[0] for row in connection.execute("SELECT id FROM conversations"))
        for draft in reversed(drafts):
            folder = None if draft.folder is None else rows.storable(draft.folder)
            if folder is not None and folder not in folders:
                folders[folder] = new_id()
                rows.insert_folder(connection, Folder(folders[folder], folder))
            home = _free_id(draft.id, used)
            assistant = None if draft.assistant_id is None else rows.storable(draft.assistant_id)
            conversation = Conversation(
                home, rows.storable(draft.title), folders[folder] if folder is not None else None,
                draft.pinned, draft.created, draft.updated, assistant,
            )  # fmt: skip
            rows.insert_conversation(connection, conversation)
            for message in _placed(draft, home, used):
                rows.insert_message(connection, message)
            ids.append(home)
    return ids[::-1]


def checked(model: type[DraftConversation], value: object, place: str) -> DraftConversation:
    """A validated draft.

    Raises:
        BadInputError: names the field that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(
            f"{place}: {where}: {first['msg']}; export it again, or mend the file"
        ) from error


def strict_json(text: str, what: str) -> Any:
    """The value of a JSON text.

    Raises:
        BadInputError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadInputError(f"{what} is not JSON ({reason}); export it again") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _placed(draft: DraftConversation, home: str, used: set[str]) -> list[Message]:
    """The messages, parents first and otherwise in the order of the file, under free ids."""
    by_id = {m.id: i for i, m in enumerate(draft.messages)}
    if len(by_id) < len(draft.messages):
        raise _contradiction(draft, "two messages have one id")
    children: dict[int, list[int]] = defaultdict(list)
    ready = []
    for i, message in enumerate(draft.messages):
        if message.parent_id is None:
            ready.append(i)
        elif message.parent_id in by_id:
            children[by_id[message.parent_id]].append(i)
        else:
            raise _contradiction(draft, f"the message {message.parent_id!r} is missing")
    ids: dict[str, str] = {}
    placed = []
    while ready:
        i = heapq.heappop(ready)
        for child in children[i]:
            heapq.heappush(ready, child)
        message = draft.messages[i]
        ids[message.id] = _free_id(message.id, used)
        parent = None if message.parent_id is None else ids[message.parent_id]
        values = message.model_dump(exclude={"id", "parent_id"})
        placed.append(Message(ids[message.id], home, parent, **values))
    if len(placed) < len(draft.messages):
        raise _contradiction(draft, "messages answer each other in a circle")
    return placed


def _contradiction(draft: DraftConversation, what: str) -> BadInputError:
    return BadInputError(f"conversation {draft.title[:60]!r}: {what}; export it again")


def _free_id(wished: str, used: set[str]) -> str:
    free = wished if _ID.fullmatch(wished) and wished not in used else new_id()
    used.add(free)
    return free
