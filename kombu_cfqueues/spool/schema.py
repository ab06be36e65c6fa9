"""What is in the file: one table of waiting messages, and the few numbers that all share.

The life of a message's row::

    enter --> WAITING --claim--> CLAIMED --accepted--> ACCEPTED   for its owner, who deletes it
                 ^                  |                             (without an owner: deleted)
                 |                  +------refused---> REFUSED    for its owner; without one, kept
                 +----release-------+

A row with a deadline is a confirmed publish: its *owner*, a process, waits for what becomes of it.
A row without one is spooled: its publisher has gone on.  A row of an admin request waits in the
same line for its permit, and carries nothing.
"""

from __future__ import annotations

import functools
import platform
import sqlite3
import subprocess
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Final

from ..errors import CFQueuesError, as_text
from ..runtime.rng import rng

VERSION: Final = 2
"""Of the tables below; a part of the file's name, so that versions never meet in a file.

A newer version takes over what is spooled: see `MessageTable.take_over` for what it relies on."""


class State(IntEnum):
    """Where a row is in its life.  The partial indices below know WAITING as 0."""

    WAITING = 0
    CLAIMED = 1
    ACCEPTED = 2
    REFUSED = 3


_TABLES: Final = """
CREATE TABLE message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of arrival
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    queue INTEGER REFERENCES queue,
    fragment BLOB,
    size INTEGER NOT NULL DEFAULT 0,
    due REAL,                              -- wall clock: the message's own delay
    alone INTEGER,
    entered REAL NOT NULL,                 -- wall clock: for display
    expires REAL,                          -- wall clock: of a spooled message
    owner TEXT,                            -- the process that waits for its outcome
    deadline REAL,                         -- monotonic: until when the owner waits
    half_time REAL,                        -- monotonic: when half of that time is over
    repeats INTEGER NOT NULL DEFAULT 1,    -- may be posted again after an unknown outcome
    max_batch INTEGER,                     -- messages that may travel with it, itself included
    uncertain INTEGER NOT NULL DEFAULT 0,  -- it may have arrived
    claim INTEGER,
    poster TEXT,                           -- who holds the claim
    claimed_until REAL,                    -- monotonic
    error TEXT                             -- why it was refused, or what delays it
);
CREATE INDEX waiting ON message (kind, queue, id) WHERE state = 0;
CREATE INDEX owned ON message (owner, state) WHERE owner IS NOT NULL;
CREATE INDEX claimed ON message (claim) WHERE state = 1;
CREATE INDEX ending ON message (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX refused ON message (id) WHERE state = 3;

CREATE TABLE queue (
    id INTEGER PRIMARY KEY,
    address TEXT NOT NULL UNIQUE,            -- the name at Cloudflare, or # and the id
    creates INTEGER NOT NULL DEFAULT 0,      -- whether it is to be made if it is missing
    cloudflare_id TEXT,                      -- once it is known
    stopped_until REAL NOT NULL DEFAULT 0,   -- monotonic: a 429 of this queue
    paused_until REAL NOT NULL DEFAULT 0,    -- monotonic: for what is spooled
    pauses INTEGER NOT NULL DEFAULT 0,       -- in a row
    trouble TEXT,                            -- why what is spooled waits
    used_at REAL NOT NULL,                   -- wall clock: of its last use, about
    known_id TEXT,                           -- what a process has looked up, for the others
    retention INTEGER,                       -- seconds for which it keeps messages
    known_at REAL                            -- monotonic
);

CREATE INDEX used ON queue (used_at);

CREATE TABLE bucket (
    token TEXT PRIMARY KEY,                  -- a hash
    tokens REAL NOT NULL,
    counted_at REAL NOT NULL,                -- monotonic, as all of the next four
    slow_rate REAL NOT NULL,
    slow_until REAL NOT NULL,
    stopped_until REAL NOT NULL,
    publishing_stopped_until REAL NOT NULL
);

CREATE TABLE token (
    hash TEXT PRIMARY KEY,
    works_at REAL NOT NULL                   -- monotonic: when the API has last taken it
);

CREATE TABLE process (
    name TEXT PRIMARY KEY                    -- of each that has used the file since the last boot
);

CREATE TABLE machine (
    file TEXT NOT NULL,                      -- tells this file from any that has its name later
    boot TEXT NOT NULL,                      -- whose monotonic clock the numbers are of
    bytes INTEGER NOT NULL DEFAULT 0,        -- of all messages here
    last_kind INTEGER,                       -- whose turn the last permit was
    drainer TEXT,                            -- the poster that empties the spool
    drained_at REAL NOT NULL DEFAULT 0       -- monotonic: when it was last at work
);

CREATE TRIGGER counts_what_comes AFTER INSERT ON message WHEN NEW.size > 0
    BEGIN UPDATE machine SET bytes = bytes + NEW.size; END;
CREATE TRIGGER counts_what_goes AFTER DELETE ON message WHEN OLD.size > 0
    BEGIN UPDATE machine SET bytes = bytes - OLD.size; END
"""


