"""The half of a channel that consumes: Kombu's verbs over the receiver.

Kombu's own virtual channel polls its queues in turn, in the application's thread, and keeps one
callback a queue.  Here the receiver pulls, and a channel only delivers what has arrived.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable
from queue import Empty
from typing import Any, Final, NamedTuple, TypeVar, cast

from kombu.transport import virtual

from .. import envelope
from ..api.models import Queue
from ..consume.delivery import Delivery
from ..consume.inbox import Arrival, Subscription
from ..errors import CFQueuesError, ConfigurationError, ConnectionFailed
from . import celery_task
from .message import Message
from .qos import Prefetch
from .session import Connected, Session

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_SECONDS: Final = 5.0
"""How long a close may take to tell the server of what was settled, and to give back the rest."""

GET_SECONDS: Final = 20.0
"""Longest that getting one message may take, retries and a consumer that is new included."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Callback = Callable[[virtual.Message], Any]


class _Consumer(NamedTuple):
    tag: str
    no_ack: bool
    callback: Callback


class QueueConsumers:
    """The consumers of one queue, who get its messages in turn."""

    def __init__(self, subscription: Subscription | None) -> None:
        self.subscription = subscription  # None: a queue that nothing ever comes from
        self.consumers: list[_Consumer] = []
        self._turns = 0

    def next(self) -> _Consumer | None:
        """Whose turn it is; None: the last has just been cancelled, by another thread."""
        consumers = self.consumers
        self._turns += 1
        return consumers[self._turns % len(consumers)] if consumers else None


