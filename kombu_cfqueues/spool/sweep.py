"""Cleaning up: claims of dead processes, expired claims, and outcomes that were never read."""

from __future__ import annotations

import sqlite3
from typing import Final

from .file import File
from .schema import forget, free

OUTCOME_KEPT_SECONDS: Final = 5.0
"""An outcome is kept for this long after its deadline, for an owner that reads it late.

An owner reads its outcomes many times per second; one that is this late has given up."""

_STALE: Final = "deadline < ? AND state != 1"


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
    dead = file.locks.dead()

    def work(connection: sqlite3.Connection) -> None:
        for name in dead:
            forget(connection, name)
        _clear(connection, file.clock.monotonic())

    # Read first: only one process at a time can write, and there is rarely anything to do.
    if file.read(lambda c: bool(dead) or _has_stale(c, file.clock.monotonic()), until=until):
        file.write(work, until=until)
    for name in dead:
        file.locks.remove_lock_file(name)


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
