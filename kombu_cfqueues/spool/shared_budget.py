"""The machine's request allowance, in the form in which a client wants it.

Admin requests, which carry no message, stand in the same line as messages do.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Final

from .. import limits
from ..errors import CFQueuesError, SpoolFull, SpoolUnavailable
from ..metrics import metrics
from ..rate_limit import Budget, Limit, NoPermit, Scope, parse_ratelimit, scope_of
from ..runtime.fork import renew_in_child
from ..runtime.once import Once
from ..shared_facts import Unneeded
from ..waiting_room import Kind, RoomBusy, Wait
from . import permit_scheduler as scheduler
from .bucket import last_kind
from .facts import FileFacts
from .file import File
from .permit_scheduler import TURN_SECONDS, Eligible, Patience

logger = logging.getLogger(__name__)

SHARERS: Final = 16
"""Without the file, a process takes the share of one of so many: if each of a web server's
processes had the whole allowance, they would cause the block that it is there to avoid."""

TROUBLE_SECONDS: Final = 30.0
"""So long after the file could not be used it is not tried again."""

GIVE_BACK_SECONDS: Final = 0.1
"""How long a place in the line is tried to be given back; its own deadline ends it otherwise."""

LONGEST_SLEEP_SECONDS: Final = 1.0
"""How often who waits for a permit looks at the line."""


class SharedBudget:
    """Permits from the file, first come first served among all processes of the machine.

    Args:
        file: Where they are.
        limit: The allowance.
        clock: Time and waiting.
    """

    def __init__(self, file: File, limit: Limit) -> None:
        self._permits = Permits(file)
        self._facts = FileFacts(file)
        self._clock = file.clock
        self.alone = Budget(Limit(limit.rate / SHARERS, 1), clock=self._clock)
        """What this process may send by itself while the file cannot be used."""
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Try the file again in a child."""
        self._alone_until = 0.0  # monotonic; read and written at once: it needs no lock
        self._once = Once()

    def acquire(
        self,
        deadline: float,
        *,
        queue: str | None = None,
        for_message: bool = False,
        is_known: Callable[[], bool] | None = None,
    ) -> None:
        """Block until one more request may leave; what `Budget.acquire` says holds here too."""
        kind = Kind.LOOKUP if for_message else Kind.ADMIN
        if not self._in_file(lambda: self._acquire(deadline, kind, is_known)):
            self.alone.acquire(deadline, queue=queue)

    def observe(self, ratelimit: str | None) -> None:
        """Heed the ``Ratelimit`` header of any answer; None if it had none."""
        if ratelimit is not None and not self._in_file(lambda: self._permits.heed(ratelimit)):
            self.alone.observe(ratelimit)

    def refused(self, error: CFQueuesError, *, queue: str | None = None) -> None:
        """Stop what a 429 stops, for every process; any other *error* stops nothing."""
        if error.status in (401, 403):
            self._facts.note_token(works=False)
        if error.status == 429:
            self.alone.refused(error, queue=queue)
            self._in_file(lambda: self._permits.stop(error, queue))

    def is_shared(self) -> bool:
        """Whether the file is to be used now."""
        return self._clock.monotonic() >= self._alone_until

    def give_up(self, error: CFQueuesError) -> None:
        """Do without the file for a while; say so once."""
        self._alone_until = self._clock.monotonic() + TROUBLE_SECONDS
        if self._once.is_new():
            logger.warning(
                "this process paces its requests alone, at a sixteenth of the allowance, because "
                "it cannot share it with the other processes of the machine: %s",
                error,
            )

    def _in_file(self, work: Callable[[], None]) -> bool:
        """Do *work* there; return False if that cannot be."""
        if not self.is_shared():
            return False
        try:
            work()
        except (SpoolUnavailable, SpoolFull) as error:
            self.give_up(error)
            return False
        return True

    def _acquire(self, deadline: float, kind: Kind, is_known: Callable[[], bool] | None) -> None:
        place: int | None = None
        since = self._clock.monotonic()
        try:
            while True:
                place, wait = self._permits.request_permit(place, deadline, kind)
                if wait is None:
                    metrics.waited(self._clock.monotonic() - since)
                    return
                if is_known is not None and is_known():
                    raise Unneeded
                now = self._clock.monotonic()
                if wait.why is not None and now + (wait.why.retry_after or 0.0) > deadline:
                    raise wait.why
                until = now if wait.until is None else wait.until
                if now >= deadline:
                    raise NoPermit("the request allowance is used up", retry_after=until - now)
                self._clock.sleep(max(0.0, min(until, deadline) - now))
        except RoomBusy as error:
            raise NoPermit(f"the request allowance cannot be asked: {error}") from error
        finally:
            if place is not None:
                self._give_back(place)

    def _give_back(self, place: int) -> None:
        try:
            self._permits.give_back(place)
        except (SpoolUnavailable, SpoolFull, RoomBusy) as error:
            # Its deadline ends it.
            logger.debug("a place in the line for permits could not be given back: %s", error)


