"""The spool's file as one process has it open: who it is there, and what time it is there."""

from __future__ import annotations

import atexit
import hashlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import TypeVar

from ..errors import SpoolFull, SpoolUnavailable
from ..rate_limit import Limit, StopLog
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child
from ..waiting_room import RoomBusy
from . import place
from .bucket import NO_LIMIT, Bucket
from .database import Database
from .liveness import KernelLock, LivenessLocks
from .schema import VERSION, begin_anew, boot_id, forget, prepare, same_boot

T = TypeVar("T")


class File:
    """The spool of one account on this machine.

    Args:
        base_url: Where the API is; with *account_id* it chooses the file.
        account_id: The account.
        limit: The request allowance; None: none.
        token: Returns the API token, whose hash chooses the bucket.
        spool_dir: The option.
        clock: Time and waiting.
        boot: What `boot_id` says.
        stop_log: Where stops are logged that this process meets in the file.

    Raises:
        SpoolUnavailable: (every method) no file can be used.
        SpoolFull: (every method that writes) the disk is full.
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
    ) -> None:
        digest = hashlib.sha256(f"{base_url}\n{account_id}".encode()).hexdigest()
        self._name = digest[:16]
        self._limit = limit or NO_LIMIT
        self._token = token
        self._spool_dir = spool_dir
        self.clock = clock or Clock()
        self.stop_log = stop_log or StopLog(self.clock)
        self._boot = boot
        self._database: Database | None = None
        self._leaves_at_exit = False
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Become a process of its own in a child; the parent's claims stay the parent's."""
        self._opening = self.clock.lock()  # guards what follows, while it is made
        self._locks: LivenessLocks | None = None
        self._me = ""
        self._bucket_name = ""
        self.id = ""
        """What tells the file that is open now from any that had its name before.  Read in a
        transaction: the file may be replaced between two."""
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
        """What stands for this process's token in the file."""
        return hashlib.sha256(self._token().encode()).hexdigest()[:16]

    @property
    def is_limited(self) -> bool:
        """Whether there is a request allowance at all."""
        return self._limit is not NO_LIMIT

    def read(self, work: Callable[[sqlite3.Connection], T], *, until: float = inf) -> T:
        """Do *work*, which only reads, in a transaction; what `Database.write` says holds here."""
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
    ) -> T:
        """Do *work* in a transaction; what `Database.write` says holds here too."""
        database = self._open()
        try:
            return database.write(work, durable=durable, until=until)
        except SpoolUnavailable:
            self._begin_anew_without(database.path.parent)
            raise

    def shrink(self) -> bool:
        """What `Database.shrink` says."""
        return self._open().shrink()

    def free_bytes(self) -> int:
        """What the disk has left for this user."""
        folder = self._open().path.parent
        try:
            disk = os.statvfs(folder)
        except OSError as error:
            self._begin_anew_without(folder)
            raise SpoolUnavailable(f"{folder} cannot be used: {error.strerror}") from error
        return disk.f_bavail * disk.f_frsize

    def bucket(self, connection: sqlite3.Connection) -> Bucket:
        """The allowance of this process's token."""
        return Bucket(connection, self._bucket_name, self._limit, self._now(connection))

    @property
    def locks(self) -> LivenessLocks:
        """All who use the file, and some who did."""
        self._open()
        return self._locks or self._locks_of(self.path)

    def older(self) -> Iterator[Database]:
        """The files that older versions of this package have left, and nobody uses any more."""
        for version in range(1, VERSION):
            path = self.path.with_name(f"{self._name}-v{version}.db")
            if path.exists() and not self._locks_of(path).living():
                yield Database(path, self._place.file_mode, version, lambda *_: None)

    def close(self) -> None:
        """Let go of the file, and of life as a user of it.  The next use begins anew."""
        with self._opening:
            if self._locks is None or self._database is None:
                return
            me, locks = self._me, self._locks
            try:
                self._database.write(lambda c: forget(c, me))
                locks.remove_lock_file(me)
            except (OSError, RoomBusy, SpoolFull, SpoolUnavailable):
                pass  # whoever looks next finds it dead
            self._database.close()
            if self._alive is not None:
                self._alive.release()
            self._locks, self._alive = None, None

    def _open(self) -> Database:
        # Asked before any transaction: the token may come from a callable that takes its time.
        self._bucket_name = self.token_hash
        if self._is_open():
            assert self._database is not None  # noqa: S101  it is open
            return self._database
        with self._opening:
            if not self._is_open():
                try:
                    self._join()
                except OSError as error:
                    raise SpoolUnavailable(f"the spool cannot be used: {error}") from error
            assert self._database is not None  # noqa: S101  made above
            return self._database

    def _is_open(self) -> bool:
        """Whether others can tell that this process lives: its lock's file may have vanished."""
        if self._locks is None or self._database is None:
            return False
        return os.path.exists(self._lock_path)  # noqa: PTH110  at each transaction: the cheap form

    def _begin_anew_without(self, folder: Path) -> None:
        """If somebody has removed the folder, let the next use make it again."""
        if not folder.is_dir():
            self._locks = None

    def _join(self) -> None:
        self._place = place.find(self._spool_dir)
        path = self._place.folder / f"{self._name}-v{VERSION}.db"
        locks = self._locks_of(path)
        # Under the same name as before, where only its lock's file has vanished: it may wait.
        before = self._me if self._locks is not None else None
        self._me, self._alive = locks.register(before)
        self._lock_path = locks.path_of(self._me)
        if self._database is not None and self._database.path == path:
            self._database.close()  # so that it is told our name
        else:
            self._database = Database(
                path, self._place.file_mode, VERSION, self._prepare, clock=self.clock
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
            boot=self._boot(),
            now=self.clock.monotonic(),
            me=self._me,
            is_alive=self._is_alive,
        )

    def _is_alive(self, name: str) -> bool:
        return self._locks_of(self._lock_path.parent.with_suffix(".db")).is_alive(name)

    def _now(self, connection: sqlite3.Connection) -> float:
        """The time, asked inside the transaction: whoever comes later sees a later one."""
        now = self.clock.monotonic()
        (seen,) = connection.execute("SELECT max(counted_at) FROM bucket").fetchone()
        if seen is None or seen <= now:
            return now
        if seen - now < 1:
            return float(seen)
        if not same_boot(connection, self._me, self._is_alive):
            begin_anew(connection, self._boot(), now)
            connection.execute("INSERT OR IGNORE INTO process (name) VALUES (?)", (self._me,))
        return now


def _close(reference: weakref.ref[File]) -> None:
    """At the end of the process: who has gone need not be looked for by the others."""
    file = reference()
    if file is not None:
        file.close()
