"""What is in the file for somebody: messages that enter, and what became of them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from .. import limits
from ..envelope import Address, Packed
from ..errors import CFQueuesError, SpoolFull, from_text
from .file import File
from .schema import Kind, State

RESERVE_BYTES: Final = 16 << 20
"""So much of the disk is left free: delivering writes too, and a disk that the spool has filled to
the last byte could never be emptied."""


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


class Intake:
    """Messages on their way in, and their outcomes on their way back.

    Args:
        file: Where they are.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def enter(
        self,
        kind: Kind,
        address: Address,
        messages: Sequence[Packed],
        *,
        deadline: float,
        repeats: bool = True,
        uncertain: bool = False,
        straight: bool = False,
    ) -> list[int] | None:
        """Let messages wait for a permit, whose caller waits for their outcome.

        Args:
            kind: ``SINGLE`` or ``BULK``.
            address: Where they go.
            messages: The messages.
            deadline: Until when they may be posted, in monotonic seconds.
            repeats: Whether they may be posted again after an unknown outcome.
            uncertain: Whether they may have arrived already.
            straight: Whether they may do without: if nothing waits and a permit is free, take it.

        Returns:
            Their rows; None: a permit was taken, and nothing entered.
        """

        def work(connection: sqlite3.Connection) -> list[int] | None:
            queue = _queue_row(connection, address)
            if straight and self._isfree(connection, queue):
                return None
            waits = {
                "owner": self._file.poster,
                "deadline": deadline,
                "repeats": repeats,
                "uncertain": uncertain,
            }
            return [_insert(connection, kind, queue, packed, **waits) for packed in messages]

        return self._file.write(work)

    def _isfree(self, connection: sqlite3.Connection, queue: int) -> bool:
        """Take a permit, if nobody waits for one."""
        if connection.execute("SELECT 1 FROM message WHERE state = 0 LIMIT 1").fetchone():
            return False
        bucket = self._file.bucket(connection)
        stopped = connection.execute("SELECT stopped_until FROM queue WHERE id = ?", (queue,))
        if (
            bucket.tokens < 1
            or bucket.stopped(publishing=True)
            or stopped.fetchone()[0] > self._file.clock.monotonic()
        ):
            return False
        bucket.spend(Kind.SINGLE)
        return True

    def spool(
        self, messages: Sequence[Spooled], *, max_bytes: int, repeats: bool = True
    ) -> list[int]:
        """Keep messages until they are delivered; return once they are on the disk.

        Args:
            messages: All of them are kept, or none.
            max_bytes: Most bytes that may wait here.
            repeats: Whether they may be posted again after an unknown outcome.

        Returns:
            Their rows.

        Raises:
            SpoolFull: There is no room for them.
        """
        if self._file.free_bytes() < RESERVE_BYTES:
            raise SpoolFull(
                f"the disk that holds {self._file.path} has less than {RESERVE_BYTES:,} bytes free"
            )

        def work(connection: sqlite3.Connection) -> list[int]:
            (held,) = connection.execute("SELECT bytes FROM machine").fetchone()
            if held + sum(message.packed.size for message in messages) > max_bytes:
                raise SpoolFull(
                    f"{held:,} bytes wait in {self._file.path}, which may hold {max_bytes:,} "
                    "(spool_max_bytes)"
                )
            return [_keep(connection, message, repeats=repeats) for message in messages]

        return self._file.write(work, durable=True)

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
        self._file.write(lambda c: _queue_row(c, address))

    def outcomes(self) -> tuple[dict[int, CFQueuesError | None], bool]:
        """What others said of this process's messages, and whether any of them still waits."""

        def look(
            connection: sqlite3.Connection,
        ) -> tuple[dict[int, CFQueuesError | None], bool]:
            rows = connection.execute(
                "SELECT id, error, uncertain FROM message WHERE owner = ? AND state IN (?, ?)",
                (self._file.poster, State.ACCEPTED, State.REFUSED),
            ).fetchall()
            waits = connection.execute(
                "SELECT 1 FROM message WHERE owner = ? AND state = 0 AND kind != ? LIMIT 1",
                (self._file.poster, Kind.TICKET),
            ).fetchone()
            told = {row: error and _told(error, unsure) for row, error, unsure in rows}
            return told, waits is not None

        found, waits = self._file.read(look)
        if found:
            rows = [(row,) for row in found]
            self._file.write(lambda c: c.executemany("DELETE FROM message WHERE id = ?", rows))
        return found, waits

    def withdraw(
        self, rows: Sequence[int], *, taken: bool = True
    ) -> dict[int, State | CFQueuesError | None]:
        """Take messages back whose caller waits no more.

        Args:
            rows: The messages.
            taken: Whether also those that somebody is posting, and may yet be answered.

        Returns:
            For each: None if it was accepted, an error if it was refused, ``WAITING`` if surely
            nobody sent it, ``CLAIMED`` if somebody may have.
        """

        def work(connection: sqlite3.Connection) -> dict[int, State | CFQueuesError | None]:
            fates: dict[int, State | CFQueuesError | None] = {}
            for row in rows:
                found = connection.execute(
                    "SELECT state, uncertain, error FROM message WHERE id = ?", (row,)
                ).fetchone()
                state, uncertain, error = found or (State.CLAIMED, 1, None)
                if state == State.ACCEPTED:
                    fates[row] = None
                elif state == State.REFUSED and error:
                    fates[row] = _told(error, uncertain)
                elif state == State.CLAIMED and found and not taken:
                    continue
                else:
                    sent = uncertain or state == State.CLAIMED
                    fates[row] = State.CLAIMED if sent else State.WAITING
            connection.executemany("DELETE FROM message WHERE id = ?", [(row,) for row in fates])
            return fates

        return self._file.write(work)

    def fates(self, rows: Sequence[int]) -> dict[int, CFQueuesError | None]:
        """What became of spooled messages: None if they have left, or why they were refused.

        Those that wait, or are on their way, are not in it.
        """

        def look(connection: sqlite3.Connection) -> dict[int, CFQueuesError | None]:
            fates: dict[int, CFQueuesError | None] = {}
            for row in rows:
                found = connection.execute(
                    "SELECT state, error FROM message WHERE id = ?", (row,)
                ).fetchone()
                if found is None:
                    fates[row] = None
                elif found[0] == State.REFUSED:
                    fates[row] = from_text(found[1])
            return fates

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


def _keep(connection: sqlite3.Connection, message: Spooled, **more: object) -> int:
    queue = _queue_row(connection, message.address)
    return _insert(connection, Kind.SPOOLED, queue, message.packed, expires=message.expires, **more)


def _insert(
    connection: sqlite3.Connection, kind: Kind, queue: int, packed: Packed, **waits: object
) -> int:
    values = {"kind": kind, "queue": queue, "entered": time.time(), "most": limits.BATCH_MESSAGES}
    values |= packed._asdict() | waits
    done = connection.execute(
        f"INSERT INTO message ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",  # noqa: S608
        tuple(values.values()),
    )
    return int(done.lastrowid or 0)


def _queue_row(connection: sqlite3.Connection, address: Address) -> int:
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


def _told(error: str, uncertain: int) -> CFQueuesError:
    """What an owner is told: an earlier try may have delivered the message."""
    told = from_text(error)
    if uncertain:
        told.delivered = "unknown"
    return told
