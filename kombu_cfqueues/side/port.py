"""What one of our channels has at the control broker: queues, consumers, unsettled messages.

Any thread of the application may call the methods of a `Port`.  They only record what is wanted and
hand it to the owner thread, so they neither block nor fail.  The record is what the owner thread
applies anew at each connect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from ..runtime.fork import renew_in_child
from ..runtime.locks import Lock
from ..runtime.rng import new_id
from .link import Link

MAX_UNREAD: Final = 1000
"""Maximum number of messages that are read from the control broker and not yet delivered to one of
our channels.  Further ones stay at the broker until the application has taken some."""

Act = Callable[[Link, Any], None]
"""Something to do with a control channel."""

Key = tuple[str, ...]
"""What a step is about: its kind, and names."""


class Step(NamedTuple):
    """A change of the record: what to do, its description, and the keys that it concerns."""

    act: Act
    what: str
    keys: tuple[Key, ...]


class Arrived(NamedTuple):
    """A message that has arrived from the control broker.

    Attributes:
        consumer_tag: Tag of the consumer that gets it.
        payload: Kombu's dictionary.
        errors: What Kombu could not decode.
    """

    consumer_tag: str
    payload: dict[str, Any]
    errors: list[Any] | None


class Owner(Protocol):
    """What a port needs of the thread that owns the connection."""

    @property
    def lock(self) -> Lock:
        """Guards the records of all ports, and the steps that wait."""

    def do(self, port: Port, step: Step, *, connects: bool) -> None:
        """Have *step* done if there is a connection; with *connects*, open one.

        The caller holds the lock.
        """


class Port:
    """One of our channels at the control broker.

    Args:
        owner: Makes the port's changes.
        deliver: Called with each message, in the owner thread.

    Attributes:
        cell: Holds the control channel, if there is one.  It outlives the port.
        record: What to do at each connect, in this order.
        is_closed: Whether the port was closed.
    """

    def __init__(self, owner: Owner, deliver: Callable[[Arrived], None]) -> None:
        self._owner = owner
        self._deliver = deliver
        self.cell: list[Any] = []
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty: the parent consumes its queues."""
        self.channel = None
        self.record: dict[Key, Step] = {}
        self.is_closed = False
        self._unsettled: dict[str, tuple[Any, Any]] = {}  # by our delivery tag, oldest first
        self._tags = map(f"control-{new_id()}-{{}}".format, itertools.count(1))
        self._waiting = 0

    @property
    def channel(self) -> Any:
        """The control channel; None while there is none.  Only the owner thread uses it."""
        return self.cell[0] if self.cell else None

    @channel.setter
    def channel(self, channel: Any) -> None:
        self.cell[:] = [] if channel is None else [channel]

    @property
    def is_full(self) -> bool:
        """Whether too many messages wait for the application."""
        return self._waiting >= MAX_UNREAD

    def taken(self) -> None:
        """Note that the application has taken a message."""
        self._waiting -= 1

    # Queues

    def declare(self, queue: str, given: dict[str, Any]) -> None:
        """Declare a queue."""

        def act(_: Link, channel: Any) -> None:
            channel.queue_declare(queue=queue, **given)

        self._do(("queue", queue), act, f"declare queue {queue!r}")

    def has(self, queue: str) -> bool:
        """Whether this port has declared *queue*."""
        return ("queue", queue) in self.record

    def bind(self, queue: str, exchange: str, routing_key: str, arguments: Any) -> None:
        """Bind a queue to an exchange."""

        def act(_: Link, channel: Any) -> None:
            channel.queue_bind(
                queue=queue, exchange=exchange, routing_key=routing_key, arguments=arguments
            )

        what = f"bind queue {queue!r} to exchange {exchange!r}"
        self._do(("binding", queue, exchange, routing_key), act, what)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Remove a binding."""

        def act(_: Link, channel: Any) -> None:
            channel.queue_unbind(queue=queue, exchange=exchange, routing_key=routing_key)

        what = f"unbind queue {queue!r} from exchange {exchange!r}"
        self._undo(act, what, ("binding", queue, exchange, routing_key))

    def delete(self, queue: str, **given: Any) -> None:
        """Delete a queue."""

        def act(_: Link, channel: Any) -> None:
            channel.queue_delete(queue=queue, **given)

        keys = [
            key for key in list(self.record) if key[:2] in (("queue", queue), ("binding", queue))
        ]
        self._undo(act, f"delete queue {queue!r}", *keys)

    # Consuming

    def consume(self, queue: str, consumer_tag: str, *, no_ack: bool) -> None:
        """Deliver the messages of a queue from now on."""

        def act(link: Link, channel: Any) -> None:
            def arrived(raw: Any) -> None:
                self._arrived(channel, channel.message_to_python(raw), consumer_tag, no_ack=no_ack)

            channel.basic_consume(
                queue=queue, no_ack=no_ack, callback=arrived, consumer_tag=consumer_tag
            )
            link.subscribed_anew(channel)

        self._do(("consumer", consumer_tag), act, f"consume queue {queue!r}")

    def cancel(self, consumer_tag: str) -> None:
        """Deliver nothing more to a consumer."""

        def act(link: Link, channel: Any) -> None:
            channel.basic_cancel(consumer_tag)
            link.cancelled(channel)

        self._undo(act, "cancel a consumer", ("consumer", consumer_tag))

    def when_consuming(self, act: Callable[[], None]) -> None:
        """Have *act* called when all steps before it are done: now, and after each connect.

        It runs in the owner thread.
        """
        self._do(("consuming",), lambda *_: act(), "")

    def set_prefetch(self, count: int) -> None:
        """Set how many unsettled messages the broker may deliver; 0 means no limit."""

        def act(link: Link, channel: Any) -> None:
            if link.driver == "amqp":  # Kombu would read Redis in vain while the limit is reached
                channel.basic_qos(0, count, False)

        self._do(("prefetch",), act, "set the prefetch count")

    def get(self, link: Link, queue: str, *, no_ack: bool) -> Arrived | None:
        """Return one message of *queue*, or None.  Runs in the owner thread."""
        if link.driver == "amqp":
            # A refusal would close the channel, and end its consumers.
            link.once(lambda one: one.queue_declare(queue=queue, passive=True))
        if self.channel is None:
            self.channel = link.channel()
        message = self.channel.basic_get(queue, no_ack=no_ack)
        if message is None:
            return None
        return self._accept(
            self.channel, self.channel.message_to_python(message), "", no_ack=no_ack
        )

    def _accept(self, channel: Any, message: Any, consumer_tag: str, *, no_ack: bool) -> Arrived:
        """Return a message of *channel* as ours; unless *no_ack*, it is unsettled."""
        tag = next(self._tags)
        if not no_ack:
            self._unsettled[tag] = channel, message
        headers = dict(message.headers or {})
        if not message.errors:
            headers.pop("compression", None)  # Kombu has decompressed the body
        properties = {
            name: value
            for name, value in (message.properties or {}).items()
            if name not in ("application_headers", "body_encoding")
        }
        properties["delivery_tag"] = tag
        properties["delivery_info"] = {
            **(message.delivery_info or {}), "consumer_tag": consumer_tag
        }  # fmt: skip
        payload = {
            "body": message.body,
            "content-type": message.content_type,
            "content-encoding": message.content_encoding,
            "headers": headers,
            "properties": properties,
        }
        return Arrived(consumer_tag, payload, message.errors)

    def _arrived(self, channel: Any, message: Any, consumer_tag: str, *, no_ack: bool) -> None:
        """Hand a message to the application.  Runs in the owner thread."""
        self._waiting += 1
        self._deliver(self._accept(channel, message, consumer_tag, no_ack=no_ack))

    # Settling

    def owns(self, delivery_tag: str) -> bool:
        """Whether *delivery_tag* is that of an unsettled message of this port."""
        return delivery_tag in self._unsettled

    def ack(self, delivery_tag: str, *, multiple: bool = False) -> None:
        """Acknowledge a message; with *multiple*, also all that were delivered before it."""
        tags = list(self._unsettled)
        upto = tags[: tags.index(delivery_tag) + 1] if multiple else [delivery_tag]
        for tag in upto:
            self._settle(tag, lambda message: message.ack())

    def reject(self, delivery_tag: str, *, requeue: bool) -> None:
        """Reject a message, or have it redelivered."""
        self._settle(delivery_tag, lambda message: message.reject(requeue=requeue))

    def _settle(self, delivery_tag: str, settle: Callable[[Any], None]) -> None:
        origin, message = self._unsettled.pop(delivery_tag, (None, None))

        def act(_: Link, channel: Any) -> None:
            if channel is origin:  # else the broker has redelivered it, or forgotten it
                settle(message)

        if message is not None:
            self._undo(act, "settle a message")

    def close(self) -> None:
        """Cancel everything, and close the control channel."""

        def act(_: Link, channel: Any) -> None:
            self.channel = None
            channel.close()

        self._unsettled.clear()
        self.is_closed = True
        self._undo(act, "close a channel", *list(self.record))

    def _do(self, key: Key, act: Act, what: str) -> None:
        """Record a step, and have it done now and at each connect."""
        step = Step(act, what, (key,))
        with self._owner.lock:
            self.record[key] = step
            self._owner.do(self, step, connects=True)

    def _undo(self, act: Act, what: str, *keys: Key) -> None:
        """Take steps off the record, and have *act* done now."""
        with self._owner.lock:
            for key in keys:
                self.record.pop(key, None)
            self._owner.do(self, Step(act, what, keys), connects=False)
