"""Reads messages of the store for tests and for the page: selected, sorted and in parts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .contents import describe

_STATES: Final = {
    "ready": "visible_at <= ?",
    "delayed": "visible_at > ? AND leased = 0",
    "leased": "visible_at > ? AND leased = 1",
}

_ORDERS: Final = {
    "oldest": ("seq", "ASC"),
    "newest": ("seq", "DESC"),
    "attempts": ("attempts", "DESC"),
    "largest": ("size", "DESC"),
    "due": ("visible_at", "ASC"),
}


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A stored message, for tests and for the page.

    Attributes:
        id: Its id, 32 hex digits.
        body: The text, or the JSON text.
        content_type: ``text`` or ``json``.
        delay_seconds: The delay it was published with; by default that of the queue.
        timestamp: Time of publishing, in seconds since the epoch by the emulator's clock.
        visible_at: Time from which it can be pulled, by the same clock.
        attempts: Deliveries so far.
        state: ``ready``, ``delayed`` or ``leased``.
        number: Its position in the order of publishing, across all queues.
        died_in: The name of the queue in which it became a dead letter; None if it is not one.
    """

    id: str
    body: str
    content_type: str
    delay_seconds: int
    timestamp: float
    visible_at: float
    attempts: int
    state: str
    number: int
    died_in: str | None

    @property
    def value(self) -> Any:
        """The published value: the body, decoded if it is JSON."""
        return json.loads(self.body) if self.content_type == "json" else self.body

    @property
    def content(self) -> Any:
        """The decoded content of a Celery or Kombu message; of a task ``[args, kwargs, embed]``."""
        return describe(self.content_type, self.body)["content"]

    @property
    def task(self) -> str | None:
        """The name of the Celery task; None if the message is not a task."""
        task: str | None = describe(self.content_type, self.body).get("task")
        return task

    @property
    def headers(self) -> dict[str, Any]:
        """Kombu's headers, which include a task's id, eta and retries; {} if there are none."""
        headers: dict[str, Any] = describe(self.content_type, self.body).get("headers", {})
        return headers


def _position(cursor: str) -> list[int]:
    if not cursor:
        return []
    parts = cursor.split("-")
    if len(parts) != 2 or not all(p.isascii() and p.isdecimal() and len(p) < 19 for p in parts):
        raise ValueError("after must be the value of next in an earlier answer")
    return [int(part) for part in parts]


@dataclass(frozen=True, slots=True)
class Query:
    """Which messages of a queue, and in which order.

    Args:
        state: Only those that are ``ready``, ``delayed`` or ``leased``; None for all.
        order: ``oldest``, ``newest``, ``attempts`` (most first), ``largest`` or ``due`` (first
            that can be pulled).
        after: Only those that follow this one in the order; "" for all.  It is ``cursor()`` of a
            message.
        limit: Maximum number of messages; None for no limit.

    Raises:
        ValueError: A value is unknown.
    """

    state: str | None = None
    order: str = "oldest"
    after: str = ""
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in _STATES:
            raise ValueError("state must be ready, delayed or leased")
        if self.order not in _ORDERS:
            raise ValueError(f"sort must be one of {', '.join(_ORDERS)}")
        _position(self.after)

    def cursor(self, message: StoredMessage) -> str:
        """Return the ``after`` of a query for the messages that follow *message*."""
        value = {
            "attempts": message.attempts,
            "size": len(message.body.encode()),
            "visible_at": round(message.visible_at * 1000),
        }.get(_ORDERS[self.order][0], message.number)
        return f"{value}-{message.number}"


ALL: Final = Query()
"""All messages, the oldest first."""


def select(
    connection: sqlite3.Connection,
    queue: int,
    query: Query,
    now_ms: int,
    names: Mapping[int, str],
) -> list[StoredMessage]:
    """Return the messages of the queue with the number *queue* that *query* chooses.

    The caller holds the database's lock.  *names* are those of all queues, by number.
    """
    column, direction = _ORDERS[query.order]
    conditions, values = ["queue = ?"], [queue]
    if query.state is not None:
        conditions.append(_STATES[query.state])
        values.append(now_ms)
    if query.after:
        sign = "<" if direction == "DESC" else ">"
        value, seq = _position(query.after)
        if column == "seq":
            conditions.append(f"seq {sign} ?")
            values.append(seq)
        else:
            conditions.append(f"({column}, seq) {sign} (?, ?)")
            values += value, seq
    order = f"{column} {direction}" + ("" if column == "seq" else f", seq {direction}")
    limit = "" if query.limit is None else f"LIMIT {query.limit:d}"
    # Name the index: SQLite cannot know that most messages are ready and few are invisible.
    by_time = query.state in ("delayed", "leased") or query.order == "due"
    index = "visibility" if by_time else "queue"
    rows = connection.execute(
        "SELECT id, body, content_type, delay_seconds, timestamp_ms, visible_at, attempts,"  # noqa: S608
        " leased, seq, died_in"
        f" FROM messages INDEXED BY messages_by_{index} JOIN bodies USING (seq)"
        f" WHERE {' AND '.join(conditions)} ORDER BY {order} {limit}",
        values,
    ).fetchall()
    return [_stored(row, now_ms, names) for row in rows]


def _stored(row: tuple[Any, ...], now: int, names: Mapping[int, str]) -> StoredMessage:
    message_id, body, content_type, delay, timestamp_ms, visible_ms, attempts, leased = row[:8]
    seq, died_in = row[8:]
    return StoredMessage(
        id=message_id.hex(),
        body=body.decode(),
        content_type=content_type,
        delay_seconds=delay,
        timestamp=timestamp_ms / 1000,
        visible_at=visible_ms / 1000,
        attempts=attempts,
        state="ready" if visible_ms <= now else "leased" if leased else "delayed",
        number=seq,
        died_in=names.get(died_in),
    )
