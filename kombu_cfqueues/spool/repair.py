"""A database that SQLite cannot use: one process renames it, and nobody deletes it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..runtime.clock import Clock
from ..runtime.rng import rng
from . import companions
from .liveness import KernelLock
from .sqlite_failures import Failure, failure_of

logger = logging.getLogger(__name__)

REPAIR_POLL_SECONDS: Final = 0.004
"""Poll interval of a process that is about to repair a file, while others open it.  Opening takes
milliseconds, and repairs are too rare for the CPU time to matter."""


class RepairLock:
    """Lets no other process open or repair a database meanwhile.

    Args:
        path: The database.
        file_mode: Permissions of the lock's file.
        clock: Sleeps.
    """

    def __init__(self, path: Path, file_mode: int, clock: Clock) -> None:
        self._path = path.with_suffix(".repair")
        self._file_mode = file_mode
        self._clock = clock

    @contextlib.contextmanager
    def held(self, *, shared: bool = False, waits: bool = False) -> Iterator[None]:
        """Hold the lock.

        Args:
            shared: Whether other processes may open the database, but none may repair it.
            waits: Whether to block until the lock is free.

        Raises:
            sqlite3.OperationalError: The lock is not free; SQLite's error for a busy file.
        """
        lock = KernelLock(self._path, self._file_mode)
        while not lock.acquire(shared=shared):
            if not waits:
                raise sqlite3.OperationalError("database is locked: it is being repaired")
            self._clock.sleep(REPAIR_POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()


def is_broken(path: Path, error: sqlite3.Error) -> bool:
    """Whether *error* says that the database at *path* cannot be used any more.

    An I/O error does, if the log is empty or missing.  Otherwise it comes from the disk.
    """
    failure = failure_of(error)
    return failure is Failure.BROKEN or (failure is Failure.UNREADABLE and _has_lost_its_log(path))


def _has_lost_its_log(path: Path) -> bool:
    try:
        return Path(f"{path}-wal").stat().st_size == 0
    except FileNotFoundError:
        return True


def put_aside(path: Path, why: str) -> None:
    """Rename a broken or foreign database and what is beside it, and log that.

    Args:
        path: The database; the caller holds its `RepairLock` alone.
        why: What was wrong with it.
    """
    stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{rng.getrandbits(16):04x}"
    aside = path.with_name(f"{path.name}.unusable-{stamp}")
    for suffix in (*companions.SUFFIXES, ""):
        source = Path(f"{path}{suffix}")
        if source.exists():
            source.rename(f"{aside}{suffix}")
    logger.error(
        "the spool's file could not be used (%s) and was renamed to %s; messages in it have not "
        "been delivered",
        why,
        aside,
    )
