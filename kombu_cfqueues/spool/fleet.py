"""Asks Redis for permits, for all processes of the machine.  Never in a transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..errors import Scope
from ..redis_allowance import REDIS_TIMEOUT_SECONDS, Answer, BudgetUnavailable
from ..runtime.rng import rng
from ..waiting_room import RoomBusy
from .file import File
from .permit_scheduler import is_idle

if TYPE_CHECKING:
    import sqlite3

REDIS_RETRY_SECONDS: Final = 3.0
"""Pause before a machine asks Redis again after Redis did not answer.

A random time of up to a fifth of the pause is added, so that the machines do not ask together.
Each try may delay one publish by a timeout."""


class FleetPermits:
    """Brings permits from Redis into the file.  Does nothing without `File.fleet`.

    Args:
        file: The spool's file.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    def log(self) -> None:
        """Log if the last look at the file showed that Redis has started or stopped answering."""
        if self._file.fleet is not None:
            self._file.fleet.log(self._file.fleet_trouble)

    def fetch(self, *, publishing: bool, until: float, if_idle: bool = False) -> None:
        """Ask Redis for the machine's next permit, if there is none and no other process asks.

        Args:
            publishing: Whether the request publishes.
            until: When to give up if the file is busy, in monotonic seconds.
            if_idle: Whether to ask only if nothing else waits for a permit.
        """
        fleet = self._file.fleet
        if fleet is None:
            return

        def may_ask(connection: sqlite3.Connection) -> bool:
            if if_idle and not is_idle(connection):
                return False
            bucket = self._file.fleet_bucket(connection)
            return bucket.may_ask and bucket.stopped(publishing=publishing) is None

        def begin(connection: sqlite3.Connection) -> bool:
            may = may_ask(connection)
            if may:
                self._file.fleet_bucket(connection).asking()
            return may

        # Read first: another process is usually asking, and only one process at a time can write.
        if not self._file.read(may_ask, until=until):
            return
        token = self._file.token_hash
        if not self._file.write(begin, until=until):
            return
        anew = self._file.fleet_trouble is not None
        try:
            answer = fleet.ask(token, publishing=publishing, anew=anew)
        except BudgetUnavailable as error:
            self._fail(str(error))
        else:
            self._write(lambda c: self._store(c, answer))
            fleet.log(None, asked=True)

    def stop(self, scope: Scope, seconds: float) -> None:
        """Tell the other machines what the API has stopped."""
        fleet = self._file.fleet
        if fleet is None:
            return
        try:
            fleet.stop(self._file.token_hash, scope, seconds)
        except BudgetUnavailable as failure:  # the API tells the other machines too
            self._fail(str(failure))

    def _store(self, connection: sqlite3.Connection, answer: Answer) -> None:
        bucket = self._file.fleet_bucket(connection)
        if answer.granted:
            bucket.granted(answer.wait)
        else:
            bucket.not_granted(0.0 if answer.stopped or answer.publishing_stopped else _pause())
        if answer.stopped:
            bucket.stop(Scope.EVERYTHING, answer.stopped)
        if answer.publishing_stopped:
            bucket.stop(Scope.PUBLISHING, answer.publishing_stopped)
        self._file.fleet_trouble = None

    def _fail(self, trouble: str) -> None:
        pause = _pause()
        self._write(lambda c: self._file.fleet_bucket(c).failed(trouble, pause))
        self._file.fleet_trouble = trouble
        self.log()

    def _write(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do *work* even if the caller's time has passed, because other processes wait for it."""
        with contextlib.suppress(RoomBusy):  # the record of `asking` expires
            self._file.write(work, until=self._file.clock.monotonic() + REDIS_TIMEOUT_SECONDS)


def _pause() -> float:
    return REDIS_RETRY_SECONDS * (1 + rng.random() / 5)
