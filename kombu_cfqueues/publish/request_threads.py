"""Threads that send the requests of one batch, `BULK_IN_FLIGHT` at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Generic, TypeVar

from ..runtime.locks import new_lock
from ..runtime.thread_pool import Job, ThreadPool
from .group_commit import BULK_IN_FLIGHT

R = TypeVar("R")
A = TypeVar("A")


class RequestThreads(Generic[R, A]):
    """Sends requests (`R`) in threads of its own, and keeps their answers (`A`) as futures.

    Not a `ThreadPoolExecutor`, which starts threads under a lock that all executors of the process
    share: see `ThreadPool.call`.

    Args:
        post: Sends one request, and returns the answer.
    """

    def __init__(self, post: Callable[[R], A]) -> None:
        self._post = post
        self._lock = new_lock()  # guards the next two
        self._waiting: deque[tuple[R, Future[A]]] = deque()
        self._running: set[Future[A]] = set()
        self._threads = ThreadPool(
            "cfqueues-batch", BULK_IN_FLIGHT, self._lock, self._next_job, linger_seconds=0.0
        )

    def submit(self, request: R) -> Future[A]:
        """Send *request* soon; return a future for its answer."""
        future: Future[A] = Future()
        with self._lock:
            self._waiting.append((request, future))
            self._threads.call()
        while work := self._work_without_threads():
            work()
        return future

    def stop(self) -> None:
        """Send nothing more; block until the requests that were sent have ended."""
        with self._lock:
            cancelled, running = list(self._waiting), list(self._running)
            self._waiting.clear()
        for _, future in cancelled:
            future.cancel()
        wait(running)

    def _next_job(self) -> Job:
        if not self._waiting:
            return Job()
        request, future = self._waiting.popleft()
        self._running.add(future)
        return Job(partial(self._send, request, future), more=bool(self._waiting))

    def _work_without_threads(self) -> Callable[[], None] | None:
        """Return a job for this thread if the interpreter is exiting and starts no threads."""
        with self._lock:
            return self._next_job().work if self._threads.absent else None

    def _send(self, request: R, future: Future[A]) -> None:
        try:
            future.set_result(self._post(request))
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                self._running.discard(future)
