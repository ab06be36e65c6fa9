"""Facts that the processes of a machine share through the spool's file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final, TypeVar

from ..errors import SpoolFull, SpoolUnavailable
from ..shared_facts import KnownQueue
from ..waiting_room import RoomBusy
from .file import File

T = TypeVar("T")

FACT_LIFETIME_SECONDS: Final = 300.0
"""A fact is valid for this long.

It bounds how long a process relies on a queue that was deleted or a token that was revoked."""

FACT_TIMEOUT_SECONDS: Final = 0.05
"""Longest time that a fact is read or written while the file is busy.

The API can answer the same question, so waiting longer than for a request would not pay."""


class FileFacts:
    """Facts in the spool's file; see `SharedFacts`.

    Args:
        file: The spool's file.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def token_works(self) -> bool:
        """See `SharedFacts.token_works`."""
        query = "SELECT works_at FROM token WHERE hash = ?"
        found = self._read(lambda c: c.execute(query, (self._file.token_hash,)).fetchone())
        return found is not None and self._is_valid(found[0])

    def note_token(self, *, works: bool) -> None:
        """See `SharedFacts.note_token`."""
        now, token = self._file.clock.monotonic(), self._file.token_hash
        if works:
            change = "INSERT OR REPLACE INTO token (hash, works_at) VALUES (?, ?)"
            self._write(lambda c: c.execute(change, (token, now)))
        else:
            self._write(lambda c: c.execute("DELETE FROM token WHERE hash = ?", (token,)))

    def queue(self, name: str) -> KnownQueue | None:
        """See `SharedFacts.queue`."""
        query = "SELECT known_id, retention, known_at FROM queue WHERE address = ?"
        found = self._read(lambda c: c.execute(query, (name,)).fetchone())
        if found is None or found[0] is None or not self._is_valid(found[2]):
            return None
        return KnownQueue(found[0], found[1])

    def note_queue(self, name: str, queue: KnownQueue) -> None:
        """See `SharedFacts.note_queue`."""
        change = (
            "INSERT INTO queue (address, known_id, retention, known_at, used_at) "
            "VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (address) DO UPDATE SET known_id = excluded.known_id, "
            "retention = excluded.retention, known_at = excluded.known_at, "
            "used_at = excluded.used_at"
        )
        values = (name, *queue, self._file.clock.monotonic(), time.time())
        self._write(lambda c: c.execute(change, values))

    def forget_queue(self, name: str) -> None:
        """See `SharedFacts.forget_queue`."""
        change = "UPDATE queue SET known_id = NULL WHERE address = ?"
        self._write(lambda c: c.execute(change, (name,)))

    def _is_valid(self, since: float) -> bool:
        return 0 <= self._file.clock.monotonic() - since < FACT_LIFETIME_SECONDS

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        try:
            return self._file.read(work, until=self._file.clock.monotonic() + FACT_TIMEOUT_SECONDS)
        except (RoomBusy, SpoolFull, SpoolUnavailable):
            return None

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        try:
            self._file.write(work, until=self._file.clock.monotonic() + FACT_TIMEOUT_SECONDS)
        except (RoomBusy, SpoolFull, SpoolUnavailable):
            return  # the other processes ask the API themselves
