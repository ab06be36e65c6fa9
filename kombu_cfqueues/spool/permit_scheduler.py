"""The order in which permits are given out.  The caller of each function is in a transaction.

The next permit goes to the queue with the oldest waiting message, whichever process posts it.  A
look-up ranks as the message that waits for it.  The spool, a batch and other admin requests never
take two permits in a row while something else waits: a backlog is always the oldest, and a hundred
processes that connect at once must not delay messages.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from ..waiting_room import Kind

if TYPE_CHECKING:
    import sqlite3

PERMIT_RESERVED_SECONDS: Final = 0.2
"""A free permit is reserved for the next contender for this long; then any process may take it.

The processes that could use it may be stopped.  With a shorter time, a process that is only slow
would lose its place; a longer time would waste requests, of which Cloudflare allows about four per
second."""

RESERVED_POLL_SECONDS: Final = PERMIT_RESERVED_SECONDS / 10
"""Poll interval while a free permit is reserved for another contender."""

ALTERNATING: Final = (Kind.BULK, Kind.SPOOLED, Kind.ADMIN)
"""Kinds that never take two permits in a row while something else waits."""

REQUESTS: Final = (Kind.ADMIN, Kind.LOOKUP)
"""Kinds that carry no message and belong to no queue."""


class Contender(NamedTuple):
    """The oldest waiting row of one kind in one queue, which contends for the next permit.

    Attributes:
        message: The row's id.
        kind: The row's kind.
        queue: Row of its queue; None for an admin request.
    """

    message: int
    kind: Kind
    queue: int | None


class Eligible(NamedTuple):
    """Which messages may be taken.

    Attributes:
        now: The monotonic clock.
        owner: Only messages of this process; None means messages of any process.
        latest: Only messages whose deadline is at most this, in monotonic seconds.
        request_seconds: How long a request takes.  A message with less time left is not taken,
            unless at least half of its whole time is left.
    """

    now: float
    owner: str | None = None
    latest: float = inf
    request_seconds: float = 0.0

    def values(self) -> dict[str, object]:
        """Return the SQL parameters of `ELIGIBLE`."""
        return {
            "now": self.now,
            "owner": self.owner,
            "latest": self.latest,
            "must_last": self.now + self.request_seconds,
        }


ELIGIBLE: Final = """
m.state = 0 AND ifnull(m.deadline, 9e999) <= :latest
    AND (m.deadline IS NULL OR m.deadline > :must_last OR m.half_time > :now)
    AND (:owner IS NULL OR m.owner IS :owner)
"""

BACKLOGGED: Final = """
WITH RECURSIVE waits (queue) AS (
    SELECT (
        SELECT queue FROM message WHERE state = 0 AND kind = :kind AND queue IS NOT NULL
        ORDER BY queue LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT queue FROM message WHERE state = 0 AND kind = :kind AND queue > waits.queue
        ORDER BY queue LIMIT 1
    )
    FROM waits WHERE waits.queue IS NOT NULL
)
"""
"""Rows of the queues that have waiting messages of a kind.

