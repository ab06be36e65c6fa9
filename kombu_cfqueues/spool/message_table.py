"""What is spooled: kept on the disk until it is delivered, whoever published it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Final, NamedTuple, TypeAlias

from .. import limits
from ..envelope import Address, Packed
from ..errors import CFQueuesError, SpoolFull, from_text
from ..waiting_room import Kind
from .file import File
from .schema import State

RESERVE_BYTES: Final = 16 << 20
"""Bytes of the disk that are left free: delivering writes too, and a disk that the spool has filled
to the last byte could never be emptied."""

BLOCK: Final = 500
"""Rows of one statement."""

Place: TypeAlias = "tuple[str, int]"
"""Where a message is: the file's id, since the file may be replaced, and the row."""


class Spooled(NamedTuple):
    """A message to be kept.

    Attributes:
        address: Where it goes.
        packed: The message.
        expires: When it is to be dropped, in seconds since the epoch; None: never.
    """

    address: Address
    packed: Packed
    expires: float | None


class MessageTable:
    """The messages that are spooled on this machine.

    Args:
        file: Where they are.
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
        """Keep messages until they are delivered; return once they are on the disk.

        Args:
            messages: All of them are kept, or none.
            max_bytes: Bytes that may wait here.
            repeats: Whether they may be posted again after an unknown outcome.
            until: When to give up at the latest, in monotonic seconds.

        Returns:
            Where they are.

        Raises:
            RoomBusy: Other processes used the file until then.
            SpoolFull: There is no room for them.
            SpoolUnavailable: No file can be used.
        """
        if self._file.free_bytes() < RESERVE_BYTES:
            raise SpoolFull(
                f"the disk that holds {self._file.path} has less than {RESERVE_BYTES:,} bytes free"
            )

        def work(connection: sqlite3.Connection) -> list[Place]:
            (held,) = connection.execute("SELECT bytes FROM machine").fetchone()
            if held + sum(message.packed.size for message in messages) > max_bytes:
                raise SpoolFull(
                    f"{held:,} bytes wait in {self._file.path}, which may hold {max_bytes:,} "
                    "(spool_max_bytes)"
                )
            return [
                (self._file.id, _keep(connection, message, repeats=repeats)) for message in messages
            ]

        return self._file.write(work, durable=True, until=until)

    def take_over(self) -> None:
        """Keep what an older version of this package has spooled, and would never deliver."""
        for older in self._file.older():
            older.write(self._move)
            older.close()

    def _move(self, older: sqlite3.Connection) -> None:
        # These columns are what every version has to have.
        found = older.execute(
            "SELECT address, creates, cloudflare_id, fragment, size, due, alone, expires, repeats, "
            "state = 3, error, uncertain OR state = 1 FROM message AS m "
            "JOIN queue AS q ON m.queue = q.id WHERE m.owner IS NULL ORDER BY m.id"
        ).fetchall()

        def work(connection: sqlite3.Connection) -> None:
            for row in found:
                expires, repeats, refused, error, uncertain = row[7:]
                kept = Spooled(Address(*row[:3]), Packed(*row[3:7]), expires)
                state = State.REFUSED if refused else State.WAITING
                more = {"repeats": repeats, "error": error, "uncertain": uncertain}
                _keep(connection, kept, state=state, **more)

        # Here first: between the two, they are in both files rather than in none.
        self._file.write(work, durable=True)
        older.execute("DELETE FROM message WHERE owner IS NULL")

    def learn(self, address: Address) -> None:
        """Tell the other processes a queue's id, which is known now."""
        self._file.write(lambda c: queue_row(c, address))

    def left(self, places: Sequence[Place]) -> Mapping[Place, CFQueuesError | None]:
        """Return what became of spooled messages: None if they have left, or why they were refused.

        Those that wait, or are on their way, are not in it.
        """

        def look(connection: sqlite3.Connection) -> dict[Place, CFQueuesError | None]:
            here = [row for file, row in places if file == self._file.id]
            states: dict[int, tuple[int, str | None]] = {}
            for start in range(0, len(here), BLOCK):
                rows = here[start : start + BLOCK]
                marks = ",".join("?" * len(rows))
                query = f"SELECT id, state, error FROM message WHERE id IN ({marks})"  # noqa: S608
                for row, state, error in connection.execute(query, rows).fetchall():
                    states[row] = state, error
            left: dict[Place, CFQueuesError | None] = {}
            for place in places:
                if place[0] != self._file.id:
                    left[place] = CFQueuesError(
                        "the file of the spool was removed or replaced while the message waited "
                        "in it",
                        delivered="unknown",
                    )
                elif place[1] not in states:
                    left[place] = None
                elif states[place[1]][0] == State.REFUSED:
                    left[place] = from_text(states[place[1]][1] or "{}")
            return left

        return self._file.read(look)

    def has_backlog(self) -> bool:
        """Whether spooled messages wait or are on their way."""

        def look(connection: sqlite3.Connection) -> bool:
            return any(
                connection.execute(
                    f"SELECT 1 FROM message WHERE state = {state:d} AND kind = ? LIMIT 1",  # noqa: S608
                    (Kind.SPOOLED,),
                ).fetchone()
                for state in (State.WAITING, State.CLAIMED)
            )

        return self._file.read(look)


def insert(
    connection: sqlite3.Connection, kind: Kind, queue: int, packed: Packed, **waits: Any
) -> int:
    """Write a message into the file; return its row.  The caller is in a transaction."""
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
    """Return the row of a queue, made if it is new; note what *address* knows of it."""
    found = connection.execute(
        "SELECT id, creates, cloudflare_id FROM queue WHERE address = ?", (address.name,)
    ).fetchone()
    if found is None:
        done = connection.execute(
            "INSERT INTO queue (address, creates, cloudflare_id) VALUES (?, ?, ?)", address
        )
        return int(done.lastrowid or 0)
    row, creates, known = found
    if (address.creates and not creates) or (address.cloudflare_id or known) != known:
        connection.execute(
            "UPDATE queue SET creates = creates | ?, cloudflare_id = coalesce(?, cloudflare_id) "
            "WHERE id = ?",
            (address.creates, address.cloudflare_id, row),
        )
    return int(row)


def _keep(connection: sqlite3.Connection, message: Spooled, **more: Any) -> int:
    queue = queue_row(connection, message.address)
    return insert(connection, Kind.SPOOLED, queue, message.packed, expires=message.expires, **more)
