"""What a channel has delivered and its application has not settled: the prefetch window."""

from __future__ import annotations

import threading
from typing import Any

from kombu.transport import virtual

from ..consume.delivery import Delivery
from ..consume.prefetch_window import PrefetchWindow
from ..consume.receiver import Receiver
from ..runtime.fork import renew_in_child


class Prefetch(virtual.QoS):
    """The prefetch count of a channel, and the leases of what it delivered.

    Unlike that of Kombu's other virtual transports it may be used by any thread, because
    acknowledgements come from the threads of a worker's pool.  It outlives its channel: what a
    task that still runs acknowledges after the connection has failed reaches the server.

    It starts with a prefetch count of 0: any number of unsettled messages.

    Args:
        receiver: Pulls and settles for the account.
        pull_batch_size: Maximum number of messages of one pull.
    """

    def __init__(self, receiver: Receiver, pull_batch_size: int) -> None:
        # The base class would register a finalizer that keeps the channel alive for ever.
        self.receiver = receiver
        self.window = PrefetchWindow(pull_batch_size)
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Hold nothing: what the parent delivered is the parent's to settle."""
        self._lock = threading.Lock()  # guards _deliveries
        self._deliveries: dict[str, Delivery] = {}  # by delivery tag, oldest first
        self.window.held = self.window.unsettled = 0

    @property
    def prefetch_count(self) -> int:
        """Most messages that the application may hold; 0: any number."""
        return self.window.prefetch

    @prefetch_count.setter
    def prefetch_count(self, count: int) -> None:
        self.receiver.set_prefetch(self.window, count or 0)

    def can_consume(self) -> bool:
        """Whether one more message may be delivered."""
        return self.window.may_deliver

    def can_consume_max_estimate(self) -> int | None:
        """How many more messages may be delivered; None: any number."""
        prefetch = self.window.prefetch
        return max(0, prefetch - self.window.unsettled) if prefetch else None

    def track(self, delivery_tag: str, delivery: Delivery) -> None:
        """The application has the message; its slot was taken before."""
        with self._lock:
            self._deliveries[delivery_tag] = delivery

    def ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """The application is done with a message; with *multiple*, also with all before it."""
        for delivery in self._let_go(delivery_tag, multiple=multiple):
            self.receiver.ack(delivery)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """The application does not want a message; with *requeue*, it is to come again."""
        settle = self.receiver.give_back if requeue else self.receiver.dead_letter
        for delivery in self._let_go(delivery_tag):
            settle(delivery)

    def restore_unacked(self) -> list[Any]:
        """Give back all that is unsettled.  Returns at once."""
        with self._lock:
            deliveries, self._deliveries = self._deliveries, {}
        self.receiver.settled(self.window, len(deliveries))
        for delivery in deliveries.values():
            self.receiver.give_back(delivery)
        return []  # Kombu's name for what could not be given back, which is known later

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back all that is unsettled."""
        self.restore_unacked()

    def get(self, delivery_tag: str) -> dict[str, Any]:
        """The dictionary of an unsettled message.

        Raises:
            KeyError: There is none of that tag.
        """
        return self._deliveries[delivery_tag].message

    def _let_go(self, delivery_tag: str, *, multiple: bool = False) -> list[Delivery]:
        """Forget deliveries, and free their slots, whatever becomes of the request."""
        with self._lock:
            # One that is settled already is no error: a close may have given it back.
            if delivery_tag not in self._deliveries:
                return []
            tags = [delivery_tag]
            if multiple:
                all_tags = list(self._deliveries)
                tags = all_tags[: all_tags.index(delivery_tag) + 1]
            gone = [self._deliveries.pop(tag) for tag in tags]
        self.receiver.settled(self.window, len(gone))
        return gone
