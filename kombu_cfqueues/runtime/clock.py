"""Time, waiting and locks as one object, so that tests can pass a clock that takes no real time."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol


class Lock(Protocol):
    """The methods of ``threading.Lock`` that the library uses.

    Under gevent and eventlet, their replacement of ``threading.Lock`` has them too.
    """

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
    """The clock of this machine.

    Each call looks its function up again, because gevent and eventlet may replace the function
    after this module was imported.
    """

    def monotonic(self) -> float:
        """Return the monotonic time in seconds.  Only differences have a meaning."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread or greenlet for *seconds*."""
        time.sleep(seconds)

    def lock(self) -> Lock:
        """Return a new lock.  Its timeouts use this clock."""
        return threading.Lock()
