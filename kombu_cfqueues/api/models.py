"""Queues, pull consumers and backlogs, as checked values of what the API returns.

A field that is missing from the JSON, or has another type, becomes None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import limits


class Queue(NamedTuple):
    """A queue as the API describes it.

    Attributes:
        id: 32 hex digits.
        name: Its name at Cloudflare.
        retention_seconds: How long it keeps messages; None if unknown.
        consumers: The JSON objects of its consumers; empty if there are none, or if the response
            did not list them.
        paused: Whether its delivery is paused; None if unknown.
    """

    id: str
    name: str
    retention_seconds: int | None
    consumers: tuple[Mapping[str, Any], ...] = ()
    paused: bool | None = None

    @classmethod
    def from_json(cls, entry: Any) -> Queue | None:
        """Read one queue; return None if *entry* has no id or no name."""
        entry = mapping(entry)
        queue_id, name = entry.get("queue_id"), entry.get("queue_name")
        if not (isinstance(queue_id, str) and queue_id and isinstance(name, str)):
            return None
        settings = mapping(entry.get("settings"))
        paused = settings.get("delivery_paused")
        return cls(
            queue_id,
            name,
            _integer(settings.get("message_retention_period")),
            tuple(objects(entry.get("consumers"))),
            paused if isinstance(paused, bool) else None,
        )


class QueuePage(NamedTuple):
    """One page of an account's queues.

    Attributes:
        queues: The queues of the page.
        has_more: Whether another page may follow.
    """

    queues: list[Queue]
    has_more: bool

    @classmethod
    def from_json(cls, payload: Mapping[str, Any], page: int) -> QueuePage:
        """Read page number *page* from a whole payload, which has the counters too."""
        found = (Queue.from_json(entry) for entry in objects(payload.get("result")))
        queues = [queue for queue in found if queue is not None]
        return cls(queues, bool(queues) and _has_more(mapping(payload.get("result_info")), page))


class PullConsumer(NamedTuple):
    """The consumer that lets a queue be pulled over HTTP.

    Attributes:
        max_retries: Deliveries after which Cloudflare deletes a message, or moves it to the
            dead-letter queue.
        dead_letter_queue: Name, at Cloudflare, of the dead-letter queue; ``""`` if there is none.
    """

    max_retries: int
    dead_letter_queue: str

    @classmethod
    def from_json(cls, consumers: Sequence[Mapping[str, Any]]) -> PullConsumer | None:
        """Read the pull consumer among a queue's *consumers*, if there is one."""
        for consumer in consumers:
            if consumer.get("type") == "http_pull":
                retries = _integer(mapping(consumer.get("settings")).get("max_retries"))
                dead_letter_queue = consumer.get("dead_letter_queue")
                return cls(
                    limits.MAX_RETRIES_DEFAULT if retries is None else retries,
                    dead_letter_queue if isinstance(dead_letter_queue, str) else "",
                )
        return None


class Backlog(NamedTuple):
    """Approximately what a queue holds, leased and delayed messages included.

    Attributes:
        messages: Their number; None if unknown.
        bytes: Their size; None if unknown.
        oldest_ms: When the oldest was published, in milliseconds since the epoch; None if unknown.
    """

    messages: int | None
    bytes: int | None
    oldest_ms: int | None

    @classmethod
    def from_json(cls, result: Any) -> Backlog:
        """Read a queue's metrics."""
        result = mapping(result)
        return cls(
            _integer(result.get("backlog_count")),
            _integer(result.get("backlog_bytes")),
            # 0 means that it is not known.
            _integer(result.get("oldest_message_timestamp_ms")) or None,
        )


def mapping(value: Any) -> Mapping[str, Any]:
    """Return *value* if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects of a list; none if *value* is not a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _has_more(info: Mapping[str, Any], page: int) -> bool:
    """Whether another page follows, by the counters that the response has."""
    pages, total, per_page = (info.get(key) for key in ("total_pages", "total_count", "per_page"))
    if isinstance(pages, int):
        return page < pages
    if isinstance(total, int) and isinstance(per_page, int) and per_page > 0:
        return page * per_page < total
    return True
