"""The emulator's own endpoints for the messages of a queue."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from . import contents, limits, message_lines, snippets
from .answers import Refusal
from .console_input import draft_of, numbers_of, place_of, read_body, read_object, whole
from .queues import Queue
from .service import Service
from .stored_messages import Query, StoredMessage

_MAX_MESSAGES: Final = 100
"""Maximum number of messages in one response."""

_PREVIEW_CHARACTERS: Final = 2_000
"""Arguments of a task that are longer than this appear only when the message is shown alone."""

_SEARCH_BATCH: Final = 200
"""Number of messages that a search reads at a time."""

_SEARCH_SECONDS: Final = 0.2
"""How long a search may block the API.  The answer says where the caller can continue."""

_EXPORT_BATCH: Final = 200
"""Number of messages that an export reads at a time."""

_MAX_IMPORT_BYTES: Final = 64_000_000
"""Maximum size of one import; a larger file is sent in parts."""

Changed = Callable[[dict[str, Any]], dict[str, Any]]
"""Returns the answer it takes, and makes the next request for the state count the messages."""


class MessageConsole:
    """The handlers below ``/_emulator/queues/{queue_id}/``.

    Args:
        service: The emulated account.
        token: The token for code that the answers contain.
        changed: Called with the answer of each request that changes messages.
    """

    def __init__(self, service: Service, token: str, changed: Changed) -> None:
        self._service = service
        self._token = token
        self._changed = changed

    def queue(self, request: Request) -> Queue:
        """Return the queue that the path names.

        Raises:
            Refusal: It does not exist.
        """
        queue = self._service.queues.get(request.path_params["queue_id"])
        if queue is None:
            raise Refusal(404, 11000, "the queue does not exist")
        return queue

    # --- reading

    async def page(self, request: Request) -> dict[str, Any]:
        """Return a page of messages, sorted and filtered, and where the next page begins.

        ``cpu_seconds`` is for how long the query blocked the thread that serves the API.
        """
        queue = self.queue(request)
        sent = request.query_params
        before = whole(sent.get("before"), "before")
        query = Query(
            state=sent.get("state") or None,
            order=sent.get("sort") or "newest",
            after=sent.get("after") or ("" if before is None else f"{before}-{before}"),
            limit=min(whole(sent.get("limit"), "limit") or 50, _MAX_MESSAGES),
        )
        text = sent.get("text", "").casefold()
        began = time.thread_time()
        stored, following, searched = self._find(queue, query, text)
        return {
            "messages": [_as_json(message) for message in stored],
            "cpu_seconds": time.thread_time() - began,
            "more": following is not None,
            "next": following,
            "searched": searched,
        }

    def _find(
        self, queue: Queue, query: Query, text: str
    ) -> tuple[list[StoredMessage], str | None, int | None]:
        """Return messages, where the next ones begin, and how many were searched."""
        limit = query.limit or _MAX_MESSAGES
        if not text:
            stored = self._service.store.stored(queue, query)
            full = len(stored) == limit
            return stored, query.cursor(stored[-1]) if full else None, None
        found: list[StoredMessage] = []
        searched = 0
        until = time.monotonic() + _SEARCH_SECONDS
        query = replace(query, limit=_SEARCH_BATCH)
        while True:
            batch = self._service.store.stored(queue, query)
            for message in batch:
                searched += 1
                if text in contents.searchable(message.content_type, message.body, message.id):
                    found.append(message)
                if len(found) == limit or time.monotonic() > until:
                    return found, query.cursor(message), searched
            if len(batch) < _SEARCH_BATCH:
                return found, None, searched
            query = replace(query, after=query.cursor(batch[-1]))

    async def one(self, request: Request) -> dict[str, Any]:
        """Return one message in full."""
        queue = self.queue(request)
        number: int = request.path_params["number"]
        query = Query(order="newest", after=f"{number + 1}-{number + 1}", limit=1)
        stored = self._service.store.stored(queue, query)
        if not stored or stored[0].number != number:
            raise Refusal(404, 0, "the message no longer exists")
        return {
            **_as_json(stored[0], whole=True),
            "texts": contents.texts(stored[0].content_type, stored[0].body),
            "code": snippets.of_message(stored[0], (queue.id, queue.name), self._place(request)),
        }

    async def export(self, request: Request) -> Response:
        """Return all messages as JSON lines, the oldest first; nothing is leased or deleted."""
        queue = self.queue(request)
        return StreamingResponse(
            self._lines(queue),
            media_type=message_lines.CONTENT_TYPE,
            headers={"content-disposition": f'attachment; filename="{queue.name}.jsonl"'},
        )

    async def _lines(self, queue: Queue) -> AsyncIterator[bytes]:
        query = Query(limit=_EXPORT_BATCH)
        while True:
            batch = self._service.store.stored(queue, query)
            now = self._service.clock.now()
            yield b"".join(message_lines.write(message, now) for message in batch)
            if len(batch) < _EXPORT_BATCH:
                return
            query = replace(query, after=query.cursor(batch[-1]))

    # --- changing

    async def publish(self, request: Request) -> dict[str, Any]:
        """Publish one message."""
        queue = self.queue(request)
        sent = await read_object(request)
        draft = draft_of(sent)
        size = len(draft.body) + self._service.knobs.metadata_bytes
        if size > limits.MESSAGE_BYTES:
            raise Refusal(
                413, 10204, f"the message has {size} bytes; the limit is {limits.MESSAGE_BYTES}"
            )
        if sent.get("delay_seconds") is None:
            draft = replace(draft, delay_seconds=queue.delivery_delay)
        self._service.store.add(queue, [draft])
        return self._changed({"published": 1})

    async def import_lines(self, request: Request) -> dict[str, Any]:
        """Publish the messages of JSON lines, all or none."""
        queue = self.queue(request)
        first = whole(request.query_params.get("first_line"), "first_line") or 1
        data = await read_body(request, message_lines.CONTENT_TYPE, _MAX_IMPORT_BYTES)
        drafts = message_lines.read(
            data,
            delay_seconds=queue.delivery_delay,
            metadata_bytes=self._service.knobs.metadata_bytes,
            first=first,
        )
        if drafts:
            self._service.store.add(queue, drafts)
        return self._changed({"published": len(drafts)})

    async def retry(self, request: Request) -> dict[str, Any]:
        """Make messages ready at once; return dead letters to the queue they died in."""
        queue = self.queue(request)
        numbers = numbers_of(await read_object(request), optional=True)
        return self._changed({"retried": self._service.store.retry_now(queue, numbers)})

    async def delete(self, request: Request) -> dict[str, Any]:
        """Delete messages."""
        queue = self.queue(request)
        numbers = numbers_of(await read_object(request), optional=False)
        return self._changed({"deleted": self._service.store.delete(queue, numbers or [])})

    async def purge(self, request: Request) -> dict[str, Any]:
        """Delete all messages."""
        queue = self.queue(request)
        await read_object(request)
        count = queue.backlog_count
        self._service.store.purge(queue)
        return self._changed({"deleted": count - queue.backlog_count})

    def _place(self, request: Request) -> snippets.Place:
        return place_of(request, self._service.account_id, self._token)


def _as_json(message: StoredMessage, *, whole: bool = False) -> dict[str, Any]:
    """Describe a message; with *whole*, include its body and everything in it."""
    described = contents.describe(message.content_type, message.body)
    if not whole:
        del described["content"]
        described.pop("headers", None)
        for name in ("args", "kwargs"):
            if len(json.dumps(described.get(name))) > _PREVIEW_CHARACTERS:
                described[name] = "…"
    shown = {
        "number": message.number,
        "id": message.id,
        "content_type": message.content_type,
        "size": len(message.body.encode()),
        "published": message.timestamp,
        "visible_at": message.visible_at,
        "delay_seconds": message.delay_seconds,
        "attempts": message.attempts,
        "state": message.state,
        "died_in": message.died_in,
        "what": described,
    }
    return {**shown, "body": message.body} if whole else shown
