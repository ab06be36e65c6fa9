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

JUDGED_PULLS: Final = 20
"""The hint comes if the worker had no message for more than half of the time of this many pulls:
then its messages are finished sooner than a pull takes."""


class PrefetchHint:
    """Watches how long a worker is without messages while those of its queue flow."""

    def __init__(self) -> None:
        self._pulls = 0  # since the time below
        self._began = 0.0
        self._idle_before = 0.0
        self._seconds = 0.0  # of the last pull
        self._is_due = False

    def pulled(self, started: float, now: float, *, idle_seconds: float, flows: bool) -> None:
        """Note a pull that was answered.  Times are seconds of `time.monotonic`.

        Args:
            started: When it started.
            now: When its answer came.
            idle_seconds: How long the worker has been without messages in its life.
            flows: Whether the messages of the queue flow.  Otherwise there may be none to have.
        """
        self._seconds = now - started
        if not flows:
            self._pulls = 0
            return
        if not self._pulls:
            self._began, self._idle_before = now, idle_seconds
        self._pulls += 1
        if self._pulls > JUDGED_PULLS:
            self._pulls = 0
            self._is_due = idle_seconds - self._idle_before > (now - self._began) / 2

    def give(self, queue: str, prefetch: int) -> None:
        """Log the hint and put it into `stats`, if it is due and no queue had it before.

        Args:
            queue: Name of the queue.
            prefetch: The worker's prefetch count.
        """
        if not self._is_due or not _once.is_new():
            return
        text = (
            f"the worker finishes the {prefetch} messages that it may hold before a pull of queue "
            f"{queue!r} brings the next ones ({self._seconds * 1e3:.0f} ms), and then waits: where "
            "tasks are this short, a larger worker_prefetch_multiplier lets it run more of them"
        )
        metrics.hint("worker_prefetch_multiplier", text)
        logger.warning("%s", text)


_once = Once()
