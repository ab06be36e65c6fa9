"""Daemon threads that start when there is work, and end when there is none.

Under gevent and eventlet they are greenlets.  A forked child has none of its parent's threads.
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


class StartingLock:
    """A lock whose holder may ask for threads; they start when the lock is released.

    Starting a thread under gevent or eventlet switches to another greenlet.  This lock may have
    been made before gevent patched locks (``gunicorn --preload``).  A greenlet that waits for such
    a lock while its holder starts a thread blocks all greenlets forever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_release: list[Callable[[], None]] = []

    def on_release(self, act: Callable[[], None]) -> None:
        """Call *act* once the lock is free.  The caller holds the lock."""
        self._on_release.append(act)

    def condition(self) -> threading.Condition:
        """Return a new condition variable that uses this lock."""
        return threading.Condition(self)  # type: ignore[arg-type]  # it uses only these methods

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Do what ``threading.Lock.acquire`` does."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Release the lock, and call what was passed to `on_release`."""
        self._lock.release()
        # One at a time: if a signal handler raises here, the next release does the rest.
        while self._on_release:
            try:
                act = self._on_release.pop(0)
            except IndexError:  # another thread was faster
                return
            act()

    def locked(self) -> bool:
        """Return what ``threading.Lock.locked`` returns."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


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
        lock: StartingLock,
        next_job: Callable[[], Job],
        *,
        linger_seconds: float | None = None,
    ) -> None:
        self._name = name
        self._max_threads = max_threads
        self._lock = lock
        self._next_job = next_job
        self._linger_seconds = linger_seconds
        self._called = lock.condition()
        self._threads = 0  # guarded by the lock, as is _idle
        self._idle = 0

    def call(self) -> None:
        """Have one thread look for work: an idle one, else a new one.  The caller holds the lock.

        A new thread starts when the lock is released.  If the system cannot start it, that is
        logged.
        """
        if self._idle:
            self._called.notify()
        elif self._threads < self._max_threads:
            self._threads += 1
            self._lock.on_release(self._start)

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                self._threads -= 1
                none_left = not self._threads
            # An interpreter that is shutting down starts no threads.  This is not worth a warning:
            # the exit handlers send what remains in their own thread.  While they run, only the
            # error's text shows the shutdown (Python 3.12 and newer).
            ends = sys.is_finalizing() or "interpreter shutdown" in str(error)
            if none_left and not ends:
                logger.warning("no thread %s could be started: %s", self._name, error)
        except BaseException:  # for instance from a signal handler
            if thread.ident is None:
                with self._lock:
                    self._threads -= 1
            raise

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

    def _work(self) -> None:
        has_left = False
        try:
            while not has_left:
                try:
                    work = self._await_work()
                    if work is None:
                        has_left = True
                    else:
                        work()
                # Otherwise the thread would end, and its work would silently stop.
                except Exception:  # noqa: PERF203
                    logger.exception("a bug in kombu_cfqueues; thread %s continues", self._name)
                    time.sleep(BUG_PAUSE_SECONDS)
        finally:
            if not has_left:  # an exception ends this thread, so another thread replaces it
                with self._lock:
                    self._threads -= 1
                    self.call()

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
                    linger = self._linger_seconds
                    leave_at = leave_at or now + (LINGER_SECONDS if linger is None else linger)
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