class Permits:
    """The machine's allowance, as admin requests use it.

    Args:
        file: Where it is.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._patience = Patience()

    def request_permit(
        self, place: int | None, deadline: float, kind: Kind = Kind.ADMIN
    ) -> tuple[int | None, Wait | None]:
        """Take a permit for a request that carries no message, or a place in the line for one.

        Args:
            place: The place, from the last call.
            deadline: Until when the caller waits, in monotonic seconds.
            kind: ``ADMIN``, or ``LOOKUP`` if a message waits for the answer.

        Returns:
            The place, and when to ask again; None and None: the permit.
        """
        if place is not None:
            # Looking first: most who look have to wait on, and only one process can write.
            wait = self._file.read(lambda c: self._wait(c, place, kind), until=deadline)
            if wait is not None:
                return place, wait

        def work(connection: sqlite3.Connection) -> tuple[int | None, Wait | None]:
            mine = place
            wait = self._wait(connection, mine, kind)
            if wait is not None and wait.until is None:
                mine = self._stand_in_line(connection, deadline, kind)
                wait = self._wait(connection, mine, kind)
            if wait is not None:
                return mine, wait
            self._file.bucket(connection).spend(kind)
            connection.execute(
                "DELETE FROM message WHERE id = ? AND owner = ?", (mine, self._file.me)
            )
            return None, None

        return self._file.write(work, until=deadline)

    def _wait(self, connection: sqlite3.Connection, place: int | None, kind: Kind) -> Wait | None:
        """Return how long *place*, or who has none yet, has to wait; None: take the permit.

        ``until`` is None where a place in the line is needed first.
        """
        bucket = self._file.bucket(connection)
        now = self._file.clock.monotonic()
        stop = bucket.stopped(publishing=False)
        if stop is not None:
            return Wait(now + (stop.retry_after or 0.0), stop)
        line = scheduler.waiting(connection, Eligible(now))
        if place is None:
            return None if not line and bucket.tokens >= 1 else Wait(None)
        last = last_kind(connection)
        before = scheduler.permits_before(connection, line, place, last, now)
        if bucket.tokens >= 1:
            first = scheduler.next_turn(line, last)
            if (
                first is None
                or first.message == place
                or bucket.tokens >= 1 + before
                or self._patience.is_over(first, now)
            ):
                return None
        # Each who waits knows its own time, so that not all wake for each permit; and looks now
        # and then whether those before it have given up.
        mine = max(bucket.ready_at(1 + before), now + TURN_SECONDS if before else 0.0)
        return Wait(min(mine, now + LONGEST_SLEEP_SECONDS), bucket.exhausted())

    def _stand_in_line(self, connection: sqlite3.Connection, deadline: float, kind: Kind) -> int:
        done = connection.execute(
            "INSERT INTO message (kind, owner, deadline, entered) VALUES (?, ?, ?, ?)",
            (kind, self._file.me, deadline, time.time()),
        )
        return int(done.lastrowid or 0)

    def give_back(self, place: int) -> None:
        """Leave the line of admin requests."""
        now = self._file.clock.monotonic()
        me = self._file.me
        self._file.write(
            lambda c: c.execute("DELETE FROM message WHERE id = ? AND owner = ?", (place, me)),
            until=now + GIVE_BACK_SECONDS,
        )

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
