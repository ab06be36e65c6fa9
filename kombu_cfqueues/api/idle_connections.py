"""The idle connections of a pool, which an exception of a signal handler leaves usable."""

from __future__ import annotations

import queue
from collections import deque
from typing import Any


class IdleConnections:
    """What urllib3's pools need of ``queue.LifoQueue``, without its lock.

    That lock is taken in Python, so an exception of a signal handler can leave it locked, and all
    later requests of the process would wait for it forever.  Here each change is a single step.

    No method blocks: urllib3 waits only in pools that limit their connections (``block=True``).

    Args:
        maxsize: How many to keep.  Threads that put some at the same time may exceed it.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._idle: deque[Any] = deque()

    def get(self, block: bool = False, timeout: float | None = None) -> Any:
        """Take the connection that was put last; it is None for one that urllib3 has to open.

        Raises:
            queue.Empty: There is none.
        """
        try:
            return self._idle.pop()
        except IndexError:
            raise queue.Empty from None

    def put(self, connection: Any, block: bool = False, timeout: float | None = None) -> None:
        """Keep a connection.

        Raises:
            queue.Full: There are enough.
        """
        if len(self._idle) >= self._maxsize:
            raise queue.Full
        self._idle.append(connection)

    def qsize(self) -> int:
        """Return how many there are."""
        return len(self._idle)
