"""Notices that a Celery worker may hold too few messages to be busy.

A worker that finishes all that it may hold before the next pull is answered runs as many tasks per
round trip as its prefetch count, however fast it is.  Only its operator can change that, because a
small prefetch count is also what leaves long tasks to other workers.
"""

from __future__ import annotations

import logging
from typing import Final

from ..metrics import metrics
from ..runtime.once import Once

logger = logging.getLogger(__name__)

STARVED_PULLS: Final = 20
"""The hint comes after this many pulls that found the worker without work.  Each pull that found it
busy makes up for one of them."""


class PrefetchHint:
    """Counts how often a pull finds its worker without work."""

    def __init__(self) -> None:
        self._starved = 0
        self._seconds = 0.0  # of the last pull
        self._answered_at = 0.0

    def pulled(self, started: float, now: float, *, found_idle: bool) -> None:
        """Note a full pull of a queue whose messages flow.  Times are seconds of `time.monotonic`.

        Args:
            started: When it started.
            now: When its answer came.
            found_idle: Whether the worker had no other message then.
        """
        self._seconds = now - started
        # An idle worker has spent the rest of this time on its tasks.  If that is more than the
        # pull took, its tasks are long, and it loses little.
        short = now - self._answered_at < 2 * self._seconds
        self._answered_at = now
        self._starved = max(0, self._starved + (1 if found_idle and short else -1))

    def give(self, queue: str, prefetch: int) -> None:
        """Log the hint and put it into `stats`, if there is reason to and no queue had it before.

        Args:
            queue: Name of the queue.
            prefetch: The worker's prefetch count.
        """
        if self._starved < STARVED_PULLS or not _once.is_new():
            return
        text = (
            f"the worker finishes the {prefetch} messages that it may hold before a pull of queue "
            f"{queue!r} brings the next ones ({self._seconds * 1e3:.0f} ms), and then waits: where "
            "tasks are this short, a larger worker_prefetch_multiplier lets it run more of them"
        )
        metrics.hint("worker_prefetch_multiplier", text)
        logger.warning("%s", text)


_once = Once()
