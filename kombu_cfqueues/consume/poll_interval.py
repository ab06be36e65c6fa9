"""When a queue is pulled next.

Queues has no long poll, and bills an empty pull.  So each queue backs off on its own while it is
empty, and is pulled without a pause while it has messages.
"""

from __future__ import annotations

from typing import Final

from .. import limits
from ..retry import Backoff

MIN_INTERVAL_SECONDS: Final = 0.01
"""Shortest pause after an empty pull.  ``polling_interval=0`` asks for the fastest polling, which
must not become a busy loop."""

BACKOFF: Final = Backoff(first_seconds=0.5, longest_seconds=10.0)
"""Pauses after failures: one lost response delays messages by at most the first.  The longest is
as long as the default ``max_polling_interval``, so a queue that works again is noticed as soon as a
message in an empty one."""


REPLY_INTERVAL_SECONDS: Final = 0.1
"""Pause after the first empty pull of a queue to which a task was told to send its result.  Most
results come soon, and somebody usually waits for them."""

REPLY_GROWTH: Final = 1.25
"""The pause of such a queue grows by this factor, so that a result waits for at most a quarter of
the time that the task has taken."""


EXPECTED_SECONDS: Final = 1.0
"""Shorter pauses are not cut when a task is sent whose result will come to the queue."""


class PollInterval:
    """The pause before the next pull of one queue.  Times are seconds of `time.monotonic`.

    Args:
        interval: Pause after the first empty pull, in seconds.
        longest: The pause doubles after each further empty pull, up to this many seconds.
        now: The time now, at which the first pull is due.
        is_reply: Whether results of tasks come to the queue.

    Attributes:
        due: When the next pull is due.
    """

    def __init__(
        self, interval: float, longest: float, now: float, *, is_reply: bool = False
    ) -> None:
        self._first = max(interval, MIN_INTERVAL_SECONDS)
        self._growth = 2.0
        if is_reply:
            self._first = min(self._first, REPLY_INTERVAL_SECONDS)
            self._growth = REPLY_GROWTH
        self._longest = max(longest, MIN_INTERVAL_SECONDS)
        self._interval = self._first
        self._backoff = BACKOFF
        self.due = now

    def reset(self, now: float) -> None:
        """Make the next pull due at once: messages arrived, or are known to be there."""
        self._backoff = BACKOFF
        self._interval = self._first
        self.due = now

    def empty(self, now: float) -> None:
        """Back off after a pull that returned no message."""
        self._backoff = BACKOFF
        self.due = now + self._interval
        self._interval = min(self._growth * self._interval, self._longest)

    def expect(self, now: float) -> None:
        """Start again with short pauses: a message will come, if it is not there already.

        Pauses of up to a second stay, because tasks may be sent all the time.
        """
        if self._interval > EXPECTED_SECONDS:
            self._interval = self._first
            self.due = min(self.due, now + self._first)

    def failed(self, now: float, retry_after: float | None = None) -> None:
        """Back off exponentially after a failed request.

        The pause has jitter, because requests that failed together would otherwise be repeated
        together.

        Args:
            now: The time now.
            retry_after: The server asks for a pause of at least this many seconds.
        """
        self._backoff = self._backoff.after_failure()
        pause = self._backoff.pause_seconds(least=0.5)
        self.due = now + max(pause, min(retry_after or 0.0, limits.WINDOW_SECONDS))
