"""Flags that any thread can set, and that an exception of a signal handler leaves usable.

Setting ``threading.Event`` takes a lock, which such an exception can leave locked forever.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque

from .clock import Clock
from .locks import Lock, new_lock


class Flag:
    """A flag for which one thread waits.  The wait clears it.

    Setting the flag is a single step.  An exception from a signal handler delays the waiter at most
    until its timeout.

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
        if sleeper is not None:
            _wake(sleeper)

    def wait(self, seconds: float) -> None:
        """Block until the flag is set, for at most *seconds*; clear it."""
        # A new lock, because gevent and eventlet may have replaced locks since `__init__`.
        sleeper = self._clock.lock()
        sleeper.acquire()
        self._sleeper = sleeper
        if not self._is_set:
            _sleep(sleeper, seconds)
        self._sleeper = None
        self._is_set = False


class Event:
    """An event that happens once, and for which any number of threads wait."""

    def __init__(self) -> None:
        self._is_set = False
        self._sleepers: deque[Lock] = deque()  # each is locked while its thread sleeps

    def set(self) -> None:
        """Note that it has happened, and wake the threads that wait."""
        self._is_set = True
        for sleeper in list(self._sleepers):
            _wake(sleeper)

    def wait(self, seconds: float) -> bool:
        """Block until it has happened, for at most *seconds*; return whether it has."""
        sleeper = new_lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        if not self._is_set:
            _sleep(sleeper, seconds)
        return self._is_set


def _sleep(sleeper: Lock, seconds: float) -> None:
    sleeper.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))


def _wake(sleeper: Lock) -> None:
    if sleeper.locked():
        with contextlib.suppress(RuntimeError):  # another thread has released it
            sleeper.release()
