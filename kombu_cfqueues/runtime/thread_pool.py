"""Daemon threads that come when there is work, and go when there is none.

Under gevent's and eventlet's patches they are greenlets.  Nothing of them is left in a forked
child, and an application that consumes nothing has none.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

logger = logging.getLogger(__name__)

LINGER_SECONDS: Final = 2.0
"""How long a thread without work stays: a consumer that is opened again soon finds it."""

BUG_PAUSE_SECONDS: Final = 1.0
"""Between two tries of a thread whose work raised what it should not."""


class Job(NamedTuple):
    """What a thread of a crew is to do next.

    Attributes:
        job: The work; None: there is none now.
        more: Whether another thread would find work, at once or while this one is busy.
        wait: Without a job: seconds until there may be one; None: not before somebody calls.
    """

    job: Callable[[], None] | None = None
    more: bool = False
    wait: float | None = None


class ThreadPool:
    """Up to *most* threads that share one source of work.

    Args:
        name: Of the threads.
        most: Most threads at once.
        lock: Guards what *next_job* reads, and this object.
        next_job: Hands out work; it is called with *lock* held.
    """

    def __init__(
        self, name: str, most: int, lock: threading.Lock, next_job: Callable[[], Job]
    ) -> None:
        self._name = name
        self._most = most
        self._lock = lock
        self._next_job = next_job
        self._called = threading.Condition(lock)
        self._threads = 0  # guarded by the lock, as is the next
        self._idle = 0

    def call(self) -> None:
        """Let a thread look for work.  The caller holds the lock."""
        if self._idle:
            self._called.notify()
        elif self._threads < self._most:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._threads += 1
            try:
                thread.start()
            except RuntimeError as error:
                self._threads -= 1
                # An interpreter that is ending starts no threads any more.  What must still leave
                # then is sent by `flush`, in the thread that ends it.
                if not self._threads and not sys.is_finalizing():
                    logger.warning("no thread %s could be started: %s", self._name, error)

    @property
    def absent(self) -> bool:
        """Whether there is no thread that will look for work.  The caller holds the lock."""
        return not self._threads

    def dismiss(self) -> None:
        """There may be less to do than the threads believe.  The caller holds the lock."""
        self._called.notify_all()

    def _work(self) -> None:
        while job := self._await_job():
            try:
                job()
            # The last resort: a thread that dies of a bug would stop consuming without a word.
            except Exception:  # noqa: PERF203
                logger.exception("a bug in kombu_cfqueues; thread %s goes on", self._name)
                time.sleep(BUG_PAUSE_SECONDS)

    def _await_job(self) -> Callable[[], None] | None:
        """Block until there is a job; None once this thread is not needed any more."""
        with self._lock:
            dismissed_at = None
            while True:
                shift = self._next_job()
                if shift.job is not None:
                    if shift.more:
                        self.call()
                    return shift.job
                wait = shift.wait
                if wait is None:
                    now = time.monotonic()
                    dismissed_at = dismissed_at or now + LINGER_SECONDS
                    wait = dismissed_at - now
                    if wait <= 0:
                        self._threads -= 1
                        return None
                else:
                    dismissed_at = None
                self._idle += 1
                try:
                    self._called.wait(min(wait, threading.TIMEOUT_MAX))
                finally:
                    self._idle -= 1
