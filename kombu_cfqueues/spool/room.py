"""The waiting room that all processes of a machine share: the spool's file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from .. import limits
from ..errors import CFQueuesError, PublishTimeout, SpoolFull, SpoolUnavailable, as_text, from_text
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
from . import claims
from .file import File
from .message_table import insert, queue_row
from .permit_scheduler import Patience, Turn
from .schema import State, free
from .sweep import sweep

LOOK_SECONDS: Final = 0.008
"""Pause between two looks for an answer while another process posts, or is about to."""

LONGEST_LOOK_SECONDS: Final = 0.05
"""The same once it has taken longer than a request usually does."""

PATIENT_LOOKS: Final = 20
"""After this many looks without an answer, the pauses between them are the longer ones."""

SWEEP_SECONDS: Final = 0.25
"""Pause between two looks whether the processes that post are alive."""

NOWHERE: Final = ("", 0)
"""The place of a message that is not to enter the file any more."""


class SpoolRoom:
    """Messages that wait in the file, as one process sees them.

    Args:
        file: Where they are.
        claim_seconds: After this long a claim is anybody's, although its process lives.
    """

    shared = True
    max_batch = limits.BATCH_MESSAGES

    def __init__(self, file: File, claim_seconds: float) -> None:
        self._file = file
        self._claim_seconds = claim_seconds
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Know of nothing that the parent waits for."""
        # What this process waits for, by file and row.  Each access is a single step: no lock.
        self._own: dict[Any, Item] = {}
        self._patience = Patience()
        self._swept_at = 0.0
        self._quiet_looks = 0
        self._waits_since: float | None = None  # for a permit

    # -- in and out ---------------------------------------------------------------------------

    def enter(
        self, items: Sequence[Item], *, number: int, may_skip: bool, until: float
    ) -> Claim | None:
        """See `WaitingRoom.enter`.  What is claimed at once is not written into the file."""
        address = items[0].address

        def work(connection: sqlite3.Connection) -> bool:
            queue = queue_row(connection, address)
            if may_skip and self._try_take_permit(connection, queue):
                return True
            for item in items:
                self._insert(connection, queue, item)
            return False

        try:
            skips = self._file.write(work, until=until)
        except BaseException:
            for item in items:
                self._own.pop(item.place, None)
                item.place = None
            raise
        if not skips:
            return None
        metrics.waited(0.0)
        return Claim(number, address, items)

    def _try_take_permit(self, connection: sqlite3.Connection, queue: int) -> bool:
        """Take a permit, if nobody waits for one."""
        if connection.execute("SELECT 1 FROM message WHERE state = 0 LIMIT 1").fetchone():
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
        self._own.pop(item.place, None)  # of an earlier run of the same transaction
        item.place = (self._file.id, row)
        # Known before the transaction ends: another thread may hear of its outcome at once.
        self._own[item.place] = item

    def outcomes(self, *, until: float) -> Outcomes:
        """See `WaitingRoom.outcomes`."""
        now = self._file.clock.monotonic()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            sweep(self._file, until=until)

        def look(connection: sqlite3.Connection) -> tuple[str, list[tuple[int, str, int]], bool]:
            me = self._file.me
            rows = connection.execute(
                "SELECT id, error, uncertain FROM message WHERE owner = ? AND state IN (?, ?)",
                (me, State.ACCEPTED, State.REFUSED),
            ).fetchall()
            waits = connection.execute(
                "SELECT 1 FROM message WHERE owner = ? AND state = 0 AND queue IS NOT NULL LIMIT 1",
                (me,),
            ).fetchone()
            return self._file.id, rows, waits is not None

        file, rows, waits = self._file.read(look, until=until)
        settled = self._lost(file)
        if rows:
            self._forget(file, [row for row, _, _ in rows], until)
            for row, error, uncertain in rows:
                item = self._own.pop((file, row), None)
                if item is not None:
                    settled[item] = _told(error, uncertain) if error else None
        self._quiet_looks = 0 if settled or waits else self._quiet_looks + 1
        pause = SWEEP_SECONDS
        if not waits:
            patient = self._quiet_looks > PATIENT_LOOKS
            pause = LONGEST_LOOK_SECONDS if patient else LOOK_SECONDS
        return Outcomes(settled, waits, now + pause)

    def _lost(self, file: str) -> dict[Item, CFQueuesError | None]:
        """Give up what waited in a file that is gone; nobody can say what became of it."""
        settled: dict[Item, CFQueuesError | None] = {}
        for place, item in list(self._own.items()):
            if place[0] != file:
                self._own.pop(place, None)
                settled[item] = PublishTimeout(
                    "the file of the spool was removed or replaced while the message waited in it",
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

        def work(
            connection: sqlite3.Connection,
        ) -> dict[Item, Withdrawn | CFQueuesError | None]:
            known: dict[Item, Withdrawn | CFQueuesError | None] = {}
            for item in entered:
                found = self._find(connection, item)
                if found is None or found[0] is not State.CLAIMED or claimed:
                    known[item] = _known(found)
            connection.executemany(
                "DELETE FROM message WHERE id = ? AND owner = ?",
                [(item.place[1], self._file.me) for item in known if self._is_here(item)],
            )
            return known

        known = self._file.write(work, until=until) if entered else {}
        for item in known:
            self._own.pop(item.place, None)
        if claimed:
            # What skipped the line and failed, and could not be written into the file since.
            for item in set(items) - set(entered):
                sent = item.uncertain or item.error is None
                known[item] = Withdrawn.PERHAPS_SENT if sent else Withdrawn.NOT_SENT
                item.place = NOWHERE
        return known

    def _is_here(self, item: Item) -> bool:
        return bool(item.place[0] == self._file.id)

    def _find(
        self, connection: sqlite3.Connection, item: Item
    ) -> tuple[State, bool, str | None] | None:
        """What the file says of an item of this process; None: nothing."""
        if not self._is_here(item):
            return None
        found = connection.execute(
            "SELECT state, uncertain, error FROM message WHERE id = ? AND owner = ?",
            (item.place[1], self._file.me),
        ).fetchone()
        return found and (State(found[0]), bool(found[1]), found[2])

    # -- claims -------------------------------------------------------------------------------

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """See `WaitingRoom.claim`.  The permit and the messages are taken in one transaction."""
        if self._waits_since is None:
            self._waits_since = self._file.clock.monotonic()

        def look(connection: sqlite3.Connection) -> Turn | Wait:
            bucket = self._file.bucket(connection)
            return claims.find_turn(connection, bucket, terms, self._claimer(), self._patience)

        def work(connection: sqlite3.Connection) -> Claim | Wait:
            turn = look(connection)
            return turn if isinstance(turn, Wait) else self._take(connection, turn, terms)

        # Looking first, because most who wake for a permit find that another was faster, and only
        # one process at a time can write.
        found = self._file.read(look, until=terms.until)
        if isinstance(found, Wait):
            return found
        claimed = self._file.write(work, until=terms.until)
        if isinstance(claimed, Claim) and claimed.items:
            metrics.waited(self._file.clock.monotonic() - self._waits_since)
            self._waits_since = None
        return claimed

    def _claimer(self) -> claims.Claimer:
        return claims.Claimer(self._file.me, self._file.clock.monotonic())

    def _take(self, connection: sqlite3.Connection, turn: Turn, terms: ClaimTerms) -> Claim | Wait:
        found = claims.take(connection, turn, terms, self._claimer(), self._claim_seconds)
        if found.items:
            self._file.bucket(connection).spend(turn.kind)
        items = []
        for item in found.items:
            item.place = (self._file.id, item.place)
            own = self._own.get(item.place)
            if own is not None:
                own.uncertain, own.max_batch = item.uncertain, item.max_batch
            items.append(own or item)
        return Claim(terms.number, found.address, items, found.expired)

    def settle(self, claim: Claim, outcome: ClaimOutcome, *, until: float) -> Settled:
        """See `WaitingRoom.settle`: as far as the claim still is this process's.

        What another process waits for is kept for it; the rest of what is settled is forgotten.
        """
        for item in outcome.settled:
            if item.owned_here:
                self._own.pop(item.place, None)
        if not _is_written(claim, outcome):
            return {}

        def work(connection: sqlite3.Connection) -> list[tuple[str, int]]:
            for item, error in outcome.settled.items():
                if item.place is not None:
                    _settle(connection, claim.number, item, error)
            queue = queue_row(connection, claim.address)
            for item in outcome.returned:
                if item.place is None:
                    self._insert(connection, queue, item)
                else:
                    _return(connection, claim.number, item, outcome.max_batch)
            _note(connection, queue, outcome)
            self._pause(connection, queue, outcome)
            return self._give_up(connection, queue, outcome)

        places = self._file.write(work, until=until)
        given_up = [self._own.pop(place, None) for place in places]
        return {item: outcome.give_up for item in given_up if item is not None}

    def _pause(self, connection: sqlite3.Connection, queue: int, outcome: ClaimOutcome) -> None:
        """Let what is spooled for a queue wait, longer each time; look the queue up again."""
        if outcome.pause is None:
            return
        (pauses,) = connection.execute("SELECT pauses FROM queue WHERE id = ?", (queue,)).fetchone()
        pause = replace(outcome.pause, failures=pauses + 1).pause_seconds(least=0.5)
        connection.execute(
            "UPDATE queue SET pauses = pauses + 1, paused_until = ?, "
            "cloudflare_id = CASE WHEN ? THEN cloudflare_id END WHERE id = ?",
            (
                self._file.clock.monotonic() + pause,
                outcome.give_up is not None,
                queue,
            ),
        )

    def _give_up(
        self, connection: sqlite3.Connection, queue: int, outcome: ClaimOutcome
    ) -> list[tuple[str, int]]:
        """Settle what else was split, and somebody waits for; return what of it is ours."""
        if outcome.give_up is None:
            return []
        suspects = "state = 0 AND queue = ? AND max_batch < ? AND kind != ?"
        which = (queue, self.max_batch, Kind.SPOOLED)
        me = self._file.me
        mine = connection.execute(
            f"SELECT id FROM message WHERE {suspects} AND owner = ?",  # noqa: S608
            (*which, me),
        ).fetchall()
        connection.execute(
            f"DELETE FROM message WHERE {suspects} AND owner = ?",  # noqa: S608
            (*which, me),
        )
        connection.execute(
            f"UPDATE message SET state = ?, error = ? WHERE {suspects}",  # noqa: S608
            (State.REFUSED, as_text(outcome.give_up), *which),
        )
        return [(self._file.id, row) for (row,) in mine]

    def release(self, number: int) -> None:
        """See `WaitingRoom.release`."""
        until = self._file.clock.monotonic() + SWEEP_SECONDS
        with contextlib.suppress(RoomBusy, SpoolFull, SpoolUnavailable):  # it ends some time
            self._file.write(lambda c: free(c, "claim = ?", number), until=until)


def _is_written(claim: Claim, outcome: ClaimOutcome) -> bool:
    """Whether the file has to hear of *outcome*: not of a message that skipped the line."""
    return bool(outcome.returned) or any(item.place is not None for item in claim.items)


def _settle(
    connection: sqlite3.Connection, number: int, item: Item, error: CFQueuesError | None
) -> None:
    which = (item.place[1], number)
    if item.owned_here or (item.kind is Kind.SPOOLED and error is None):
        connection.execute("DELETE FROM message WHERE id = ? AND claim = ?", which)
        return
    state = State.ACCEPTED if error is None else State.REFUSED
    connection.execute(
        "UPDATE message SET state = ?, error = ?, uncertain = uncertain | ?, claim = NULL, "
        "poster = NULL WHERE id = ? AND claim = ?",
        (state, error and as_text(error), item.uncertain, *which),
    )


def _return(connection: sqlite3.Connection, number: int, item: Item, max_batch: int | None) -> None:
    connection.execute(
        "UPDATE message SET state = 0, claim = NULL, poster = NULL, "
        "uncertain = uncertain | ?, max_batch = coalesce(?, max_batch) WHERE id = ? AND claim = ?",
        (item.uncertain, max_batch, item.place[1], number),
    )


def _note(connection: sqlite3.Connection, queue: int, outcome: ClaimOutcome) -> None:
    """Write down, for people, what delays a queue's messages."""
    if outcome.error is not None:
        connection.execute("UPDATE queue SET trouble = ? WHERE id = ?", (str(outcome.error), queue))
    elif None in outcome.settled.values():
        connection.execute(
            "UPDATE queue SET paused_until = 0, pauses = 0, trouble = NULL "
            "WHERE id = ? AND trouble IS NOT NULL",
            (queue,),
        )


def _known(found: tuple[State, bool, str | None] | None) -> Withdrawn | CFQueuesError | None:
    if found is None:
        return Withdrawn.PERHAPS_SENT
    state, uncertain, error = found
    if state is State.ACCEPTED:
        return None
    if state is State.REFUSED and error:
        return _told(error, uncertain)
    sent = uncertain or state is State.CLAIMED
    return Withdrawn.PERHAPS_SENT if sent else Withdrawn.NOT_SENT


def _told(error: str, uncertain: bool | int) -> CFQueuesError:
    """What an owner is told: an earlier try may have delivered the message."""
    told = from_text(error)
    if uncertain:
        told.delivered = "unknown"
    return told
