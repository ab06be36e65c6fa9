"""Messages that were delivered and are not settled, of all channels of an account.

A process that ends gives them back: otherwise they would stay leased for ``visibility_timeout``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Protocol
from weakref import WeakSet

from ..runtime.fork import living
from .delivery import Delivery
from .dropped import DroppedMessages


class Holder(Protocol):
    """A channel that has delivered messages."""

    def restore_unacked(self) -> object:
        """Give back all of them.  Returns at once."""


class HeldMessages:
    """Finds what the channels of an account hold.

    Args:
        give_back: Has a message redelivered.  Returns at once.
        dropped: Gives back messages that nobody can settle any more.
    """

    def __init__(self, give_back: Callable[[Delivery], None], dropped: DroppedMessages) -> None:
        self._give_back = give_back
        self._dropped = dropped
        self._holders: WeakSet[Holder] = WeakSet()

    def add(self, holder: Holder) -> None:
        """Give back at exit what *holder* holds then."""
        self._holders.add(holder)

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """Note messages whose channel was garbage-collected.  Takes no lock."""
        for delivery in deliveries:
            self._dropped.add(functools.partial(self._give_back, delivery))

    def give_back_all(self) -> None:
        """Give back everything.  Returns at once."""
        for holder in living(self._holders):
            holder.restore_unacked()
        self._dropped.give_back()
