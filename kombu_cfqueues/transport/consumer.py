"""The half of a channel that consumes: Kombu's consuming methods over the receiver.

Kombu's own virtual channel polls its queues one after the other in the application's thread, and
keeps one callback per queue.  Here the receiver pulls, and a channel delivers what has arrived to
the newest consumer of the queue.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Iterable, Mapping
from queue import Empty
from typing import Any, Final, TypeVar, cast

from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments

from .. import envelope
from ..consume.cause import UNDECODABLE
from ..consume.delivery import Delivery
from ..consume.inbox import Arrival, Subscription
from ..health import serve_if_wanted
from ..options import log_queue_arguments
from ..runtime.fork import notice_fork
from . import celery_task
from .at_exit import delete, exit_work
from .message import Message as PulledMessage
from .qos import Prefetch
from .queue_consumers import Callback, Consumer, QueueConsumers
from .routing import RoutingChannel, warn_once
from .session import Connected
from .worker_stop import end_wait_at_stop

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_SECONDS: Final = 5.0
"""How long closing a channel may take to send acknowledgements and give back messages.  Short,
because a worker that is told to stop has little time."""

GET_SECONDS: Final = 20.0
"""Maximum duration of `ConsumingChannel.basic_get`, including the seconds until a new pull consumer
takes effect."""

GET_RETRY_SECONDS: Final = 2.0
"""How long `ConsumingChannel.basic_get` retries requests that fail.  Short, because its caller asks
for what is there now."""


class ConsumingChannel(RoutingChannel):
    """Delivers messages, one at a time, and settles them."""

    Message = PulledMessage
    _qos: Prefetch | None

    def __init__(self, connection: Connected, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._queue_consumers: dict[str, QueueConsumers] = {}  # by Kombu's name of the queue
        self._cancelled: list[Subscription] = []  # their last pulls may still be in flight
        self._serves_worker = False  # whether a Celery worker has got messages
        self._auto_delete: set[str] = set()  # names of queues that were declared with auto_delete
        self._to_delete: set[str] = set()  # those of them that were consumed

    @property
    def qos(self) -> Prefetch:
        """The prefetch window of this channel, created at its first use."""
        notice_fork()
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
        """Deliver messages of *queue* to *callback*, from the next `drain_events` on.

        Blocks for 1 second at most, until the queue is found or created.  If that takes longer, or
        the server is down, the search goes on in the background, and `drain_events` raises errors.

        Args:
            queue: Kombu's name of the queue.
            no_ack: Acknowledge messages when they are delivered.
            callback: Called with each message, until this connection consumes the queue again.
            consumer_tag: Names the consumer; an earlier one with this tag is cancelled.
            **kwargs: Ignored.

        Returns:
            *consumer_tag*, or a new one if it is empty.

        Raises:
            PullNotEnabled: A Worker consumes the queue.
            CFQueuesError: The queue cannot be looked up or created.
        """
        consumer_tag = consumer_tag or envelope.new_id()
        self._cancel(consumer_tag)
        subscription = self._add_consumer(queue, Consumer(consumer_tag, no_ack, callback))
        # Only now, because another thread may be asking for messages already.
        if subscription is not None:
            self._subscribe(subscription, consumer_tag)
        if queue in self._auto_delete:
            self._to_delete.add(queue)
            exit_work.delete(self.session, queue)
        self._warn_of_pitfalls(queue)
        if celery_task.is_worker(callback):
            self.qos.hostname = celery_task.worker_name(callback)
            celery_task.note_failures()
            end_wait_at_stop(self.session.inbox)
            celery_task.keep_started_tasks(callback)
        return consumer_tag

    def _add_consumer(self, queue: str, consumer: Consumer) -> Subscription | None:
        """Add a consumer; return its subscription if that is new and must be started."""
        group = self._queue_consumers.get(queue)
        subscription = None
        if group is None:
            if celery_task.is_control_queue(queue):
                warn_once(celery_task.CONTROL_HINT)
            else:
                subscription = self._new_subscription(queue)
            group = self._queue_consumers[queue] = QueueConsumers(subscription)
        group.consumers.append(consumer)
        group.update_subscription()
        self._tag_to_queue[consumer.tag] = queue
        self._active_queues.append(queue)
        self._consumers.add(consumer.tag)
        return subscription

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering to a consumer.  The last one of a queue also stops its pulls.

        Gives back messages that were pulled and not delivered, and those that a Celery worker has
        dropped before it started them.  Returns at once.
        """
        self._cancel(consumer_tag)
        qos = self._qos
        if self._serves_worker and qos is not None and qos.has_unsettled:
            celery_task.forget_dropped_tasks()
            qos.receiver.dropped.collect()

    def _cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.pop(consumer_tag, None)
        group = self._queue_consumers.get(queue) if queue is not None else None
        if queue is None or group is None:
            return
        self._consumers.discard(consumer_tag)
        self._active_queues.remove(queue)
        group.consumers = [one for one in group.consumers if one.tag != consumer_tag]
        if group.consumers:
            group.update_subscription()
            return
        del self._queue_consumers[queue]
        if group.subscription is not None:
            self.qos.receiver.cancel(group.subscription)
            self._cancelled = [one for one in self._cancelled if one.in_flight]
            self._cancelled.append(group.subscription)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> virtual.Message | None:
        """Return one message of *queue*, or None if it has none now.

        Takes what was pulled for a consumer of this connection and not delivered.  If there is
        nothing, makes one request, which is billed.  If the server is down, raises after 2 seconds;
        blocks for 20 seconds at most, while a new pull consumer takes effect or the server is
        silent.

        Args:
            queue: Kombu's name of the queue.
            no_ack: Acknowledge the message.
            **kwargs: Ignored.

        Raises:
            CFQueuesError: The request failed.
        """
        if celery_task.is_control_queue(queue):
            return None
        deadline = min(self.session.deadline(), time.monotonic() + GET_SECONDS)
        inbox, window = self.session.inbox, self.qos.window
        arrival = inbox.take_from(queue, window, deadline)
        if arrival is None:
            delivery = self._pull_one(queue, deadline)
            if delivery is not None:
                return self._accept(delivery, has_slot=False, no_ack=no_ack)
            # A consumer may have pulled the last message since.
            arrival = inbox.take_from(queue, window, deadline)
        if arrival is None:
            return None
        return self._accept(arrival.delivery, has_slot=True, no_ack=no_ack)

    def _pull_one(self, queue: str, deadline: float) -> Delivery | None:
        session = self.session
        exit_work.settle(session.account.receiver)

        def get() -> Delivery | None:
            return session.account.receiver.get(queue, session.options, deadline=deadline)

        return session.retry(min(deadline, time.monotonic() + GET_RETRY_SECONDS), get)

    def deliver(self, arrival: Arrival) -> bool:
        """Deliver a message to a consumer of its queue; return False if this channel has none."""
        group = self._queue_consumers.get(arrival.subscription.name)
        if group is None or group.subscription is not arrival.subscription:
            return False
        consumer = group.newest()
        if consumer is None:
            return False
        delivery = arrival.delivery
        is_worker = celery_task.is_worker(consumer.callback)
        if is_worker:
            delivery.message["headers"] = celery_task.headers_for_worker(
                delivery.message["headers"], delivery.raw.get("id")
            )
        message = self._accept(delivery, has_slot=True, no_ack=consumer.no_ack)
        if is_worker:
            self._serves_worker = True
            # Only for workers: an application may drop a message and settle it by its tag.
            message.on_drop = functools.partial(self.qos.drop, message.delivery_tag)
            error = celery_task.decoding_error(message, consumer.callback)
            if error is not None:
                message.ack_rejects = True
                self.qos.note_cause(message.delivery_tag, error, UNDECODABLE)
        self._hand_over(consumer, message, arrival.subscription.name, delivery.raw.get("id"))
        return True

    def _hand_over(
        self, consumer: Consumer, message: PulledMessage, queue: str, message_id: Any = None
    ) -> None:
        """Call a consumer with its message."""
        try:
            consumer.callback(message)
        # Raised to a Celery worker, the error would stop it, and the redelivered message would stop
        # it again.
        except Exception as error:
            if not celery_task.stops_worker(consumer.callback, message):
                self.qos.note_failure(message.delivery_tag, error)
                raise
            logger.exception(
                "Celery cannot process message %s of queue %r, so the message is rejected",
                message_id or message.delivery_tag,
                queue,
            )
            if not message.acknowledged:
                message.reject()

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Deliver one message to any channel of the connection.

        Args:
            timeout: Maximum number of seconds to wait; None waits forever.
            callback: Ignored.

        Raises:
            Empty: No message came within *timeout*.
        """
        try:
            self.connection.drain_events(self.connection, timeout=timeout)
        except TimeoutError:
            raise Empty from None

    # Settling

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message; with *multiple*, also all that were delivered before it.

        Returns at once; the request leaves within 0.1 seconds.
        """
        notice_fork()
        if self._qos is not None:
            self._qos.ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Dead-letter a message, or with *requeue* have it redelivered.  Returns at once.

        When redeliveries have used up its retries, a message is dead-lettered.  Without a
        dead-letter queue, a rejected message is deleted, and a requeued one is always redelivered.
        A dead letter names the exception that the caller is handling, if any.
        """
        notice_fork()
        if self._qos is not None:
            self._qos.reject(delivery_tag, requeue, sys.exc_info()[1])

    def basic_recover(self, requeue: bool = False) -> None:
        """Requeue all unsettled messages of this channel.  Returns at once.

        Raises:
            NotImplementedError: *requeue* is false: Queues cannot redeliver to the same consumer.
        """
        notice_fork()
        if not requeue:
            raise NotImplementedError(
                "Cloudflare Queues cannot redeliver to the same consumer: use requeue=True"
            )
        if self._qos is not None:
            self._qos.requeue_unacked()

    # Closing

    def close(self) -> None:
        """Give back unsettled messages, and delete the ``auto_delete`` queues that were consumed.

        Blocks for at most 5 seconds, until the requests for it have been answered.  Errors of the
        server are logged.
        """
        notice_fork()
        if not self.closed and self.connection is not None:
            deadline = time.monotonic() + CLOSE_SECONDS
            self.cancel_all()
            if self._qos is not None:
                self._qos.restore_unacked()
                self._qos.receiver.flush(self._cancelled, deadline)
            self._delete_consumed(deadline)
        super().close()

    def abandon(self) -> None:
        """Close after a failure or in a forked child.  Makes no request, and returns at once.

        Only messages that were never delivered are given back, in the background.  Tasks may still
        run, and can acknowledge their messages.
        """
        self.cancel_all()
        if self._serves_worker and self._qos is not None and self._qos.has_unsettled:
            self._qos.receiver.dropped.expected = True
        self.closed = True
        self.connection = cast("Any", None)  # as in Kombu's own `close`

    def cancel_all(self) -> None:
        """Cancel every consumer of this channel.  Returns at once."""
        for tag in list(self._consumers):
            self._cancel(tag)

    def _delete_consumed(self, deadline: float) -> None:
        queues, self._to_delete = self._to_delete, set()
        for queue in queues:
            self.state.queue_bindings_delete(queue)
            # A forked child may close its parent's channel, and the parent still needs the queue.
            if exit_work.keep(self.session, queue):
                delete(self.session, queue, deadline)

    # Queues

    def prepare_queue_arguments(self, arguments: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of a queue by RabbitMQ's names, for instance ``x-expires``."""
        return to_rabbitmq_queue_arguments(arguments, **kwargs)  # type: ignore[no-any-return]

    def _new_queue(
        self,
        queue: str,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if celery_task.is_control_queue(queue):
            return
        if auto_delete:
            self._auto_delete.add(queue)
        if not celery_task.is_result_queue(queue):
            self._log_arguments(queue, arguments or ())
        # The result of a task creates the queue, even if nothing in this process waits for it.
        elif auto_delete and "x-expires" in (arguments or ()):
            exit_work.delete(self.session, queue)

    def _log_arguments(self, queue: str, arguments: Iterable[str]) -> None:
        """Log the arguments of a declared queue that have no effect at Cloudflare."""
        log_queue_arguments(queue, arguments)

    def _discard_arrived(self, queue: str) -> None:
        """Drop the messages that were pulled from a queue before it was purged."""
        self.qos.receiver.discard(self.session.inbox, queue)

    # Parts

    def _new_subscription(self, queue: str) -> Subscription:
        session = self.session
        exit_work.settle(session.account.receiver)
        is_reply = celery_task.is_result_queue(queue)
        if not is_reply:  # a process that waits for a result is not a worker
            serve_if_wanted(session.options)
        return Subscription(
            queue,
            options=session.options,
            window=self.qos.window,
            inbox=session.inbox,
            fails_over=session.has_alternates,
            is_reply=is_reply,
        )

    def _subscribe(self, subscription: Subscription, consumer_tag: str) -> None:
        failed = True
        try:
            self.qos.receiver.subscribe(subscription)
            failed = False
        finally:
            if failed:
                self.basic_cancel(consumer_tag)

    def _warn_of_pitfalls(self, queue: str) -> None:
        """Warn of two uses that do not work as an application may expect."""
        if celery_task.is_control_queue(queue):
            return
        for exchange, _, _ in self.state.queue_bindings(queue):
            if self.state.exchanges.get(exchange, {}).get("type") == "fanout":
                warn_once(
                    f"queue {queue!r} is bound to the fanout exchange {exchange!r}, and Cloudflare "
                    "Queues cannot broadcast: the queue receives only what this process publishes "
                    "to the exchange (Celery's Broadcast does not reach other workers)"
                )
        if queue in self._auto_delete and celery_task.is_result_queue(queue):
            warn_once(celery_task.RESULT_QUEUE_HINT)

    def _accept(self, delivery: Delivery, *, has_slot: bool, no_ack: bool) -> PulledMessage:
        """Return the application's message; acknowledge it with *no_ack*, or else track it.

        Args:
            delivery: What was pulled.
            has_slot: Whether the message takes a slot of the prefetch window already.
            no_ack: Whether the consumer acknowledges on receipt.
        """
        # New for each delivery: a redelivery would reuse the tag that the message itself has.
        tag = self.qos.new_tag()
        properties = {**delivery.message["properties"], "delivery_tag": tag}
        payload = {**delivery.message, "properties": properties}
        message = self.Message(payload, channel=self, queue=delivery.queue.name)
        receiver = self.qos.receiver
        if no_ack:
            receiver.settlement.ack(delivery)
            if has_slot:
                receiver.free_slots(self.qos.window)
        else:
            if not has_slot:
                receiver.take_slot(self.qos.window)
            self.qos.track(tag, delivery)
        return message
