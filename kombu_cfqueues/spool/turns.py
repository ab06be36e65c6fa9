"""Whose turn the next permit is.  The caller of each function is in a transaction.

The queue whose oldest waiting message is oldest goes first, whoever posts it, and an admin request
stands in the same line.  But neither the spool nor a `Producer.batch()` takes two permits in a row
while something else waits: their backlogs are always the oldest.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final, NamedTuple

from ..errors import RateLimited
from .schema import Kind

PATIENCE_SECONDS: Final = 0.2
"""A permit that nobody took for so long, whose turn it was, is anybody's."""

TURN_SECONDS: Final = 0.02
"""How often is looked whether a permit that is there is still another's."""


class Turn(NamedTuple):
    """A claim to a permit.

    Attributes:
        message: Row of the oldest message, or of the ticket.
        kind: Of that row.
        queue: Row of its queue; None for a ticket.
    """

    message: int
    kind: Kind
    queue: int | None


class Wait(NamedTuple):
    """No permit now.

    Attributes:
        until: When to ask again, in monotonic seconds; None: nothing is to be posted.
        why: The stop of a 429, if that is the reason.
    """

    until: float | None
    why: RateLimited | None = None


class Patience:
    """How long somebody is waited for whose turn it is, and who does not come.

    It may be stopped, or nobody may be left who can post what is due.
    """

    def __init__(self) -> None:
        self._passed_over: tuple[int, float] | None = None  # replaced as one: it needs no lock

    def is_over(self, turn: Turn, now: float) -> bool:
        """Whether a permit has been there for a while, and *turn* did not take it."""
        seen = self._passed_over
        if seen is None or seen[0] != turn.message:
            self._passed_over = seen = (turn.message, now)
        return now - seen[1] >= PATIENCE_SECONDS


_OLDEST = """
SELECT (
    SELECT m.id FROM message AS m
    WHERE m.state = 0 AND m.kind = :kind AND m.queue = q.id
        AND (m.deadline IS NULL OR m.deadline > :now) AND (:owner IS NULL OR m.owner IS :owner)
    ORDER BY m.id LIMIT 1
), q.id
FROM queue AS q
WHERE q.stopped_until <= :now AND (:kind != :spooled OR q.paused_until <= :now)
"""

_TICKET = """
SELECT id, NULL FROM message
WHERE state = 0 AND kind = :kind AND queue IS NULL AND deadline > :now ORDER BY id LIMIT 1
"""


def waiting(
    connection: sqlite3.Connection,
    now: float,
    *,
    kinds: Collection[Kind] = tuple(Kind),
    owner: str | None = None,
    without: Collection[int] = (),
) -> list[Turn]:
    """Return the oldest of each kind in each queue that may be posted to, the oldest first.

    Args:
        connection: The file.
        now: The monotonic clock.
        kinds: What to look for.
        owner: Only what this poster waits for.
        without: Rows of queues that are not asked for.
    """
    found = []
    for kind in kinds:
        query = _TICKET if kind is Kind.TICKET else _OLDEST
        values = {"kind": kind, "now": now, "owner": owner, "spooled": Kind.SPOOLED}
        for message, queue in connection.execute(query, values):
            if message is not None and queue not in without:
                found.append(Turn(message, kind, queue))
    return sorted(found)


def next_turn(turns: list[Turn], last: Kind | None) -> Turn | None:
    """Return whose turn it is among *turns*, the oldest first, after a permit for *last*."""
    if last in (Kind.BULK, Kind.SPOOLED):
        others = [turn for turn in turns if turn.kind is not last]
        turns = others or turns
    return turns[0] if turns else None


def tickets_before(connection: sqlite3.Connection, message: int, now: float) -> int:
    """Return how many admin requests wait for longer than *message*."""
    (count,) = connection.execute(
        "SELECT count(*) FROM message WHERE state = 0 AND kind = ? AND id < ? AND deadline > ?",
        (Kind.TICKET, message, now),
    ).fetchone()
    return int(count)