class ConsumingChannel(virtual.Channel):
    """Consuming, one message at a time, and settling."""

    Message = Message
    connection: Connected
    _qos: Prefetch | None

    def __init__(self, connection: Connected, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._queue_consumers: dict[str, QueueConsumers] = {}  # by Kombu's name of the queue
        self._cancelled: list[Subscription] = []  # whose last pulls may still be on their way
        self._auto_delete: set[str] = set()  # queues that were declared so
        self._to_delete: set[str] = set()  # of these, the consumed ones

    @property
    def session(self) -> Session:
        """What this channel shares with the others of its connection.

        Raises:
            ConnectionFailed: The connection was closed, perhaps by another thread.  Kombu then
                connects again.
        """
        if self.connection is None:
            raise ConnectionFailed("the connection of this channel was closed")
        return self.connection.session

    @property
    def qos(self) -> Prefetch:
        """The prefetch window of this channel, made at its first use."""
        if self._qos is None:
            session = self.session
            self._qos = Prefetch(session.account.receiver, session.options.pull_batch_size)
        return self._qos

    def _next_delivery_tag(self) -> str:
        return envelope.new_id()

    # Consuming

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callback, consumer_tag: str, **kwargs: Any
    ) -> str:
        """Deliver messages of *queue* to *callback* from the next `drain_events` on.

        Several consumers of a queue get its messages in turn.  A consumer of the same tag ends.

        Returns:
            What cancels it: *consumer_tag*, or a new one if that is empty.

        Raises:
            PullNotEnabled: A Worker consumes the queue.
            CFQueuesError: The queue cannot be looked up, or made.
        """
        consumer_tag = consumer_tag or envelope.new_id()
        self.basic_cancel(consumer_tag)
        tap = self._queue_consumers.get(queue)
        if tap is None:
            tap = QueueConsumers(None if is_control_name(queue) else self._subscribe(queue))
            self._queue_consumers[queue] = tap
        tap.consumers.append(_Consumer(consumer_tag, no_ack, callback))
        self._count(tap)
        self._tag_to_queue[consumer_tag] = queue
        self._active_queues.append(queue)
        self._consumers.add(consumer_tag)
        if queue in self._auto_delete:
            self._to_delete.add(queue)
        self._tell_of_costs(queue)
        return consumer_tag

    def basic_cancel(self, consumer_tag: str) -> None:
        """Deliver nothing more to that consumer; with the last of a queue, pull it no more.

        What was pulled and not delivered is given back.  Returns at once.
        """
        queue = self._tag_to_queue.pop(consumer_tag, None)
        tap = self._queue_consumers.get(queue) if queue is not None else None
        if queue is None or tap is None:
            return
        self._consumers.discard(consumer_tag)
        self._active_queues.remove(queue)
        tap.consumers = [consumer for consumer in tap.consumers if consumer.tag != consumer_tag]
        if tap.consumers:
            self._count(tap)
            return
        del self._queue_consumers[queue]
        if tap.subscription is not None:
            self.qos.receiver.cancel(tap.subscription)
            self._cancelled = [one for one in self._cancelled if one.in_flight]
            self._cancelled.append(tap.subscription)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> virtual.Message | None:
        """One message of *queue*, or None if it has none now: one request, that is billed.

        Raises:
            CFQueuesError: What the request raised.
        """
        if is_control_name(queue):
            return None
        deadline = min(self.session.deadline(), time.monotonic() + GET_SECONDS)
        tap = self._queue_consumers.get(queue)
        # A consumer of this channel may have pulled it already.
        if tap is not None and tap.subscription is not None:
            arrival = self.session.inbox.take_of(tap.subscription, deadline)
            if arrival is not None:
                return self._accept(arrival.delivery, counted=True, no_ack=no_ack)
        session = self.session

        def get(source: Queue) -> Delivery | None:
            return session.retry(
                deadline,
                lambda: session.account.receiver.get(
                    queue, source, session.options, deadline=deadline
                ),
            )

        delivery = session.use_queue(queue, deadline, get)
        if delivery is None:
            return None
        return self._accept(delivery, counted=False, no_ack=no_ack)

    def deliver(self, arrival: Arrival) -> bool:
        """Hand a message to the next of its queue's consumers; return whether there is one here."""
        tap = self._queue_consumers.get(arrival.subscription.name)
        if tap is None or tap.subscription is not arrival.subscription:
            return False
        consumer = tap.next()
        if consumer is None:
            return False
        message = self._accept(arrival.delivery, counted=True, no_ack=consumer.no_ack)
        try:
            consumer.callback(message)
        # Celery looks for a task in it, as it does in any message, and fails over what it finds,
        # in whatever way: its worker would stop, and get the message again when it comes back.
        except Exception:
            if not _is_celerys_handler(consumer.callback) or celery_task.is_sound(message):
                raise
            logger.exception(
                "Celery can make nothing of message %s of queue %r, which is rejected",
                arrival.delivery.raw.get("id"),
                arrival.subscription.name,
            )
            if not message.acknowledged:
                message.reject()
        return True

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Deliver one message of the connection.

        Raises:
            Empty: None came within *timeout* seconds.
        """
        try:
            self.connection.drain_events(self.connection, timeout=timeout)
        except TimeoutError:
            raise Empty from None

    # Settling

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """The message is done with.  Returns at once; the request leaves within 0.1 s."""
        if self._qos is not None:
            self._qos.ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back at once, or drop it: into the dead-letter queue if there is one.

        Returns at once.
        """
        if self._qos is not None:
            self._qos.reject(delivery_tag, requeue)

    def basic_recover(self, requeue: bool = False) -> None:
        """Give back all that this channel has delivered and nobody has settled.

        Raises:
            NotImplementedError: Without *requeue*: Queues cannot redeliver to the same consumer.
        """
        if not requeue:
            raise NotImplementedError("Queues cannot redeliver to the same consumer: use requeue")
        if self._qos is not None:
            self._qos.restore_unacked()

    # Closing

    def close(self) -> None:
        """Give back what is not settled, tell the server, and delete `auto_delete` queues.

        Blocks for at most 5 seconds; what the server says to it is logged.
        """
        if not self.closed and self.connection is not None:
            deadline = time.monotonic() + CLOSE_SECONDS
            self.cancel_all()
            if self._qos is not None:
                self._qos.restore_unacked()
                self._qos.receiver.flush(self._cancelled, deadline)
            self._delete_consumed(deadline)
        super().close()

    def abandon(self) -> None:
        """Close without a request, after a failure or in a forked child.

        Only what was never delivered is given back, by and by: tasks may still run, and what they
        acknowledge later reaches the server.
        """
        self.cancel_all()
        self.closed = True
        self.connection = cast("Any", None)  # as Kombu does it

    def cancel_all(self) -> None:
        """Cancel every consumer of this channel."""
        for tag in list(self._consumers):
            self.basic_cancel(tag)

    def _delete_consumed(self, deadline: float) -> None:
        queues, self._to_delete = self._to_delete, set()
        for queue in queues:
            try:
                self.session.delete_queue(queue, deadline)
            except CFQueuesError as error:  # noqa: PERF203  each on its own
                logger.warning("queue %r (auto_delete) could not be deleted: %s", queue, error)

    # Queues

    def _new_queue(self, queue: str, auto_delete: bool = False, **kwargs: Any) -> None:
        if auto_delete and not is_control_name(queue):
            self._auto_delete.add(queue)

    def _discard_arrived(self, queue: str) -> None:
        """Drop what was pulled of a queue that has been purged."""
        tap = self._queue_consumers.get(queue)
        if tap is not None and tap.subscription is not None:
            self.qos.receiver.discard(tap.subscription)

    # Parts

    def _subscribe(self, queue: str) -> Subscription:
        session = self.session
        deadline = session.deadline()

        def subscribe(source: Queue) -> Subscription:
            return session.retry(
                deadline,
                lambda: self.qos.receiver.subscribe(
                    queue, source, session.options, self.qos.window, session.inbox
                ),
            )

        return session.use_queue(queue, deadline, subscribe)

    def _tell_of_costs(self, queue: str) -> None:
        """Warn of two uses that work, and not as one may expect."""
        if is_control_name(queue):
            return
        for exchange, _, _ in self.state.queue_bindings(queue):
            if self.state.exchanges[exchange]["type"] == "fanout":
                _warn_once(
                    f"queue {queue!r} is bound to the fanout exchange {exchange!r}: it hears only "
                    "what this process publishes there (Celery's Broadcast does not reach workers)"
                )
        if queue in self._auto_delete and _UUID.fullmatch(queue):
            _warn_once(
                "results seem to come back through a queue of their own (rpc://): each process "
                "that waits for them makes, polls and deletes one, from the same request "
                "allowance; a result backend such as Redis or a database costs none of it"
            )

    def _accept(self, delivery: Delivery, *, counted: bool, no_ack: bool) -> virtual.Message:
        """The message that the application gets, and settled with *no_ack*."""
        # New for each delivery: the message's own would meet itself when it comes again.
        tag = self._next_delivery_tag()
        properties = {**delivery.message["properties"], "delivery_tag": tag}
        payload = {**delivery.message, "properties": properties}
        message = self.Message(payload, channel=self, queue=delivery.queue.name)
        receiver = self.qos.receiver
        if no_ack:
            receiver.ack(delivery)
        else:
            self.qos.track(tag, delivery)
        if counted == no_ack:
            receiver.settled(self.qos.window, 1 if no_ack else -1)
        return message

    def _count(self, tap: QueueConsumers) -> None:
        if tap.subscription is not None:
            tap.subscription.counts = not all(consumer.no_ack for consumer in tap.consumers)


def is_control_name(queue: str) -> bool:
    """Whether the queue is one of Celery's for remote control or events.

    Raises:
        ConfigurationError: It is no name at all.
    """
    if not isinstance(queue, str):
        raise ConfigurationError(f"the name of a queue is a string, not {queue!r}")
    return queue.endswith(".pidbox") or queue == "celeryev" or queue.startswith("celeryev.")


@functools.lru_cache(maxsize=1024)
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def _is_celerys_handler(callback: Callback) -> bool:
    """Whether a Celery worker gets the messages, and not the application."""
    handler = getattr(getattr(callback, "__self__", None), "on_message", None)
    return getattr(handler, "__module__", None) == "celery.worker.consumer.consumer"
