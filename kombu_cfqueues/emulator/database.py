"""The SQLite database behind the emulator: its schema, and one transaction at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_VERSION: Final = 2

# A message is two rows, because what changes with each lease is small and a body may be 128 KB:
# SQLite writes a changed row anew.  Whether a message is ready, delayed or leased is no column but
# a question about `visible_at`, so that time alone makes a message ready, without a write.
_SCHEMA: Final = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE queues (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice, as leases carry it
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    jurisdiction TEXT,
    created_ms INTEGER NOT NULL,
    modified_ms INTEGER NOT NULL,
    delivery_delay INTEGER NOT NULL,
    delivery_paused INTEGER NOT NULL,
    message_retention_period INTEGER NOT NULL,
    purged_ms INTEGER,
    purge_due_ms INTEGER                       -- a purge that has started and not yet happened
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
    delay_seconds INTEGER NOT NULL,            -- as asked for at publishing
    timestamp_ms INTEGER NOT NULL,
    visible_at INTEGER NOT NULL,               -- ms; the end of a delay or of a lease
    attempts INTEGER NOT NULL,                 -- deliveries so far
    lease INTEGER NOT NULL,                    -- number of the latest lease
    leased INTEGER NOT NULL,                   -- 1 until that lease is settled or has run out
    copied INTEGER NOT NULL DEFAULT 0,         -- 1 once there are two of it
    died_in INTEGER                            -- the queue that it is a dead letter of
);
-- With `leased`, so that counting by state reads the index alone.
CREATE INDEX messages_by_visibility ON messages (queue, visible_at, leased);
CREATE INDEX messages_dead ON messages (died_in) WHERE died_in IS NOT NULL;
-- With seq, which every index ends in: a queue's latest messages without sorting them all.
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

    In a file, a commit is in the hands of the operating system before it returns, so killing the
    process loses nothing that was answered.  (A power cut may: nobody keeps their queues here.)

    Args:
        path: The file, made if missing; None for memory.

    Raises:
        ValueError: The file is in use by another emulator, or it is none of ours.
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
        """Do the block's statements together or not at all.  Blocks inside it join it."""
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
        """Return what is kept under *name*; keep *default* if nothing is."""
        with self.transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, default))
            row = sql.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            return bytes(row[0])

    def close(self) -> None:
        """Let go of the file."""
        with self.lock:
            self.connection.close()

    def _prepare(self) -> None:
        sql = self.connection
        # Exclusive: the queues' tallies live in this process, and a second one would not see them.
        sql.execute("PRAGMA locking_mode = EXCLUSIVE")
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("PRAGMA synchronous = OFF")
        sql.execute("PRAGMA foreign_keys = ON")
        with self.transaction():
            version = sql.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not sql.execute("SELECT 1 FROM sqlite_schema").fetchone():
                # Not executescript(), which would commit first.
                for statement in _SCHEMA.split(";\n"):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError("it is not an emulator's database of this version")


def _unusable(path: Path | str | None, error: sqlite3.Error) -> ValueError:
    reason = "in use by another emulator" if "locked" in str(error) else str(error)
    return ValueError(f"cannot use {path} as the emulator's database: {reason}")
