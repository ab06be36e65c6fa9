"""Whose turn the next permit is.  The caller of each function is in a transaction.

The queue whose oldest waiting message is oldest goes first, whoever posts it, and a look-up that a
message waits for ranks as that message.  But neither the spool, nor a `Producer.batch()`, nor other
administration takes two permits in a row while something else waits: the backlogs are always the
oldest, and a hundred processes that connect at once are no reason to keep messages waiting.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from math import inf
from typing import Final, NamedTuple

from ..waiting_room import Kind

PATIENCE_SECONDS: Final = 0.2
"""If the next in line leaves a permit unused for this long, anyone may take it."""

TURN_SECONDS: Final = 0.02
"""Pause between two looks whether a permit that is there is still another's."""

MODEST: Final = (Kind.BULK, Kind.SPOOLED, Kind.ADMIN)
"""Those that never take two permits in a row while something else waits."""

REQUESTS: Final = (Kind.ADMIN, Kind.LOOKUP)
"""Those that carry no message and belong to no queue."""


class Turn(NamedTuple):
    """The oldest of those that wait for a permit together.

    Attributes:
        message: Its row.
        kind: Of that row.
        queue: Row of its queue; None for an admin request.
    """

    message: int
    kind: Kind
    queue: int | None


class Eligible(NamedTuple):
    """Which messages may be taken.

    Attributes:
        now: The monotonic clock.
        owner: Only what this process waits for; None: what anybody waits for.
        latest: Only what is not waited for any longer, in monotonic seconds.
        request_seconds: How long a request takes: what has less time left is not taken, unless
            half of its whole time is still to come.
    """

    now: float
    owner: str | None = None
    latest: float = inf
    request_seconds: float = 0.0

    def values(self) -> dict[str, object]:
        """Return what `ELIGIBLE` needs."""
        return {
            "now": self.now,
            "owner": self.owner,
            "latest": self.latest,
            "must_last": self.now + self.request_seconds,
        }


ELIGIBLE: Final = """
m.state = 0 AND ifnull(m.deadline, 9e999) <= :latest
    AND (m.deadline IS NULL OR m.deadline > :must_last OR m.half_time > :now)
    AND (:owner IS NULL OR m.owner IS :owner)
"""

_OLDEST: Final = f"""
SELECT (
    SELECT m.id FROM message AS m
    WHERE m.kind = :kind AND m.queue = q.id AND {ELIGIBLE}
    ORDER BY m.id LIMIT 1
), q.id
FROM queue AS q
WHERE q.stopped_until <= :now AND (:kind != :spooled OR q.paused_until <= :now)
"""  # noqa: S608  our own words

_REQUEST: Final = """
SELECT id, NULL FROM message
WHERE state = 0 AND kind = :kind AND queue IS NULL AND deadline > :now ORDER BY id LIMIT 1
"""


class Patience:
    """How long a process is waited for whose turn it is, and that does not come.

    It may be stopped, or nobody may be left who can post what is due.
    """

    def __init__(self) -> None:
        self._passed_over: tuple[int, float] | None = None  # replaced as one: it needs no lock

    def is_over(self, turn: Turn, now: float) -> bool:
        """Return whether a permit has been there for a while, and *turn* did not take it."""
        seen = self._passed_over
        if seen is None or seen[0] != turn.message:
            self._passed_over = seen = (turn.message, now)
        return now - seen[1] >= PATIENCE_SECONDS


def waiting(
    connection: sqlite3.Connection,
    eligible: Eligible,
    *,
    kinds: Collection[Kind] = tuple(Kind),
    without: Collection[int] = (),
) -> list[Turn]:
    """Return the oldest of each kind in each queue that may be posted to, the oldest first.

    Args:
        connection: The file.
        eligible: Which messages may be taken.
        kinds: What to look for.
        without: Rows of queues that are not asked for.
    """
    found = []
    for kind in kinds:
        query = _REQUEST if kind in REQUESTS else _OLDEST
        values = eligible.values() | {"kind": kind, "spooled": Kind.SPOOLED}
        for message, queue in connection.execute(query, values).fetchall():
            if message is not None and queue not in without:
                found.append(Turn(message, kind, queue))
    return sorted(found)


def next_turn(turns: list[Turn], last: Kind | None) -> Turn | None:
    """Return whose turn it is among *turns*, the oldest first, after a permit for *last*."""
    if last in MODEST:
        others = [turn for turn in turns if turn.kind is not last]
        turns = others or turns
    return turns[0] if turns else None


def permits_before(
    connection: sqlite3.Connection, line: list[Turn], message: int, last: Kind | None, now: float
) -> int:
    """Return how many permits are others' before *message* may have one.

    Args:
        connection: The file.
        line: Who waits: what `waiting` returns.
        message: A row; of a message, or of an admin request.
        last: Who had the last permit.
        now: The monotonic clock.
    """
    messages = [turn for turn in line if turn.queue is not None]
    older = sum(turn.message < message for turn in messages)
    admin, admin_older, lookups, lookups_older = connection.execute(
        "SELECT count(*) FILTER (WHERE kind = :admin), "
        "count(*) FILTER (WHERE kind = :admin AND id < :id), "
        "count(*) FILTER (WHERE kind = :lookup), "
        "count(*) FILTER (WHERE kind = :lookup AND id < :id) "
        "FROM message WHERE state = 0 AND queue IS NULL AND deadline > :now AND id != :id",
        {"admin": Kind.ADMIN, "lookup": Kind.LOOKUP, "id": message, "now": now},
    ).fetchone()
    if _is_admin(connection, message):
        # One of the others goes before each admin request, as long as there are others.
        others = lookups + len(messages)
        between = min(others, admin_older + (last is Kind.ADMIN))
        return int(admin_older + max(between, older + lookups_older))
    return int(older + lookups_older + (admin > 0 and last is not Kind.ADMIN))


def _is_admin(connection: sqlite3.Connection, message: int) -> bool:
    found = connection.execute("SELECT kind FROM message WHERE id = ?", (message,)).fetchone()
    return bool(found and found[0] == Kind.ADMIN)


def requests_before(connection: sqlite3.Connection, message: int, now: float) -> int:
    """Return how many admin requests wait for longer than *message*."""
    (count,) = connection.execute(
        "SELECT count(*) FROM message WHERE state = 0 AND queue IS NULL AND id < ? "
        "AND deadline > ?",
        (message, now),
    ).fetchone()
    return int(count)
