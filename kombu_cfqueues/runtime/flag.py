"""A flag that any thread can set in a single step, and one thread waits for."""

from __future__ import annotations

import contextlib
import threading

from .clock import Clock
from .locks import Lock


class Flag:
    """A flag for which one thread waits.  The wait clears it.

    Setting the flag is a single step.  ``threading.Event.set`` takes a lock, which an exception
    from a signal handler can leave locked forever.  Here such an exception delays the waiter at
    most until its timeout.

    Args:
        clock: Makes the lock that the waiter sleeps on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_set = False
        self._sleeper: Lock | None = None  # locked while its thread sleeps

    def set(self) -> None:
        """Set the flag.  Any thread may call this, any number of times."""
        self._is_set = True
        sleeper = self._sleeper
        if sleeper is not None and sleeper.locked():
            with contextlib.suppress(RuntimeError):  # another thread has released it
                sleeper.release()

    def wait(self, seconds: float) -> None:
        """Block until the flag is set, for at most *seconds*; clear it."""
        # A new lock, because gevent and eventlet may have replaced locks since `__init__`.
        sleeper = self._clock.lock()
        sleeper.acquire()
        self._sleeper = sleeper
        if not self._is_set:
            sleeper.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))
        self._sleeper = None
        self._is_set = False
