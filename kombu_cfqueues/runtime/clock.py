"""Time and waiting, as one thing to hand in: tests bring a clock whose hours take no time."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol


class Lock(Protocol):
    """What is used of a lock: that of ``threading``, or its likeness under gevent or eventlet."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...  # noqa: D102

    def release(self) -> None: ...  # noqa: D102

    def locked(self) -> bool: ...  # noqa: D102

    def __enter__(self) -> bool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Clock:
    """The machine's own time.

    The functions are looked up at each call, because gevent and eventlet may replace them after
    this module was imported.
    """

    def monotonic(self) -> float:
        """Return seconds that never run backwards; only differences mean anything."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread, or greenlet, for *seconds*."""
        time.sleep(seconds)

    def lock(self) -> Lock:
        """Return a new lock, whose timeouts run on this clock."""
        return threading.Lock()