def prepare(
    connection: sqlite3.Connection,
    *,
    new: bool,
    boot: str,
    now: float,
    me: str,
    is_alive: Callable[[str], bool],
) -> str:
    """Make the tables of a *new* file; in an old one, forget what another *boot* counted.

    Args:
        connection: In a transaction.
        new: Whether the file is empty.
        boot: What `boot_id` says.
        now: The monotonic clock.
        me: This process, as others know it.
        is_alive: Says whether a process is alive.

    Returns:
        What tells this file from any other.
    """
    if new:
        for statement in _statements(_TABLES):
            connection.execute(statement)
        connection.execute(
            "INSERT INTO machine (file, boot) VALUES (?, ?)", (f"{rng.getrandbits(64):016x}", boot)
        )
    else:
        (seen,) = connection.execute("SELECT boot FROM machine").fetchone()
        if seen != boot and not same_boot(connection, me, is_alive):
            begin_anew(connection, boot, now)
    connection.execute("INSERT OR IGNORE INTO process (name) VALUES (?)", (me,))
    (file,) = connection.execute("SELECT file FROM machine").fetchone()
    return str(file)


def same_boot(connection: sqlite3.Connection, me: str, is_alive: Callable[[str], bool]) -> bool:
    """Return whether a process lives that used the file before: then there was no reboot.

    Containers that share a folder may each have a boot id of their own.
    """
    names = connection.execute("SELECT name FROM process WHERE name != ?", (me,)).fetchall()
    return any(is_alive(name) for (name,) in names)


def begin_anew(connection: sqlite3.Connection, boot: str, now: float) -> None:
    """Live on after a reboot: nobody is alive who waited or posted, and the clock began anew.

    Nobody knows how much time went by, so none did: what a 429 stopped is stopped for as long as
    was left then, and nothing was earned.
    """
    connection.execute("DELETE FROM message WHERE deadline IS NOT NULL")
    connection.execute(
        "UPDATE message SET state = 0, claim = NULL, poster = NULL, uncertain = 1 WHERE state = ?",
        (State.CLAIMED,),
    )
    connection.execute("UPDATE queue SET stopped_until = 0, paused_until = 0")
    connection.execute(
        """
        UPDATE bucket SET
            tokens = min(tokens, 1),
            slow_until = max(0, slow_until - counted_at) + :now,
            stopped_until = max(0, stopped_until - counted_at) + :now,
            publishing_stopped_until = max(0, publishing_stopped_until - counted_at) + :now,
            counted_at = :now
        """,
        {"now": now},
    )
    connection.execute("UPDATE machine SET boot = ?, drainer = NULL", (boot,))
    connection.execute("DELETE FROM process")
    connection.execute("DELETE FROM token")
    connection.execute("UPDATE queue SET known_id = NULL")


def forget(connection: sqlite3.Connection, poster: str) -> None:
    """Free what a process that is dead has claimed, and drop what only it waits for."""
    free(connection, "poster = ?", poster)
    # What it wanted published and nobody refused may still be posted, until its deadline.
    connection.execute(
        "DELETE FROM message WHERE owner = ? AND (queue IS NULL OR state IN (?, ?))",
        (poster, State.ACCEPTED, State.REFUSED),
    )
    connection.execute("DELETE FROM process WHERE name = ?", (poster,))
    connection.execute("UPDATE machine SET drainer = NULL WHERE drainer = ?", (poster,))


def free(connection: sqlite3.Connection, condition: str, value: object) -> None:
    """Let claimed messages wait again, except those that must not be posted twice."""
    lost = as_text(
        CFQueuesError("the process that was posting the message ended", delivered="unknown")
    )
    for change, which in (
        (f"state = {State.REFUSED:d}, error = ?, claim = NULL, poster = NULL", "NOT repeats"),
        ("state = 0, claim = NULL, poster = NULL, uncertain = coalesce(1, ?)", "repeats"),
    ):
        connection.execute(
            f"UPDATE message SET {change} WHERE state = 1 AND {condition} AND {which}",  # noqa: S608
            (lost, value),
        )


def _statements(script: str) -> list[str]:
    """The statements of *script*: `executescript` would end the transaction."""
    statements, rest = [], ""
    for line in script.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    return [*statements, rest] if rest.strip() else statements


@functools.cache
def boot_id() -> str:
    """What tells this boot of this machine from any other; ``""`` where nothing does.

    There, a monotonic clock that runs backwards is what tells.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    if platform.system() != "Darwin":
        return ""
    ask = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        return subprocess.run(  # noqa: S603  a fixed command
            ask, capture_output=True, check=True, timeout=5, text=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
