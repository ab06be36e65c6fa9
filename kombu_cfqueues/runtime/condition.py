"""A condition variable that an exception of a signal handler leaves usable."""

from __future__ import annotations

import contextlib
import threading
from collections import deque

from .locks import Lock, new_lock


class Condition:
    """Waits for a change of what a lock guards.  The caller of each method holds the lock.

    ``threading.Condition`` is interrupted (Ctrl-C, a task's time limit) between the steps in which
    it gives the lock up and takes it back.  The ``with`` statement around it then releases a lock
    that this thread does not have: that of another thread, or it raises a `RuntimeError`.

    Args:
        lock: Guards what is waited for.
    """

    def __init__(self, lock: Lock) -> None:
        self._release, self._acquire = lock.release, lock.acquire
        self._waiters: deque[Lock] = deque()  # each is locked until its thread is notified

    def wait(self, seconds: float | None = None) -> bool:
        """Block until notified, for *seconds* at most; None waits forever.

        Returns:
            Whether it was notified.
        """
        # A new lock, because gevent and eventlet may have replaced locks since `__init__`.
        waiter = new_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        timeout = -1 if seconds is None else min(max(0.0, seconds), threading.TIMEOUT_MAX)
        taken, interrupt = False, None
        try:
            # Signal handlers run after calls of C functions.  So none runs between the beginning of
            # this block and the release, or before the lock is taken back.
            self._release()
            return waiter.acquire(timeout=timeout)
        finally:
            # Not a function of its own, because a handler may run where that begins.  What one
            # raises while another thread has the lock is raised once the lock is taken.
            while not taken:
                try:
                    for taken in iter(self._acquire, None):  # noqa: B007  no handler in between
                        break
                except BaseException as error:  # noqa: BLE001  raised below
                    interrupt = error
            with contextlib.suppress(ValueError):  # it was notified
                self._waiters.remove(waiter)
            if interrupt is not None:
                raise interrupt

    def notify(self) -> None:
        """Wake one thread that waits."""
        if self._waiters:
            self._waiters.popleft().release()

    def notify_all(self) -> None:
        """Wake all threads that wait."""
        while self._waiters:
            self._waiters.popleft().release()