Each takes one step in the index, so thousands of queues without waiting messages cost nothing."""

_OLDEST: Final = f"""
{BACKLOGGED}
SELECT (
    SELECT m.id FROM message AS m
    WHERE m.kind = :kind AND m.queue = q.id AND {ELIGIBLE}
    ORDER BY m.id LIMIT 1
), q.id
FROM waits CROSS JOIN queue AS q ON q.id = waits.queue
WHERE q.stopped_until <= :now AND (:kind != :spooled OR q.paused_until <= :now)
"""  # noqa: S608  constant text

_REQUEST: Final = """
SELECT id, NULL FROM message
WHERE state = 0 AND kind = :kind AND queue IS NULL AND deadline > :now ORDER BY id LIMIT 1
"""


class Reservation:
    """Reserves a free permit for the next contender, for a limited time.

    The contender's process may be stopped, or no process may be left that can post it.
    """

    def __init__(self) -> None:
        # The row and when its reservation began.  Replaced as a whole, so it needs no lock.
        self._reserved: tuple[int, float] | None = None

    def has_expired(self, contender: Contender, now: float) -> bool:
        """Return whether *contender* has left a free permit unused for too long."""
        reserved = self._reserved
        if reserved is None or reserved[0] != contender.message:
            self._reserved = reserved = (contender.message, now)
        return now - reserved[1] >= PERMIT_RESERVED_SECONDS


def contenders(
    connection: sqlite3.Connection,
    eligible: Eligible,
    *,
    kinds: Collection[Kind] = tuple(Kind),
    without: Collection[int] = (),
) -> list[Contender]:
    """Return the contenders of *kinds* from queues that may be posted to, the oldest first.

    Queues whose rows are in *without* are left out.
    """
    found = []
    for kind in kinds:
        query = _REQUEST if kind in REQUESTS else _OLDEST
        values = eligible.values() | {"kind": kind, "spooled": Kind.SPOOLED}
        for message, queue in connection.execute(query, values).fetchall():
            if message is not None and queue not in without:
                found.append(Contender(message, kind, queue))
    return sorted(found)


def choose(waiting: list[Contender], last: Kind | None) -> Contender | None:
    """Return which of *waiting*, the oldest first, gets the permit that follows one for *last*."""
    if last in ALTERNATING:
        others = [contender for contender in waiting if contender.kind is not last]
        waiting = others or waiting
    return waiting[0] if waiting else None


def is_idle(connection: sqlite3.Connection) -> bool:
    """Return whether nothing waits for a permit."""
    query = "SELECT 1 FROM message WHERE state = 0 LIMIT 1"
    return connection.execute(query).fetchone() is None


class _Requests(NamedTuple):
    """Number of waiting requests without a message: all, and those before a given row."""

    admin: int
    admin_older: int
    lookups: int
    lookups_older: int


def permits_before(
    connection: sqlite3.Connection,
    waiting: list[Contender],
    message: int,
    last: Kind | None,
    now: float,
) -> int:
    """Return how many permits other rows get before the row *message* gets one.

    *waiting* is what `contenders` returned, and *last* the kind that got the last permit.
    """
    messages = [contender for contender in waiting if contender.queue is not None]
    older = sum(contender.message < message for contender in messages)
    requests = _count_requests(connection, message, now)
    older += requests.lookups_older
    if _is_admin(connection, message):
        # A message or look-up precedes each admin request, while any wait.
        others = requests.lookups + len(messages)
        between = min(others, requests.admin_older + (last is Kind.ADMIN))
        return requests.admin_older + max(between, older)
    return older + (requests.admin > 0 and last is not Kind.ADMIN)


def _count_requests(connection: sqlite3.Connection, message: int, now: float) -> _Requests:
    counts = connection.execute(
        "SELECT count(*) FILTER (WHERE kind = :admin), "
        "count(*) FILTER (WHERE kind = :admin AND id < :id), "
        "count(*) FILTER (WHERE kind = :lookup), "
        "count(*) FILTER (WHERE kind = :lookup AND id < :id) "
        "FROM message WHERE state = 0 AND queue IS NULL AND deadline > :now AND id != :id",
        {"admin": Kind.ADMIN, "lookup": Kind.LOOKUP, "id": message, "now": now},
    ).fetchone()
    return _Requests(*counts)


def _is_admin(connection: sqlite3.Connection, message: int) -> bool:
    found = connection.execute("SELECT kind FROM message WHERE id = ?", (message,)).fetchone()
    return bool(found and found[0] == Kind.ADMIN)


def requests_before(connection: sqlite3.Connection, message: int, now: float) -> int:
    """Return how many requests without a message entered before *message* and still wait."""
    (count,) = connection.execute(
        "SELECT count(*) FROM message WHERE state = 0 AND queue IS NULL AND id < ? "
        "AND deadline > ?",
        (message, now),
    ).fetchone()
    return int(count)
