"""The machine's request allowance, with the interface of `rate_limit.Budget`.

Admin requests carry no message, but they wait for permits in the same order as messages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .. import limits
from ..errors import AuthenticationFailed, CFQueuesError, Scope, SpoolFull, SpoolUnavailable
from ..metrics import metrics
from ..rate_limit import Budget, Limit, NoPermit, StopLog, parse_ratelimit
from ..runtime.fork import renew_in_child
from ..runtime.once import Once
from ..shared_facts import Unneeded
from ..waiting_room import Kind, RoomBusy, Wait
from . import permit_scheduler as scheduler
from .bucket import last_kind
from .facts import FileFacts
from .file import File
from .fleet import FleetPermits
from .message_table import Place
from .permit_scheduler import RESERVED_POLL_SECONDS, Contender, Eligible, Reservation

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger(__name__)

FILE_RETRY_PAUSE_SECONDS: Final = 30.0
"""Pause before a process retries a file that could not be used.

The cause is usually a disk or a permission that a person has to change.  Retrying earlier would
only delay each request."""

GIVE_BACK_TIMEOUT_SECONDS: Final = 0.1
"""How long a request that gives up tries to remove its row from the file.

If that fails, the row's own deadline ends it."""

MAX_SLEEP_SECONDS: Final = 1.0
"""Longest sleep of a request that waits for a permit.

After it, the request checks whether earlier requests have given up."""


