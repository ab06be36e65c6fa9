"""The consumers of one queue on one channel, of which the newest gets the messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..consume.inbox import Subscription
from . import celery_task
from .message import Message

Callback = Callable[[Message], Any]


class Consumer(NamedTuple):
    """A consumer, as Kombu registers it."""

    tag: str
    no_ack: bool
    callback: Callback


class QueueConsumers:
    """The consumers of one queue.  The newest one receives the messages, as elsewhere in Kombu.

    An application may have forgotten the earlier ones, for instance a `SimpleQueue` that it did not
    close; messages that are delivered to those would stay leased.

    Args:
        subscription: Brings the messages; None for a queue of Celery's remote control, which
            never has any.

    Attributes:
        subscription: The same.
        consumers: In the order in which they were added.
    """

    def __init__(self, subscription: Subscription | None) -> None:
        self.subscription = subscription
        self.consumers: list[Consumer] = []

    def newest(self) -> Consumer | None:
        """Return the newest consumer; None if another thread has just cancelled the last one."""
        consumers = self.consumers
        return consumers[-1] if consumers else None

    def update_subscription(self) -> None:
        """Note which consumers there are.  Messages take slots unless all have ``no_ack``."""
        if self.subscription is not None:
            self.subscription.counts = not all(consumer.no_ack for consumer in self.consumers)
            self.subscription.for_worker = any(
                celery_task.is_worker(consumer.callback) for consumer in self.consumers
            )
