"""Kombu's verbs on Cloudflare Queues, each a few lines over the other parts."""

from __future__ import annotations

import base64
import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from queue import Empty
from typing import TYPE_CHECKING, Any, TypeVar

from kombu.transport import virtual
from vine import promise

from . import envelope, retry
from .account import Account
from .batch import PublishBatch
from .client import Queue
from .envelope import Packed
from .errors import (
    CFQueuesError,
    ConnectionFailed,
    InvalidMessage,
    PublishTimeout,
    QueueNotFound,
    TransientError,
)
from .options import Options
from .receiver import Delivery
from .spool.address import Address
from .spool.inbox import Spooled

if TYPE_CHECKING:
    from .transport import Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Channel(virtual.Channel):
    """A channel of one connection; its state is the routing that the application declared."""

    # Kombu's name for "the body is the text that it is".  Base64 would cost a third of a message's
    # 128 KB; `encode_body` falls back to it for bodies that are no text.
    body_encoding = "utf-8"

    # Not ``body_encoding``, which the base class would let the options change.
    from_transport_options: tuple[str, ...] = ("deadletter_queue",)  # type: ignore[assignment]

    connection: Transport

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._deliveries: dict[str, Delivery] = {}  # by delivery tag: leased, not settled

    @property
    def options(self) -> Options:
        """The settings of this channel's connection."""
        return self.connection.options

    @property
    def account(self) -> Account:
        """What this channel shares with the other connections of the process."""
        return self.connection.account

    def _next_delivery_tag(self) -> str:
        return envelope.new_id()

    # Publishing

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> promise | None:
        """Publish to every queue that the exchange routes to; block until all have it.

        With ``publish_mode="spool"``: until it is on this machine's disk.

        Args:
            message: Kombu's dictionary, as `prepare_message` made it.
            exchange: Name of the exchange; ``""``: *routing_key* is the queue.
            routing_key: The routing key.
            **kwargs: ``timeout`` (seconds; shortens ``publish_timeout``) and ``mandatory`` have an
                effect.

        Returns:
            A promise that is fulfilled already, or with ``publish_mode="spool"`` once the message
            is delivered; None in a batch.

        Raises:
            InvalidMessage: With ``mandatory``: no queue is bound for it.
            PublishTimeout: It could not be handed over in time.
            SpoolFull, SpoolUnavailable: This machine's disk cannot take it.
            CFQueuesError: It was refused.
        """
        self._inplace_augment_message(message, exchange, routing_key)
        # Here, so that its copies for several queues share it.
        properties = message["properties"]
        properties.setdefault("message_id", properties["delivery_tag"])
        queues: Iterable[str] = self._lookup(exchange, routing_key)
        if not queues:
            _refuse_unroutable(exchange, routing_key, mandatory=kwargs.get("mandatory", False))
        spooled = [row for queue in queues for row in self._put(queue, message, **kwargs)]
        if "publish_batch" in kwargs:
            return None
        return self.account.publisher.promise(spooled) if spooled else _fulfilled()

    def _put(
        self,
        queue: str,
        message: dict[str, Any],
        timeout: float | None = None,
        publish_batch: PublishBatch | None = None,
        **_: Any,
    ) -> list[int]:
        """Publish to one queue; return what was spooled for it."""
        if is_control_name(queue):
            return []  # remote control and events need fanout: they cost no request, do nothing
        packed = envelope.pack(message, queue, self.options)
        if self.options.publish_mode == "spool":
            return self._spool(self._spooled(queue, packed, message), publish_batch)
        if publish_batch is not None:
            publish_batch.add(queue, packed)
            return []
        seconds = self.options.publish_timeout
        seconds = seconds if timeout is None else min(seconds, timeout)
        deadline = time.monotonic() + seconds

        def submit(target: Queue) -> None:
            error = envelope.outlived(packed, queue, target.retention_seconds)
            if error is not None:
                raise error
            self.account.publisher.submit(
                self._address(queue, target),
                packed,
                deadline=deadline,
                switches=self._switches,
            )

        try:
            self._with_queue(queue, deadline, submit)
        except (TransientError, PublishTimeout) as error:
            if self._switches and isinstance(error, ConnectionFailed) and error.delivered == "no":
                raise
            raise _timed_out(queue, error, seconds) from (error.__cause__ or error)
        return []

    def _spooled(self, queue: str, packed: Packed, message: dict[str, Any]) -> Spooled:
        address = self.account.directory.address(queue, self.options)
        retention = self.account.directory.retention_seconds(address)
        error = envelope.outlived(packed, queue, retention)
        if error is not None:
            raise error
        return Spooled(address, packed, envelope.expires(message))

    def _spool(self, spooled: Spooled, publish_batch: PublishBatch | None) -> list[int]:
        if publish_batch is None:
            return self.spool_many([spooled])
        publish_batch.add_spooled(spooled)
        return []

    def spool_many(self, messages: Sequence[Spooled]) -> list[int]:
        """Put messages on this machine's disk, all or none; return their rows there."""
        max_bytes = self.options.spool_max_bytes
        return self.account.publisher.spool(messages, max_bytes=max_bytes)

    def _address(self, queue: str, target: Queue) -> Address:
        address = self.account.directory.address(queue, self.options)
        return address._replace(cloudflare_id=target.id)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Collect messages for ``Producer.batch()`` (Kombu 5.7 and newer)."""
        return PublishBatch(self, max_size)

    def put_many(self, queue: str, messages: Sequence[Packed]) -> list[CFQueuesError | None]:
        """Publish many packed messages to one queue; block until all are settled.

        Returns:
            For each, why it was not accepted; None: it was.
        """
        deadline = self._deadline()
        errors: list[CFQueuesError | None] = []

        def submit(target: Queue) -> None:
            late = [
                envelope.outlived(packed, queue, target.retention_seconds) for packed in messages
            ]
            todo = [packed for packed, error in zip(messages, late, strict=True) if not error]
            sent = self.account.publisher.submit_many(
                self._address(queue, target), todo, deadline=deadline
            )
            others = iter(sent)
            errors[:] = [error or next(others) for error in late]
            # The server says this of the queue, so of all.
            if sent and isinstance(sent[0], QueueNotFound):
                raise sent[0]

        try:
            self._with_queue(queue, deadline, submit)
        except CFQueuesError as error:
            return errors or [error] * len(messages)
        return errors

    def _with_queue(self, name: str, deadline: float, publish: Callable[[Queue], None]) -> None:
        """Publish; once more if the queue was deleted, and perhaps made again, since we knew it."""
        queue = self._queue(name, deadline)
        try:
            publish(queue)
        except QueueNotFound:
            if not self.account.directory.forget(name, queue.id, self.options):
                raise
            publish(self._queue(name, deadline))

    @property
    def _switches(self) -> bool:
        """Whether Kombu has another URL to go on to."""
        return len(self.connection.client.alt or ()) > 1

    def encode_body(
        self, body: str | bytes, encoding: str | None = None
    ) -> tuple[str | bytes, str | None]:
        """Leave text as it is; bytes that are no UTF-8 become base64, as elsewhere in Kombu.

        Returns:
            The body as text, and how it is encoded.
        """
        if isinstance(body, bytes):
            try:
                return body.decode(), "utf-8"
            except UnicodeDecodeError:
                return base64.b64encode(body).decode(), "base64"
        return body, encoding

    def decode_body(self, body: str, encoding: str | None = None) -> Any:
        """The bytes that `encode_body` was given."""
        if encoding == "utf-8" and isinstance(body, str):
            return body.encode()
        return super().decode_body(body, encoding)

    # Queues

    def _queue(self, name: str, deadline: float) -> Queue:
        return self._insist(
            deadline,
            lambda: self.account.directory.queue(name, self.options, deadline=deadline),
        )

    def _has_queue(self, queue: str, **_: Any) -> bool:
        if is_control_name(queue):
            return True
        deadline = self._deadline()
        return (
            self._insist(
                deadline,
                lambda: self.account.directory.find(queue, self.options, deadline=deadline),
            )
            is not None
        )

    def _size(self, queue: str) -> int:
        # Every declare asks this, so it costs no request.
        return 0

    def _purge(self, queue: str) -> int:
        if is_control_name(queue):
            return 0
        deadline = self._deadline()
        found = self.account.directory.find(queue, self.options, deadline=deadline)
        if found is None:
            return 0
        count = self.account.client.backlog(found.id, deadline=deadline)
        self.account.client.purge(found.id, deadline=deadline)
        return count

    def _delete(self, queue: str, *_: Any, **__: Any) -> None:
        if is_control_name(queue):
            return
        deadline = self._deadline()
        found = self.account.directory.find(queue, self.options, deadline=deadline)
        if found is not None:
            self.account.client.delete_queue(found.id, deadline=deadline)
            self.account.directory.forget(queue, found.id, self.options)

    # Consuming

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        if is_control_name(queue):
            raise Empty
        deadline = self._deadline()
        source = self._queue(queue, deadline)
        self.account.directory.enable_pull(source, self.options, deadline=deadline)
        deliveries = self.account.receiver.pull(source, self.options, most=1, deadline=deadline)
        if not deliveries:
            raise Empty
        return self._receive(deliveries[0])

    def _receive(self, delivery: Delivery) -> dict[str, Any]:
        message = envelope.unpack(delivery.raw)
        # New for each delivery: the message's own would meet itself when it comes again.
        tag = self._next_delivery_tag()
        message["properties"] = {**message["properties"], "delivery_tag": tag}
        message["properties"].setdefault("delivery_info", {})
        self._deliveries[tag] = delivery
        return message

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Tell Cloudflare that the message is done with."""
        delivery = self._deliveries.pop(delivery_tag, None)
        super().basic_ack(delivery_tag, multiple)
        if delivery is not None:
            self.account.receiver.ack(delivery, deadline=self._deadline())

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back at once (*requeue*), or drop it."""
        delivery = self._deliveries.pop(delivery_tag, None)
        super().basic_ack(delivery_tag)
        if delivery is not None:
            settle = self.account.receiver.requeue if requeue else self.account.receiver.ack
            settle(delivery, deadline=self._deadline())

    def _restore(self, message: virtual.Message) -> None:
        # The base class would publish it again, beside the one whose lease runs out.
        delivery = self._deliveries.pop(message.delivery_tag, None)
        if delivery is not None:
            self.account.receiver.requeue(delivery, deadline=self._deadline())

    def _restore_at_beginning(self, message: virtual.Message) -> None:
        self._restore(message)

    def _deadline(self) -> float:
        return time.monotonic() + self.options.publish_timeout

    def _insist(self, deadline: float, call: Callable[[], T]) -> T:
        return retry.until(
            deadline, call, lambda error: self._switches and isinstance(error, ConnectionFailed)
        )


def is_control_name(queue: str) -> bool:
    """Whether the queue is one of Celery's for remote control or events."""
    return queue.endswith(".pidbox") or queue == "celeryev" or queue.startswith("celeryev.")


def _refuse_unroutable(exchange: str, routing_key: str, *, mandatory: bool) -> None:
    if exchange == "celeryev" or exchange.endswith(".pidbox"):
        return  # nobody can listen there, so silence is right
    text = (
        f"no queue is bound to exchange {exchange!r} with routing key {routing_key!r} in this "
        "process, so the message goes nowhere: declare the queue where it is published, or publish "
        "to the queue's name with no exchange"
    )
    if mandatory:
        raise InvalidMessage(text)
    _warn_once(text)


@functools.lru_cache(maxsize=1024)
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def _timed_out(queue: str, error: CFQueuesError, seconds: float) -> PublishTimeout:
    """The error of a message that was given up, in words that name its queue and the last cause."""
    arrived = "may or may not have arrived" if error.delivered == "unknown" else "did not arrive"
    return PublishTimeout(
        f"the message to queue {queue!r} could not be handed over within {seconds:g} s "
        f"(publish_timeout) and {arrived}; the last failure: {error.__cause__ or error}",
        status=error.status,
        code=error.code,
        ray_id=error.ray_id,
        retry_after=error.retry_after,
        delivered=error.delivered,
    )


def _fulfilled() -> promise:
    done = promise()
    done()
    return done
