"""The two files that SQLite keeps beside a database: its write-ahead log, and its shared memory.

A person or a cleaner of temporary files may remove one while processes have the database open.
These processes keep using the removed file, while SQLite in a new process creates a second log, and
the contents of the two logs would mix.  SQLite does not detect this.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from ..runtime.clock import Clock
from ..runtime.rng import rng

try:
    import fcntl
except ImportError:  # pragma: no cover  Windows, where there is no spool
    fcntl = None  # type: ignore[assignment]

SUFFIXES: Final = ("-wal", "-shm")
"""What SQLite appends to the name of the database, for the log and for the shared memory."""

TRIES: Final = 10
"""If the log is missing at this many looks while other processes have the database open, it was
removed."""

TRY_PAUSE_SECONDS: Final = 0.004
"""Longest pause between two looks for the log: several times as long as creating it takes."""

_SHARED_FIRST: Final = 0x40000002
_SHARED_SIZE: Final = 510
"""The byte range that each process locks while it has the database open in WAL mode
(https://www.sqlite.org/src/file/src/os.h)."""

_Inode: TypeAlias = "tuple[int, int] | None"


class Identity(NamedTuple):
    """The inodes of the files at the paths of a database; None where there is no file."""

    database: _Inode
    memory: _Inode
    log: _Inode


def identify(path: Path) -> Identity:
    """Return what is at *path* and beside it now."""
    return Identity(_inode(path), _inode(f"{path}-shm"), _inode(f"{path}-wal"))


def _inode(path: str | Path) -> _Inode:
    try:
        found = os.stat(path)  # noqa: PTH116  runs at each transaction: the cheap form
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def is_log_removed(path: Path, clock: Clock) -> bool:
    """Whether other processes have the database at *path* open and use a log that was removed.

    This process must not have the database open, because this check would release its locks.
    """
    for _ in range(TRIES):
        if not _is_open_elsewhere(path):
            return False
        # The other process may be making the same check, or be about to create the log.
        clock.sleep(rng.uniform(0, TRY_PAUSE_SECONDS))
        if identify(path).log is not None:
            return False
    return True


def _is_open_elsewhere(path: Path) -> bool:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
    except (BlockingIOError, PermissionError):  # which of the two depends on the system
        return True
    finally:
        os.close(file)
    return False


def remove(path: Path) -> None:
    """Remove the log of an earlier database at *path*: SQLite would apply it to the next one."""
    for suffix in SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def write_down_log(connection: sqlite3.Connection, path: Path, mode: int) -> None:
    """Write the contents of a removed log to the database, so that others can open it again.

    An empty log takes its place.  The shared memory describes the frames of the old log, so it is
    removed too.

    Args:
        connection: Has the database and the removed log open.
        path: The database; no other process may open it meanwhile.
        mode: Permissions of the new log.

    Raises:
        sqlite3.OperationalError: The log is in use.
    """
    if identify(path).log is not None:
        return  # another process was first
    busy, frames, written = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
    if busy or frames != written:
        raise sqlite3.OperationalError("database is locked: its log is in use")
    remove(path)
    os.close(os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """Keep the files beside *path* while a connection to an earlier database is closed.

    The last process that closes a database removes these files by name, even if they belong to
    another database now.
    """
    links: list[tuple[Path, Path]] = []
    for suffix in SUFFIXES:
        file = Path(f"{path}{suffix}")
        link = file.with_name(f"{file.name}.kept-{secrets.token_hex(8)}")
        with contextlib.suppress(OSError):  # the file does not exist, or the folder was removed
            os.link(file, link)
            links.append((link, file))
    try:
        yield
    finally:
        for link, file in links:
            with contextlib.suppress(OSError):
                link.rename(file)
                link.unlink(missing_ok=True)  # renaming does nothing if both are the same file
