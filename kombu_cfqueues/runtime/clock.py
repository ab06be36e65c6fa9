"""Time, waiting and locks as one object, so that tests can pass a clock that takes no real time."""

from __future__ import annotations

import time

from .locks import Lock, new_lock


class Clock:
    """The clock of this machine.

    Each call looks its function up again, because gevent and eventlet may replace the function
    after this module was imported.
    """

    def monotonic(self) -> float:
        """Return the monotonic time in seconds.  Only differences have a meaning."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread or greenlet for *seconds*."""
        time.sleep(seconds)

    def lock(self) -> Lock:
        """Return a new lock.  Its timeouts use this clock."""
        return new_lock()