class SharedBudget:
    """Permits from the file, for all processes of the machine, in the order of their requests.

    Args:
        file: The spool's file.
        limit: The allowance.
    """

    def __init__(self, file: File, limit: Limit) -> None:
        self._permits = Permits(file)
        self._facts = FileFacts(file)
        self._clock = file.clock
        self._stop_log = file.stop_log
        self.alone = Budget(limit.alone, clock=self._clock, stop_log=file.stop_log)
        """What this process may send alone, while the file cannot be used."""
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Try the file again in the child."""
        self._alone_until = 0.0  # monotonic; each access is atomic and needs no lock
        self._once = Once()

    def acquire(
        self,
        deadline: float,
        *,
        queue: str | None = None,
        for_message: bool = False,
        is_known: Callable[[], bool] | None = None,
    ) -> None:
        """Block until one more request may leave; see `Budget.acquire`.

        Raises:
            RateLimited: No request may leave before *deadline*.
            Unneeded: The request is not needed, because *is_known* says so.
        """
        kind = Kind.LOOKUP if for_message else Kind.ADMIN
        if not self._in_file(lambda: self._acquire(deadline, kind, is_known)):
            self.alone.acquire(deadline, queue=queue)

    def observe(self, ratelimit: str | None) -> None:
        """Slow down if the ``Ratelimit`` header of a response asks for it; None if it had none."""
        if ratelimit is not None and not self._in_file(lambda: self._permits.heed(ratelimit)):
            self.alone.observe(ratelimit)

    def refused(self, error: CFQueuesError, *, queue: str | None = None) -> None:
        """Stop the requests that *error* concerns, for every process."""
        if isinstance(error, AuthenticationFailed):
            self._facts.forget_token()
        if error.stops is not None:
            # The file first, because it has the machine's share, which the log line contains.
            self._in_file(lambda: self._permits.stop(error, queue))
            self.alone.refused(error, queue=queue)

    def is_shared(self) -> bool:
        """Whether permits come from the file now."""
        return self._clock.monotonic() >= self._alone_until

    def give_up(self, error: CFQueuesError) -> None:
        """Do not use the file for `FILE_RETRY_PAUSE_SECONDS`; log *error* the first time."""
        self._alone_until = self._clock.monotonic() + FILE_RETRY_PAUSE_SECONDS
        if self._once.is_new():
            logger.warning(
                "this process paces its requests alone, at a sixteenth of the allowance, because "
                "it cannot share the allowance with the other processes of this machine: %s",
                error,
            )

    def _in_file(self, work: Callable[[], None]) -> bool:
        """Do *work* in the file; return False if the file cannot be used."""
        if not self.is_shared():
            return False
        try:
            work()
        except (SpoolUnavailable, SpoolFull) as error:
            self.give_up(error)
            return False
        return True

    def _acquire(self, deadline: float, kind: Kind, is_known: Callable[[], bool] | None) -> None:
        request: Place | None = None
        since = self._clock.monotonic()
        try:
            while True:
                if is_known is not None and is_known():
                    raise Unneeded
                request, wait = self._permits.request_permit(request, deadline, kind, since)
                if wait is None:
                    metrics.waited(self._clock.monotonic() - since)
                    self._stop_log.resumed()
                    return
                log_stop(self._stop_log, wait)
                self._sleep(wait, deadline)
        except RoomBusy as error:
            raise NoPermit(f"no permit could be requested: {error}") from error
        finally:
            if request is not None:
                self._give_back(request)

    def _sleep(self, wait: Wait, deadline: float) -> None:
        """Sleep until *wait* ends, at the latest until *deadline*.

        Raises:
            RateLimited: At once, if no permit can be free before *deadline*.
        """
        now = self._clock.monotonic()
        if wait.why is not None and now + (wait.why.retry_after or 0.0) > deadline:
            raise wait.why
        until = now if wait.until is None else wait.until
        if now >= deadline:
            raise NoPermit("the request allowance is used up", retry_after=until - now)
        self._clock.sleep(max(0.0, min(until, deadline) - now))

    def _give_back(self, request: Place) -> None:
        try:
            self._permits.give_back(request)
        except (SpoolUnavailable, SpoolFull, RoomBusy) as error:
            # The row ends at its deadline.
            logger.debug("a request for a permit could not be given back: %s", error)


def log_stop(stop_log: StopLog, wait: Wait) -> None:
    """Log that the API has stopped the token, if that is the reason of *wait*."""
    if wait.until is None or wait.why is None or wait.queue is not None:
        return
    if not isinstance(wait.why, NoPermit):
        stop_log.stopped(wait.why, wait.until, getattr(wait.why, "lesson", ""))


class Permits:
    """The machine's allowance, for requests that carry no message.

    Args:
        file: The spool's file.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._fleet = FleetPermits(file)
        self._reservation = Reservation()

    def request_permit(
        self, request: Place | None, deadline: float, kind: Kind, since: float
    ) -> tuple[Place | None, Wait | None]:
        """Take a permit for a request that carries no message, or wait for one in the file.

        Args:
            request: The place in the file that the last call returned; None in the first call.
            deadline: Until when the request may wait, in monotonic seconds.
            kind: ``ADMIN``, or ``LOOKUP`` if a message waits for the answer.
            since: When it began to wait, in monotonic seconds.

        Returns:
            Where it waits in the file, and when to ask again; None and None if the permit was
            taken.
        """
        if request is not None:
            # Read first: most requests must keep waiting, and only one process can write.
            wait = self._file.read(lambda c: self._wait(c, request, asks=True), until=deadline)
            self._fleet.log()
            if wait is not None and wait.until is not None:
                return request, wait
        self._fleet.fetch(publishing=False, until=deadline)
        return self._file.write(
            lambda c: self._take_or_wait(c, request, deadline, kind, since), until=deadline
        )

    def _take_or_wait(
        self,
        connection: sqlite3.Connection,
        request: Place | None,
        deadline: float,
        kind: Kind,
        since: float,
    ) -> tuple[Place | None, Wait | None]:
        wait = self._wait(connection, request)
        if wait is not None and wait.until is None:
            request = self._enter(connection, deadline, kind)
            wait = self._wait(connection, request)
        if wait is not None:
            return request, wait
        waited = self._file.clock.monotonic() - since
        self._file.bucket(connection).spend(kind, waited)
        self._delete(connection, request)
        return None, None

    def _wait(
        self, connection: sqlite3.Connection, request: Place | None, *, asks: bool = False
    ) -> Wait | None:
        """Return how long *request* has to wait; None if it may take the permit.

        ``until`` is None if the request needs a row in the file first.
        """
        bucket = self._file.bucket(connection, asks=asks)
        now = self._file.clock.monotonic()
        stop = bucket.stopped(publishing=False)
        if stop is not None:
            return Wait(now + (stop.retry_after or 0.0), stop)
        waiting = scheduler.contenders(connection, Eligible(now))
        row = self._row(connection, request)
        if row is None:
            return None if not waiting and bucket.tokens >= 1 else Wait(None)
        last = last_kind(connection)
        before = scheduler.permits_before(connection, waiting, row, last, now)
        first = scheduler.choose(waiting, last)
        if bucket.tokens >= 1 and (bucket.tokens >= 1 + before or self._may_go(row, first, now)):
            return None
        # Each request computes its own time, so that not all of them wake for each permit.
        until = max(bucket.ready_at(1 + before), now + RESERVED_POLL_SECONDS if before else 0.0)
        return Wait(min(until, now + MAX_SLEEP_SECONDS), bucket.exhausted())

    def _row(self, connection: sqlite3.Connection, request: Place | None) -> int | None:
        """Return the row where *request* still waits.

        None if it has none: it did not need one so far, the file was replaced, or the row was
        removed as that of a dead process.  In a newer file its number may be a message's.
        """
        if request is None or request[0] != self._file.id:
            return None
        found = connection.execute(
            "SELECT id FROM message WHERE id = ? AND owner = ? AND kind IN (?, ?)",
            (request[1], self._file.me, Kind.LOOKUP, Kind.ADMIN),
        ).fetchone()
        return found and int(found[0])

    def _may_go(self, row: int, first: Contender | None, now: float) -> bool:
        """Whether *row* may take a free permit: it is next, or *first* has left it unused."""
        return first is None or first.message == row or self._reservation.has_expired(first, now)

    def _enter(self, connection: sqlite3.Connection, deadline: float, kind: Kind) -> Place:
        done = connection.execute(
            "INSERT INTO message (kind, owner, deadline, entered) VALUES (?, ?, ?, ?)",
            (kind, self._file.me, deadline, time.time()),
        )
        return self._file.id, int(done.lastrowid or 0)

    def _delete(self, connection: sqlite3.Connection, request: Place | None) -> None:
        row = self._row(connection, request)
        if row is not None:
            connection.execute("DELETE FROM message WHERE id = ?", (row,))

    def give_back(self, request: Place) -> None:
        """Delete a request that no longer waits for a permit."""
        until = self._file.clock.monotonic() + GIVE_BACK_TIMEOUT_SECONDS
        self._file.write(lambda c: self._delete(c, request), until=until)

    def heed(self, ratelimit: str) -> None:
        """Slow down if a ``Ratelimit`` header asks for it."""
        grant = parse_ratelimit(ratelimit)
        if grant is None or not self._file.is_limited:
            return
        if self._file.fleet is not None:
            self._file.fleet.heed(*grant)
        if self._file.read(lambda c: self._file.bucket(c).would_heed(*grant)):
            self._file.write(lambda c: self._file.bucket(c).heed(*grant))

    def notice_stop(self) -> None:
        """Log a stop of publishing, or its end, that another process has recorded in the file."""
        stop = self._file.read(lambda c: self._file.bucket(c).stopped(publishing=True))
        if stop is None:
            self._file.stop_log.resumed()
        else:
            log_stop(
                self._file.stop_log,
                Wait(self._file.clock.monotonic() + (stop.retry_after or 0.0), stop),
            )

    def stop(self, error: CFQueuesError, cloudflare_id: str | None) -> None:
        """Stop the requests that *error* concerns: one queue, publishing, or every call."""
        scope = error.stops
        if scope is None:
            return
        queue_only = scope is Scope.QUEUE
        if queue_only and not (cloudflare_id and error.retry_after):
            return  # the retry of the request backs off
        seconds = limits.WINDOW_SECONDS if error.retry_after is None else error.retry_after

        def work(connection: sqlite3.Connection) -> tuple[float, str] | None:
            if not queue_only:
                bucket = self._file.bucket(connection)
                return bucket.stop(scope, seconds, is_block=error.is_block), bucket.lesson
            connection.execute(
                "UPDATE queue SET stopped_until = ?, trouble = ? WHERE cloudflare_id = ?",
                (self._file.clock.monotonic() + seconds, str(error), cloudflare_id),
            )
            return None

        stop = self._file.write(work)
        if stop is not None:
            # A process with its own allowance may have logged this stop with an earlier end.
            until, lesson = stop
            self._file.stop_log.stopped(error, until, lesson if error.is_block else "")
            self._fleet.stop(scope, seconds)
