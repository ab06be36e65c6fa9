"""Messages that were delivered and are not settled, of all channels of an account.

A process that ends gives them back: otherwise they would stay leased for ``visibility_timeout``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol
from weakref import WeakSet

from ..runtime.fork import living
from .delivery import Delivery


class Holder(Protocol):
    """A channel that has delivered messages."""

    def restore_unacked(self) -> object:
        """Give back all of them.  Returns at once."""


class HeldMessages:
    """Finds what the channels of an account hold.

    Args:
        give_back: Has a message redelivered.  Returns at once.
    """

    def __init__(self, give_back: Callable[[Delivery], None]) -> None:
        self._give_back = give_back
        self._holders: WeakSet[Holder] = WeakSet()
        self.renew_after_fork()

    def renew_after_fork(self) -> None:
        """Forget what the parent holds."""
        self._forgotten: deque[Delivery] = deque()

    def add(self, holder: Holder) -> None:
        """Give back at exit what *holder* holds then."""
        self._holders.add(holder)

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """Note messages whose channel was garbage-collected, so that nobody can settle them.

        A single step that takes no lock: garbage may be collected in a thread that has it.
        """
        self._forgotten.extend(deliveries)

    @property
    def has_forgotten(self) -> bool:
        """Whether there are messages that nobody can settle."""
        return bool(self._forgotten)

    def give_back_forgotten(self) -> None:
        """Give back the messages that nobody can settle.  Returns at once."""
        while self._forgotten:
            self._give_back(self._forgotten.popleft())

    def give_back_all(self) -> None:
        """Give back everything.  Returns at once."""
        for holder in living(self._holders):
            holder.restore_unacked()
        self.give_back_forgotten()
