"""Something to wait for, which any thread may set."""

from __future__ import annotations

import contextlib
import threading

from .clock import Clock, Lock


class Flag:
    """A flag that one thread waits for, and clears by having waited.

    `threading.Event` holds a lock of its own while it is set, which an exception out of a signal
    handler can leave locked for ever.  Here such an exception can at most delay the waiter until
    its timeout.

    Args:
        clock: Makes the lock that the waiter sleeps on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_set = False
        self._sleeper: Lock | None = None  # locked while its thread sleeps

    def set(self) -> None:
        """Set it.  Any thread may do so, as often as it likes."""
        self._is_set = True
        sleeper = self._sleeper
        if sleeper is not None and sleeper.locked():
            with contextlib.suppress(RuntimeError):  # another thread was faster
                sleeper.release()

    def wait(self, seconds: float) -> None:
        """Block until it is set, at most *seconds*; clear it."""
        # Made now, because gevent and eventlet may have replaced locks since this object was made.
        sleeper = self._clock.lock()
        sleeper.acquire()
        self._sleeper = sleeper
        if not self._is_set:
            sleeper.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))
        self._sleeper = None
        self._is_set = False
