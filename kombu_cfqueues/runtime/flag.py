"""Something to wait for, that any thread may set, in one step."""

from __future__ import annotations

import threading

from .clock import Clock


class Flag:
    """A flag that one thread waits for, and clears by having waited.

    Unlike `threading.Event`, whose methods hold a lock of their own, it survives an exception that
    a signal handler raises in the thread that sets it: setting it is a single step.

    Args:
        clock: Makes the lock that it is.
    """

    def __init__(self, clock: Clock) -> None:
        self._lock = clock.lock()  # locked while the flag is not set
        self._lock.acquire()

    def set(self) -> None:
        """Set it.  Any thread may do so, as often as it likes."""
        try:
            if self._lock.locked():
                self._lock.release()
        except RuntimeError:  # another thread was faster
            pass

    def wait(self, seconds: float) -> None:
        """Block until it is set, at most *seconds*; clear it."""
        self._lock.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))
