"""Which messages the next request carries.  The caller of each function is in a transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from .. import limits
from ..envelope import Address, Packed
from ..errors import RateLimited
from ..waiting_room import ClaimTerms, Item, Kind, Wait
from . import permit_scheduler as scheduler
from .bucket import Bucket, last_kind
from .permit_scheduler import ELIGIBLE, TURN_SECONDS, Eligible, Patience, Turn
from .schema import State

LOOKED_AT: Final = 4 * limits.BATCH_MESSAGES
"""How many of a queue's oldest messages are looked at for one request."""


class Found(NamedTuple):
    """Messages that were claimed.

    Attributes:
        address: Their queue.
        items: The messages; ``place`` is the row.
        expired: How many were dropped instead.
    """

    address: Address
    items: list[Item]
    expired: int


class Claimer(NamedTuple):
    """Who claims, and when.

    Attributes:
        me: This process.
        now: The monotonic clock.
    """

    me: str
    now: float

    def may_take(self, terms: ClaimTerms) -> Eligible:
        """Return which messages *terms* allow to take."""
        owner = self.me if terms.only_own else None
        return Eligible(self.now, owner, terms.latest, terms.request_seconds)


def find_turn(
    connection: sqlite3.Connection,
    bucket: Bucket,
    terms: ClaimTerms,
    claimer: Claimer,
    patience: Patience,
) -> Turn | Wait:
    """Return what the next permit is for, if it is there and is for something in *terms*."""
    now = claimer.now
    stop = bucket.stopped(publishing=True)
    if stop is not None:
        return Wait(now + (stop.retry_after or 0.0), stop)
    used_up = bucket.exhausted()
    if used_up is not None:
        return Wait(bucket.ready_at(), used_up)
    last = last_kind(connection)
    busy = _queue_rows(connection, terms.busy)
    may_take = claimer.may_take(terms)
    wanted = scheduler.waiting(connection, may_take, kinds=terms.kinds, without=busy)
    mine = scheduler.next_turn(wanted, last)
    if mine is None:
        return _idle(connection, terms.kinds, now)
    anybody = Eligible(now, request_seconds=terms.request_seconds)
    first = scheduler.next_turn(scheduler.waiting(connection, anybody, without=busy), last)
    if first is None or first.queue == mine.queue or patience.is_over(first, now):
        return mine
    requests = scheduler.requests_before(connection, mine.message, now)
    # Others may post what waits before; an admin request takes its permit itself.
    if first.queue is None and bucket.tokens >= 1 + requests:
        return mine
    return Wait(now + TURN_SECONDS)


def _idle(connection: sqlite3.Connection, kinds: Collection[Kind], now: float) -> Wait:
    """When something of this may be postable: a queue's stop or pause ends."""
    ends: list[tuple[float, str, bool]] = []
    for name, stopped, paused in connection.execute(
        "SELECT address, stopped_until, paused_until FROM queue AS q "
        "WHERE max(stopped_until, paused_until) > ? "
        "AND EXISTS (SELECT 1 FROM message WHERE state = 0 AND queue = q.id)",
        (now,),
    ).fetchall():
        if stopped > now:
            ends.append((stopped, name, True))
        elif Kind.SPOOLED in kinds:
            ends.append((paused, name, False))
    if not ends:
        return Wait(None)
    until, name, stops = min(ends)
    if not stops:
        return Wait(until)
    return Wait(until, _stop_of_queue(until - now), name)


def _stop_of_queue(seconds: float) -> RateLimited:
    return RateLimited("the queue takes no messages now", retry_after=seconds)


