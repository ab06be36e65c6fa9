"""What a failure means, and how long to wait before another try."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, TypeVar

from .errors import CFQueuesError, TransientError
from .metrics import metrics
from .runtime.rng import rng

T = TypeVar("T")


class Verdict(Enum):
    """What a failed request says of the messages in it."""

    THE_ITEMS = auto()
    """Something about the messages: the batch is split until the bad one is alone."""
    NOT_NOW = auto()
    """Nothing about the messages: they are posted again until each one's own deadline."""
    NEVER = auto()
    """Nothing about the messages, but repeating is useless: all of them fail with it."""


@dataclass(frozen=True)
class Backoff:
    """How long to wait after a number of failures in a row: twice as long each time.

    The pause is random, so that all that one outage stopped do not come back together.

    Attributes:
        first_seconds: The longest pause after the first failure.
        longest_seconds: The longest pause ever.
        failures: How many there were in a row.
    """

    first_seconds: float
    longest_seconds: float
    failures: int = 0

    def after_failure(self) -> Backoff:
        """Return the same after one failure more."""
        return replace(self, failures=self.failures + 1)

    def after_success(self) -> Backoff:
        """Return the same without any failure."""
        return replace(self, failures=0)

    @property
    def ceiling_seconds(self) -> float:
        """The longest pause now; 0 if nothing has failed."""
        if not self.failures:
            return 0.0
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(self.failures - 1, 30))

    def pause_seconds(self, *, least: float = 0.0) -> float:
        """Return how long to wait now: a new random number each time.

        Args:
            least: Which part of `ceiling_seconds` it is at least; 1 for all of it.
        """
        return rng.uniform(least * self.ceiling_seconds, self.ceiling_seconds)


BACKOFF: Final = Backoff(first_seconds=0.2, longest_seconds=10.0)
"""Pauses between the tries of a request that carries no message."""

LAST_TRY_SECONDS: Final = 0.5
"""How long before the last moment for a request a pause ends, so that one more try fits.  At most
a tenth of a caller's whole time."""


def _never(_: TransientError) -> bool:
    return False


def until(
    deadline: float, call: Callable[[], T], give_up: Callable[[TransientError], bool] = _never
) -> T:
    """Call until it does not raise a `TransientError`, or until *deadline* (monotonic seconds).

    Args:
        deadline: Past it, nothing is tried again.
        call: What to try.
        give_up: Whether a failure is to be raised at once instead.

    Raises:
        TransientError: What the last try raised; at once if the next could only be too late.
        PermanentError: What a try raised, at once.

    What is raised has ``delivered="unknown"`` if any try was in doubt, unless *give_up* ended it.
    """
    in_doubt = False
    backoff, began = BACKOFF, time.monotonic()
    while True:
        started = time.monotonic()
        try:
            return call()
        except CFQueuesError as error:
            if isinstance(error, TransientError) and give_up(error):
                raise
            in_doubt = in_doubt or error.delivered == "unknown"
            if in_doubt:
                error.delivered = "unknown"  # this try did not deliver; an earlier one may have
            backoff = backoff.after_failure()
            wait = _pause(error, backoff, began, started, deadline)
            # Compared this way round, a deadline that is NaN ends it as well.
            if not isinstance(error, TransientError) or not time.monotonic() + wait < deadline:
                raise
            metrics.retried(error)
        time.sleep(wait)


def _pause(
    error: CFQueuesError, backoff: Backoff, began: float, started: float, deadline: float
) -> float:
    """Return how long to wait before the next try, which must not be too late for an answer.

    What the server asks for is not cut.
    """
    now = time.monotonic()
    wait = backoff.pause_seconds()
    margin = max(now - started, min(LAST_TRY_SECONDS, (deadline - began) / 10))
    if started < deadline - margin:
        wait = min(wait, max(0.0, deadline - margin - now))
    # Never without a pause: a server may well say 0, or a time that has passed.
    return max(wait, error.retry_after or 0.0)
