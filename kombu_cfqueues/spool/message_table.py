"""Spooled messages: kept on the disk until any process of the machine has delivered them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from .. import limits
from ..envelope import Address, Packed
from ..errors import CFQueuesError, SpoolFull, from_text
from ..waiting_room import Kind
from .file import File
from .schema import State

if TYPE_CHECKING:
    import sqlite3

RESERVE_BYTES: Final = 16 << 20
"""Bytes of the disk that the spool leaves free.

Delivery writes to the disk as well, so a spool that filled the disk could never be emptied."""

MAX_ROWS: Final = 500
"""Maximum number of rows in one statement; older SQLite allows 999 parameters."""

NOTE_USE_SECONDS: Final = 3_600.0
"""The last use of a queue is recorded at most once in this time.

Most publishes have nothing else to write to its row."""

Place: TypeAlias = "tuple[str, int]"
"""Where a message is: the id of the file, which may be replaced, and the row."""


class Spooled(NamedTuple):
    """A message to spool.

    Attributes:
        address: Its queue.
        packed: The message.
        expires: When it is dropped, in seconds since the epoch; None means never.
    """

    address: Address
    packed: Packed
    expires: float | None


class MessageTable:
    """The messages that are spooled on this machine.

    Args:
        file: The spool's file.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def spool(
        self,
        messages: Sequence[Spooled],
        *,
        max_bytes: int,
        repeats: bool = True,
        until: float = inf,
    ) -> list[Place]:
        """Store messages until they are delivered; return once they are on the disk.

        Args:
            messages: All of them are stored, or none.
            max_bytes: Maximum number of bytes that may wait in the file.
            repeats: Whether they may be posted again after an unknown outcome.
            until: When to give up if the file is busy, in monotonic seconds.

        Returns:
            Where each message is.

        Raises:
            RoomBusy: Other processes used the file until then.
            SpoolFull: The disk or the spool has no space for them.
            SpoolUnavailable: No file can be used.
        """
        if self._file.free_bytes() < RESERVE_BYTES:
            raise SpoolFull(
                f"the disk that holds {self._file.path} has less than {RESERVE_BYTES:,} bytes "
                "free; free some space"
            )
        size = sum(message.packed.size for message in messages)

        def work(connection: sqlite3.Connection) -> list[Place]:
            self._check_space(connection, size, max_bytes)
            rows = [_insert(connection, message, repeats=repeats) for message in messages]
            return [(self._file.id, row) for row in rows]

        return self._file.write(work, durable=True, until=until)

    def _check_space(self, connection: sqlite3.Connection, size: int, max_bytes: int) -> None:
        (held,) = connection.execute("SELECT bytes FROM machine").fetchone()
        if held + size > max_bytes:
            raise SpoolFull(
                f"{held:,} bytes wait in {self._file.path}, which may hold {max_bytes:,}; raise "
                "spool_max_bytes, or run `cfqueues spool` to see why they wait"
            )

    def take_over(self) -> None:
        """Move messages here that an older version of this package spooled but did not deliver."""
        for older in self._file.older():
            older.write(self._move)
            older.close()

    def _move(self, older: sqlite3.Connection) -> None:
        # Every version must have these columns.
        found = older.execute(
            "SELECT address, creates, cloudflare_id, fragment, size, due, alone, expires, repeats, "
            "state = 3, error, uncertain OR state = 1 FROM message AS m "
            "JOIN queue AS q ON m.queue = q.id WHERE m.owner IS NULL ORDER BY m.id"
        ).fetchall()

        def work(connection: sqlite3.Connection) -> None:
            for row in found:
                expires, repeats, refused, error, uncertain = row[7:]
                spooled = Spooled(Address(*row[:3]), Packed(*row[3:7]), expires)
                state = State.REFUSED if refused else State.WAITING
                more = {"repeats": repeats, "error": error, "uncertain": uncertain}
                _insert(connection, spooled, state=state, **more)

        # Insert before deleting: if the process dies in between, no message is lost.
        self._file.write(work, durable=True)
        older.execute("DELETE FROM message WHERE owner IS NULL")

    def learn(self, address: Address) -> None:
        """Record the id of the queue *address* for all processes."""
        self._file.write(lambda c: queue_row(c, address))

    def left(self, places: Sequence[Place]) -> Mapping[Place, CFQueuesError | None]:
        """Return the outcome of spooled messages: None if delivered or dropped, else the error.

        Messages that still wait or are being posted are left out.
        """

        def look(connection: sqlite3.Connection) -> dict[Place, CFQueuesError | None]:
            states = _states(connection, [row for file, row in places if file == self._file.id])
            outcomes = {place: self._outcome(place, states) for place in places}
            return {place: found[0] for place, found in outcomes.items() if found is not None}

        return self._file.read(look)

    def _outcome(
        self, place: Place, states: Mapping[int, tuple[int, str | None]]
    ) -> tuple[CFQueuesError | None] | None:
        """Return the outcome of one message in a tuple; None if it has none yet."""
        file, row = place
        if file != self._file.id:
            return (
                CFQueuesError(
                    "the spool's file was removed or replaced while the message waited in it",
                    delivered="unknown",
                ),
            )
        if row not in states:
            return (None,)
        state, error = states[row]
        return (from_text(error or "{}"),) if state == State.REFUSED else None

    def has_backlog(self) -> bool:
        """Whether spooled messages wait or are being posted."""

        def look(connection: sqlite3.Connection) -> bool:
            return any(
                connection.execute(
                    f"SELECT 1 FROM message WHERE state = {state:d} AND kind = ? LIMIT 1",  # noqa: S608
                    (Kind.SPOOLED,),
                ).fetchone()
                for state in (State.WAITING, State.CLAIMED)
            )

        return self._file.read(look)


