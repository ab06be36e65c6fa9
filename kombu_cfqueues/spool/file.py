"""The spool's file, as one process has opened it: with the process's name and the file's clock."""

from __future__ import annotations

import atexit
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ..errors import SpoolFull, SpoolUnavailable
from ..rate_limit import Limit, StopLog
from ..redis_allowance import RedisAllowance
from ..runtime.clock import Clock
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.imports import importing
from ..waiting_room import RoomBusy
from . import place
from .bucket import NO_LIMIT, Bucket
from .fleet_bucket import FleetBucket
from .liveness import KernelLock, LivenessLocks
from .schema import FILE_VERSION, begin_anew, boot_id, file_and_boot, forget, prepare, same_boot

if TYPE_CHECKING:
    import sqlite3

    from .database import Database

T = TypeVar("T")

CLOCK_TOLERANCE_SECONDS: Final = 1.0
"""A time in the file that is ahead of the clock by less than this does not mean a reboot.

The clocks of two processes may differ slightly; then the later time is used."""


class File:
    """The spool of one account on this machine.

    Args:
        base_url: The API's URL; together with *account_id* it selects the file.
        account_id: The account.
        limit: The request allowance; None means no limit.
        token: Returns the API token, whose hash selects the bucket.
        spool_dir: The option of this name.
        clock: Tells the time, sleeps and makes locks.
        boot: Returns the id of this boot; see `boot_id`.
        stop_log: Logs the stops that this process finds in the file.
        fleet: Shares *limit* among all machines; None if the machine has it for itself.

    Raises:
        SpoolUnavailable: (every method) No file can be used.
        SpoolFull: (every method that writes) The disk is full.
    """

    def __init__(
        self,
        base_url: str,
        account_id: str,
        limit: Limit | None,
        token: Callable[[], str],
        *,
        spool_dir: str | None = None,
        clock: Clock | None = None,
        boot: Callable[[], str] = boot_id,
        stop_log: StopLog | None = None,
        fleet: RedisAllowance | None = None,
    ) -> None:
        digest = hashlib.sha256(f"{base_url}\n{account_id}".encode()).hexdigest()
        self._name = digest[:16]
        self._limit = limit or NO_LIMIT
        self._token = token
        self._spool_dir = spool_dir
        self.clock = clock or Clock()
        self.stop_log = stop_log or StopLog(self.clock)
        self.fleet = fleet
        self.fleet_trouble: str | None = None
        """Why the fleet's allowance was not used at the last look; None if it was."""
        self._find_boot = boot
        self._boot = ""
        self._database: Database | None = None
        self._leaves_at_exit = False
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Become a separate process in the file; the parent keeps its claims."""
        self._opening = self.clock.lock()  # guards the fields below while they are set
        self._locks: LivenessLocks | None = None
        self._me = ""
        self._bucket_name = ""
        self.id = ""
        """Identifies the open file, which differs from earlier files of the same name.

        Read it in a transaction, since the file may be replaced between two."""
        lock: KernelLock | None = getattr(self, "_alive", None)
        if lock is not None:
            lock.release()
        self._alive: KernelLock | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return (self._database or self._open()).path

    @property
    def me(self) -> str:
        """This process's name in the file."""
        if not self._me:
            self._open()
        return self._me

    @property
    def token_hash(self) -> str:
        """The hash by which the file knows this process's token."""
        return hashlib.sha256(self._token().encode()).hexdigest()[:16]

    @property
    def is_limited(self) -> bool:
        """Whether there is a request allowance."""
        return self._limit is not NO_LIMIT

    def read(self, work: Callable[[sqlite3.Connection], T], *, until: float = inf) -> T:
        """Do *work*, which only reads, in a transaction; see `Database.write`."""
        database = self._open()
        try:
            return database.read(work, until=until)
        except SpoolUnavailable:
            self._begin_anew_without(database.path.parent)
            raise

    def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = False,
        until: float = inf,
        urgent: bool = False,
    ) -> T:
        """Do *work* in a transaction; see `Database.write`."""
        database = self._open()
        try:
            return database.write(work, durable=durable, until=until, urgent=urgent)
        except SpoolUnavailable:
            self._begin_anew_without(database.path.parent)
            raise

    def shrink(self) -> bool:
        """Return some free pages to the disk; see `Database.shrink`."""
        return self._open().shrink()

    def free_bytes(self) -> int:
        """Return the disk's free space for this user, in bytes."""
        folder = self._open().path.parent
        try:
            disk = os.statvfs(folder)
        except OSError as error:
            self._begin_anew_without(folder)
            raise SpoolUnavailable(f"{folder} cannot be used: {error.strerror}") from error
        return disk.f_bavail * disk.f_frsize

    def bucket(self, connection: sqlite3.Connection, *, asks: bool = False) -> Bucket:
        """Return the allowance of this process's token.

        Args:
            connection: In a transaction.
            asks: Whether the caller fetches a permit of the fleet next; see `FleetBucket`.
        """
        if self.fleet is not None:
            return self.fleet_bucket(connection, asks=asks)
        return Bucket(connection, self._bucket_name, self._limit, self._now(connection))

    def fleet_bucket(self, connection: sqlite3.Connection, *, asks: bool = False) -> FleetBucket:
        """Return the same as `bucket`, for a file that has a `fleet`."""
        assert self.fleet is not None  # noqa: S101  the caller has looked
        now = self._now(connection)
        bucket = FleetBucket(connection, self._bucket_name, self._limit, now, asks=asks)
        self.fleet_trouble = bucket.trouble
        return bucket

    @property
    def locks(self) -> LivenessLocks:
        """The locks of all processes that use the file, and of some that used it earlier."""
        self._open()
        return self._locks or self._locks_of(self.path)

    def older(self) -> Iterator[Database]:
        """Yield files that older versions of this package left and that no process uses."""
        for version in range(1, FILE_VERSION):
            path = self.path.with_name(f"{self._name}-v{version}.db")
            if path.exists() and not self._locks_of(path).living():
                yield _load_database()(
                    path, self._place.file_mode, version, lambda *_: None, clock=self.clock
                )

    def close(self) -> None:
        """Leave the file and close it.  The next use joins again."""
        with self._opening:
            if self._locks is None or self._database is None:
                return
            me, locks = self._me, self._locks
            try:
                self._database.write(lambda c: forget(c, me))
                locks.remove_lock_file(me)
            except (OSError, RoomBusy, SpoolFull, SpoolUnavailable):
                pass  # the next sweep finds this process dead
            self._database.close()
            if self._alive is not None:
                self._alive.release()
            self._locks, self._alive = None, None

    def _open(self) -> Database:
        # Before any transaction, since the callable that returns the token may be slow.
        self._bucket_name = self.token_hash
        if self._is_open():
            assert self._database is not None  # noqa: S101  it is open
            return self._database
        # Before the lock and any transaction: finding the boot id may start a process, which forks.
        self._boot = self._find_boot()
        with self._opening:
            if not self._is_open():
                try:
                    self._join()
                except OSError as error:
                    raise SpoolUnavailable(f"the spool cannot be used: {error}") from error
            assert self._database is not None  # noqa: S101  made above
            return self._database

    def _is_open(self) -> bool:
        """Whether the file is open, and the lock that shows this process alive still exists."""
        if self._locks is None or self._database is None:
            return False
        return os.path.exists(self._lock_path)  # noqa: PTH110  runs at each transaction: the cheap form

    def _begin_anew_without(self, folder: Path) -> None:
        """If the folder was removed, let the next use create it again."""
        if not folder.is_dir():
            self._locks = None

    def _join(self) -> None:
        self._place = place.find(self._spool_dir)
        path = self._place.folder / f"{self._name}-v{FILE_VERSION}.db"
        locks = self._locks_of(path)
        # Keep the name if only the lock's file was removed: messages may wait under it.
        previous = self._me if self._locks is not None else None
        self._me, self._alive = locks.register(previous)
        self._lock_path = locks.path_of(self._me)
        if self._database is not None and self._database.path == path:
            self._database.close()  # the next transaction that writes records the name
        else:
            self._database = _load_database()(
                path,
                self._place.file_mode,
                FILE_VERSION,
                self._prepare,
                self._may_read,
                clock=self.clock,
            )
        self._locks = locks
        if not self._leaves_at_exit:
            self._leaves_at_exit = True
            atexit.register(_close, weakref.ref(self))

    def _locks_of(self, path: Path) -> LivenessLocks:
        here = self._place
        return LivenessLocks(path.with_suffix(".posters"), here.folder_mode, here.file_mode)

    def _prepare(self, connection: sqlite3.Connection, new: bool) -> None:
        self.id = prepare(
            connection,
            new=new,
            boot=self._boot,
            now=self.clock.monotonic(),
            me=self._me,
            is_alive=self.is_alive,
        )

    def _may_read(self, connection: sqlite3.Connection) -> bool:
        found, boot = file_and_boot(connection)
        if boot == self._boot:
            self.id = found
        return boot == self._boot

    def is_alive(self, name: str) -> bool:
        """Whether the process of this name is alive.  May be called in a transaction."""
        return self._locks_of(self._lock_path.parent.with_suffix(".db")).is_alive(name)

    def _now(self, connection: sqlite3.Connection) -> float:
        """Return the time, which never runs backwards from one transaction to the next."""
        now = self.clock.monotonic()
        (seen,) = connection.execute("SELECT max(counted_at) FROM bucket").fetchone()
        if seen is None or seen <= now:
            return now
        if seen - now < CLOCK_TOLERANCE_SECONDS:
            return float(seen)
        if not same_boot(connection, self._me, self.is_alive):
            begin_anew(connection, self._boot, now)
            connection.execute("INSERT OR IGNORE INTO process (name) VALUES (?)", (self._me,))
        return now


def _close(reference: weakref.ref[File]) -> None:
    """Leave the file when the process ends, so that other processes need not detect its death."""
    notice_fork()
    file = reference()
    if file is not None:
        file.close()


def _load_database() -> type[Database]:
    """Import sqlite3, which a process without a request limit does not need."""
    with importing:
        from .database import Database  # noqa: PLC0415
    return Database


importing.before_forks(_load_database)
