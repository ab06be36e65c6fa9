"""What happens to a queue's messages: totals since the start, and the last minute in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

Kind = Literal[
    "published", "delivered", "acknowledged", "retried", "lease_expired", "dead", "expired"
]

KINDS: Final[tuple[Kind, ...]] = (
    "published",
    "delivered",
    "acknowledged",
    "retried",
    "lease_expired",
    "dead",
    "expired",
)
"""What is counted.  ``dead`` are the messages that ran out of retries, whether they moved to a
dead-letter queue or were deleted; ``expired`` those that outlived their queue's retention."""

HISTORY_SECONDS: Final = 60
"""Seconds that are remembered one by one."""

RATE_SECONDS: Final = 5
"""Seconds over which a rate is the average: long enough to be readable, short enough to be live."""


class Activity:
    """The counts of one queue.

    By the machine's own clock: a test that advances the emulator's must not empty the picture.
    Used under the database's lock.

    Args:
        monotonic: Seconds that never go back; tests bring their own.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._totals: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._seconds: dict[int, dict[Kind, int]] = {}

    def count(self, kind: Kind, number: int = 1) -> None:
        """Add *number* messages to what has happened in this second."""
        if not number:
            return
        second = int(self._monotonic())
        counts = self._seconds.get(second)
        if counts is None:
            for old in [s for s in self._seconds if s < second - HISTORY_SECONDS]:
                del self._seconds[old]
            counts = self._seconds[second] = {}
        counts[kind] = counts.get(kind, 0) + number
        self._totals[kind] += number

    def totals(self) -> dict[Kind, int]:
        """Return the counts since the start."""
        return dict(self._totals)

    def history(self, kind: Kind) -> list[int]:
        """Return the counts of each of the last 60 seconds that are over, the oldest first."""
        now = int(self._monotonic())
        seconds = range(now - HISTORY_SECONDS, now)
        return [self._seconds.get(second, {}).get(kind, 0) for second in seconds]

    def rate(self, kind: Kind) -> float:
        """Return messages a second, on average over the last 5 seconds that are over."""
        return sum(self.history(kind)[-RATE_SECONDS:]) / RATE_SECONDS
