"""The channel of a connection with a control broker: it routes to Cloudflare or to that broker.

Fanout exchanges, Celery's exchanges of remote control and events, and the queues that are bound to
them live at the control broker; everything else lives at Cloudflare, as without ``control_url``.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual

from .. import envelope
from ..errors import CFQueuesError, ConfigurationError, ControlUnavailable
from ..options import log_queue_arguments
from ..publish.at_end import refuse_at_end
from ..side import EVENTS, Arrived, ControlBroker, Link, Port
from . import celery_task
from .channel import Channel
from .queue_consumers import Callback, Consumer
from .session import Connected


class ControlledChannel(Channel):
    """A channel of a connection with ``control_url``."""

    def __init__(self, connection: Connected, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._port: Port | None = None
        self._declared: dict[str, dict[str, Any]] = {}  # queues that are not bound yet
        self._control_consumers: dict[str, tuple[str, Consumer]] = {}  # with their queue, by tag

    @property
    def control(self) -> ControlBroker:
        """The control broker."""
        return self.session.control

    @property
    def port(self) -> Port:
        """What this channel has at the control broker, created at its first use."""
        if self._port is None:
            inbox, reference = self.session.inbox, weakref.ref(self)

            def deliver(arrived: Arrived) -> None:
                inbox.put_call(partial(_deliver, reference, arrived))

            self._port = self.control.open_port(deliver)
            if self._qos is not None and self._qos.prefetch_count:
                self._port.set_prefetch(self._qos.prefetch_count)
        return self._port

    # Where things live

    def _has_exchange(self, exchange: str) -> bool:
        """Whether an exchange that this process has declared lives at the control broker."""
        declared = self.state.exchanges.get(exchange) or {}
        return (
            celery_task.is_control_exchange(exchange)
            or declared.get("type") == "fanout"
            or exchange in self.state.control_exchanges
        )

    def _has_queue_there(self, queue: str) -> bool:
        """Whether a queue lives at the control broker."""
        return celery_task.is_control_queue(queue) or queue in self.state.control_queues

    def _publishes_there(
        self, message: dict[str, Any], exchange: str, routing_key: str, seconds: float | None
    ) -> bool:
        """Whether a message goes to the control broker.

        Raises:
            ControlUnavailable: Only the control broker may know the exchange, and does not answer.
        """
        if not exchange:
            return isinstance(routing_key, str) and self._has_queue_there(routing_key)
        if self._has_exchange(exchange):
            return True
        declared = self.state.exchanges.get(exchange)
        if declared is not None:
            return self._is_of_events(exchange, message)
        # Celery does not declare the exchange of a `Broadcast` queue where it publishes to it.
        return not exchange.startswith("amq.") and self.control.has_exchange(exchange, seconds)

    def _is_of_events(self, exchange: str, message: dict[str, Any]) -> bool:
        """Whether *message* is an event, so that *exchange* is a renamed ``celeryev``."""
        declared = self.state.exchanges[exchange]
        if declared["type"] != "topic" or declared["table"] or not celery_task.is_event(message):
            return False
        self._move_exchange(exchange)
        return True

    def _move_exchange(self, exchange: str) -> None:
        """Have an exchange of events live at the control broker, whatever its name."""
        self.state.control_exchanges.add(exchange)
        declared = self.state.exchanges.get(exchange)
        if declared is not None:
            self._declare_there(exchange, declared)

    def _declare_there(self, exchange: str, declared: dict[str, Any]) -> None:
        is_of_events = exchange == "celeryev" or exchange in self.state.control_exchanges
        self.control.declare_exchange(
            exchange,
            EVENTS if is_of_events else declared["type"],
            durable=bool(declared.get("durable")),
            auto_delete=bool(declared.get("auto_delete")),
            arguments=declared.get("arguments"),
        )

    # Exchanges and bindings

    def exchange_declare(self, *args: Any, **kwargs: Any) -> None:
        """Declare an exchange.  Neither makes a request nor connects to the control broker.

        Raises:
            NotEquivalentError: The exchange exists in this process with other properties.
        """
        super().exchange_declare(*args, **kwargs)
        exchange = args[0] if args else kwargs.get("exchange")
        if exchange and self._has_exchange(exchange):
            self._declare_there(exchange, self.state.exchanges[exchange])

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Forget an exchange and its bindings in this process."""
        if self._has_exchange(exchange):
            self.control.delete_exchange(exchange)
            self.state.control_exchanges.discard(exchange)
        super().exchange_delete(exchange, if_unused, nowait)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        *_: Any,
        **kwargs: Any,
    ) -> None:
        """Bind a queue to an exchange.  The first binding decides where the queue lives.

        Raises:
            ChannelError: The exchange was not declared.
            ConfigurationError: The queue and the exchange live at different brokers.
        """
        exchange = exchange or "amq.direct"
        if not self._has_exchange(exchange) and (
            celery_task.is_control_queue(queue) or celery_task.is_renamed_event_exchange(exchange)
        ):
            self._move_exchange(exchange)
        if self._has_exchange(exchange) is not self._has_queue_there(queue):
            if queue in self.state.control_queues or self.state.queue_bindings(queue):
                raise _bound_to_both(queue, exchange)
            self.state.control_queues[queue] = {}
        if not self._has_queue_there(queue):
            self._log_declared_arguments(queue)
            super().queue_bind(queue, exchange, routing_key, arguments, **kwargs)
            return
        self._auto_delete.discard(queue)
        self._declare_queue_there(queue)
        self.port.bind(queue, exchange, routing_key, arguments)

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", *_: Any, **__: Any
    ) -> None:
        """Remove a binding, if it exists."""
        if self._has_queue_there(queue):
            self.port.unbind(queue, exchange or "amq.direct", routing_key)
        else:
            super().queue_unbind(queue, exchange, routing_key)

    # Queues

    def queue_declare(
        self, queue: str | None = None, passive: bool = False, **kwargs: Any
    ) -> queue_declare_ok_t:
        """Declare a queue, as `Channel.queue_declare` does; its first binding may move it.

        Raises:
            ChannelError: *passive* is set, and the queue does not exist.
            ControlUnavailable: *passive* is set, and the control broker, at which the queue lives,
                does not answer.
        """
        if passive and queue and self._has_queue_there(queue):
            found = self._ask(
                lambda link: link.once(lambda one: one.queue_declare(queue=queue, passive=True)),
                f"the request to look up queue {queue!r}",
            )
            return queue_declare_ok_t(queue, found.message_count, found.consumer_count)
        declared = super().queue_declare(queue, passive=passive, **kwargs)
        kwargs.pop("nowait", None)
        self._declared[declared.queue] = kwargs
        return declared

    def _log_arguments(self, queue: str, arguments: Iterable[str]) -> None:
        """Log nothing yet: the control broker may get the queue, and heeds its arguments."""

    def _log_declared_arguments(self, queue: str) -> None:
        """Log the arguments that have no effect, of a queue that lives at Cloudflare."""
        if not celery_task.is_result_queue(queue):
            log_queue_arguments(queue, self._declared.get(queue, {}).get("arguments") or ())

    def _declare_queue_there(self, queue: str) -> None:
        """Declare a queue as this channel has declared it, or else as another one has."""
        given, known = self._declared.pop(queue, None), self.state.control_queues.get(queue)
        if given is not None and known is not None:
            self.state.control_queues[queue] = given
        if given is None and not self.port.has(queue):
            given = known
        if given is not None:
            self.port.declare(queue, given)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Delete a queue.  Does not wait for the control broker if the queue lives there."""
        if not self._has_queue_there(queue):
            super().queue_delete(queue, if_unused, if_empty, **kwargs)
            return
        tags = [tag for tag, (name, _) in self._control_consumers.items() if name == queue]
        if if_unused and tags:
            return
        for tag in tags:
            self._cancel(tag)
        self.port.delete(queue, if_unused=if_unused, if_empty=if_empty)
        self.state.control_queues.pop(queue, None)

    def _purge(self, queue: str) -> int:
        if not self._has_queue_there(queue):
            return super()._purge(queue)
        what = f"the request to purge queue {queue!r}"
        return self._ask(lambda link: link.once(lambda one: one.queue_purge(queue)), what) or 0

    def _ask(self, act: Callable[[Link], Any], what: str) -> Any:
        """Return what the control broker answers about a queue.

        Raises:
            ChannelError: It refuses, for instance because it does not have the queue.
            ControlUnavailable: It does not answer.
        """
        try:
            return self.control.ask(act, what, port=self._port)
        except ControlUnavailable as error:
            if isinstance(error.__cause__, ChannelError):
                raise error.__cause__ from None
            raise

    # Publishing

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> Any:
        """Publish a message, as `Channel.basic_publish` does, or to the control broker.

        Celery's events and replies never block and never raise.  Anything else for the control
        broker blocks until the broker has it: for at most 2 seconds, or the timeout of a request.

        Raises:
            ControlUnavailable: The control broker does not take the message.
        """
        refuse_at_end()
        seconds = _seconds(message, kwargs.get("timeout"), kwargs.get("confirm_timeout"))
        if not self._publishes_there(message, exchange, routing_key, seconds):
            return super().basic_publish(message, exchange, routing_key, **kwargs)
        if _waits_for_nobody(message, exchange):
            self.control.send(message, exchange, routing_key)
        else:
            self.control.publish(message, exchange, routing_key, seconds)
        return None

    # Consuming

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, *_: Any, **__: Any
    ) -> None:
        """Set the prefetch count; messages from the control broker have a count of their own."""
        super().basic_qos(prefetch_size, prefetch_count)  # type: ignore[no-untyped-call]
        if self._port is not None:
            self._port.set_prefetch(prefetch_count or 0)

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callback, consumer_tag: str, **kwargs: Any
    ) -> str:
        """Deliver messages of *queue* to *callback*, as `Channel.basic_consume` does.

        Waits for the control broker for at most 1 second, and does not raise if that fails.
        """
        if not self._has_queue_there(queue):
            self._log_declared_arguments(queue)
            return super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        consumer_tag = consumer_tag or envelope.new_id()
        self._cancel(consumer_tag)
        self._control_consumers[consumer_tag] = queue, Consumer(consumer_tag, no_ack, callback)
        self._consumers.add(consumer_tag)
        self._declare_queue_there(queue)
        self.port.consume(queue, consumer_tag, no_ack=no_ack)
        self.control.await_steps()
        return consumer_tag

    def _cancel(self, consumer_tag: str) -> None:
        if self._control_consumers.pop(consumer_tag, None) is None:
            super()._cancel(consumer_tag)
            return
        self._consumers.discard(consumer_tag)
        self.port.cancel(consumer_tag)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> virtual.Message | None:
        """Return one message of *queue*, or None if it has none now.

        Raises:
            ChannelError: The queue lives at the control broker, and does not exist there any more.
            ControlUnavailable: The queue lives at the control broker, which does not answer.
        """
        if not self._has_queue_there(queue):
            return super().basic_get(queue, no_ack, **kwargs)
        port, what = self.port, f"the request for a message of queue {queue!r}"
        arrived = self._ask(lambda link: port.get(link, queue, no_ack=no_ack), what)
        return None if arrived is None else self._as_message(arrived, queue)

    def take_arrived(self, arrived: Arrived) -> None:
        """Deliver a message from the control broker to its consumer."""
        port, found = self._port, self._control_consumers.get(arrived.consumer_tag)
        if port is None:
            return
        port.taken()
        if found is None:  # it was cancelled meanwhile
            tag = arrived.payload["properties"]["delivery_tag"]
            if port.owns(tag):
                port.reject(tag, requeue=True)
            return
        queue, consumer = found
        if celery_task.is_worker(consumer.callback):
            arrived.payload["headers"] = celery_task.headers_for_worker(
                arrived.payload["headers"], None
            )
        self._hand_over(consumer, self._as_message(arrived, queue), queue)

    def _as_message(self, arrived: Arrived, queue: str) -> Any:
        message = self.Message(arrived.payload, channel=self, queue=queue)
        if arrived.errors:
            message.errors = arrived.errors
        return message

    # Settling

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message.  Returns at once."""
        if self._port is not None and self._port.owns(delivery_tag):
            self._port.ack(delivery_tag, multiple=multiple)
        else:
            super().basic_ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Reject a message, or have it redelivered.  Returns at once."""
        if self._port is not None and self._port.owns(delivery_tag):
            self._port.reject(delivery_tag, requeue=requeue)
        else:
            super().basic_reject(delivery_tag, requeue)

    # Closing

    def close(self) -> None:
        """Close the channel here, and at the control broker without waiting for that broker."""
        super().close()
        self._close_port()

    def abandon(self) -> None:
        """Close after a failure or in a forked child.  Returns at once."""
        super().abandon()
        self._close_port()

    def _close_port(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.close()


def _deliver(reference: weakref.ref[ControlledChannel], arrived: Arrived) -> None:
    channel = reference()
    if channel is not None:
        channel.take_arrived(arrived)


def _waits_for_nobody(message: dict[str, Any], exchange: str) -> bool:
    """Whether a message is an event or a reply, whose publisher does not wait for the broker."""
    is_reply = exchange.startswith("reply.") and exchange.endswith(".pidbox")
    return is_reply or exchange == "celeryev" or celery_task.is_event(message)


def _seconds(message: dict[str, Any], *timeouts: float | None) -> float | None:
    """Return how long the publisher of a message waits for the control broker; None if unset."""
    given = [seconds for seconds in timeouts if seconds is not None]
    expires = (message.get("headers") or {}).get("expires")
    if isinstance(expires, float):  # of a request of Celery's remote control
        given.append(expires - time.time())
    return max(0.0, min(given)) if given else None


def _bound_to_both(queue: str, exchange: str) -> CFQueuesError:
    return ConfigurationError(
        f"queue {queue!r} cannot be bound to exchange {exchange!r}: the queue is already bound to "
        "an exchange of the other kind, and fanout exchanges live at the control broker "
        "(control_url) while all others live at Cloudflare; use one queue for each kind"
    )
