"""Counts of what happens to a queue's messages: totals, and one count per recent second."""

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
"""The events that are counted.

``dead`` counts messages that ran out of retries, whether they moved to a dead-letter queue or were
deleted.  ``expired`` counts messages that became older than their queue's retention."""

HISTORY_SECONDS: Final = 60
"""Length of the history: the page draws the last minute, second by second."""

RATE_SECONDS: Final = 5
"""Period over which a rate is averaged: long enough to be steady, short enough to be live."""


class Activity:
    """The counts of one queue.

    They follow the machine's clock, because a test that advances the emulator's clock must not
    empty the chart.  Callers hold the database's lock.

    Args:
        monotonic: Returns seconds that never go back; tests pass their own.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._totals: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._seconds: dict[int, dict[Kind, int]] = {}

    def count(self, kind: Kind, number: int = 1) -> None:
        """Add *number* messages to the counts of the current second."""
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
        """Return the count of each of the last 60 complete seconds, the oldest first."""
        now = int(self._monotonic())
        seconds = range(now - HISTORY_SECONDS, now)
        return [self._seconds.get(second, {}).get(kind, 0) for second in seconds]

    def rate(self, kind: Kind) -> float:
        """Return messages per second, averaged over the last 5 complete seconds."""
        return sum(self.history(kind)[-RATE_SECONDS:]) / RATE_SECONDS
