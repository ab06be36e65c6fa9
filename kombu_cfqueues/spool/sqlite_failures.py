"""What an error of SQLite means for the spool."""

from __future__ import annotations

import sqlite3
from enum import Enum, auto
from typing import Final


class Failure(Enum):
    """What an SQLite error means for the spool."""

    BUSY = auto()
    FULL = auto()
    BROKEN = auto()
    UNREADABLE = auto()
    """The disk fails, or the file's write-ahead log was removed while processes had it open."""

    OTHER = auto()


# Matched by text, since Python 3.10 does not expose SQLite's error codes.
_TEXTS: Final = (
    ("database is locked", Failure.BUSY),
    ("database table is locked", Failure.BUSY),
    ("database schema has changed", Failure.BUSY),
    ("locking protocol", Failure.BUSY),
    ("database or disk is full", Failure.FULL),
    ("file is not a database", Failure.BROKEN),
    ("database disk image is malformed", Failure.BROKEN),
    ("malformed database schema", Failure.BROKEN),
    ("disk I/O error", Failure.UNREADABLE),
)


def failure_of(error: sqlite3.Error) -> Failure:
    """Return the kind of *error*."""
    text = str(error)
    return next((failure for start, failure in _TEXTS if text.startswith(start)), Failure.OTHER)