def _states(
    connection: sqlite3.Connection, rows: Sequence[int]
) -> dict[int, tuple[int, str | None]]:
    """Return state and error of those of *rows* that exist."""
    states = {}
    for start in range(0, len(rows), MAX_ROWS):
        block = rows[start : start + MAX_ROWS]
        marks = ",".join("?" * len(block))
        query = f"SELECT id, state, error FROM message WHERE id IN ({marks})"  # noqa: S608
        for row, state, error in connection.execute(query, block).fetchall():
            states[row] = (state, error)
    return states


def insert(
    connection: sqlite3.Connection, kind: Kind, queue: int, packed: Packed, **waits: Any
) -> int:
    """Insert a message; return its row.  The caller is in a transaction."""
    values: dict[str, Any] = {
        "kind": kind,
        "queue": queue,
        "entered": time.time(),
        "max_batch": limits.BATCH_MESSAGES,
    }
    values |= packed._asdict() | waits
    done = connection.execute(
        f"INSERT INTO message ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",  # noqa: S608
        tuple(values.values()),
    )
    return int(done.lastrowid or 0)


def queue_row(connection: sqlite3.Connection, address: Address) -> int:
    """Return the row of a queue; insert it if it is new, else record what *address* adds."""
    now = time.time()
    found = connection.execute(
        "SELECT id, creates, cloudflare_id, used_at FROM queue WHERE address = ?", (address.name,)
    ).fetchone()
    if found is None:
        done = connection.execute(
            "INSERT INTO queue (address, creates, cloudflare_id, used_at) VALUES (?, ?, ?, ?)",
            (*address, now),
        )
        return int(done.lastrowid or 0)
    row, creates, known, used_at = found
    is_news = (address.creates and not creates) or (address.cloudflare_id or known) != known
    if is_news or abs(now - used_at) > NOTE_USE_SECONDS:
        connection.execute(
            "UPDATE queue SET creates = creates | ?, cloudflare_id = coalesce(?, cloudflare_id), "
            "used_at = ? WHERE id = ?",
            (address.creates, address.cloudflare_id, now, row),
        )
    return int(row)


def _insert(connection: sqlite3.Connection, message: Spooled, **more: Any) -> int:
    queue = queue_row(connection, message.address)
    return insert(connection, Kind.SPOOLED, queue, message.packed, expires=message.expires, **more)
