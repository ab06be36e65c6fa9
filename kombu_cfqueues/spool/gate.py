"""The request allowance of the machine, in the form in which a client wants it."""

from __future__ import annotations

import logging
from typing import Final

from ..budget import Budget, Limit
from ..clock import Clock
from ..errors import CFQueuesError, RateLimited, SpoolFull, SpoolUnavailable
from ..fork import renew_in_child
from ..metrics import metrics
from .permits import Permits

logger = logging.getLogger(__name__)

SHARERS: Final = 16
"""Without the file, a process takes the share of one of so many: if each of a web server's
processes had the whole allowance, they would cause the block that it is there to avoid."""

TROUBLE_SECONDS: Final = 30.0
"""So long after the file could not be used it is not tried again."""


class SharedBudget:
    """Permits from the file, first come first served among all processes of the machine.

    Args:
        permits: Of the machine.
        limit: The allowance.
        clock: Time and waiting.
    """

    def __init__(self, permits: Permits, limit: Limit, *, clock: Clock | None = None) -> None:
        self._permits = permits
        self._clock = clock or Clock()
        self.alone = Budget(Limit(limit.rate / SHARERS, 1), clock=self._clock)
        """What this process may send by itself while the file cannot be used."""
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Try the file again in a child."""
        self._alone_until = 0.0  # monotonic; read and written at once: it needs no lock
        self._warned = False

    def acquire(self, deadline: float, *, queue: str | None = None) -> None:
        """Block until one more request may leave; what `Budget.acquire` says holds here too."""
        if self.is_shared():
            try:
                self._acquire(deadline)
            except (SpoolUnavailable, SpoolFull) as error:
                self.give_up(error)
            else:
                return
        self.alone.acquire(deadline, queue=queue)

    def observe(self, ratelimit: str | None) -> None:
        """Heed the ``Ratelimit`` header of any answer; None if it had none."""
        if ratelimit is None:
            return
        if self.is_shared():
            try:
                self._permits.heed(ratelimit)
            except (SpoolUnavailable, SpoolFull) as error:
                self.give_up(error)
        else:
            self.alone.observe(ratelimit)

    def refused(self, error: CFQueuesError, *, queue: str | None = None) -> None:
        """Stop what a 429 stops, for every process; any other *error* stops nothing."""
        if error.status != 429:
            return
        self.alone.refused(error, queue=queue)
        if self.is_shared():
            try:
                self._permits.stop(error, queue)
            except (SpoolUnavailable, SpoolFull) as trouble:
                self.give_up(trouble)

    def is_shared(self) -> bool:
        """Whether the file is to be used now."""
        return self._clock.monotonic() >= self._alone_until

    def give_up(self, error: CFQueuesError) -> None:
        """Do without the file for a while; say so once."""
        self._alone_until = self._clock.monotonic() + TROUBLE_SECONDS
        if not self._warned:
            self._warned = True
            logger.warning(
                "this process paces its requests alone, at a sixteenth of the allowance, because "
                "it cannot share it with the other processes of the machine: %s",
                error,
            )

    def _acquire(self, deadline: float) -> None:
        ticket: int | None = None
        since = self._clock.monotonic()
        try:
            while True:
                ticket, wait = self._permits.request_permit(ticket, deadline)
                if wait is None:
                    metrics.waited(self._clock.monotonic() - since)
                    return
                now = self._clock.monotonic()
                until = now if wait.until is None else wait.until
                if wait.why is not None and until > deadline:
                    raise wait.why
                if now >= deadline:
                    raise RateLimited("the request allowance is used up", retry_after=until - now)
                self._clock.sleep(max(0.0, min(until, deadline) - now))
        finally:
            if ticket is not None:
                self._give_back(ticket)

    def _give_back(self, ticket: int) -> None:
        try:
            self._permits.give_back(ticket)
        except (SpoolUnavailable, SpoolFull) as error:
            # Its deadline ends it.
            logger.debug("a place in the line for permits could not be given back: %s", error)
