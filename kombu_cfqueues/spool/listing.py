"""What is in the spool, for people: what waits, since when and why; and what they decide on it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import from_text
from ..waiting_room import Kind
from .file import File
from .liveness import pid_of
from .schema import State


class QueueState(NamedTuple):
    """What the spool holds for one queue.

    Attributes:
        queue: The queue's name at Cloudflare, or ``#`` and its id.
        confirmed: Messages whose publishers wait for an answer.
        waiting: Spooled messages that wait.
        sending: Messages that are on their way.
        refused: Spooled messages that Cloudflare refused, kept for a decision.
        bytes: Of all of them.
        oldest_seconds: Age of the oldest that is not refused; None if there is none.
        paused_seconds: For how long nothing of it will be sent; 0 if it may be.
        why: The last failure that delays it; None if there was none.
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
        id: Names it to ``retry`` and ``drop``.
        queue: Where it was to go.
        age_seconds: Since it was published.
        bytes: Its size.
        code: Cloudflare's error code, if it told one.
        reason: What was said.
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
        requests: How many may leave at once.
        stopped_seconds: For how long none may, because the API said so; 0 if they may.
    """

    requests: int
    stopped_seconds: float


class Listing:
    """Looks at a spool from outside.

    Args:
        file: The spool.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def queues(self) -> list[QueueState]:
        """Every queue for which something is there.

        What publishers wait for counts until their deadline: those who were killed may have left
        it behind, and it is removed when a process next has something to do here.
        """

        def look(connection: sqlite3.Connection) -> list[QueueState]:
            now, wall = self._file.clock.monotonic(), time.time()
            rows = connection.execute(
                """
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
                """,
                {
                    "now": now,
                    "spooled": Kind.SPOOLED,
                    "waiting": State.WAITING,
                    "claimed": State.CLAIMED,
                    "refused": State.REFUSED,
                },
            ).fetchall()
            found = []
            for queue, *counts, oldest, paused_until, why in rows:
                age = None if oldest is None else max(0.0, wall - oldest)
                confirmed, waiting, sending, refused, size = counts
                paused = max(0.0, paused_until - now)
                found.append(
                    QueueState(queue, confirmed, waiting, sending, refused, size, age, paused, why)
                )
            return found

        return self._file.read(look)

    def refused(self) -> list[Refused]:
        """Every message that was refused, the oldest first."""

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
        """What is left of the allowance."""

        def look(connection: sqlite3.Connection) -> Allowed:
            bucket = self._file.bucket(connection)
            stop = bucket.stopped(publishing=True)
            return Allowed(max(0, int(bucket.tokens)), (stop and stop.retry_after) or 0.0)

        return self._file.read(look)

    def sharers(self) -> list[int]:
        """Process ids of the others who have the file open now, in order; each once."""
        return sorted({*map(pid_of, self._file.locks.living())} - {os.getpid()})

    def retry(self, messages: Sequence[int]) -> int:
        """Let refused messages wait again; return how many."""
        return self._decide(
            "UPDATE message SET state = 0, error = NULL, claim = NULL, max_batch = 1", messages
        )

    def drop(self, messages: Sequence[int]) -> int:
        """Delete refused messages; return how many."""
        return self._decide("DELETE FROM message", messages)

    def _decide(self, change: str, messages: Sequence[int]) -> int:
        which = f"WHERE id = ? AND state = {State.REFUSED:d} AND owner IS NULL"

        def work(connection: sqlite3.Connection) -> int:
            changed: list[Any] = [
                connection.execute(f"{change} {which}", (message,)).rowcount for message in messages
            ]
            return sum(changed)

        return self._file.write(work)
