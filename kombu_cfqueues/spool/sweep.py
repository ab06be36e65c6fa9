"""Cleaning up: claims of dead processes, expired claims, unread outcomes, unused queues."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from .file import File
from .message_table import MAX_ROWS
from .schema import forget, free

if TYPE_CHECKING:
    import sqlite3

OUTCOME_KEPT_SECONDS: Final = 5.0
"""An outcome is kept for this long after its deadline, for an owner that reads it late.

An owner reads its outcomes many times per second; an owner that is this late has given up."""

ROW_UNUSED_SECONDS: Final = 86_400.0
"""A queue that was not used for this long is forgotten; its next use looks it up again."""

_STALE: Final = "deadline < ? AND state != 1"

# Without this, the names of reply queues would accumulate.  A queue is in use while a message for
# it waits, is claimed or is kept.
_FORGET_QUEUES: Final = """
DELETE FROM queue WHERE id IN (
    SELECT id FROM queue AS q
    WHERE used_at < :before AND max(stopped_until, paused_until) <= :now
        AND NOT EXISTS (
            SELECT 1 FROM message WHERE state = 0 AND queue = q.id AND kind IN (0, 1, 2)
        )
        AND id NOT IN (SELECT queue FROM message WHERE state = 1 AND queue IS NOT NULL)
        AND id NOT IN (SELECT queue FROM message WHERE state = 3 AND queue IS NOT NULL)
    LIMIT :max_rows
)
"""

# Without this, the buckets of replaced tokens would accumulate.  The bucket that was used last
# stays: a new token inherits from it.
_FORGET_BUCKETS: Final = """
DELETE FROM bucket
WHERE counted_at < :before AND max(stopped_until, publishing_stopped_until) <= :now
    AND counted_at < (SELECT max(counted_at) FROM bucket)
"""


def sweep(file: File, *, until: float) -> None:
    """Release claims that expired or whose process died; delete outcomes that were never read.

    Args:
        file: The spool's file.
        until: When to give up if the file is busy, in monotonic seconds.

    Raises:
        RoomBusy: Other processes used the file until then.
        SpoolFull: The disk is full.
        SpoolUnavailable: The file cannot be used.
    """
    locks = file.locks
    dead = locks.dead()

    def work(connection: sqlite3.Connection) -> list[str]:
        # Look again: a process takes its lock a moment after it made the lock's file, and this
        # transaction may have waited for others since.
        gone = [name for name in dead if not locks.is_alive(name)]
        for name in gone:
            forget(connection, name)
        _clear(connection, file.clock.monotonic())
        return gone

    def is_due(connection: sqlite3.Connection) -> bool:
        return bool(dead) or _has_stale(connection, file.clock.monotonic())

    # Read first: only one process at a time can write, and there is rarely anything to do.
    if file.read(is_due, until=until):
        for name in file.write(work, until=until):
            locks.remove_lock_file(name)


def _has_stale(connection: sqlite3.Connection, now: float) -> bool:
    return any(
        connection.execute(f"SELECT 1 FROM message WHERE {condition} LIMIT 1", (value,)).fetchone()  # noqa: S608
        for condition, value in (
            ("state = 1 AND claimed_until < ?", now),
            (_STALE, now - OUTCOME_KEPT_SECONDS),
        )
    )


def _clear(connection: sqlite3.Connection, now: float) -> None:
    free(connection, "claimed_until < ?", now)
    connection.execute(f"DELETE FROM message WHERE {_STALE}", (now - OUTCOME_KEPT_SECONDS,))  # noqa: S608


def forget_unused(connection: sqlite3.Connection, now: float) -> bool:
    """Delete what was not used for `ROW_UNUSED_SECONDS`: queues, tokens and their allowances.

    Args:
        connection: In a transaction.
        now: The file's time, in monotonic seconds.

    Returns:
        Whether nothing like it is left: one call deletes at most `MAX_ROWS` queues.
    """
    used_before = time.time() - ROW_UNUSED_SECONDS  # queues are dated by the wall clock
    values = {"before": used_before, "now": now, "max_rows": MAX_ROWS}
    queues = connection.execute(_FORGET_QUEUES, values).rowcount
    before = now - ROW_UNUSED_SECONDS
    connection.execute("DELETE FROM token WHERE works_at < ?", (before,))
    connection.execute("DELETE FROM fleet WHERE max(ask_at, ifnull(permit_at, 0)) < ?", (before,))
    connection.execute(_FORGET_BUCKETS, {"before": before, "now": now})
    return queues < MAX_ROWS
