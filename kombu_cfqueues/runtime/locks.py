"""Locks that no exception of a signal handler leaves locked.

In CPython 3.14 a signal handler may run between ``__enter__`` and the body of a ``with`` statement.
If it raises there (Ctrl-C, a task's time limit), ``__exit__`` is not called, and whoever wants the
lock next waits forever.  Neither older versions nor 3.15 have the fault: github.com/python/cpython,
issue 148874.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any, Final, Protocol

_LEAVES_LOCKS: Final = sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 14)


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


class _SafeLock:
    """A lock of Python, entered so that a signal handler runs before or within ``with``.

    Handlers run after calls of C functions, at the beginning of Python functions and at the end of
    a loop's round.  So none runs from where the iterator below takes the lock until the body has
    begun: ``__enter__`` is a Python function, whose return is no such place.  ``__exit__`` is that
    of the lock itself, as an attribute of the instance, because a Python function begins with one.
    """

    __slots__ = ("__exit__", "__weakref__", "acquire", "locked", "release")

    def __init__(self, lock: Any) -> None:
        self.acquire, self.release = lock.acquire, lock.release
        self.locked = getattr(lock, "locked", None)  # reentrant ones have it since Python 3.14
        self.__exit__ = lock.__exit__

    def __enter__(self) -> bool:
        for taken in iter(self.acquire, None):
            return taken  # type: ignore[no-any-return]  # a call, even of `bool`, is too much
        raise AssertionError("a lock was neither taken nor waited for")


def new_lock() -> Lock:
    """Return a new ``threading.Lock()``, of gevent or eventlet where these have replaced it."""
    return _safe(threading.Lock())


def new_reentrant_lock() -> Lock:
    """Return a new ``threading.RLock()``, of gevent or eventlet where these have replaced it."""
    return _safe(threading.RLock())


def _safe(lock: Any) -> Lock:
    safe: Any = _SafeLock(lock) if _LEAVES_LOCKS else lock
    return safe  # type: ignore[no-any-return]  # its exit is an attribute
