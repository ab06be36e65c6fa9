"""Daemon threads that start when there is work, and end when there is none.

Under gevent and eventlet they are greenlets.  A forked child has none of its parent's threads.  A
process that consumes nothing starts none.
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
"""How long a thread without work stays, so that a consumer that is soon reopened finds it."""

BUG_PAUSE_SECONDS: Final = 1.0
"""Pause of a thread after a job raised an exception that no job should raise.

Without the pause, a job that always fails would fill the log and use a whole CPU.
"""


class Job(NamedTuple):
    """What a thread of the pool does next.

    Attributes:
        work: The work; None if there is none now.
        more: Whether another thread would find work, at once or while this one is busy.
        wait: If there is no work: seconds until there may be some.  None if there is none until
            somebody calls `ThreadPool.call`.
    """

    work: Callable[[], None] | None = None
    more: bool = False
    wait: float | None = None


class ThreadPool:
    """Threads that take jobs from one source.

    Args:
        name: Name of the threads.
        max_threads: Maximum number of threads at one time.
        lock: Guards the state that *next_job* reads, and this object.
        next_job: Returns the next job; the pool calls it with *lock* held.
    """

    def __init__(
        self, name: str, max_threads: int, lock: threading.Lock, next_job: Callable[[], Job]
    ) -> None:
        self._name = name
        self._max_threads = max_threads
        self._lock = lock
        self._next_job = next_job
        self._called = threading.Condition(lock)
        self._threads = 0  # guarded by the lock, as is _idle
        self._idle = 0

    def call(self) -> None:
        """Have one thread look for work: an idle one, else a new one.  The caller holds the lock.

        If the system cannot start a thread, this logs a warning and returns.
        """
        if self._idle:
            self._called.notify()
        elif self._threads < self._max_threads:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._threads += 1
            try:
                thread.start()
            except RuntimeError as error:
                self._threads -= 1
                # An interpreter that is shutting down starts no threads.  Then `flush` sends what
                # remains, in the thread that shuts the interpreter down.
                if not self._threads and not sys.is_finalizing():
                    logger.warning("no thread %s could be started: %s", self._name, error)

    @property
    def absent(self) -> bool:
        """Whether no thread of the pool exists to look for work.  The caller holds the lock."""
        return not self._threads

    def call_idle(self) -> None:
        """Have all idle threads ask for a job again, for there may be less to do than before.

        A thread that finds nothing to wait for ends after `LINGER_SECONDS`.  The caller holds the
        lock.
        """
        self._called.notify_all()

    def _work(self) -> None:
        while work := self._await_work():
            try:
                work()
            # The last resort: a thread that ended here would silently stop consuming.
            except Exception:  # noqa: PERF203
                logger.exception("a bug in kombu_cfqueues; thread %s continues", self._name)
                time.sleep(BUG_PAUSE_SECONDS)

    def _await_work(self) -> Callable[[], None] | None:
        """Block until there is work.  Return None if this thread is to end."""
        with self._lock:
            leave_at = None
            while True:
                job = self._next_job()
                if job.work is not None:
                    if job.more:
                        self.call()
                    return job.work
                wait = job.wait
                if wait is None:
                    now = time.monotonic()
                    leave_at = leave_at or now + LINGER_SECONDS
                    wait = leave_at - now
                    if wait <= 0:
                        self._threads -= 1
                        return None
                else:
                    leave_at = None
                self._idle += 1
                try:
                    self._called.wait(min(wait, threading.TIMEOUT_MAX))
                finally:
                    self._idle -= 1
