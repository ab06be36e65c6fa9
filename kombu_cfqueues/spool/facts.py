"""Facts that the processes of a machine share through the spool's file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from ..errors import SpoolFull, SpoolUnavailable
from ..shared_facts import KnownQueue
from ..waiting_room import RoomBusy
from .file import File

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

FACT_LIFETIME_SECONDS: Final = 300.0
"""A fact is valid for this long.

It bounds how long a new process relies on the id of a renamed queue, which still works; the API
refuses a deleted queue and a revoked token.  As long as Cloudflare's window of requests, so that a
machine asks for each fact at most once in a window."""

FACT_TIMEOUT_SECONDS: Final = 1.0
"""Maximum time to read or write a fact while the file is busy.

The API can answer the same question, but every process that asks takes a permit, and Cloudflare
allows about four per second.  When many processes start together, the file is busy for about this
long."""

BUSY_SECONDS: Final = 5.0
"""After a fact has timed out (`FACT_TIMEOUT_SECONDS`), each fact is tried only once for this long.

A process may hold the file for minutes, and a caller with a deadline asks for several facts."""

ASKING_SECONDS: Final = 10.0
"""Longest time that other processes wait for the answer to a question that one process asks.

That process may be stopped or hang; its death is noticed at once.  As long as the default of
``read_timeout``: a request that takes longer has failed."""

_NOTE_QUEUE: Final = """
INSERT INTO queue (address, known_id, retention, known_at, used_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (address) DO UPDATE SET
    known_id = excluded.known_id, retention = excluded.retention, known_at = excluded.known_at,
    used_at = excluded.used_at, unfinished = NULL
"""

_NOTE_UNFINISHED: Final = """
INSERT INTO queue (address, unfinished, unfinished_at, used_at) VALUES (?, ?, ?, ?)
ON CONFLICT (address) DO UPDATE SET
    unfinished = excluded.unfinished, unfinished_at = excluded.unfinished_at,
    used_at = excluded.used_at
"""


class FileFacts:
    """Facts in the spool's file; see `SharedFacts`.

    Args:
        file: The spool's file.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._busy_until = 0.0  # monotonic; each access is atomic and needs no lock

    # -- what the API said

    def token_works(self) -> bool:
        """See `SharedFacts.token_works`."""
        query = "SELECT works_at FROM token WHERE hash = ?"
        token = self._file.token_hash  # before the transaction: it may call the application
        found = self._read(lambda c: c.execute(query, (token,)).fetchone())
        return found is not None and self._is_valid(found[0])

    def forget_token(self) -> None:
        """See `SharedFacts.forget_token`."""
        token = self._file.token_hash
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
        self._write(lambda c: self._note_queues(c, {name: queue}))

    def forget_queue(self, name: str, queue_id: str) -> None:
        """See `SharedFacts.forget_queue`."""
        change = "UPDATE queue SET known_id = NULL WHERE address = ? AND known_id = ?"
        self._write(lambda c: c.execute(change, (name, queue_id)))

    def _note_queues(
        self, connection: sqlite3.Connection, queues: Mapping[str, KnownQueue]
    ) -> None:
        now, used_at = self._file.clock.monotonic(), time.time()
        connection.executemany(
            _NOTE_QUEUE, [(name, *queue, now, used_at) for name, queue in queues.items()]
        )

    # -- how far the look-ups are

    def next_page(self) -> int | None:
        """See `SharedFacts.next_page`."""
        page = self._read(self._next_page)
        return 1 if page is None else page or None

    def note_page(self, page: int, queues: Mapping[str, KnownQueue], *, has_more: bool) -> None:
        """See `SharedFacts.note_page`."""
        token = self._file.token_hash

        def work(connection: sqlite3.Connection) -> None:
            now = self._file.clock.monotonic()
            connection.execute("INSERT OR REPLACE INTO token VALUES (?, ?)", (token, now))
            self._note_queues(connection, queues)
            if page == self._next_page(connection):
                begun = now if page == 1 else None
                connection.execute(
                    "UPDATE machine SET next_page = ?, listed_at = coalesce(?, listed_at)",
                    (page + 1 if has_more else 0, begun),
                )

        self._write(work)

    def unfinished(self, name: str) -> int | None:
        """See `SharedFacts.unfinished`."""
        query = "SELECT unfinished, unfinished_at FROM queue WHERE address = ?"
        found = self._read(lambda c: c.execute(query, (name,)).fetchone())
        if found is None or found[0] is None or not self._is_valid(found[1]):
            return None
        return int(found[0])

    def note_unfinished(self, name: str, page: int) -> None:
        """See `SharedFacts.note_unfinished`."""
        values = (name, page, self._file.clock.monotonic(), time.time())
        self._write(lambda c: c.execute(_NOTE_UNFINISHED, values))

    def _next_page(self, connection: sqlite3.Connection) -> int:
        """Return the first page that no process has read; 1 if the pages read are out of date."""
        page, since = connection.execute("SELECT next_page, listed_at FROM machine").fetchone()
        return page if since is not None and self._is_valid(since) else 1

    # -- which process asks

    def begin(self, question: str) -> bool:
        """See `SharedFacts.begin`."""
        try:
            # Read first: only one process at a time can write.
            if self._in_time(
                lambda until: self._file.read(lambda c: self._is_asked(c, question), until=until)
            ):
                return False
            return self._in_time(
                lambda until: self._file.write(lambda c: self._begin(c, question), until=until)
            )
        except RoomBusy:
            return False  # many processes are starting, and one of them asks
        except (SpoolFull, SpoolUnavailable):
            return True  # without a file, each process asks

    def end(self, question: str) -> None:
        """See `SharedFacts.end`."""
        change = "DELETE FROM asking WHERE question = ? AND process = ?"
        self._write(lambda c: c.execute(change, (question, self._file.me)))

    def _begin(self, connection: sqlite3.Connection, question: str) -> bool:
        if self._is_asked(connection, question):
            return False
        until = self._file.clock.monotonic() + ASKING_SECONDS
        connection.execute(
            "INSERT OR REPLACE INTO asking (question, process, until) VALUES (?, ?, ?)",
            (question, self._file.me, until),
        )
        return True

    def _is_asked(self, connection: sqlite3.Connection, question: str) -> bool:
        """Whether a process that is alive asks *question*."""
        query = "SELECT process, until FROM asking WHERE question = ?"
        found = connection.execute(query, (question,)).fetchone()
        if found is None or not 0 <= found[1] - self._file.clock.monotonic() <= ASKING_SECONDS:
            return False
        return self._file.is_alive(found[0])

    def _is_valid(self, since: float) -> bool:
        return 0 <= self._file.clock.monotonic() - since < FACT_LIFETIME_SECONDS

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        try:
            return self._in_time(lambda until: self._file.read(work, until=until))
        except (RoomBusy, SpoolFull, SpoolUnavailable):
            return None

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        try:
            self._in_time(lambda until: self._file.write(work, until=until))
        except (RoomBusy, SpoolFull, SpoolUnavailable):
            return  # the other processes ask the API themselves

    def _in_time(self, use: Callable[[float], T]) -> T:
        """Call *use* with the time when to give up: at most `FACT_TIMEOUT_SECONDS` from now."""
        now = self._file.clock.monotonic()
        until = now if now < self._busy_until else now + FACT_TIMEOUT_SECONDS
        try:
            return use(until)
        except RoomBusy:
            self._busy_until = self._file.clock.monotonic() + BUSY_SECONDS
            raise
