"""Permits for admin requests, which carry no message, and what the server says of the allowance."""

from __future__ import annotations

import sqlite3
import time

from .. import limits
from ..budget import Scope, parse_ratelimit, scope_of
from ..errors import CFQueuesError
from . import turns
from .bucket import last_kind
from .file import File
from .schema import Kind
from .turns import TURN_SECONDS, Patience, Wait


class Permits:
    """The machine's allowance, as admin requests use it.

    Args:
        file: Where it is.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._patience = Patience()

    def request_permit(self, ticket: int | None, deadline: float) -> tuple[int | None, Wait | None]:
        """Take a permit for an admin request, or a place in the line for one.

        Args:
            ticket: The place, from the last call.
            deadline: Until when the caller waits.

        Returns:
            The place, and when to ask again; None and None: the permit.
        """

        def work(connection: sqlite3.Connection) -> tuple[int | None, Wait | None]:
            bucket = self._file.bucket(connection)
            now = self._file.clock.monotonic()
            stop = bucket.stopped(publishing=False)
            if stop is not None:
                return ticket, Wait(now + (stop.retry_after or 0.0), stop)
            line = turns.waiting(connection, now)
            if not line and bucket.tokens >= 1:
                bucket.spend(Kind.TICKET)
                return None, None
            place = ticket
            if place is None:
                place = connection.execute(
                    "INSERT INTO message (kind, owner, deadline, entered) VALUES (?, ?, ?, ?)",
                    (Kind.TICKET, self._file.poster, deadline, time.time()),
                ).lastrowid
                line = turns.waiting(connection, now)
            first = turns.next_turn(line, last_kind(connection))
            before = turns.tickets_before(connection, place or 0, now)
            before += sum(t.message < (place or 0) for t in line if t.kind is not Kind.TICKET)
            if bucket.tokens < 1:
                # Each who waits knows its own time, so that not all wake for each permit.
                return place, Wait(min(bucket.ready_at(1 + before), now + 1))
            mine = first is None or first.message == place
            if not (
                mine
                or bucket.tokens >= 1 + before
                or (first and self._patience.is_over(first, now))
            ):
                return place, Wait(now + TURN_SECONDS)
            bucket.spend(Kind.TICKET)
            connection.execute("DELETE FROM message WHERE id = ?", (place,))
            return None, None

        return self._file.write(work)

    def give_back(self, ticket: int) -> None:
        """Leave the line of admin requests."""
        self._file.write(lambda c: c.execute("DELETE FROM message WHERE id = ?", (ticket,)))

    def heed(self, ratelimit: str) -> None:
        """Heed a ``Ratelimit`` header."""
        grant = parse_ratelimit(ratelimit)
        if grant is None or not self._file.is_limited:
            return
        if self._file.read(lambda c: self._file.bucket(c).would_heed(*grant)):
            self._file.write(lambda c: self._file.bucket(c).heed(*grant))

    def stop(self, error: CFQueuesError, cloudflare_id: str | None) -> None:
        """Stop what a 429 stops: one queue, publishing, or all calls of the token."""
        scope = scope_of(error.code)
        queue_only = scope is Scope.QUEUE
        if queue_only and not (cloudflare_id and error.retry_after):
            return  # whoever repeats the request backs off
        seconds = limits.WINDOW_SECONDS if error.retry_after is None else error.retry_after

        def work(connection: sqlite3.Connection) -> None:
            if queue_only:
                connection.execute(
                    "UPDATE queue SET stopped_until = ?, trouble = ? WHERE cloudflare_id = ?",
                    (self._file.clock.monotonic() + seconds, str(error), cloudflare_id),
                )
            else:
                self._file.bucket(connection).stop(scope, seconds)

        self._file.write(work)