def take(
    connection: sqlite3.Connection,
    turn: Turn,
    terms: ClaimTerms,
    claimer: Claimer,
    claim_seconds: float,
) -> Found:
    """Claim what one request can carry of the queue whose turn it is."""
    name, creates, cloudflare_id = connection.execute(
        "SELECT address, creates, cloudflare_id FROM queue WHERE id = ?", (turn.queue,)
    ).fetchone()
    address = Address(name, bool(creates), cloudflare_id)
    chosen = _choose(connection, turn, terms, claimer.may_take(terms), sample=name in terms.sample)
    marks = ",".join("?" * len(chosen))
    dropped = connection.execute(
        f"DELETE FROM message WHERE id IN ({marks}) AND expires <= ?",  # noqa: S608
        (*chosen, time.time()),
    ).rowcount
    ends_at = claimer.now + claim_seconds
    by_row = {item.place: item for item in _read(connection, address, chosen)}
    items = [by_row[row] for row in chosen if row in by_row]
    connection.executemany(
        "UPDATE message SET state = ?, claim = ?, poster = ?, claimed_until = ? WHERE id = ?",
        [(State.CLAIMED, terms.number, claimer.me, ends_at, item.place) for item in items],
    )
    return Found(address, items, dropped)


def _read(connection: sqlite3.Connection, address: Address, rows: Sequence[int]) -> list[Item]:
    marks = ",".join("?" * len(rows))
    found = connection.execute(
        "SELECT id, kind, fragment, size, due, alone, deadline, repeats, uncertain, max_batch "  # noqa: S608
        f"FROM message WHERE id IN ({marks})",
        tuple(rows),
    ).fetchall()
    items = []
    for row, kind, fragment, size, due, alone, deadline, repeats, uncertain, max_batch in found:
        item = Item(
            address,
            Packed(fragment, size, due, bool(alone)),
            Kind(kind),
            repeats=bool(repeats),
            uncertain=bool(uncertain),
            max_batch=max_batch,
            place=row,
        )
        if deadline is not None:
            item.deadline = deadline
        items.append(item)
    return items


def _queue_rows(connection: sqlite3.Connection, names: Collection[str]) -> set[int]:
    rows = (
        connection.execute("SELECT id FROM queue WHERE address = ?", (name,)).fetchone()
        for name in names
    )
    return {row[0] for row in rows if row}


def _choose(
    connection: sqlite3.Connection,
    turn: Turn,
    terms: ClaimTerms,
    which: Eligible,
    *,
    sample: bool,
) -> list[int]:
    """Choose the rows of one request: those who wait for an answer, then the rest.

    Where it is the turn of a batch or of the spool, half of the request is theirs, or many single
    callers would leave it nothing.
    """
    values = which.values() | {"queue": turn.queue, "full": limits.BATCH_MESSAGES}
    if sample:
        suspect = connection.execute(
            f"SELECT m.id FROM message AS m WHERE m.queue = :queue AND m.max_batch < :full "  # noqa: S608
            f"AND {ELIGIBLE} ORDER BY random() LIMIT 1",
            values,
        ).fetchone()
        if suspect:
            return [suspect[0]]
    (max_batch,) = connection.execute(
        "SELECT max_batch FROM message WHERE id = ?", (turn.message,)
    ).fetchone()
    values |= {"max_batch": max_batch, "most": LOOKED_AT}
    lines: dict[Kind, list[tuple[int, int]]] = {}
    for kind in terms.kinds:
        # Messages that split from one batch stay among themselves.
        lines[kind] = connection.execute(
            "SELECT id, size FROM (SELECT m.id, m.size, m.max_batch FROM message AS m "  # noqa: S608
            f"WHERE m.kind = :kind AND m.queue = :queue AND {ELIGIBLE} "
            "ORDER BY m.id LIMIT :most) WHERE max_batch = :max_batch LIMIT :max_batch",
            values | {"kind": kind},
        ).fetchall()
    room = _Space(max_batch, limits.BATCH_BYTES)
    singles, leading = lines.pop(Kind.SINGLE, []), lines.pop(turn.kind, [])
    if leading:
        half_bytes = min(limits.BATCH_BYTES // 2, limits.BATCH_BYTES - leading[0][1])
        half = _Space(max_batch // 2, half_bytes)
        taken = half.take(singles, one_always=False)
        room.take(singles[:taken])
        singles = singles[taken:]
    for line in (leading, singles, *lines.values()):
        room.take(line)
    return room.rows


class _Space:
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
