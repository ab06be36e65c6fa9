"""The file: an SQLite database that many processes and threads use, politely.

SQLite's own waiting sleeps in C, where it would stop every greenlet of a gevent worker; so a file
that is busy is asked again from Python.  What is done with the file is short, and nothing else
happens meanwhile: a transaction never waits for a network or for another lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from math import inf
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from ..errors import SpoolFull, SpoolUnavailable
from ..runtime.clock import Clock
from ..runtime.fork import pause_at_fork, renew_in_child
from ..runtime.rng import rng
from ..waiting_room import RoomBusy
from .liveness import KernelLock

logger = logging.getLogger(__name__)

T = TypeVar("T")

APPLICATION_ID: Final = 0x43465153
"""Tells our files from other SQLite files ("CFQS")."""

BUSY_SECONDS: Final = 5.0
"""After so long in vain, the file is taken for stuck: somebody stopped while writing."""

FORK_SECONDS: Final = 5.0
"""How long a fork waits at most for a thread that is inside SQLite."""

SPARE_PAGES: Final = 256
"""So many empty pages stay in the file, and so many are given back in one transaction."""

FIRST_NAP_SECONDS: Final = 0.0003
LONGEST_NAP_SECONDS: Final = 0.004

_handles_of_parents: list[sqlite3.Connection] = []
"""Connections of a parent process.  Kept, because closing one here would act in its name."""


class Trouble(Enum):
    """What an error of SQLite means for us."""

    BUSY = auto()
    FULL = auto()
    BROKEN = auto()
    OTHER = auto()


# By their texts: Python 3.10 does not tell SQLite's codes.
_TEXTS: Final = (
    ("database is locked", Trouble.BUSY),
    ("database table is locked", Trouble.BUSY),
    ("database schema has changed", Trouble.BUSY),
    ("locking protocol", Trouble.BUSY),
    ("database or disk is full", Trouble.FULL),
    ("file is not a database", Trouble.BROKEN),
    ("database disk image is malformed", Trouble.BROKEN),
    ("malformed database schema", Trouble.BROKEN),
)


def trouble_of(error: sqlite3.Error) -> Trouble:
    """Return what *error* means."""
    text = str(error)
    return next((trouble for start, trouble in _TEXTS if text.startswith(start)), Trouble.OTHER)


class Database:
    """One SQLite file, for the threads of a process.

    Args:
        path: The file.  It is made if it is missing, and again if it vanishes.
        file_mode: Its permissions.
        version: Of the schema; written into new files, and demanded of others.
        prepare: Called in a transaction each time the file was opened; the flag says that it is
            new, and empty.
        clock: Time and waiting.
    """

    def __init__(
        self,
        path: Path,
        file_mode: int,
        version: int,
        prepare: Callable[[sqlite3.Connection, bool], None],
        *,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self._file_mode = file_mode
        self._version = version
        self._prepare = prepare
        self._clock = clock or Clock()
        self._connection: sqlite3.Connection | None = None
        self._forks = 0
        self._in_use = False  # a thread was inside SQLite when the process forked
        self.renew_after_fork()
        renew_in_child(self)
        pause_at_fork(self)

    def renew_after_fork(self) -> None:
        """Leave the parent's connection alone, and open one of our own when it is needed."""
        if self._connection is not None:
            _abandon(self._connection, in_use=self._in_use)
        self._connection = None
        self._identity: _Identity | None = None
        self._durable = False
        self._forks += 1
        self._in_use = False
        self._lock = self._clock.lock()  # guards the fields above and all use of the connection
        self._holder = 0  # the thread that had it last
        self._paused = False

    def pause_for_fork(self) -> None:
        """Wait for the thread that is inside SQLite, whose own locks a child would find locked."""
        if self._lock.locked() and self._holder == threading.get_ident():
            self._in_use = False
            return  # a signal handler forks, and has interrupted this thread between two statements
        self._paused = self._lock.acquire(timeout=FORK_SECONDS)
        self._in_use = not self._paused

    def resume_after_fork(self) -> None:
        """Go on in the parent."""
        if self._paused:
            self._paused = False
            self._lock.release()

    def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = False,
        until: float = inf,
    ) -> T:
        """Do *work* in a transaction, alone among all processes; it must be short.

        Args:
            work: May be called more than once; only what the last call did remains.  It keeps no
                cursor that has more rows: one that outlives it, in the frames of a traceback
                perhaps, holds a lock, and makes the file busy for this very connection.
            durable: Whether to return only once it is on the disk, safe from a power failure.
                Without, it is safe from the end of any process.
            until: When to give up at the latest, in monotonic seconds.  One try is made in any
                case.

        Raises:
            RoomBusy: Others used the file until then.
            SpoolFull: The disk is full.
            SpoolUnavailable: The file cannot be used.
        """
        return self._insist("BEGIN IMMEDIATE", work, durable, until)

    def read(self, work: Callable[[sqlite3.Connection], T], *, until: float = inf) -> T:
        """Do *work*, which only reads, in a transaction; what `write` says holds here too."""
        return self._insist("BEGIN", work, None, until)

    def shrink(self) -> bool:
        """Give the disk back some of what a backlog has taken; return whether there was much."""
        (pages,) = self.read(lambda c: c.execute("PRAGMA freelist_count").fetchone())
        if pages <= SPARE_PAGES:
            return False
        self.write(lambda c: c.execute(f"PRAGMA incremental_vacuum({SPARE_PAGES})").fetchall())
        return True

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        me = threading.get_ident()
        with self._lock:
            self._holder = me
            self._close()

    def __del__(self) -> None:
        # Forgotten, so nobody uses it; Python 3.13 warns of a connection that nobody has closed.
        self._close()

    def _insist(
        self,
        begin: str,
        work: Callable[[sqlite3.Connection], T],
        durable: bool | None,
        until: float,
    ) -> T:
        stuck_at = self._clock.monotonic() + BUSY_SECONDS
        nap, repaired = FIRST_NAP_SECONDS, False
        while True:
            try:
                return self._once(begin, work, durable)
            except sqlite3.Error as error:  # noqa: PERF203  it is seldom
                trouble = trouble_of(error)
                now = self._clock.monotonic()
                if trouble is Trouble.BUSY and now < min(stuck_at, until):
                    nap = min(nap, until - now)
                    self._clock.sleep(rng.uniform(nap / 2, nap))
                    nap = min(2 * nap, LONGEST_NAP_SECONDS)
                elif trouble is Trouble.BROKEN and not repaired:
                    repaired = True
                    self._repair(str(error))
                elif trouble is Trouble.BUSY and until < stuck_at:
                    raise RoomBusy(f"{self.path} is in use: {error}") from error
                elif trouble is Trouble.FULL:
                    raise SpoolFull(f"the disk that holds {self.path} is full") from error
                else:
                    raise SpoolUnavailable(f"{self.path} cannot be used: {error}") from error
            except OSError as error:
                raise SpoolUnavailable(f"{self.path} cannot be used: {error.strerror}") from error

    def _once(self, begin: str, work: Callable[[sqlite3.Connection], T], durable: bool | None) -> T:
        me = threading.get_ident()  # before: a signal handler may run after each call
        with self._lock:
            self._holder = me
            connection = self._open()
            if durable is not None and durable is not self._durable:
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            return self._transact(connection, begin, work)

    # -- below, the caller of each method holds _lock -----------------------------------------

    def _open(self) -> sqlite3.Connection:
        """The connection, to the file that has the name now."""
        if self._connection is not None:
            if self._identify() == self._identity:
                return self._connection
            self._close()  # somebody removed it, or put it aside
        # Who opens a file just while another puts it aside would leave a write-ahead log behind,
        # which would be taken for that of the next file.
        repair = self._repair_lock()
        if not repair.acquire(shared=True):
            raise sqlite3.OperationalError("database is locked: it is being repaired")
        try:
            return self._open_anew()
        finally:
            repair.release()

    def _open_anew(self) -> sqlite3.Connection:
        self._create()
        self._connection = self._connect()
        self._identity = self._identify()
        return self._connection

    def _identify(self) -> _Identity:
        """Tell which files have the names now: the database, and what SQLite shares beside it."""
        return _inode(self.path), _inode(f"{self.path}-shm")

    def _repair_lock(self) -> KernelLock:
        return KernelLock(self.path.with_suffix(".repair"), self._file_mode)

    def _create(self) -> None:
        try:
            # Only what is surely new may be opened and closed here: closing any descriptor of a
            # file frees the locks that SQLite has on it elsewhere in this process.
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, self._file_mode)
        except FileExistsError:
            return
        os.fchmod(file, self._file_mode)
        os.close(file)

    def _connect(self) -> sqlite3.Connection:
        # Threads take turns by _lock, so SQLite need not insist on one of them.
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            self._check(connection)
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA journal_size_limit=16777216")
            if sys.platform == "darwin":
                connection.execute("PRAGMA fullfsync=1")
            self._transact(connection, "BEGIN IMMEDIATE", self._set_up)
        except BaseException:
            connection.close()
            raise
        self._durable = False
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        # In one transaction: another process may be setting the file up just now.
        ours, version, tables = self._transact(connection, "BEGIN", _marks)
        if (ours, version, tables) == (0, 0, 0):
            return  # new
        if ours != APPLICATION_ID:
            raise sqlite3.DatabaseError("file is not a database of this package")
        if version != self._version:
            raise SpoolUnavailable(
                f"{self.path} was made by another version of this package (its schema is "
                f"{version}, ours {self._version})"
            )

    def _set_up(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        new = version == 0
        self._prepare(connection, new)
        if new:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={self._version}")

    def _transact(
        self, connection: sqlite3.Connection, begin: str, work: Callable[[sqlite3.Connection], T]
    ) -> T:
        forks = self._forks
        try:
            connection.execute(begin)
            result = work(connection)
            if forks != self._forks:  # a signal handler has forked, and this is the child
                raise SpoolUnavailable("the process was forked in the middle of a transaction")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction and forks == self._forks:
                connection.rollback()
            raise
        return result

    def _close(self) -> None:
        connection, self._connection, self._identity = self._connection, None, None
        if connection is not None:
            connection.close()

    # -- repair -------------------------------------------------------------------------------

    def _repair(self, why: str) -> None:
        try:
            self._put_aside(why)
        except OSError as error:  # somebody removes the folder meanwhile
            raise SpoolUnavailable(f"{self.path} cannot be used: {error.strerror}") from error

    def _put_aside(self, why: str) -> None:
        """Rename a file that is broken or not ours, once for all processes; never delete it."""
        repair = self._repair_lock()
        while not repair.acquire():
            self._clock.sleep(LONGEST_NAP_SECONDS)
        try:
            if not self._is_broken():
                return  # another process was faster
            stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{rng.getrandbits(16):04x}"
            aside = self.path.with_name(f"{self.path.name}.unusable-{stamp}")
            for suffix in ("-wal", "-shm", ""):
                source = Path(f"{self.path}{suffix}")
                if source.exists():
                    source.rename(f"{aside}{suffix}")
            logger.error(
                "the spool's file could not be used (%s) and is now %s; messages that were in it "
                "have not been delivered",
                why,
                aside,
            )
        finally:
            repair.release()

    def _is_broken(self) -> bool:
        me = threading.get_ident()
        try:
            with self._lock:
                self._holder = me
                self._close()
                rows = self._transact(
                    self._open_anew(), "BEGIN", lambda c: c.execute("PRAGMA quick_check").fetchall()
                )
        except sqlite3.Error as error:
            broken = trouble_of(error) is Trouble.BROKEN
        except (OSError, SpoolUnavailable):
            broken = False
        else:
            broken = rows != [("ok",)]
        self.close()
        return broken


def _abandon(connection: sqlite3.Connection, *, in_use: bool) -> None:
    """Leave a parent's connection alone, and see that nobody in this process uses it.

    A signal handler may have forked in the middle of a transaction.  Its locks are the parent's,
    but SQLite remembers them in this process too, and would find every later connection locked.

    Args:
        connection: The parent's.
        in_use: Whether a thread of the parent was inside SQLite, whose own locks are locked then.
    """
    _handles_of_parents.append(connection)
    if in_use:
        return
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.rollback()  # unlocks nothing of the parent's, and has written nothing
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)


_Identity: TypeAlias = "tuple[tuple[int, int] | None, tuple[int, int] | None]"


def _inode(path: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  asked at each transaction: the cheap form
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _marks(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """By what a file is known: whose it is, its version, and how many tables it has."""
    (ours,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return ours, version, tables
