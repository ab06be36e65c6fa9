"""Daemon threads that start when there is work, and end when there is none.

Under gevent and eventlet they are greenlets.  A forked child has none of its parent's threads.
"""

from __future__ import annotations

import _thread
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from .condition import Condition
from .locks import Lock

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
        wait: If there is no work, seconds until there may be some.  None means that there is none
            until the next `ThreadPool.call`.
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
        linger_seconds: How long a thread without work stays; None for `LINGER_SECONDS`.
    """

    def __init__(
        self,
        name: str,
        max_threads: int,
        lock: Lock,
        next_job: Callable[[], Job],
        *,
        linger_seconds: float | None = None,
    ) -> None:
        self._name = name
        self._max_threads = max_threads
        self._lock = lock
        self._next_job = next_job
        self._linger_seconds = linger_seconds
        self._called = Condition(lock)
        # The lock guards the next two.
        self._threads: set[object] = set()  # a place for each, also for those that start just now
        self._idle = 0

    def call(self) -> None:
        """Have one thread look for work: an idle one, else a new one.  The caller holds the lock.

        If the system cannot start a thread, that is logged.
        """
        if self._idle:
            self._called.notify()
        elif len(self._threads) < self._max_threads:
            place = object()
            try:
                self._threads.add(place)
                # Not `Thread.start`, which waits.  Under gevent and eventlet another greenlet would
                # run meanwhile, and if it wanted the lock, and the lock was made before they
                # replaced locks (``gunicorn --preload``), all greenlets would wait forever.
                _thread.start_new_thread(self._start, (place,))
            except RuntimeError as error:
                self._threads.discard(place)
                self._log_start_failure(error)
            except BaseException:  # from a signal handler; the thread may have started
                self._threads.discard(place)
                raise

    def _start(self, place: object) -> None:
        thread = threading.Thread(target=self._work, args=(place,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system allows no further thread, so this one works
            self._work(place)
        except BaseException:  # for example if gevent ends all greenlets
            self._replace(place)
            raise

    def _log_start_failure(self, error: RuntimeError) -> None:
        # An interpreter that is shutting down starts no threads.  This is not worth a warning: the
        # exit handlers send what remains in their own thread.  While they run, only the error's
        # text shows the shutdown (Python 3.12 and newer).
        ends = sys.is_finalizing() or "interpreter shutdown" in str(error)
        if not self._threads and not ends:
            logger.warning("no thread %s could be started: %s", self._name, error)

    @property
    def absent(self) -> bool:
        """Whether no thread of the pool exists to look for work.  The caller holds the lock."""
        return not self._threads

    def call_idle(self) -> None:
        """Have all idle threads ask for a job again, because there may be less work than before.

        A thread that finds nothing to wait for ends after `LINGER_SECONDS`.  The caller holds the
        lock.
        """
        self._called.notify_all()

    def _work(self, place: object) -> None:
        has_left = False
        try:
            while not has_left:
                try:
                    work = self._await_work(place)
                    if work is None:
                        has_left = True
                    else:
                        work()
                # Otherwise the thread would end, and its work would silently stop.
                except Exception:  # noqa: PERF203
                    logger.exception("a bug in kombu_cfqueues; thread %s continues", self._name)
                    time.sleep(BUG_PAUSE_SECONDS)
        finally:
            if not has_left:
                self._replace(place)

    def _replace(self, place: object) -> None:
        """Call another thread for one that an exception ends."""
        with self._lock:
            self._threads.discard(place)
            self.call()

    def _await_work(self, place: object) -> Callable[[], None] | None:
        """Block until there is work.  Return None if this thread is to end."""
        with self._lock:
            leave_at = None
            while place in self._threads:
                job = self._next_job()
                if job.work is not None:
                    if job.more:
                        self.call()
                    return job.work
                wait = job.wait
                if wait is None:
                    now = time.monotonic()
                    linger = self._linger_seconds
                    leave_at = leave_at or now + (LINGER_SECONDS if linger is None else linger)
                    wait = leave_at - now
                    if wait <= 0:
                        self._threads.remove(place)
                        break
                else:
                    leave_at = None
                self._idle += 1
                try:
                    self._called.wait(wait)
                finally:
                    self._idle -= 1
        return None
