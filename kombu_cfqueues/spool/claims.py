"""Which messages the next request carries.  The caller of each function is in a transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from .. import limits
from ..envelope import Address, Packed
from ..errors import RateLimited
from ..rate_limit import QUEUE_STOPPED
from ..waiting_room import ClaimTerms, Item, Kind, Wait
from . import permit_scheduler as scheduler
from .bucket import Bucket, last_kind
from .permit_scheduler import (
    BACKLOGGED,
    ELIGIBLE,
    RESERVED_POLL_SECONDS,
    Contender,
    Eligible,
    Reservation,
)
from .schema import State

if TYPE_CHECKING:
    import sqlite3

MAX_CANDIDATES: Final = 4 * limits.BATCH_MESSAGES
"""Number of a queue's oldest messages of a kind that are considered for one request."""

_ENDS_OF_DELAYS: Final = f"""
{BACKLOGGED}
SELECT q.address, q.stopped_until, q.paused_until
FROM waits CROSS JOIN queue AS q ON q.id = waits.queue
WHERE max(q.stopped_until, q.paused_until) > :now
"""  # noqa: S608  constant text

_SUSPECT: Final = f"""
SELECT m.id FROM message AS m
WHERE m.queue = :queue AND m.max_batch < :full AND {ELIGIBLE}
ORDER BY random() LIMIT 1
"""  # noqa: S608  constant text

# Messages of a split batch share a smaller max_batch, and travel only with each other.
_CANDIDATES: Final = f"""
SELECT id, size FROM (
    SELECT m.id, m.size, m.max_batch FROM message AS m
    WHERE m.kind = :kind AND m.queue = :queue AND {ELIGIBLE}
    ORDER BY m.id LIMIT :max_candidates
) WHERE max_batch = :max_batch LIMIT :max_batch
"""  # noqa: S608  constant text


class Found(NamedTuple):
    """Messages that were claimed.

    Attributes:
        address: Their queue.
        items: The messages; ``place`` is the row.
        expired: Number of messages that were dropped because they had expired.
    """

    address: Address
    items: list[Item]
    expired: int


class Claimer(NamedTuple):
    """The process that claims, and the time of its claim.

    Attributes:
        me: This process.
        now: The monotonic clock.
    """

    me: str
    now: float

    def may_take(self, terms: ClaimTerms) -> Eligible:
        """Return which messages may be claimed under *terms*."""
        owner = self.me if terms.only_own else None
        return Eligible(self.now, owner, terms.latest, terms.request_seconds)


def find_next(
    connection: sqlite3.Connection,
    bucket: Bucket,
    terms: ClaimTerms,
    claimer: Claimer,
    reservation: Reservation,
) -> Contender | Wait:
    """Return what the next permit is for, if it is free and *terms* allow it; else when to ask."""
    now = claimer.now
    blocked = _blocked(bucket, now)
    if blocked is not None:
        return blocked
    last = last_kind(connection)
    busy = _queue_rows(connection, terms.busy)
    may_take = claimer.may_take(terms)
    wanted = scheduler.contenders(connection, may_take, kinds=terms.kinds, without=busy)
    own = scheduler.choose(wanted, last)
    if own is None:
        return _idle(connection, terms.kinds, now)
    anyones = Eligible(now, request_seconds=terms.request_seconds)
    first = scheduler.choose(scheduler.contenders(connection, anyones, without=busy), last)
    if first is None or first.queue == own.queue or reservation.has_expired(first, now):
        return own
    requests = scheduler.requests_before(connection, own.message, now)
    # Each admin request that is ahead takes a permit of its own; any process may post the messages
    # that are ahead.
    if first.queue is None and bucket.tokens >= 1 + requests:
        return own
    return Wait(now + RESERVED_POLL_SECONDS)


def _blocked(bucket: Bucket, now: float) -> Wait | None:
    """Return why and until when no request that publishes may leave; None if one may."""
    stop = bucket.stopped(publishing=True)
    if stop is not None:
        return Wait(now + (stop.retry_after or 0.0), stop)
    used_up = bucket.exhausted()
    return None if used_up is None else Wait(bucket.ready_at(), used_up)


def _idle(connection: sqlite3.Connection, kinds: Collection[Kind], now: float) -> Wait:
    """Return when the first stop or pause of a queue with messages of *kinds* ends."""
    ends: list[tuple[float, str, bool]] = []
    for kind in kinds:
        for name, stopped, paused in connection.execute(
            _ENDS_OF_DELAYS, {"kind": kind, "now": now}
        ).fetchall():
            if stopped > now:
                ends.append((stopped, name, True))
            elif kind is Kind.SPOOLED:
                ends.append((paused, name, False))
    if not ends:
        return Wait(None)
    until, name, is_stop = min(ends)
    if not is_stop:
        return Wait(until)
    return Wait(until, RateLimited(QUEUE_STOPPED, retry_after=until - now), name)


