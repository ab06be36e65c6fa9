"""What a channel has delivered and its application has not settled: the prefetch window."""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import Any

from kombu.transport import virtual

from ..consume.cause import Cause
from ..consume.delivery import Delivery
from ..consume.prefetch_window import PrefetchWindow
from ..consume.receiver import Receiver
from ..runtime.fork import renew_in_child
from ..runtime.locks import new_lock
from ..runtime.rng import new_id


class Prefetch(virtual.QoS):
    """The prefetch count of a channel, and the leases of what the channel delivered.

    Unlike Kombu's own, any thread may use it, because acknowledgements come from the threads of a
    worker's pool.  It outlives its channel: a task that still runs after the connection has failed
    can acknowledge its message.

    The prefetch count starts at 0, which means no limit.

    Args:
        receiver: Pulls and settles for the account.
        pull_batch_size: Maximum number of messages of one pull.

    Attributes:
        receiver: The same.
        window: The channel's slots; the receiver's lock guards it.
        hostname: Name of the Celery worker that consumes; ``""`` if there is none.
    """

    def __init__(self, receiver: Receiver, pull_batch_size: int) -> None:
        # Without the base class, whose finalizer would keep the channel alive forever.
        self.receiver = receiver
        self.window = PrefetchWindow(pull_batch_size)
        self.hostname = ""
        self._deliveries: dict[str, Delivery] = {}  # by delivery tag, oldest first
        self.renew_after_fork()
        renew_in_child(self)
        receiver.holders.add(self)
        weakref.finalize(self, _forget, self._deliveries, receiver).atexit = False

    def renew_after_fork(self) -> None:
        """Start empty: the parent settles what it delivered."""
        self._lock = new_lock()  # guards _deliveries
        self._deliveries.clear()
        self._tags = map(f"{new_id()}-{{}}".format, itertools.count(1))
        self.window.held = self.window.unsettled = 0

    @property
    def prefetch_count(self) -> int:
        """Maximum number of messages that the application may have; 0 means no limit."""
        return self.window.prefetch

    @prefetch_count.setter
    def prefetch_count(self, count: int) -> None:
        self.receiver.set_prefetch(self.window, count or 0)

    def can_consume(self) -> bool:
        """Whether one more message may be delivered."""
        return self.window.may_deliver

    def can_consume_max_estimate(self) -> int | None:
        """How many more messages may be delivered; None means no limit."""
        prefetch = self.window.prefetch
        return max(0, prefetch - self.window.unsettled) if prefetch else None

    def new_tag(self) -> str:
        """Return a delivery tag that no other message has, not even in the parent after a fork.

        The tag is not random: reading the system's randomness lets other threads run, and each
        message would wait until they have parsed what they pulled.
        """
        return next(self._tags)

    def track(self, delivery_tag: str, delivery: Delivery) -> None:
        """Remember a delivered message until it is settled.  Its slot was taken before."""
        with self._lock:
            self._deliveries[delivery_tag] = delivery

    def ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message; with *multiple*, also all that were delivered before it."""
        for delivery in self._remove(delivery_tag, multiple=multiple):
            self.receiver.settlement.ack(delivery)

    def reject(
        self, delivery_tag: str, requeue: bool = False, error: BaseException | None = None
    ) -> None:
        """Reject a message: dead-letter it, or with *requeue* have it redelivered.

        Args:
            delivery_tag: The tag of the message.
            requeue: Whether to have it redelivered.
            error: The exception that the application is handling: the cause, unless one is known.
        """
        settlement = self.receiver.settlement
        settle = settlement.requeue if requeue else settlement.dead_letter
        for delivery in self._remove(delivery_tag):
            cause = delivery.cause or Cause.of(error, hostname=self.hostname)
            settle(delivery._replace(cause=cause))

    @property
    def has_unsettled(self) -> bool:
        """Whether messages were delivered that are not settled."""
        return bool(self._deliveries)

    def deliveries(self) -> list[Delivery]:
        """Return what was delivered and is not settled."""
        with self._lock:
            return list(self._deliveries.values())

    def drop(self, delivery_tag: str) -> None:
        """Give back a message that the application has dropped.  Takes no lock."""
        self.receiver.dropped.add(functools.partial(self._give_back, delivery_tag))

    def restore_unacked(self) -> list[Any]:
        """Give back all unsettled messages.  Returns at once.

        Returns:
            An empty list.  Kombu expects the messages that could not be given back, which is not
            known yet.
        """
        for delivery in self._remove_all():
            self.receiver.settlement.give_back(delivery)
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back all unsettled messages.  Returns at once."""
        self.restore_unacked()

    def requeue_unacked(self) -> None:
        """Have all unsettled messages redelivered, as if each were rejected with *requeue*."""
        for delivery in self._remove_all():
            self.receiver.settlement.requeue(delivery)

    def note_failure(self, delivery_tag: str, error: BaseException) -> None:
        """Note that the application's callback raised *error* over an unsettled message."""
        self._note(delivery_tag, failed=True, cause=Cause.of(error, hostname=self.hostname))

    def note_cause(self, delivery_tag: str, error: BaseException | None, reason: str = "") -> None:
        """Note why an unsettled message will be rejected, if it will be."""
        self._note(delivery_tag, cause=Cause.of(error, hostname=self.hostname, reason=reason))

    def _note(self, delivery_tag: str, **fields: Any) -> None:
        with self._lock:
            delivery = self._deliveries.get(delivery_tag)
            if delivery is not None:
                self._deliveries[delivery_tag] = delivery._replace(**fields)

    def get(self, delivery_tag: str) -> dict[str, Any]:
        """Return Kombu's dictionary of an unsettled message.

        Raises:
            KeyError: No unsettled message has that tag.
        """
        return self._deliveries[delivery_tag].message

    def _give_back(self, delivery_tag: str) -> None:
        for delivery in self._remove(delivery_tag):
            self.receiver.settlement.give_back(delivery)

    def _remove_all(self) -> list[Delivery]:
        """Forget all deliveries and free their slots, whatever becomes of the requests."""
        with self._lock:
            removed = list(self._deliveries.values())
            self._deliveries.clear()
        self.receiver.free_slots(self.window, len(removed))
        return removed

    def _remove(self, delivery_tag: str, *, multiple: bool = False) -> list[Delivery]:
        """Forget deliveries and free their slots, whatever becomes of the request."""
        with self._lock:
            # An unknown tag is not an error: closing the channel may have given the message back.
            if delivery_tag not in self._deliveries:
                return []
            tags = [delivery_tag]
            if multiple:
                all_tags = list(self._deliveries)
                tags = all_tags[: all_tags.index(delivery_tag) + 1]
            removed = [self._deliveries.pop(tag) for tag in tags]
        self.receiver.free_slots(self.window, len(removed))
        return removed


def _forget(deliveries: dict[str, Delivery], receiver: Receiver) -> None:
    """Give back what a garbage-collected channel held.  Takes no lock."""
    for delivery in deliveries.values():
        receiver.dropped.add(functools.partial(receiver.settlement.give_back, delivery))
