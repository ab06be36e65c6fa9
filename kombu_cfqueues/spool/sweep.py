"""Frees what the dead have claimed, and forgets what nobody waits for any more."""

from __future__ import annotations

import sqlite3
from math import inf
from typing import Final

from .file import File
from .schema import forget, free

OUTCOME_SECONDS: Final = 5.0
"""How long after its deadline an outcome is kept for an owner that is late."""


def sweep(file: File, *, until: float = inf) -> None:
    """Free what the dead have claimed, and forget what nobody waits for any more."""
    dead = file.locks.dead()

    def is_due(connection: sqlite3.Connection) -> bool:
        return bool(dead) or _has_stale(connection, file.clock.monotonic())

    def work(connection: sqlite3.Connection) -> None:
        for name in dead:
            forget(connection, name)
        _clear(connection, file.clock.monotonic())

    if file.read(is_due, until=until):
        file.write(work, until=until)
    for name in dead:
        file.locks.remove_lock_file(name)


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