def take(
    connection: sqlite3.Connection,
    contender: Contender,
    terms: ClaimTerms,
    claimer: Claimer,
    claim_seconds: float,
) -> Found:
    """Claim what one request can carry for the queue of *contender*; drop what has expired."""
    name, creates, cloudflare_id = connection.execute(
        "SELECT address, creates, cloudflare_id FROM queue WHERE id = ?", (contender.queue,)
    ).fetchone()
    address = Address(name, bool(creates), cloudflare_id)
    which = claimer.may_take(terms)
    chosen = _choose(connection, contender, terms, which, sample=name in terms.sample)
    dropped = _drop_expired(connection, chosen)
    by_row = {item.place: item for item in _read(connection, address, chosen)}
    items = [by_row[row] for row in chosen if row in by_row]
    ends_at = claimer.now + claim_seconds
    connection.executemany(
        "UPDATE message SET state = ?, claim = ?, poster = ?, claimed_until = ? WHERE id = ?",
        [(State.CLAIMED, terms.number, claimer.me, ends_at, item.place) for item in items],
    )
    return Found(address, items, dropped)


def _drop_expired(connection: sqlite3.Connection, rows: Sequence[int]) -> int:
    marks = ",".join("?" * len(rows))
    return connection.execute(
        f"DELETE FROM message WHERE id IN ({marks}) AND expires <= ?",  # noqa: S608
        (*rows, time.time()),
    ).rowcount


def _read(connection: sqlite3.Connection, address: Address, rows: Sequence[int]) -> list[Item]:
    marks = ",".join("?" * len(rows))
    found = connection.execute(
        "SELECT id, kind, fragment, size, due, alone, eta, deadline, repeats, uncertain, max_batch "  # noqa: S608
        f"FROM message WHERE id IN ({marks})",
        tuple(rows),
    ).fetchall()
    return [_item(address, row) for row in found]


def _item(address: Address, columns: Sequence[Any]) -> Item:
    row, kind, fragment, size, due, alone, eta, deadline, repeats, uncertain, max_batch = columns
    return Item(
        address,
        Packed(fragment, size, due, bool(alone), eta),
        Kind(kind),
        deadline=inf if deadline is None else deadline,
        repeats=bool(repeats),
        uncertain=bool(uncertain),
        max_batch=max_batch,
        place=row,
    )


def _queue_rows(connection: sqlite3.Connection, names: Collection[str]) -> set[int]:
    rows = (
        connection.execute("SELECT id FROM queue WHERE address = ?", (name,)).fetchone()
        for name in names
    )
    return {row[0] for row in rows if row}


def _choose(
    connection: sqlite3.Connection,
    contender: Contender,
    terms: ClaimTerms,
    which: Eligible,
    *,
    sample: bool,
) -> list[int]:
    """Choose the rows for one request; a *sample* is one message of a split batch, alone."""
    values = which.values() | {"queue": contender.queue}
    if sample:
        suspect = connection.execute(_SUSPECT, values | {"full": limits.BATCH_MESSAGES}).fetchone()
        if suspect:
            return [suspect[0]]
    (max_batch,) = connection.execute(
        "SELECT max_batch FROM message WHERE id = ?", (contender.message,)
    ).fetchone()
    values |= {"max_batch": max_batch, "max_candidates": MAX_CANDIDATES}
    candidates: dict[Kind, list[_Candidate]] = {
        kind: connection.execute(_CANDIDATES, values | {"kind": kind}).fetchall()
        for kind in terms.kinds
    }
    return _fill(candidates, contender.kind, max_batch)


def _fill(candidates: dict[Kind, list[_Candidate]], first: Kind, max_batch: int) -> list[int]:
    """Fill one request with messages whose callers wait, then with the rest.

    If the permit is for a batch or for the spool (*first*), half of the request is reserved for
    it; otherwise many single publishes would leave it no space.
    """
    request = _Space(max_batch, limits.BATCH_BYTES)
    singles, reserved = candidates.pop(Kind.SINGLE, []), candidates.pop(first, [])
    if reserved:
        half_bytes = min(limits.BATCH_BYTES // 2, limits.BATCH_BYTES - reserved[0][1])
        half = _Space(max_batch // 2, half_bytes)
        taken = half.take(singles, one_always=False)
        request.take(singles[:taken])
        singles = singles[taken:]
    for group in (reserved, singles, *candidates.values()):
        request.take(group)
    return request.rows


_Candidate: TypeAlias = "tuple[int, int]"
"""Row and size of a message."""


class _Space:
    """The space that is left in a request."""

    def __init__(self, messages: int, size: int) -> None:
        self._messages = messages
        self._size = size
        self.rows: list[int] = []

    def take(self, candidates: Sequence[_Candidate], *, one_always: bool = True) -> int:
        """Take messages from the front until one does not fit; return how many were taken.

        With *one_always*, the first message of a request is taken whatever its size.
        """
        taken = 0
        for row, size in candidates:
            is_first = one_always and not self.rows
            if len(self.rows) >= self._messages or (size > self._size and not is_first):
                break
            self.rows.append(row)
            self._size -= size
            taken += 1
        return taken
