"""An SQLite database that many processes and threads share.

SQLite's busy timeout sleeps in C, where it would stop every greenlet of a gevent worker, so
transactions on a busy file are retried from Python.  Transactions are short: they never wait for a
network or for another lock.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Final, TypeVar

from ..errors import CFQueuesError, SpoolFull, SpoolUnavailable
from ..runtime.clock import Clock
from ..runtime.fork import pause_at_fork, renew_in_child
from ..runtime.rng import rng
from ..waiting_room import RoomBusy
from . import companions
from .abandoned import abandon
from .companions import Identity
from .repair import RepairLock, is_broken, put_aside
from .sqlite_failures import Failure, failure_of

T = TypeVar("T")

APPLICATION_ID: Final = 0x43465153
"""Marks our files among SQLite files ("CFQS")."""

BUSY_TIMEOUT_SECONDS: Final = 5.0
"""A file that has been busy for this long is considered stuck.

Transactions take milliseconds; a process that holds the file for seconds has been stopped."""

FILE_FORK_TIMEOUT_SECONDS: Final = 5.0
"""Longest time that a fork waits for a thread that is inside SQLite.

It is long enough for any transaction on a slow disk.  After that, the child leaks the parent's
connection, which is safe."""

SPARE_PAGES: Final = 256
"""Number of free pages that stay in the file, and that one transaction returns to the disk."""

FIRST_PAUSE_SECONDS: Final = 0.0003
"""Pause before the first retry of a busy file: about the time of one transaction."""

MAX_PAUSE_SECONDS: Final = 0.004
"""Longest pause before a busy file is retried.

The pauses double up to this value.  Longer pauses would leave the file idle; shorter ones would
cost CPU time in every process."""

MAX_URGENT_PAUSE_SECONDS: Final = 2 * FIRST_PAUSE_SECONDS
"""The same for a transaction that must not wait for its turn among a hundred processes."""

MAX_OPEN_PAUSE_SECONDS: Final = 0.12
"""Longest pause before a busy file is opened again.

A try to open takes many times the CPU time of a try to write.  With shorter pauses, a hundred
processes that start together leave each other no CPU time; longer ones gain nothing."""

UNREADABLE_PAUSE_SECONDS: Final = 0.1
"""Pause before a file that cannot be read is opened again.

