"""The waiting room that all processes of a machine share: the spool's file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import limits
from ..errors import CFQueuesError, PublishTimeout, SpoolFull, SpoolUnavailable, from_text
from ..metrics import metrics
from ..runtime.fork import renew_in_child
from ..waiting_room import (
    Claim,
    ClaimOutcome,
    ClaimTerms,
    Item,
    Kind,
    Outcomes,
    RoomBusy,
    Settled,
    Wait,
    Withdrawn,
)
from . import claims, outcomes, sweep
from .file import File
from .fleet import FleetPermits
from .message_table import insert, queue_row
from .permit_scheduler import Contender, Reservation, is_idle
from .schema import State, free
from .shared_budget import log_stop

if TYPE_CHECKING:
    import sqlite3

SWEEP_SECONDS: Final = 0.25
"""Interval between two searches for processes that have died.

It bounds how long a dead process holds its claims.  A search reads a folder and tries a lock for
each process, so it costs more than a read of the file."""

FORGET_SECONDS: Final = 600.0
"""Interval between two searches for queues and tokens that are no longer used."""

OUTCOME_POLL_SECONDS: Final = 0.008
"""Poll interval for outcomes while another process posts this process's messages, or is about to.

A publish returns later by up to this interval, which is little compared with a request."""

SLOW_OUTCOME_POLL_SECONDS: Final = SWEEP_SECONDS / 5
"""Poll interval for outcomes once a request has taken longer than usual.

