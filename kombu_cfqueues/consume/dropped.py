"""Messages that the application dropped without settling them, and that would stay leased.

A Celery worker that reconnects or stops forgets the tasks that it has not started, because other
brokers redeliver them.  Other applications forget their channels, or end without closing them.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .delivery import Delivery


class Holder(Protocol):
    """A channel that has delivered messages."""

    def restore_unacked(self) -> object:
        """Give back those that are not settled.  Returns at once."""

    def deliveries(self) -> list[Delivery]:
        """Return those that are not settled."""


class DroppedMessages:
    """Gives back messages that were garbage-collected, in a thread that may take locks.

    Attributes:
        expected: Whether a connection has failed whose messages were not all settled.
    """

    def __init__(self) -> None:
        self.renew_after_fork()

    def renew_after_fork(self) -> None:
        """Start empty: the parent settles what it delivered."""
        self.expected = False
        self._give_back: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        """Whether there is something to give back."""
        return bool(self._give_back)

    def add(self, give_back: Callable[[], None]) -> None:
        """Have *give_back* called later.  Takes no lock, because a finalizer may call it."""
        self._give_back.append(give_back)

    def give_back(self) -> None:
        """Give back what was dropped.  Returns at once."""
        while self._give_back:
            try:
                give_back = self._give_back.popleft()
            except IndexError:  # another thread was faster
                return
            give_back()

    def collect(self) -> None:
        """Find what was dropped until now, and give it back.

        Tasks that run are referenced by the worker, and stay.  Blocks for as long as Python needs
        to collect garbage.
        """
        self.expected = False
        gc.collect()
        self.give_back()
