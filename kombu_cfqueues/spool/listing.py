"""Shows what is in the spool, and retries or drops refused messages."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import from_text
from ..waiting_room import Kind
from .bucket import LearnedShare
from .file import File
from .liveness import pid_of
from .schema import State

if TYPE_CHECKING:
    import sqlite3


class QueueState(NamedTuple):
    """What the spool holds for one queue.

    Attributes:
        queue: The queue's name at Cloudflare, or ``#`` and its id.
        confirmed: Messages whose publishers wait for an answer.
        waiting: Spooled messages that wait.
        sending: Messages that are being posted.
        refused: Spooled messages that Cloudflare refused, kept until they are retried or dropped.
        bytes: Total size of all these messages.
        oldest_seconds: Age of the oldest message that is not refused; None if there is none.
        paused_seconds: Seconds until the queue's messages may be posted; 0 if they may be now.
        why: The last failure that delays the queue; None if there was none.
    """

    queue: str
    confirmed: int
    waiting: int
    sending: int
    refused: int
    bytes: int
    oldest_seconds: float | None
    paused_seconds: float
    why: str | None


class Refused(NamedTuple):
    """A message that Cloudflare refused.

    Attributes:
        id: Its number, for ``retry`` and ``drop``.
        queue: The queue it was published to.
        age_seconds: Seconds since it was published.
        bytes: Its size.
        code: Cloudflare's error code; None if there was none.
        reason: The error's text.
    """

    id: int
    queue: str
    age_seconds: float
    bytes: int
    code: int | None
    reason: str


class Allowed(NamedTuple):
    """What is left of the request allowance that the spool's processes share.

    Attributes:
        requests: Number of requests that may leave now.
        stopped_seconds: Seconds until a stop of the API ends; 0 if requests are accepted now.
    """

    requests: int
    stopped_seconds: float


_QUEUES: Final = """
SELECT q.address,
    sum(m.kind != :spooled AND m.state = :waiting),
    sum(m.kind = :spooled AND m.state = :waiting),
    sum(m.state = :claimed),
    sum(m.kind = :spooled AND m.state = :refused),
    sum(m.size),
    min(CASE WHEN m.state != :refused THEN m.entered END),
    max(q.stopped_until, q.paused_until),
    q.trouble
FROM message AS m JOIN queue AS q ON m.queue = q.id
WHERE m.state IN (:waiting, :claimed, :refused)
    AND (m.deadline IS NULL OR max(m.deadline, ifnull(m.claimed_until, 0)) > :now)
GROUP BY q.id ORDER BY q.address
"""


class Listing:
    """Reads a spool for display, and changes refused messages.

    Args:
        file: The spool's file.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def queues(self) -> list[QueueState]:
        """Return every queue that has messages in the file.

        Confirmed messages count until their deadline.  A publisher that was killed may have left
        them behind; the next process that uses the file removes them.
        """

        def look(connection: sqlite3.Connection) -> list[QueueState]:
            now, wall = self._file.clock.monotonic(), time.time()
            values = {
                "now": now,
                "spooled": Kind.SPOOLED,
                "waiting": State.WAITING,
                "claimed": State.CLAIMED,
                "refused": State.REFUSED,
            }
            rows = connection.execute(_QUEUES, values).fetchall()
            return [_state(row, now, wall) for row in rows]

        return self._file.read(look)

    def refused(self) -> list[Refused]:
        """Return every refused message, the oldest first."""

        def look(connection: sqlite3.Connection) -> list[Refused]:
            wall = time.time()
            rows = connection.execute(
                "SELECT m.id, q.address, m.entered, m.size, m.error FROM message AS m "
                "JOIN queue AS q ON m.queue = q.id WHERE m.state = ? AND m.owner IS NULL "
                "ORDER BY m.id",
                (State.REFUSED,),
            ).fetchall()
            found = []
            for row, queue, entered, size, error in rows:
                why = from_text(error)
                age = max(0.0, wall - entered)
                found.append(Refused(row, queue, age, size, why.code, str(why)))
            return found

        return self._file.read(look)

    def allowed(self) -> Allowed:
        """Return what is left of the allowance."""

        def look(connection: sqlite3.Connection) -> Allowed:
            bucket = self._file.bucket(connection)
            stop = bucket.stopped(publishing=True)
            return Allowed(max(0, int(bucket.tokens)), (stop and stop.retry_after) or 0.0)

        return self._file.read(look)

    def share(self) -> LearnedShare | None:
        """Return the share of the rate that the machine has learned; None if there is none."""
        return self._file.read(lambda c: self._file.bucket(c).share)

    def sharers(self) -> list[int]:
        """Return the ids of the other processes that have the file open, sorted and unique."""
        return sorted({*map(pid_of, self._file.locks.living())} - {os.getpid()})

    def retry(self, messages: Sequence[int]) -> int:
        """Let refused messages wait again; return their number."""
        return self._change_refused(
            "UPDATE message SET state = 0, error = NULL, claim = NULL, max_batch = 1", messages
        )

    def drop(self, messages: Sequence[int]) -> int:
        """Delete refused messages; return their number."""
        return self._change_refused("DELETE FROM message", messages)

    def _change_refused(self, change: str, messages: Sequence[int]) -> int:
        which = f"WHERE id = ? AND state = {State.REFUSED:d} AND owner IS NULL"

        def work(connection: sqlite3.Connection) -> int:
            changed: list[Any] = [
                connection.execute(f"{change} {which}", (message,)).rowcount for message in messages
            ]
            return sum(changed)

        return self._file.write(work)


def _state(row: tuple[Any, ...], now: float, wall: float) -> QueueState:
    queue, confirmed, waiting, sending, refused, size, oldest, paused_until, why = row
    age = None if oldest is None else max(0.0, wall - oldest)
    paused = max(0.0, paused_until - now)
    return QueueState(queue, confirmed, waiting, sending, refused, size, age, paused, why)
