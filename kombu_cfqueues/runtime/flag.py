"""A flag that any thread can set in a single step, and one thread waits for."""

from __future__ import annotations

import threading

from .clock import Clock


class Flag:
    """A flag for which one thread waits.  The wait clears it.

    Setting it is a single step, so a signal handler may raise an exception in the thread that sets
    it.  The methods of `threading.Event` hold a lock, which such an exception would leave locked.

    Args:
        clock: Makes the lock inside.
    """

    def __init__(self, clock: Clock) -> None:
        self._lock = clock.lock()  # locked while the flag is not set
        self._lock.acquire()

    def set(self) -> None:
        """Set the flag.  Any thread may call this, any number of times."""
        try:
            if self._lock.locked():
                self._lock.release()
        except RuntimeError:  # another thread has released it
            pass

    def wait(self, seconds: float) -> None:
        """Block until the flag is set, for at most *seconds*; clear it."""
        self._lock.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))
