"""The emulator's SQLite database: its schema and its transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_VERSION: Final = 2

# A message has two rows: SQLite rewrites a changed row as a whole, each lease changes only a few
# numbers, and a body may have 128 KB.  No column says whether a message is ready, delayed or
# leased.  That follows from `visible_at`, so a message becomes ready as time passes, without a
# write.
_SCHEMA: Final = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE queues (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused, since leases contain it
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    jurisdiction TEXT,
    created_ms INTEGER NOT NULL,
    modified_ms INTEGER NOT NULL,
    delivery_delay INTEGER NOT NULL,
    delivery_paused INTEGER NOT NULL,
    message_retention_period INTEGER NOT NULL,
    purged_ms INTEGER,
    purge_due_ms INTEGER                       -- end of a purge that has started
);

CREATE TABLE consumers (
    id TEXT PRIMARY KEY,
    queue INTEGER NOT NULL REFERENCES queues ON DELETE CASCADE,
    created_ms INTEGER NOT NULL,
    type TEXT NOT NULL,
    script_name TEXT,
    dead_letter_queue TEXT NOT NULL,
    settings TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE messages (
    seq INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL REFERENCES queues ON DELETE CASCADE,
    id BLOB NOT NULL,
    content_type TEXT NOT NULL,
    size INTEGER NOT NULL,                     -- bytes of the body
    delay_seconds INTEGER NOT NULL,            -- as requested by the publisher
    timestamp_ms INTEGER NOT NULL,
    visible_at INTEGER NOT NULL,               -- ms; end of the delay or the lease
    attempts INTEGER NOT NULL,                 -- deliveries so far
    lease INTEGER NOT NULL,                    -- number of the latest lease
    leased INTEGER NOT NULL,                   -- 1 until that lease is settled or expires
    copied INTEGER NOT NULL DEFAULT 0,         -- 1 once a duplicate exists
    died_in INTEGER                            -- the queue in which it became a dead letter
);
-- Includes `leased`, so that counting by state reads only the index.
CREATE INDEX messages_by_visibility ON messages (queue, visible_at, leased);
CREATE INDEX messages_dead ON messages (died_in) WHERE died_in IS NOT NULL;
-- Every index ends in seq, so this one returns the latest messages of a queue without a sort.
CREATE INDEX messages_by_queue ON messages (queue);
CREATE INDEX messages_by_age ON messages (queue, timestamp_ms);
CREATE INDEX messages_leased ON messages (visible_at) WHERE leased = 1;

CREATE TABLE bodies (
    seq INTEGER PRIMARY KEY REFERENCES messages ON DELETE CASCADE,
    body BLOB NOT NULL
);
"""


class Database:
    """A connection that all threads share, one at a time.

    A commit to a file has reached the operating system before it returns, so killing the process
    loses nothing that was answered.  A power failure may lose commits: the emulator is not meant to
    keep data.

    Args:
        path: The file, which is created if it is missing; None for memory.

    Raises:
        ValueError: Another emulator uses the file, or the file is not an emulator's database.
    """

    def __init__(self, path: Path | str | None) -> None:
        self.lock = threading.RLock()  # held for every use of `connection`
        self._depth = 0  # guarded by lock
        try:
            self.connection = sqlite3.connect(
                ":memory:" if path is None else str(path),
                isolation_level=None,
                check_same_thread=False,
                timeout=1,
            )
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.connection.close()
            raise _unusable(path, error) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction.  A nested block joins the outer transaction."""
        with self.lock:
            if self._depth == 0:
                self.connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self.connection
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self.connection.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self.connection.execute("COMMIT")

    def setting(self, name: str, default: bytes) -> bytes:
        """Return the value of the setting *name*; store *default* if it has none."""
        with self.transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, default))
            row = sql.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            return bytes(row[0])

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self.connection.close()

    def _prepare(self) -> None:
        sql = self.connection
        # Exclusive, because this process counts the messages of each queue in memory, which a
        # second process would not see.
        sql.execute("PRAGMA locking_mode = EXCLUSIVE")
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("PRAGMA synchronous = OFF")
        sql.execute("PRAGMA foreign_keys = ON")
        with self.transaction():
            version = sql.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not sql.execute("SELECT 1 FROM sqlite_schema").fetchone():
                # executescript() would commit first.
                for statement in _SCHEMA.split(";\n"):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError("it is not a database of this version of the emulator")


def _unusable(path: Path | str | None, error: sqlite3.Error) -> ValueError:
    reason = "in use by another emulator" if "locked" in str(error) else str(error)
    return ValueError(f"cannot use {path} as the emulator's database: {reason}")
