"""When a queue is pulled next.

Queues has no long poll, and bills an empty pull, so each queue backs off on its own while it is
empty, and is pulled without a pause while messages come.
"""

from __future__ import annotations

from typing import Final

from .. import limits
from ..runtime.rng import rng

LEAST_INTERVAL: Final = 0.01
"""Seconds; ``polling_interval=0`` asks for the tightest polling, and not for a busy loop."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 10.0
"""Seconds of the first and the longest pause after failures."""


class PollInterval:
    """The pace of one queue's pulls.  Times are seconds of `time.monotonic`.

    Args:
        interval: Pause after the first empty pull, in seconds.
        longest: Longest pause, which it doubles up to.
        now: The first pull is due at once.
    """

    def __init__(self, interval: float, longest: float, now: float) -> None:
        self._first = max(interval, LEAST_INTERVAL)
        self._longest = max(longest, LEAST_INTERVAL)
        self._interval = self._first
        self._failures = 0
        self.due = now  # the next pull

    def came(self, now: float) -> None:
        """Messages came, or are known to be there: pull on at once."""
        self._failures = 0
        self._interval = self._first
        self.due = now

    def empty(self, now: float) -> None:
        """Nothing came."""
        self._failures = 0
        self.due = now + self._interval
        self._interval = min(2 * self._interval, self._longest)

    def failed(self, now: float, retry_after: float | None = None) -> None:
        """The pull failed.

        Args:
            now: The time.
            retry_after: Seconds that the server asks for at least.  Ours grow, with jitter,
                because all that failed together would come back together.
        """
        ceiling = min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 10)
        pause = rng.uniform(ceiling / 2, ceiling)
        self.due = now + max(pause, min(retry_after or 0.0, limits.WINDOW_SECONDS))
