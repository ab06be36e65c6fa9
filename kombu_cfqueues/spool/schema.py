"""The file's tables: waiting messages, and the few numbers that all processes share.

The life of a message's row::

    enter --> WAITING --claim--> CLAIMED --accepted--> ACCEPTED   for its owner, which deletes it
                 ^                  |                             (without an owner: deleted)
                 |                  +------refused---> REFUSED    for its owner; without one, kept
                 +----release-------+

A row with a deadline is a confirmed publish: its *owner*, a process, waits for the outcome.  A row
without a deadline is a spooled message, whose publisher does not wait.  The row of an admin request
carries no message; it waits for a permit in the same order.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import CFQueuesError, as_text
from ..runtime.rng import rng

if TYPE_CHECKING:
    import sqlite3

FILE_VERSION: Final = 2
"""Version of the tables below.

It is part of the file's name, so that two versions never use the same file.  A newer version moves
spooled messages to its own file; see `MessageTable.take_over` for the columns it needs.
"""

BOOT_ID_TIMEOUT_SECONDS: Final = 5.0
"""Timeout of the ``sysctl`` call that reads macOS's boot id; it normally takes milliseconds."""


class State(IntEnum):
    """The state of a message's row.  The indices and queries below use the numbers."""

    WAITING = 0
    CLAIMED = 1
    ACCEPTED = 2
    REFUSED = 3


_TABLES: Final = """
CREATE TABLE message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- in order of arrival
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    queue INTEGER REFERENCES queue,
    fragment BLOB,
    size INTEGER NOT NULL DEFAULT 0,
    due REAL,                              -- wall clock: when the message's delay ends
    alone INTEGER,
    eta REAL,                              -- wall clock: of a Celery task
    entered REAL NOT NULL,                 -- wall clock: for display
    expires REAL,                          -- wall clock: when a spooled message is dropped
    owner TEXT,                            -- process that waits for the outcome
    deadline REAL,                         -- monotonic: end of the owner's wait
    half_time REAL,                        -- monotonic: middle of the owner's wait
    repeats INTEGER NOT NULL DEFAULT 1,    -- whether to retry after an unknown outcome
    max_batch INTEGER,                     -- limit of messages in its request
    uncertain INTEGER NOT NULL DEFAULT 0,  -- whether it may have been delivered
    claim INTEGER,
    poster TEXT,                           -- process that holds the claim
    claimed_until REAL,                    -- monotonic
    error TEXT                             -- why it was refused
);
CREATE INDEX waiting ON message (kind, queue, id) WHERE state = 0;
CREATE INDEX owned ON message (owner, state) WHERE owner IS NOT NULL;
CREATE INDEX claimed ON message (claim) WHERE state = 1;
CREATE INDEX ending ON message (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX refused ON message (id) WHERE state = 3;

CREATE TABLE queue (
    id INTEGER PRIMARY KEY,
    address TEXT NOT NULL UNIQUE,            -- the name at Cloudflare, or # and the id
    creates INTEGER NOT NULL DEFAULT 0,      -- whether to create it if it is missing
    cloudflare_id TEXT,                      -- NULL until it is known
    stopped_until REAL NOT NULL DEFAULT 0,   -- monotonic: end of a 429 of this queue
    paused_until REAL NOT NULL DEFAULT 0,    -- monotonic: back-off of spooled messages
    pauses INTEGER NOT NULL DEFAULT 0,       -- in a row
    trouble TEXT,                            -- why its messages are delayed
    used_at REAL NOT NULL,                   -- wall clock: its last use, to the hour
    known_id TEXT,                           -- id that a process looked up, for all processes
    retention INTEGER,                       -- seconds that it keeps messages
    known_at REAL,                           -- monotonic
    unfinished INTEGER,                      -- page at which its look-up continues; 0: none is left
    unfinished_at REAL                       -- monotonic
);

CREATE INDEX used ON queue (used_at);

CREATE TABLE bucket (
    token TEXT PRIMARY KEY,                  -- a hash
    tokens REAL NOT NULL,
    counted_at REAL NOT NULL,                -- monotonic, like the other times here
    slow_rate REAL NOT NULL,
    slow_until REAL NOT NULL,
    stopped_until REAL NOT NULL,
    publishing_stopped_until REAL NOT NULL,
    part REAL NOT NULL,                      -- this machine's part of the limit
    grows_at REAL NOT NULL,
    hold_seconds REAL NOT NULL,
    steps INTEGER NOT NULL,
    learned_at REAL NOT NULL,
    own REAL NOT NULL,                       -- requests of the machine before the last block
    counted_from REAL NOT NULL,
    sent INTEGER NOT NULL,                   -- requests of the machine since counted_from
    sent_before INTEGER NOT NULL
);

CREATE TABLE fleet (
    token TEXT PRIMARY KEY,                  -- a hash
    permit_at REAL,                          -- monotonic: when the permit of Redis may be used
    ask_at REAL NOT NULL,                    -- monotonic: when a process may ask Redis
    trouble TEXT                             -- why Redis is not used now
);

CREATE TABLE token (
    hash TEXT PRIMARY KEY,
    works_at REAL NOT NULL                   -- monotonic: when the API last accepted it
);

CREATE TABLE asking (
    question TEXT PRIMARY KEY,               -- what a process asks the API for all processes
    process TEXT NOT NULL,
    until REAL NOT NULL                      -- monotonic: how long other processes wait
);

CREATE TABLE process (
    name TEXT PRIMARY KEY                    -- of each process since the last boot
);

CREATE TABLE machine (
    file TEXT NOT NULL,                      -- identifies the file; its replacement has another
    boot TEXT NOT NULL,                      -- the boot whose monotonic clock is used
    bytes INTEGER NOT NULL DEFAULT 0,        -- total size of all messages
    last_kind INTEGER,                       -- kind that got the last permit
    relay TEXT,                              -- process that empties the spool
    relay_seen_at REAL NOT NULL DEFAULT 0,   -- monotonic: its last sign of life
    next_page INTEGER NOT NULL DEFAULT 1,    -- of the list of queues; 0: all pages were read
    listed_at REAL                           -- monotonic: when its first page was read
);

CREATE TRIGGER add_bytes AFTER INSERT ON message WHEN NEW.size > 0
    BEGIN UPDATE machine SET bytes = bytes + NEW.size; END;
CREATE TRIGGER subtract_bytes AFTER DELETE ON message WHEN OLD.size > 0
    BEGIN UPDATE machine SET bytes = bytes - OLD.size; END
"""

