"""The log of the stops of a token: one line when a stop begins, and one when it ends."""

from __future__ import annotations

import logging
from typing import Final

from ..errors import CFQueuesError
from ..metrics import metrics
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child

logger = logging.getLogger(__name__)

SAME_STOP_SECONDS: Final = 1.0
"""Two stops that end this close together are the same stop, which two threads have met."""

WAYS_OUT: Final = (
    "create a token for each of them, let them share one allowance (option budget_url), or publish "
    "through the gateway, which has no such limit"
)
"""What to do where several machines use one token."""


class StopLog:
    """Logs when the API stops the token, and when requests leave again: one line for each.

    Threads may share it.  Do not call it with a lock held or in a transaction, because a log
    handler is the application's code.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Log stops in the child too."""
        self._lock = self._clock.lock()
        self._until = 0.0  # until when nothing leaves; guarded by _lock
        # Whether a stop is logged and its end is not; guarded by _lock, but also read without it.
        self._is_logged = False

    def stopped(self, error: CFQueuesError, until: float, lesson: str = "") -> None:
        """Log a stop that lasts *until* then (monotonic seconds), unless it is already logged.

        The line includes the *lesson* of a block of the token (`Allowance.lesson`), and what to do.
        A stop that has already ended is not logged.
        """
        now = self._clock.monotonic()
        with self._lock:
            is_new = now >= self._until and until > max(now, self._until + SAME_STOP_SECONDS)
            self._until = max(self._until, until)
            self._is_logged |= is_new
        if is_new:
            metrics.blocked()
            logger.warning(
                "the request limit of the API token is reached (HTTP 429), so no message leaves "
                "for %.0f s; messages wait%s: %s",
                max(0.0, until - now),
                f"; {lesson}, and tries more after a while. If several machines use the token, "
                f"{WAYS_OUT} (docs/scaling.md)"
                if lesson
                else "",
                error,
            )

    def resumed(self) -> None:
        """Log that requests leave again, if a stop is logged and has ended."""
        if not self._is_logged:
            return
        with self._lock:
            is_over = self._is_logged and self._until <= self._clock.monotonic()
            self._is_logged &= not is_over
        if is_over:
            logger.info("the block of the API token (HTTP 429) is over; messages leave again")
