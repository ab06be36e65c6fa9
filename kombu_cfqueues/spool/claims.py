"""Claims: messages of one queue that one process may post, with the permit for it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from .. import limits
from ..envelope import Address, Packed
from ..errors import CFQueuesError, as_text
from ..runtime.rng import rng
from . import turns
from .bucket import last_kind
from .file import File
from .schema import Kind, State, forget, free
from .turns import TURN_SECONDS, Patience, Turn, Wait

OUTCOME_SECONDS: Final = 5.0
"""How long after its deadline an outcome is kept for an owner that is late."""

SILENCE_SECONDS: Final = 5.0
"""After so long without a sign, who empties the spool is taken for stuck."""

REFUSED_ALIKE: Final = 3
"""So many single messages of a batch refused alike, and none accepted: the rest is not asked."""


class Entry(NamedTuple):
    """A message in the file, to be posted."""

    row: int
    kind: Kind
    packed: Packed
    mine: bool
    repeats: bool
    uncertain: bool
    most: int


class Claim(NamedTuple):
    """Messages of one queue that this process alone may post, with a permit for one request.

    Attributes:
        number: Tells it from any other.
        queue: Row of the queue.
        address: The queue.
        entries: The messages, in the order in which they are to be posted.
        expired: Spooled messages that were dropped instead.
    """

    number: int
    queue: int
    address: Address
    entries: list[Entry]
    expired: int


class Fate(NamedTuple):
    """What became of a claim.

    Attributes:
        settled: Rows that are in their queue, and those that will never be, with the reason.
        returned: Rows that wait again.
        uncertain: Whether those that wait again may have arrived.
        most: How many of those that wait again may travel together; None: as many as before.
        error: What delays them.
    """

    settled: Mapping[int, CFQueuesError | None] = {}
    returned: Sequence[int] = ()
    uncertain: bool = False
    most: int | None = None
    error: CFQueuesError | None = None


class Claims:
    """Takes and settles claims for one process.

    Args:
        file: Where the messages are.
        claim_seconds: After so long a claim is anybody's, although its poster lives.
    """

    def __init__(self, file: File, claim_seconds: float) -> None:
        self._file = file
        self._claim_seconds = claim_seconds
        self._patience = Patience()

    def claim(
        self,
        *,
        kinds: Collection[Kind] = (Kind.SINGLE, Kind.BULK, Kind.SPOOLED),
        only_mine: bool = False,
        without: Collection[str] = (),
    ) -> Claim | Wait:
        """Take a permit and what it is for, if one is free and it is the turn of something here.

        Args:
            kinds: What may be taken.
            only_mine: Take nothing that other processes wait for.
            without: Names of queues that are not to be posted to now.
        """
        owner = self._file.poster if only_mine else None

        def look(connection: sqlite3.Connection) -> Turn | Wait:
            return self._turn(connection, kinds, owner, without)

        def work(connection: sqlite3.Connection) -> Claim | Wait:
            turn = self._turn(connection, kinds, owner, without)
            if isinstance(turn, Wait):
                return turn
            return self._take(connection, turn, kinds, owner)

        # Looking first, because most who wake for a permit find that another was faster, and only
        # one process at a time can write.
        found = self._file.read(look)
        return found if isinstance(found, Wait) else self._file.write(work)

    def _turn(
        self,
        connection: sqlite3.Connection,
        kinds: Collection[Kind],
        owner: str | None,
        without: Collection[str],
    ) -> Turn | Wait:
        bucket = self._file.bucket(connection)
        now = self._file.clock.monotonic()
        stop = bucket.stopped(publishing=True)
        if stop is not None:
            return Wait(now + (stop.retry_after or 0.0), stop)
        if bucket.tokens < 1:
            return Wait(bucket.ready_at())
        last = last_kind(connection)
        busy = _queue_rows(connection, without)
        mine = turns.next_turn(
            turns.waiting(connection, now, kinds=kinds, owner=owner, without=busy), last
        )
        if mine is None:
            return self._idle(connection, kinds, owner, now)
        first = turns.next_turn(turns.waiting(connection, now, without=busy), last)
        if first is None or first.queue == mine.queue or self._patience.is_over(first, now):
            return mine
        tickets = turns.tickets_before(connection, mine.message, now)
        # Others may post what waits before; an admin request takes its permit itself.
        if first.kind is Kind.TICKET and bucket.tokens >= 1 + tickets:
            return mine
        return Wait(now + TURN_SECONDS)

    def _idle(
        self, connection: sqlite3.Connection, kinds: Collection[Kind], owner: str | None, now: float
    ) -> Wait:
        """When something of this may be postable: a queue's stop or pause ends."""
        (stop, pause) = connection.execute(
            "SELECT min(CASE WHEN stopped_until > :now THEN stopped_until END), "
            "min(CASE WHEN paused_until > :now THEN paused_until END) FROM queue AS q "
            "WHERE EXISTS (SELECT 1 FROM message WHERE state = 0 AND queue = q.id)",
            {"now": now},
        ).fetchone()
        ends = [end for end in (stop, pause if Kind.SPOOLED in kinds else None) if end is not None]
        return Wait(min(ends) if ends else None)

    def _take(
        self,
        connection: sqlite3.Connection,
        turn: Turn,
        kinds: Collection[Kind],
        owner: str | None,
    ) -> Claim | Wait:
        now = self._file.clock.monotonic()
        chosen = _choose(connection, turn, kinds, owner, now)
        marks = ",".join("?" * len(chosen))
        dropped = connection.execute(
            f"DELETE FROM message WHERE id IN ({marks}) AND expires <= ?",  # noqa: S608
            (*chosen, time.time()),
        ).rowcount
        found = connection.execute(
            "SELECT id, kind, fragment, size, due, alone, owner IS ?, repeats, uncertain, most "  # noqa: S608
            f"FROM message WHERE id IN ({marks})",
            (self._file.poster, *chosen),
        ).fetchall()
        by_row = {}
        for row, kind, fragment, size, due, alone, mine, repeats, uncertain, most in found:
            packed = Packed(fragment, size, due, bool(alone))
            flags = bool(mine), bool(repeats), bool(uncertain)
            by_row[row] = Entry(row, Kind(kind), packed, *flags, most)
        entries = [by_row[row] for row in chosen if row in by_row]
        number = rng.getrandbits(62)
        if entries:
            self._file.bucket(connection).spend(turn.kind)
            connection.executemany(
                "UPDATE message SET state = ?, claim = ?, poster = ?, claimed_until = ? "
                "WHERE id = ?",
                [
                    (State.CLAIMED, number, self._file.poster, now + self._claim_seconds, entry.row)
                    for entry in entries
                ],
            )
        name, creates, cloudflare_id = connection.execute(
            "SELECT address, creates, cloudflare_id FROM queue WHERE id = ?", (turn.queue,)
        ).fetchone()
        address = Address(name, bool(creates), cloudflare_id)
        return Claim(number, turn.queue or 0, address, entries, dropped)

    def settle(self, claim: Claim, fate: Fate) -> None:
        """Say what became of a claim, as far as it still is this process's.

        What another process waits for is kept for it; the rest of what is settled is forgotten.
        """
        entries = {entry.row: entry for entry in claim.entries}

        def work(connection: sqlite3.Connection) -> None:
            for row, error in fate.settled.items():
                mine = (row, claim.number)
                if entries[row].mine or (entries[row].kind is Kind.SPOOLED and not error):
                    connection.execute("DELETE FROM message WHERE id = ? AND claim = ?", mine)
                else:
                    connection.execute(
                        "UPDATE message SET state = ?, error = ?, claim = NULL, poster = NULL "
                        "WHERE id = ? AND claim = ?",
                        (State.REFUSED, as_text(error), *mine)
                        if error
                        else (State.ACCEPTED, None, *mine),
                    )
            connection.executemany(
                "UPDATE message SET state = 0, claim = NULL, poster = NULL, "
                "uncertain = uncertain | ?, most = coalesce(?, most) WHERE id = ? AND claim = ?",
                [(fate.uncertain, fate.most, row, claim.number) for row in fate.returned],
            )
            if None in fate.settled.values():
                connection.execute(
                    "UPDATE queue SET paused_until = 0, pauses = 0, trouble = NULL, alike = -1 "
                    "WHERE id = ? AND (trouble IS NOT NULL OR alike >= 0)",
                    (claim.queue,),
                )
            elif fate.most is not None and claim.entries[0].most == limits.BATCH_MESSAGES:
                connection.execute(  # these are refused for the first time
                    "UPDATE queue SET alike = 0, refusal = NULL WHERE id = ?", (claim.queue,)
                )
            elif fate.error is not None:
                connection.execute(
                    "UPDATE queue SET trouble = ? WHERE id = ?", (str(fate.error), claim.queue)
                )

        self._file.write(work)

    def refuse_alone(self, claim: Claim, error: CFQueuesError) -> None:
        """Settle the one message of *claim* that was refused; perhaps all its likes with it.

        Where the server seems to refuse everything, splitting on would spend the allowance.
        """
        kind = f"{type(error).__name__} {error.code}"
        (entry,) = claim.entries
        self.settle(claim, Fate({entry.row: error}))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE queue SET alike = CASE WHEN alike < 0 THEN -1 "
                "WHEN coalesce(refusal, ?) = ? THEN alike + 1 ELSE -1 END, refusal = ? "
                "WHERE id = ?",
                (kind, kind, kind, claim.queue),
            )
            (alike,) = connection.execute(
                "SELECT alike FROM queue WHERE id = ?", (claim.queue,)
            ).fetchone()
            if alike >= REFUSED_ALIKE:
                connection.execute(
                    "UPDATE message SET state = ?, error = ? "
                    "WHERE state = 0 AND queue = ? AND most < ?",
                    (State.REFUSED, as_text(error), claim.queue, limits.BATCH_MESSAGES),
                )
                connection.execute("UPDATE queue SET alike = -1 WHERE id = ?", (claim.queue,))

        self._file.write(work)

    def pause(self, queue: int, longest: float) -> None:
        """Let what is spooled for a queue wait, twice as long each time, at most *longest* s."""

        def work(connection: sqlite3.Connection) -> None:
            (pauses,) = connection.execute(
                "SELECT pauses FROM queue WHERE id = ?", (queue,)
            ).fetchone()
            seconds = min(longest, 2.0 ** min(pauses, 20)) * rng.uniform(0.5, 1)
            connection.execute(
                "UPDATE queue SET pauses = pauses + 1, paused_until = ?, cloudflare_id = NULL "
                "WHERE id = ?",
                (self._file.clock.monotonic() + seconds, queue),
            )

        self._file.write(work)

    def sweep(self) -> None:
        """Free what the dead have claimed, and forget what nobody waits for any more."""
        dead = self._file.posters.dead()

        def is_due(connection: sqlite3.Connection) -> bool:
            return bool(dead) or _has_stale(connection, self._file.clock.monotonic())

        def work(connection: sqlite3.Connection) -> None:
            for name in dead:
                forget(connection, name)
            _clear(connection, self._file.clock.monotonic())

        if self._file.read(is_due):
            self._file.write(work)
        for name in dead:
            self._file.posters.bury(name)

    def elect(self) -> bool:
        """Become the one that empties the spool, or stay it; return False if another one is."""
        now, me = self._file.clock.monotonic(), self._file.poster
        drainer, at = self._file.read(
            lambda c: c.execute("SELECT drainer, drained_at FROM machine").fetchone()
        )
        if drainer not in (me, None) and now - at < SILENCE_SECONDS:
            return False
        if drainer == me and now - at < SILENCE_SECONDS / 5:
            return True
        change = "UPDATE machine SET drainer = ?, drained_at = ? WHERE drainer IS ?"
        done = self._file.write(lambda c: c.execute(change, (me, now, drainer)).rowcount)
        return done == 1

    def stand_down(self) -> None:
        """Let another process empty the spool."""
        change = "UPDATE machine SET drainer = NULL WHERE drainer = ?"
        self._file.write(lambda c: c.execute(change, (self._file.poster,)))


