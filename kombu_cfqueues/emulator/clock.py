"""The emulator's clock: real time plus whatever a test has added."""

from __future__ import annotations

import threading
import time


class Clock:
    """A clock that tests can advance; leases, delays, retention and the request limit follow it.

    It never goes back, whatever the machine's clock does, so that whatever was due stays due.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead_ms = 0  # guarded by _lock
        self._last_ms = 0  # guarded by _lock

    def now_ms(self) -> int:
        """Return milliseconds since the epoch."""
        with self._lock:
            self._last_ms = max(self._last_ms, int(time.time() * 1000) + self._ahead_ms)
            return self._last_ms

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self.now_ms() / 1000

    @property
    def ahead(self) -> float:
        """Total seconds by which the clock was advanced."""
        with self._lock:
            return self._ahead_ms / 1000

    def advance(self, seconds: float) -> None:
        """Move the clock forward by *seconds*.

        Raises:
            ValueError: *seconds* is negative.
        """
        if seconds < 0:
            raise ValueError(f"the clock only goes forward, not by {seconds} s")
        with self._lock:
            self._ahead_ms += round(seconds * 1000)