Processes that have the file open look at it a few times per minute, so shorter pauses gain
nothing."""


class Database:
    """One SQLite file, shared by the threads of a process.

    Args:
        path: The file.  It is created if it is missing, and again if it is removed.
        file_mode: The file's permissions.
        version: The schema's version, written into new files and required of existing ones.
        prepare: Called in the first transaction that writes after the file was opened, with True
            if the file is new and empty.
        may_read: Called in the first transaction that only reads, if `prepare` has not run;
            returns False if it must run first.
        clock: Tells the time and sleeps.

    Opening an existing file writes nothing, since among processes that start together only one at
    a time can write.
    """

    def __init__(
        self,
        path: Path,
        file_mode: int,
        version: int,
        prepare: Callable[[sqlite3.Connection, bool], None],
        may_read: Callable[[sqlite3.Connection], bool] = lambda _: True,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self._file_mode = file_mode
        self._version = version
        self._prepare = prepare
        self._may_read = may_read
        self._clock = clock or Clock()
        self._repair_lock = RepairLock(path, file_mode, self._clock)
        self._connection: sqlite3.Connection | None = None
        self._forks = 0
        self._in_use = False  # a thread was inside SQLite when the process forked
        self.renew_after_fork()
        renew_in_child(self)
        pause_at_fork(self)

    def renew_after_fork(self) -> None:
        """Abandon the parent's connection; the next use opens a new one."""
        if self._connection is not None:
            abandon(self._connection, in_use=self._in_use)
        self._connection = None
        self._identity: Identity | None = None
        self._durable = False
        self._is_readable = self._is_prepared = False
        self._forks += 1
        self._in_use = False
        self._lock = self._clock.lock()  # guards the fields above and all use of the connection
        self._holder = 0  # the thread that held the lock last
        self._paused = False

    def pause_for_fork(self) -> None:
        """Close the file once no thread is inside SQLite; its next use opens it again.

        A child inherits SQLite's record of its locks on the file, but not the locks.  The child
        would use the file without locks, and once the parent has died, another process would
        consider the file unused and reset it.
        """
        if self._lock.locked() and self._holder == threading.get_ident():
            self._in_use = False
            return  # a signal handler forks, and has interrupted this thread between statements
        self._paused = self._lock.acquire(timeout=FILE_FORK_TIMEOUT_SECONDS)
        self._in_use = not self._paused
        if self._paused:
            self._close()

    def resume_after_fork(self) -> None:
        """Release the lock in the parent."""
        if self._paused:
            self._paused = False
            self._lock.release()

    def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = False,
        until: float = inf,
        urgent: bool = False,
    ) -> T:
        """Do *work* in a write transaction; among all processes, only one runs at a time.

        Args:
            work: Must be short.  It may be called more than once; only the last call counts.  It
                must fetch all rows: a cursor that outlives it, for example in the frames of a
                traceback, holds a lock and makes the file busy even for this connection.
            durable: Whether to return only once the data survives a power failure.  Otherwise it
                survives the end of any process.
            until: When to stop retrying, in monotonic seconds.  The first try is always made.
            urgent: Whether to retry a busy file more often than other processes do.

        Raises:
            RoomBusy: Other processes used the file until then.
            SpoolFull: The disk is full.
            SpoolUnavailable: The file cannot be used.
        """
        return self._run("BEGIN IMMEDIATE", work, durable, until, urgent=urgent)

    def read(self, work: Callable[[sqlite3.Connection], T], *, until: float = inf) -> T:
        """Do *work*, which only reads, in a transaction; see `write`."""
        return self._run("BEGIN", work, None, until)

    def shrink(self) -> bool:
        """Return some free pages to the disk; return False if there were few."""
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
        # Python 3.13 warns about a connection that was never closed.  No thread can use it now.
        if not sys.is_finalizing():  # modules that this needs may be gone
            self._close()
        elif self._connection is not None:
            self._connection.close()

    def _run(
        self,
        begin: str,
        work: Callable[[sqlite3.Connection], T],
        durable: bool | None,
        until: float,
        *,
        urgent: bool = False,
    ) -> T:
        stuck_at = self._clock.monotonic() + BUSY_TIMEOUT_SECONDS
        pause, repaired = FIRST_PAUSE_SECONDS, False
        while True:
            try:
                return self._once(begin, work, durable)
            except sqlite3.Error as error:  # noqa: PERF203  errors are rare
                failure, now = failure_of(error), self._clock.monotonic()
                if failure is Failure.BUSY and now < min(stuck_at, until):
                    pause = min(pause, until - now)
                    self._clock.sleep(rng.uniform(pause / 2, pause))
                    pause = min(2 * pause, self._longest_pause(urgent=urgent))
                elif failure is Failure.UNREADABLE and now < min(stuck_at, until):
                    # A process that has the removed log open may write its contents to the file.
                    self.close()
                    self._clock.sleep(min(UNREADABLE_PAUSE_SECONDS, until - now))
                elif not repaired and (
                    failure is Failure.BROKEN or (failure is Failure.UNREADABLE and now >= stuck_at)
                ):
                    repaired = True
                    self._repair(str(error))
                else:
                    raise self._translate(error, is_stuck=until >= stuck_at) from error
            except OSError as error:
                raise SpoolUnavailable(f"{self.path} cannot be used: {error.strerror}") from error

    def _longest_pause(self, *, urgent: bool) -> float:
        if self._connection is None:
            return MAX_OPEN_PAUSE_SECONDS
        return MAX_URGENT_PAUSE_SECONDS if urgent else MAX_PAUSE_SECONDS

    def _translate(self, error: sqlite3.Error, *, is_stuck: bool) -> CFQueuesError:
        failure = failure_of(error)
        if failure is Failure.BUSY and not is_stuck:
            return RoomBusy(f"{self.path} is in use by other processes: {error}")
        if failure is Failure.FULL:
            return SpoolFull(f"the disk that holds {self.path} is full; free some space")
        return SpoolUnavailable(f"{self.path} cannot be used: {error}")

    def _once(self, begin: str, work: Callable[[sqlite3.Connection], T], durable: bool | None) -> T:
        me = threading.get_ident()  # before the lock: a signal handler may run after each call
        with self._lock:
            self._holder = me
            connection = self._open()
            if durable is None:
                self._prepare_to_read(connection)
                return self._transact(connection, begin, work)
            if durable is not self._durable:
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            result = self._transact(connection, begin, self._after_set_up(work))
            self._is_prepared = True
            return result

    # -- below, the caller of each method holds _lock -----------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Return a connection to the file that is at the path now."""
        if self._connection is not None:
            found = companions.identify(self.path)
            if found == self._identity:
                return self._connection
            self._leave(found)  # a file was removed or renamed
        # Opening the file while another process renames it would leave a write-ahead log behind,
        # which SQLite would apply to the next file.
        with self._repair_lock.held(shared=self.path.exists()):
            return self._open_anew()

    def _open_anew(self) -> sqlite3.Connection:
        connection = None
        while connection is None:
            found = companions.identify(self.path)
            if found.database is None:
                self._create()
            elif found.log is None and companions.is_log_removed(self.path, self._clock):
                raise sqlite3.OperationalError("disk I/O error: the write-ahead log was removed")
            connection = self._connect(found)
        self._connection = connection
        self._identity = companions.identify(self.path)
        self._is_readable = self._is_prepared = False
        return connection

    def _prepare_to_read(self, connection: sqlite3.Connection) -> None:
        if self._is_readable or self._is_prepared:
            return
        if not self._transact(connection, "BEGIN", self._may_read):
            self._transact(connection, "BEGIN IMMEDIATE", self._set_up)
            self._is_prepared = True
        self._is_readable = True

    def _after_set_up(self, work: Callable[[sqlite3.Connection], T]) -> Callable[..., T]:
        """Return *work*, preceded by what the first transaction that writes does."""
        if self._is_prepared:
            return work

        def set_up_and_work(connection: sqlite3.Connection) -> T:
            self._set_up(connection)
            return work(connection)

        return set_up_and_work

    def _leave(self, found: Identity) -> None:
        """Close the file, because the files that were opened were replaced by *found*."""
        before = self._identity
        if before is not None and found.database == before.database and found.log is None:
            with self._repair_lock.held():
                if self._connection is not None:
                    companions.write_down_log(self._connection, self.path, self._file_mode)
        self._close()

    def _create(self) -> None:
        companions.remove(self.path)
        # Open only a new file here: closing any descriptor of a file releases the locks that
        # SQLite holds on it elsewhere in this process.
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, self._file_mode)
        os.fchmod(file, self._file_mode)
        os.close(file)

    def _connect(self, found: Identity) -> sqlite3.Connection | None:
        """Connect to the file; return None if the log that was *found* no longer exists.

        The last process that had the file open may have closed it, or the log was removed.
        """
        # _lock lets one thread at a time use the connection, so SQLite need not check the thread.
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            is_new = self._check(connection)
            if found.log not in (None, companions.identify(self.path).log):
                connection.close()
                return None
            if is_new:  # in an existing file, it would wait for the process that writes
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA journal_size_limit=16777216")
            if sys.platform == "darwin":
                connection.execute("PRAGMA fullfsync=1")
            if is_new:
                self._transact(connection, "BEGIN IMMEDIATE", self._set_up)
        except BaseException:
            connection.close()
            raise
        self._durable = False
        return connection

    def _check(self, connection: sqlite3.Connection) -> bool:
        """Return whether the file is new; raise if it is not ours."""
        # In one transaction, since another process may be setting up the file.
        application, version, tables = self._transact(connection, "BEGIN", _marks)
        if (application, version, tables) == (0, 0, 0):
            return True
        if application != APPLICATION_ID:
            raise sqlite3.DatabaseError("file is not a database of this package")
        if version != self._version:
            raise SpoolUnavailable(
                f"{self.path} was made by another version of this package (its schema version is "
                f"{version}, this one needs {self._version}); use the same version everywhere"
            )
        return False

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
            if forks != self._forks:  # a signal handler forked, and this is the child
                raise SpoolUnavailable("the process was forked in the middle of a transaction")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction and forks == self._forks:
                connection.rollback()
            raise
        return result

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        identity, self._identity = self._identity, None
        if connection is None:
            return
        if identity == companions.identify(self.path):
            connection.close()
        else:
            with companions.kept(self.path):
                connection.close()

    # -- repair -------------------------------------------------------------------------------

    def _repair(self, why: str) -> None:
        """Put a broken or foreign file aside, unless another process has done so."""
        try:
            with self._repair_lock.held(waits=True):
                if self._is_broken():
                    put_aside(self.path, why)
        except OSError as error:  # the folder was removed meanwhile
            raise SpoolUnavailable(f"{self.path} cannot be used: {error.strerror}") from error

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
            broken = is_broken(self.path, error)
        except (OSError, SpoolUnavailable):
            broken = False
        else:
            broken = rows != [("ok",)]
        self.close()
        return broken


def _marks(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Return a file's application id, its schema version and its number of tables."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return application, version, tables
