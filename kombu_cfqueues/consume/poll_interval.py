"""When a queue is pulled next.

Queues has no long poll, and bills an empty pull.  So an empty queue is pulled less often the longer
it has been quiet, and a queue with messages is pulled without a pause.  Publishers on this machine
ring a bell (`doorbell`), which moves the next pull.
"""

from __future__ import annotations

from math import inf
from typing import Final

from .. import limits
from ..retry import Backoff

MIN_INTERVAL_SECONDS: Final = 0.01
"""Shortest pause after an empty pull.  ``polling_interval=0`` asks for the fastest polling, which
must not become a busy loop."""

PULL_BACKOFF: Final = Backoff(first_seconds=0.5, longest_seconds=10.0)
"""Pauses after failures: one lost response delays messages by at most the first.  The longest is
as long as the default ``max_polling_interval``, so a queue that works again is noticed as soon as a
message in an empty one."""

QUIET_SHARE: Final = 1 / 10
"""The pause after an empty pull, as a share of the time for which the queue has been quiet.  So a
message waits for at most a tenth of the quiet time before it."""

REPLY_INTERVAL_SECONDS: Final = 0.1
"""Shortest pause for a queue that receives results of tasks.  Most results come soon, and somebody
usually waits for them."""

REPLY_SHARE: Final = 1 / 4
"""The share of the quiet time for such a queue, so that a result waits for at most a quarter of the
time that the task has taken."""

EXPECTED_SECONDS: Final = 1.0
"""Pauses up to this length stay when a task is sent whose result will come to the queue."""

SECOND_LOOK_SECONDS: Final = 0.1
"""Pause after a bell's pull that found nothing; each further pause is twice as long.  The server
may not show a message as soon as it has accepted it."""

LAST_LOOK_SECONDS: Final = 0.4
"""Longest of these pauses.  After it, the queue is pulled as often as without a bell."""


class PollInterval:
    """The pause before the next pull of one queue.  Times are seconds of `time.monotonic`.

    Args:
        interval: Shortest pause after an empty pull, in seconds.
        longest: Longest pause after an empty pull, in seconds.
        now: The time now, at which the first pull is due.
        is_reply: Whether results of tasks come to the queue.

    Attributes:
        due: When the next pull is due.
    """

    def __init__(
        self, interval: float, longest: float, now: float, *, is_reply: bool = False
    ) -> None:
        self._first = max(interval, MIN_INTERVAL_SECONDS)
        self._share = QUIET_SHARE
        if is_reply:
            self._first = min(self._first, REPLY_INTERVAL_SECONDS)
            self._share = REPLY_SHARE
        self._longest = max(longest, self._first)
        self._quiet_since = now
        self._backoff = PULL_BACKOFF
        self._is_failing = False
        self._bell_at: float | None = None  # the last one that no pull has answered
        self._empty_bell_at = -inf  # the last bell's pull that found nothing
        self._look_pause = 0.0  # before the next of the looks after such a pull
        self.due = now

    def reset(self, now: float) -> None:
        """Make the next pull due at once: messages arrived, or are known to be there."""
        self._works()
        self._quiet_since = now
        self._bell_at, self._empty_bell_at, self._look_pause = None, -inf, 0.0
        self.due = now

    def empty(self, now: float, started: float, *, is_alone: bool) -> None:
        """Back off after a pull that returned no message.

        Args:
            now: The time now.
            started: When the pull started.
            is_alone: Whether no other process of this machine can have taken the message for which
                a bell rang, so that another look may find it.
        """
        self._works()
        self.due = now + self._pause(now)
        if self._bell_at is not None and self._bell_at > started:
            self._hurry(now)  # the server may have answered before it had the message
        elif self._bell_at is not None or self._look_pause:
            self._bell_found_nothing(now, is_alone=is_alone)

    def ring(self, now: float) -> None:
        """Make a pull due, because a process of this machine has published to the queue.

        A bell does not count as a message, because another consumer may get the message: the quiet
        time goes on.  While pulls after bells find nothing, bells cause one pull per shortest
        pause.
        """
        self._bell_at = now
        if not self._is_failing:
            self._hurry(now)

    def was_rung(self) -> bool:
        """Whether a pull that finds nothing now may deserve another look."""
        return self._bell_at is not None or self._look_pause > 0

    def expect(self, now: float) -> None:
        """Start again with short pauses: a message will come, if it is not there already.

        Pauses of up to a second stay, because tasks may be sent all the time.
        """
        if self._pause(now) > EXPECTED_SECONDS:
            self._quiet_since = now
            self.due = min(self.due, now + self._first)

    def failed(self, now: float, retry_after: float | None = None) -> None:
        """Back off exponentially after a failed request.

        The pause has jitter, because requests that failed together would otherwise be repeated
        together.

        Args:
            now: The time now.
            retry_after: The server asks for a pause of at least this many seconds.
        """
        self._is_failing = True
        self._backoff = self._backoff.after_failure()
        pause = self._backoff.pause_seconds(least=0.5)
        self.due = now + max(pause, min(retry_after or 0.0, limits.WINDOW_SECONDS))

    def _works(self) -> None:
        self._is_failing = False
        self._backoff = PULL_BACKOFF

    def _pause(self, now: float) -> float:
        """Return the pause after an empty pull that ended *now*."""
        return min(max(self._first, self._share * (now - self._quiet_since)), self._longest)

    def _hurry(self, now: float) -> None:
        self.due = min(self.due, max(now, self._empty_bell_at + self._first))

    def _bell_found_nothing(self, now: float, *, is_alone: bool) -> None:
        """Look again soon, unless pulls after earlier bells found nothing either."""
        if self._bell_at is None:
            self._look_pause *= 2
        else:
            if now - self._empty_bell_at > self._longest:
                self._look_pause = SECOND_LOOK_SECONDS
            self._bell_at, self._empty_bell_at = None, now
        if not is_alone or self._look_pause > LAST_LOOK_SECONDS:
            self._look_pause = 0.0
        elif self._look_pause:
            self.due = min(self.due, now + self._look_pause)
