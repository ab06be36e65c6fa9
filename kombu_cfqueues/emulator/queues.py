"""The account's queues and their consumers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from . import limits
from .activity import Activity
from .clock import Clock
from .database import Database


@dataclass(slots=True)
class Consumer:
    """The consumer of a queue: clients that pull (``http_pull``), or a Worker.

    Attributes:
        id: Its id, 32 hex digits.
        created_ms: Time of its creation, in milliseconds since the epoch.
        type: ``http_pull`` or ``worker``.
        script_name: The Worker's script; None for ``http_pull``.
        dead_letter_queue: The name of the dead-letter queue; "" for none.
        settings: The settings that were sent; the properties add the defaults.
    """

    id: str
    created_ms: int
    type: str
    script_name: str | None
    dead_letter_queue: str
    settings: dict[str, Any]

    @property
    def max_retries(self) -> int:
        """Maximum number of redeliveries before a message is dead-lettered."""
        return int(self.settings.get("max_retries", limits.MAX_RETRIES_DEFAULT))

    @property
    def retry_delay(self) -> int:
        """Default delay of a retry, in seconds."""
        return int(self.settings.get("retry_delay", 0))

    @property
    def visibility_timeout_ms(self) -> int:
        """Default visibility timeout of a pull."""
        return int(self.settings.get("visibility_timeout_ms", limits.VISIBILITY_TIMEOUT_DEFAULT_MS))


@dataclass(slots=True, eq=False)
class Queue:
    """A queue: its settings, and totals of its messages, so that metrics need no count."""

    number: int
    id: str
    name: str
    jurisdiction: str | None
    created_ms: int
    modified_ms: int
    delivery_delay: int = 0
    delivery_paused: bool = False
    message_retention_period: int = limits.RETENTION_DEFAULT_SECONDS
    purged_ms: int | None = None  # start of the latest purge
    purge_due_ms: int | None = None  # its end; None once it is complete
    consumers: dict[str, Consumer] = field(default_factory=dict)
    backlog_count: int = 0
    backlog_bytes: int = 0
    expires_ms: int = 0  # no message expires before this time; 0 if unknown
    activity: Activity = field(default_factory=Activity)

    def pull_consumer(self) -> Consumer | None:
        """Return the ``http_pull`` consumer; None if the queue has none."""
        return next((c for c in self.consumers.values() if c.type == "http_pull"), None)

    def consumer(self) -> Consumer | None:
        """Return the consumer whose settings apply to retries and dead letters; None if none."""
        return self.pull_consumer() or next(iter(self.consumers.values()), None)

    def as_json(self) -> dict[str, Any]:
        """Describe the queue as the API does."""
        shown: dict[str, Any] = {
            "queue_id": self.id,
            "queue_name": self.name,
            "created_on": timestamp(self.created_ms),
            "modified_on": timestamp(self.modified_ms),
            "producers": [],
            "producers_total_count": 0,
            "consumers": [self.consumer_as_json(c) for c in self.consumers.values()],
            "consumers_total_count": len(self.consumers),
            "settings": {
                "delivery_delay": self.delivery_delay,
                "delivery_paused": self.delivery_paused,
                "message_retention_period": self.message_retention_period,
            },
        }
        if self.jurisdiction is not None:
            shown["jurisdiction"] = self.jurisdiction
        return shown

    def consumer_as_json(self, consumer: Consumer) -> dict[str, Any]:
        """Describe a consumer of this queue as the API does."""
        settings: dict[str, Any] = {
            "max_retries": consumer.max_retries,
            "retry_delay": consumer.retry_delay,
        }
        if consumer.type == "http_pull":
            settings["batch_size"] = limits.PULL_MESSAGES_DEFAULT
            settings["visibility_timeout_ms"] = consumer.visibility_timeout_ms
        else:
            settings["batch_size"] = limits.WORKER_BATCH_SIZE_DEFAULT
            settings["max_concurrency"] = None
            settings["max_wait_time_ms"] = limits.WORKER_MAX_WAIT_DEFAULT_MS
        shown: dict[str, Any] = {
            "consumer_id": consumer.id,
            "created_on": timestamp(consumer.created_ms),
            "queue_name": self.name,
            "type": consumer.type,
            "dead_letter_queue": consumer.dead_letter_queue,
            "settings": {**settings, **consumer.settings},
        }
        if consumer.script_name is not None:
            # The SDK reads script_name, wrangler reads script.
            shown["script_name"] = shown["script"] = consumer.script_name
        return shown


class Queues:
    """All queues, the oldest first: read from memory, and written to the database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._queues: dict[str, Queue] = {}  # by id; guarded by database.lock
        self._by_number: dict[int, Queue] = {}  # the same
        self._load()

    def __iter__(self) -> Iterator[Queue]:
        with self._database.lock:
            return iter(list(self._queues.values()))

    def get(self, queue_id: str) -> Queue | None:
        """Return the queue with this id; None if there is none."""
        return self._queues.get(queue_id)

    def by_number(self, number: int) -> Queue:
        """Return the queue that messages refer to by *number*."""
        return self._by_number[number]

    def find_number(self, number: int | None) -> Queue | None:
        """Return the queue with this number; None if it was deleted, or *number* is None."""
        return None if number is None else self._by_number.get(number)

    def named(self, name: str, *, fold: bool = False) -> Queue | None:
        """Return the queue with this name; with *fold*, ignore case."""
        key = name.lower() if fold else name
        return next((q for q in self if (q.name.lower() if fold else q.name) == key), None)

    def create(
        self, name: str, jurisdiction: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Queue:
        """Create a queue.  The caller makes sure that the name is free."""
        now = self._clock.now_ms()
        queue = Queue(0, secrets.token_hex(16), name, jurisdiction, now, now, **(settings or {}))
        with self._database.transaction() as sql:
            queue.number = _last_row(
                sql.execute(
                    "INSERT INTO queues (id, name, jurisdiction, created_ms, modified_ms,"
                    " delivery_delay, delivery_paused, message_retention_period)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        queue.id,
                        name,
                        jurisdiction,
                        now,
                        now,
                        queue.delivery_delay,
                        queue.delivery_paused,
                        queue.message_retention_period,
                    ),
                ).lastrowid
            )
            self._queues[queue.id] = self._by_number[queue.number] = queue
        return queue

    def save(self, queue: Queue) -> None:
        """Write the settings of *queue*, and the time of the change, to the database."""
        queue.modified_ms = self._clock.now_ms()
        queue.expires_ms = 0
        with self._database.transaction() as sql:
            sql.execute(
                "UPDATE queues SET name = ?, modified_ms = ?, delivery_delay = ?,"
                " delivery_paused = ?, message_retention_period = ?, purged_ms = ?,"
                " purge_due_ms = ?"
                " WHERE number = ?",
                (
                    queue.name,
                    queue.modified_ms,
                    queue.delivery_delay,
                    queue.delivery_paused,
                    queue.message_retention_period,
                    queue.purged_ms,
                    queue.purge_due_ms,
                    queue.number,
                ),
            )

    def delete(self, queue: Queue) -> None:
        """Remove *queue* with its consumers and messages."""
        with self._database.transaction() as sql:
            sql.execute("DELETE FROM queues WHERE number = ?", (queue.number,))
            del self._queues[queue.id], self._by_number[queue.number]

    def put_consumer(self, queue: Queue, consumer: Consumer) -> None:
        """Add *consumer*, or replace the consumer with the same id."""
        with self._database.transaction() as sql:
            sql.execute(
                "INSERT OR REPLACE INTO consumers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    consumer.id,
                    queue.number,
                    consumer.created_ms,
                    consumer.type,
                    consumer.script_name,
                    consumer.dead_letter_queue,
                    json.dumps(consumer.settings),
                ),
            )
            queue.consumers[consumer.id] = consumer

    def delete_consumer(self, queue: Queue, consumer: Consumer) -> None:
        """Remove *consumer*."""
        with self._database.transaction() as sql:
            sql.execute("DELETE FROM consumers WHERE id = ?", (consumer.id,))
            del queue.consumers[consumer.id]

    def _load(self) -> None:
        with self._database.transaction() as sql:
            for row in sql.execute(
                "SELECT number, id, name, jurisdiction, created_ms, modified_ms, delivery_delay,"
                " delivery_paused, message_retention_period, purged_ms, purge_due_ms"
                " FROM queues ORDER BY number"
            ):
                queue = Queue(*row)
                queue.delivery_paused = bool(queue.delivery_paused)
                self._queues[queue.id] = self._by_number[queue.number] = queue
            for number, consumer_id, created_ms, kind, script, dead, settings in sql.execute(
                "SELECT queue, id, created_ms, type, script_name, dead_letter_queue, settings"
                " FROM consumers ORDER BY created_ms"
            ):
                consumer = Consumer(
                    consumer_id, created_ms, kind, script, dead, json.loads(settings)
                )
                self._by_number[number].consumers[consumer.id] = consumer
            for number, count, size in sql.execute(
                "SELECT queue, count(*), sum(size) FROM messages GROUP BY queue"
            ):
                self._by_number[number].backlog_count = count
                self._by_number[number].backlog_bytes = size


def timestamp(ms: int) -> str:
    """Format milliseconds since the epoch as Cloudflare does."""
    moment = datetime.fromtimestamp(ms // 1000, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03}000Z"


def _last_row(number: int | None) -> int:
    if number is None:
        raise RuntimeError("SQLite returned no row number")
    return number