def _queue_rows(connection: sqlite3.Connection, names: Collection[str]) -> set[int]:
    rows = (
        connection.execute("SELECT id FROM queue WHERE address = ?", (name,)).fetchone()
        for name in names
    )
    return {row[0] for row in rows if row}


def _choose(
    connection: sqlite3.Connection,
    turn: Turn,
    kinds: Collection[Kind],
    owner: str | None,
    now: float,
) -> list[int]:
    """Choose the rows of one request: those who wait for an answer, then the rest.

    Where it is the turn of a batch or of the spool, half of the request is theirs, or many single
    callers would leave it nothing.
    """
    (alike,) = connection.execute("SELECT alike FROM queue WHERE id = ?", (turn.queue,)).fetchone()
    if alike == REFUSED_ALIKE - 1:
        # Bad messages are often neighbours.  The one farthest off is asked, alone, before all the
        # rest is given up.
        suspect = connection.execute(
            "SELECT id FROM message WHERE state = 0 AND queue = ? AND most < ? "
            "AND (? IS NULL OR owner IS ?) AND (deadline IS NULL OR deadline > ?) "
            "ORDER BY id DESC LIMIT 1",
            (turn.queue, limits.BATCH_MESSAGES, owner, owner, now),
        ).fetchone()
        if suspect:
            return [suspect[0]]
    (most,) = connection.execute(
        "SELECT most FROM message WHERE id = ?", (turn.message,)
    ).fetchone()
    lines: dict[Kind, list[tuple[int, int]]] = {}
    for kind in kinds:
        # Messages that split from one batch stay among themselves.
        lines[kind] = connection.execute(
            "SELECT id, size FROM (SELECT id, size, most FROM message WHERE state = 0 "
            "AND kind = ? AND queue = ? AND (deadline IS NULL OR deadline > ?) "
            "AND (? IS NULL OR owner IS ?) ORDER BY id LIMIT ?) WHERE most = ? LIMIT ?",
            (kind, turn.queue, now, owner, owner, 4 * limits.BATCH_MESSAGES, most, most),
        ).fetchall()
    room = _Room(most, limits.BATCH_BYTES)
    singles, leading = lines.pop(Kind.SINGLE, []), lines.pop(turn.kind, [])
    if leading:
        half = _Room(most // 2, min(limits.BATCH_BYTES // 2, limits.BATCH_BYTES - leading[0][1]))
        taken = half.take(singles, one_always=False)
        room.take(singles[:taken])
        singles = singles[taken:]
    for line in (leading, singles, *lines.values()):
        room.take(line)
    return room.rows


class _Room:
    """What still fits into a request."""

    def __init__(self, messages: int, size: int) -> None:
        self._messages = messages
        self._size = size
        self.rows: list[int] = []

    def take(self, line: Sequence[tuple[int, int]], *, one_always: bool = True) -> int:
        """Take from the front of *line* what fits; the first of a request does *one_always*."""
        taken = 0
        for row, size in line:
            alone = one_always and not self.rows
            if len(self.rows) >= self._messages or (size > self._size and not alone):
                break
            self.rows.append(row)
            self._size -= size
            taken += 1
        return taken


_STALE: Final = "deadline < ? AND state != 1"


def _has_stale(connection: sqlite3.Connection, now: float) -> bool:
    return any(
        connection.execute(f"SELECT 1 FROM message WHERE {condition} LIMIT 1", (value,)).fetchone()  # noqa: S608
        for condition, value in (
            ("state = 1 AND claimed_until < ?", now),
            (_STALE, now - OUTCOME_SECONDS),
        )
    )


def _clear(connection: sqlite3.Connection, now: float) -> None:
    free(connection, "claimed_until < ?", now)
    connection.execute(f"DELETE FROM message WHERE {_STALE}", (now - OUTCOME_SECONDS,))  # noqa: S608
