"""How long to back off after a failure, and when to stop retrying."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from .errors import CFQueuesError, TransientError
from .metrics import metrics
from .runtime.rng import rng

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff: after each failure in a row, the maximum pause doubles.

    The pause is random, so that the clients that an outage stopped do not all retry together.

    Attributes:
        first_seconds: Maximum pause after the first failure.
        longest_seconds: Maximum pause after any number of failures.
        failures: Number of failures in a row.
    """

    first_seconds: float
    longest_seconds: float
    failures: int = 0

    def after_failure(self) -> Backoff:
        """Return a copy with one more failure."""
        return replace(self, failures=self.failures + 1)

    @property
    def ceiling_seconds(self) -> float:
        """The maximum pause now; 0 if nothing has failed."""
        if not self.failures:
            return 0.0
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(self.failures - 1, 30))

    def pause_seconds(self, *, least: float = 0.0) -> float:
        """Return how long to wait now; random, so each call returns another value.

        Args:
            least: Minimum, as a part of `ceiling_seconds` from 0 to 1.
        """
        return rng.uniform(least * self.ceiling_seconds, self.ceiling_seconds)


REQUEST_BACKOFF: Final = Backoff(first_seconds=0.2, longest_seconds=10.0)
"""Pauses between the tries of a request that carries no message.  The maximum is a third of the
default ``publish_timeout``, so that a caller gets several tries."""

LAST_TRY_SECONDS: Final = 0.5
"""A pause ends this long before the last moment for a request, so that one more try fits.  Long
enough for a thread of a busy machine to wake up.  Callers with little time use at most a tenth of
their whole time instead."""


def until(deadline: float, call: Callable[[], T], give_up: Callable[[TransientError], bool]) -> T:
    """Call *call* until it raises no `TransientError`; block and back off between the tries.

    Args:
        deadline: When to stop retrying, in seconds of `time.monotonic`.
        call: What to try.
        give_up: Returns whether to raise a failure at once.

    Raises:
        TransientError: The last try failed; raised early if the next try would be too late.
        PermanentError: A try failed in a way that a retry cannot change.

    The error has ``delivered="unknown"`` if any try may have delivered the message, unless
    *give_up* ended the tries.
    """
    maybe_delivered = False
    backoff, began = REQUEST_BACKOFF, time.monotonic()
    while True:
        started = time.monotonic()
        try:
            return call()
        except CFQueuesError as error:
            if isinstance(error, TransientError) and give_up(error):
                raise
            maybe_delivered = maybe_delivered or error.delivered == "unknown"
            if maybe_delivered:
                error.delivered = "unknown"  # even if only an earlier try may have delivered
            backoff = backoff.after_failure()
            wait = _pause(error, backoff, began, started, deadline)
            # In this order, because a deadline of NaN must end the loop as well.
            if not isinstance(error, TransientError) or not time.monotonic() + wait < deadline:
                raise
            metrics.retried(error)
        time.sleep(wait)


def _pause(
    error: CFQueuesError, backoff: Backoff, began: float, started: float, deadline: float
) -> float:
    """Return how long to wait before the next try, which must leave time for an answer.

    A pause that the server asks for is not shortened.
    """
    now = time.monotonic()
    wait = backoff.pause_seconds()
    margin = max(now - started, min(LAST_TRY_SECONDS, (deadline - began) / 10))
    if started < deadline - margin:
        wait = min(wait, max(0.0, deadline - margin - now))
    # `retry_after` may only extend the pause: a server may ask for 0 seconds.
    return max(wait, error.retry_after or 0.0)