By then, another 50 ms hardly matters, and many processes may be polling."""

USUAL_REQUEST_SECONDS: Final = 0.16
"""Nearly every request is answered within this time; after it, the slow poll interval applies."""

FAST_POLLS: Final = round(USUAL_REQUEST_SECONDS / OUTCOME_POLL_SECONDS)
"""Number of polls without an outcome before the slow interval applies."""

NOWHERE: Final = ("", 0)
"""The place of a message that was withdrawn before it entered the file, and must not enter it."""


class _Found(NamedTuple):
    """What the file records about a message of this process."""

    state: State
    uncertain: bool
    error: str | None


class _Seen(NamedTuple):
    """What one look at the file finds for this process.

    Attributes:
        file: The file's id.
        settled: Row, error and uncertainty of each message that has an outcome.
        waiting: Whether a message of this process is unclaimed.
    """

    file: str
    settled: list[tuple[int, str | None, bool]]
    waiting: bool


class SpoolRoom:
    """Messages that wait in the file, as one process sees them.

    Args:
        file: Where the messages are.
        claim_seconds: A claim expires after this time, even if its process is alive.
    """

    shared = True
    max_batch = limits.BATCH_MESSAGES

    def __init__(self, file: File, claim_seconds: float) -> None:
        self._file = file
        self._fleet = FleetPermits(file)
        self._claim_seconds = claim_seconds
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget what the parent waits for."""
        # What this process waits for, by file and row.  Each access is atomic and needs no lock.
        self._own: dict[Any, Item] = {}
        self._reservation = Reservation()
        # Not at once, or processes that start together would all look at one another's locks.
        self._swept_at = self._file.clock.monotonic()
        self._forgets_at = 0.0
        self._empty_polls = 0
        self._waiting_since: float | None = None  # for a permit

    # -- in and out ---------------------------------------------------------------------------

    def enter(
        self, items: Sequence[Item], *, number: int, may_skip: bool, until: float
    ) -> Claim | None:
        """See `WaitingRoom.enter`.  Messages claimed at once are not written to the file."""
        address = items[0].address

        def work(connection: sqlite3.Connection) -> bool:
            queue = queue_row(connection, address)
            self._forget_unused(connection)  # here, since nobody sweeps where nobody waits
            if may_skip and self._try_take_permit(connection, queue):
                return True
            for item in items:
                self._insert(connection, queue, item)
            return False

        try:
            if may_skip:
                self._fleet.fetch(publishing=True, if_idle=True, until=until)
            skips = self._file.write(work, until=until)
        except BaseException:
            self._forget_places(items)
            raise
        if not skips:
            return None
        metrics.waited(0.0)
        self._file.stop_log.resumed()
        return Claim(number, address, items)

    def _forget_places(self, items: Sequence[Item]) -> None:
        for item in items:
            self._own.pop(item.place, None)
            item.place = None

    def _try_take_permit(self, connection: sqlite3.Connection, queue: int) -> bool:
        """Take a permit if one is free and nothing else waits; return whether one was taken."""
        if not is_idle(connection):
            return False
        bucket = self._file.bucket(connection)
        (stopped_until,) = connection.execute(
            "SELECT stopped_until FROM queue WHERE id = ?", (queue,)
        ).fetchone()
        if (
            bucket.exhausted()
            or bucket.stopped(publishing=True)
            or stopped_until > self._file.clock.monotonic()
        ):
            return False
        bucket.spend(Kind.SINGLE)
        return True

    def _insert(self, connection: sqlite3.Connection, queue: int, item: Item) -> None:
        row = insert(
            connection,
            item.kind,
            queue,
            item.message,
            owner=self._file.me,
            deadline=item.deadline,
            half_time=item.half_time,
            repeats=item.repeats,
            uncertain=item.uncertain,
        )
        self._own.pop(item.place, None)  # from an earlier run of the same transaction
        item.place = (self._file.id, row)
        # Stored before the commit: another thread may read the outcome immediately after it.
        self._own[item.place] = item

    def outcomes(self, *, until: float) -> Outcomes:
        """See `WaitingRoom.outcomes`."""
        now = self._file.clock.monotonic()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self.sweep(until=until)
        seen = self._file.read(self._look, until=until)
        settled = self._lost(seen.file)
        if seen.settled:
            self._forget(seen.file, [row for row, _, _ in seen.settled], until)
        for row, error, uncertain in seen.settled:
            item = self._own.pop((seen.file, row), None)
            if item is not None:
                settled[item] = _error_for_owner(error, uncertain) if error else None
        self._empty_polls = 0 if settled or seen.waiting else self._empty_polls + 1
        pause = SWEEP_SECONDS
        if not seen.waiting:
            is_slow = self._empty_polls > FAST_POLLS
            pause = SLOW_OUTCOME_POLL_SECONDS if is_slow else OUTCOME_POLL_SECONDS
        return Outcomes(settled, seen.waiting, now + pause)

    def _look(self, connection: sqlite3.Connection) -> _Seen:
        me = self._file.me
        rows = connection.execute(
            "SELECT id, error, uncertain FROM message WHERE owner = ? AND state IN (?, ?)",
            (me, State.ACCEPTED, State.REFUSED),
        ).fetchall()
        waiting = connection.execute(
            "SELECT 1 FROM message WHERE owner = ? AND state = 0 AND queue IS NOT NULL LIMIT 1",
            (me,),
        ).fetchone()
        return _Seen(self._file.id, rows, waiting is not None)

    def _lost(self, file: str) -> dict[Item, CFQueuesError | None]:
        """Settle messages that waited in a file that no longer exists; their outcome is unknown."""
        settled: dict[Item, CFQueuesError | None] = {}
        for place, item in list(self._own.items()):
            if place[0] != file:
                self._own.pop(place, None)
                settled[item] = PublishTimeout(
                    "the spool's file was removed or replaced while the message waited in it",
                    delivered="unknown",
                )
        return settled

    def _forget(self, file: str, rows: Sequence[int], until: float) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if self._file.id == file:
                connection.executemany(
                    "DELETE FROM message WHERE id = ? AND owner = ?",
                    [(row, self._file.me) for row in rows],
                )

        self._file.write(work, until=until)

    def withdraw(
        self, items: Sequence[Item], *, claimed: bool, until: float
    ) -> Mapping[Item, Withdrawn | CFQueuesError | None]:
        """See `WaitingRoom.withdraw`."""
        entered = [item for item in items if item.place is not None]
        known: dict[Item, Withdrawn | CFQueuesError | None] = {}
        if entered:
            known = self._file.write(lambda c: self._take_back(c, entered, claimed), until=until)
        for item in known:
            self._own.pop(item.place, None)
        if claimed:
            # These messages got a permit at once, failed, and could not be written to the file.
            for item in set(items) - set(entered):
                sent = item.uncertain or item.error is None
                known[item] = Withdrawn.PERHAPS_SENT if sent else Withdrawn.NOT_SENT
                item.place = NOWHERE
        return known

    def _take_back(
        self, connection: sqlite3.Connection, items: Sequence[Item], claimed: bool
    ) -> dict[Item, Withdrawn | CFQueuesError | None]:
        """Delete *items*, those under a claim only if *claimed*; return what is known of each."""
        known: dict[Item, Withdrawn | CFQueuesError | None] = {}
        for item in items:
            found = self._find(connection, item)
            if found is None or found.state is not State.CLAIMED or claimed:
                known[item] = _known(found)
        connection.executemany(
            "DELETE FROM message WHERE id = ? AND owner = ?",
            [(item.place[1], self._file.me) for item in known if self._is_here(item)],
        )
        return known

    def _is_here(self, item: Item) -> bool:
        return bool(item.place[0] == self._file.id)

    def _find(self, connection: sqlite3.Connection, item: Item) -> _Found | None:
        """Return what the file says about an item of this process; None if it is not there."""
        if not self._is_here(item):
            return None
        found = connection.execute(
            "SELECT state, uncertain, error FROM message WHERE id = ? AND owner = ?",
            (item.place[1], self._file.me),
        ).fetchone()
        return found and _Found(State(found[0]), bool(found[1]), found[2])

    # -- claims -------------------------------------------------------------------------------

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """See `WaitingRoom.claim`.  The permit and the messages are taken in one transaction."""
        # Read once: another thread of this process may take the permit, and reset it.
        waiting_since = self._waiting_since or self._file.clock.monotonic()
        self._waiting_since = waiting_since

        def look(connection: sqlite3.Connection, *, asks: bool = False) -> Contender | Wait:
            bucket = self._file.bucket(connection, asks=asks)
            return claims.find_next(connection, bucket, terms, self._claimer(), self._reservation)

        def work(connection: sqlite3.Connection) -> Claim | Wait:
            found = look(connection)
            if isinstance(found, Wait):
                return found
            return self._take(connection, found, terms, waiting_since)

        # Read first: most processes that look for a permit find that another process was faster,
        # and only one process at a time can write.
        found = self._file.read(lambda c: look(c, asks=True), until=terms.until)
        self._fleet.log()
        if isinstance(found, Wait):
            log_stop(self._file.stop_log, found)
            return found
        self._fleet.fetch(publishing=True, until=terms.until)
        claimed = self._file.write(work, until=terms.until)
        if isinstance(claimed, Claim) and claimed.items:
            metrics.waited(self._file.clock.monotonic() - waiting_since)
            self._waiting_since = None
            self._file.stop_log.resumed()
        return claimed

    def _claimer(self) -> claims.Claimer:
        return claims.Claimer(self._file.me, self._file.clock.monotonic())

    def _take(
        self,
        connection: sqlite3.Connection,
        contender: Contender,
        terms: ClaimTerms,
        waiting_since: float,
    ) -> Claim | Wait:
        found = claims.take(connection, contender, terms, self._claimer(), self._claim_seconds)
        if found.items:
            waited = self._file.clock.monotonic() - waiting_since
            self._file.bucket(connection).spend(contender.kind, waited)
        items = []
        for item in found.items:
            item.place = (self._file.id, item.place)
            own = self._own.get(item.place)
            if own is not None:
                own.uncertain, own.max_batch = item.uncertain, item.max_batch
            items.append(own or item)
        return Claim(terms.number, found.address, items, found.expired)

    def settle(self, claim: Claim, outcome: ClaimOutcome, *, until: float) -> Settled:
        """See `WaitingRoom.settle`.  Messages that the claim no longer holds are left alone.

        Outcomes for other processes are kept for them; everything else that is settled is deleted.
        """
        for item in outcome.settled:
            if item.owned_here:
                self._own.pop(item.place, None)
        if not _is_written(claim, outcome):
            return {}
        # Urgent: if this process ends first, its claim is released, and other processes post the
        # messages again.
        places = self._file.write(
            lambda c: self._settle(c, claim, outcome), until=until, urgent=True
        )
        given_up = [self._own.pop(place, None) for place in places]
        return {item: outcome.give_up for item in given_up if item is not None}

    def _settle(
        self, connection: sqlite3.Connection, claim: Claim, outcome: ClaimOutcome
    ) -> list[tuple[str, int]]:
        """Write *outcome*; return the places of this process's messages that it gives up."""
        for item, error in outcome.settled.items():
            if item.place is not None:
                outcomes.settle_item(connection, claim.number, item, error)
        queue = queue_row(connection, claim.address)
        for item in outcome.returned:
            if item.place is None:
                self._insert(connection, queue, item)
            else:
                outcomes.return_item(connection, claim.number, item, outcome.max_batch)
        outcomes.note_delay(connection, queue, outcome)
        outcomes.pause_spooled(connection, queue, outcome, self._file.clock.monotonic())
        if outcome.give_up is None:
            return []
        rows = outcomes.refuse_suspects(connection, queue, outcome.give_up, self._file.me)
        return [(self._file.id, row) for row in rows]

    def release(self, number: int) -> None:
        """See `WaitingRoom.release`."""
        until = self._file.clock.monotonic() + SWEEP_SECONDS
        with contextlib.suppress(RoomBusy, SpoolFull, SpoolUnavailable):  # the claim expires
            self._file.write(lambda c: free(c, "claim = ?", number), until=until)

    def sweep(self, *, until: float = inf) -> None:
        """Release expired claims and claims of dead processes; delete what is no longer used."""
        sweep.sweep(self._file, until=until)
        if self._forgets_at <= self._file.clock.monotonic():
            self._file.write(self._forget_unused, until=until)

    def _forget_unused(self, connection: sqlite3.Connection) -> None:
        now = self._file.clock.monotonic()
        if self._forgets_at <= now and sweep.forget_unused(connection, now):
            self._forgets_at = now + FORGET_SECONDS


def _is_written(claim: Claim, outcome: ClaimOutcome) -> bool:
    """Whether *outcome* changes the file; messages that were claimed at once are not in it."""
    return bool(outcome.returned) or any(item.place is not None for item in claim.items)


def _known(found: _Found | None) -> Withdrawn | CFQueuesError | None:
    if found is None:
        return Withdrawn.PERHAPS_SENT
    if found.state is State.ACCEPTED:
        return None
    if found.state is State.REFUSED and found.error:
        return _error_for_owner(found.error, found.uncertain)
    sent = found.uncertain or found.state is State.CLAIMED
    return Withdrawn.PERHAPS_SENT if sent else Withdrawn.NOT_SENT


def _error_for_owner(text: str, uncertain: bool | int) -> CFQueuesError:
    """Return the stored error; if *uncertain*, an earlier try may have delivered the message."""
    error = from_text(text)
    if uncertain:
        error.delivered = "unknown"
    return error