_RESTART_BUCKETS: Final = """
UPDATE bucket SET
    tokens = min(tokens, 1),
    slow_until = max(0, slow_until - counted_at) + :now,
    stopped_until = max(0, stopped_until - counted_at) + :now,
    publishing_stopped_until = max(0, publishing_stopped_until - counted_at) + :now,
    grows_at = grows_at - counted_at + :now,
    learned_at = CASE WHEN learned_at THEN learned_at - counted_at + :now ELSE 0 END,
    counted_from = counted_from - counted_at + :now,
    counted_at = :now
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
    """Create the tables of a *new* file; in an existing one, reset the times after a reboot.

    Args:
        connection: In a transaction.
        new: Whether the file is empty.
        boot: The id of this boot; see `boot_id`.
        now: The monotonic clock.
        me: This process's name in the file.
        is_alive: Returns whether the process with this name is alive.

    Returns:
        The file's id.
    """
    if new:
        _create(connection, boot)
    else:
        _, seen = file_and_boot(connection)
        if seen != boot and not same_boot(connection, me, is_alive):
            begin_anew(connection, boot, now)
    connection.execute("INSERT OR IGNORE INTO process (name) VALUES (?)", (me,))
    return file_and_boot(connection)[0]


def file_and_boot(connection: sqlite3.Connection) -> tuple[str, str]:
    """Return the file's id, and the boot whose monotonic clock it uses."""
    file, boot = connection.execute("SELECT file, boot FROM machine").fetchone()
    return str(file), str(boot)


def _create(connection: sqlite3.Connection, boot: str) -> None:
    for statement in _statements(_TABLES):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO machine (file, boot) VALUES (?, ?)", (f"{rng.getrandbits(64):016x}", boot)
    )


def same_boot(connection: sqlite3.Connection, me: str, is_alive: Callable[[str], bool]) -> bool:
    """Return whether another process that used the file is alive, so there was no reboot.

    A boot id is not enough: containers that share a folder may have different ones.
    """
    names = connection.execute("SELECT name FROM process WHERE name != ?", (me,)).fetchall()
    return any(is_alive(name) for (name,) in names)


def begin_anew(connection: sqlite3.Connection, boot: str, now: float) -> None:
    """Reset the file after a reboot: no process is alive, and the monotonic clock restarted.

    It is unknown how much time passed, so the allowance assumes none: a stop keeps its remaining
    time, and no requests were earned.
    """
    connection.execute("DELETE FROM message WHERE deadline IS NOT NULL")
    connection.execute(
        "UPDATE message SET state = 0, claim = NULL, poster = NULL, uncertain = 1 WHERE state = ?",
        (State.CLAIMED,),
    )
    connection.execute("UPDATE queue SET stopped_until = 0, paused_until = 0")
    connection.execute(_RESTART_BUCKETS, {"now": now})
    connection.execute("UPDATE machine SET boot = ?, relay = NULL, listed_at = NULL", (boot,))
    for table in ("process", "token", "asking", "fleet"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608  constant names
    connection.execute("UPDATE queue SET known_id = NULL, unfinished = NULL")


def forget(connection: sqlite3.Connection, poster: str) -> None:
    """Release the claims of a process that ended; delete rows that only this process waits for."""
    free(connection, "poster = ?", poster)
    # Other processes may post its waiting messages, until their deadline.
    connection.execute(
        "DELETE FROM message WHERE owner = ? AND (queue IS NULL OR state IN (?, ?))",
        (poster, State.ACCEPTED, State.REFUSED),
    )
    connection.execute("DELETE FROM process WHERE name = ?", (poster,))
    connection.execute("DELETE FROM asking WHERE process = ?", (poster,))
    connection.execute("UPDATE machine SET relay = NULL WHERE relay = ?", (poster,))


def free(connection: sqlite3.Connection, condition: str, value: object) -> None:
    """Let claimed messages wait again; refuse those that must not be posted twice."""
    lost = as_text(CFQueuesError("the process that posted the message ended", delivered="unknown"))
    for change, which in (
        (f"state = {State.REFUSED:d}, error = ?, claim = NULL, poster = NULL", "NOT repeats"),
        ("state = 0, claim = NULL, poster = NULL, uncertain = coalesce(1, ?)", "repeats"),
    ):
        connection.execute(
            f"UPDATE message SET {change} WHERE state = 1 AND {condition} AND {which}",  # noqa: S608
            (lost, value),
        )


def _statements(script: str) -> list[str]:
    """Return the statements of *script*, since `executescript` would end the transaction."""
    import sqlite3  # noqa: PLC0415  only a process that uses the file needs it

    statements, rest = [], ""
    for line in script.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    return [*statements, rest] if rest.strip() else statements


@functools.cache
def boot_id() -> str:
    """Return an id of this boot of the machine; ``""`` if the system has none.

    Without an id, a reboot is noticed only if the monotonic clock ran backwards.
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
            ask, capture_output=True, check=True, timeout=BOOT_ID_TIMEOUT_SECONDS, text=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
