"""Connections to a database that a forked child has inherited, and must neither use nor close."""

from __future__ import annotations

import contextlib
import sqlite3

_handles_of_parents: list[sqlite3.Connection] = []
"""Keeps the connections open, because closing one would release the parent's locks."""


def abandon(connection: sqlite3.Connection, *, in_use: bool) -> None:
    """Keep a parent's connection open, and prevent its use in this process.

    A signal handler may have forked in the middle of a transaction.  The locks belong to the
    parent, but SQLite records them in this process too, and every later connection would find the
    file locked.

    Args:
        connection: The parent's connection.
        in_use: Whether a thread of the parent was inside SQLite.  Then SQLite's mutexes are locked
            forever, and the connection cannot be touched.
    """
    _handles_of_parents.append(connection)
    if in_use:
        return
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.rollback()  # releases no lock of the parent's, and writes nothing
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
