"""Kombu's verbs on Cloudflare Queues, each a few lines over the other parts."""

from __future__ import annotations

import base64
import functools
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from amqp.protocol import queue_declare_ok_t
from vine import promise

from .. import envelope
from ..api.models import Queue
from ..envelope import Address, Packed
from ..errors import (
    CFQueuesError,
    ConnectionFailed,
    InvalidMessage,
    PermanentError,
    PublishTimeout,
    QueueNotFound,
    TransientError,
)
from ..publish.reentrancy import no_reentry
from ..spool.intake import Spooled
from .batch import PublishBatch
from .consumer import ConsumingChannel, is_control_name

logger = logging.getLogger(__name__)


class Channel(ConsumingChannel):
    """A channel of one connection: publishing and queues, over the half that consumes."""

    # Kombu's name for "the body is the text that it is".  Base64 would cost a third of a message's
    # 128 KB; `encode_body` falls back to it for bodies that are no text.
    body_encoding = "utf-8"

    # Not ``body_encoding``, which the base class would let the options change.
    from_transport_options: tuple[str, ...] = ("deadletter_queue",)  # type: ignore[assignment]

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
            **kwargs: ``timeout`` and ``confirm_timeout`` (seconds; each shortens
                ``publish_timeout``) and ``mandatory`` have an effect.

        Returns:
            A promise that is fulfilled already, or with ``publish_mode="spool"`` once the message
            is delivered; None in a batch.

        Raises:
            InvalidMessage: With ``mandatory``: no queue is bound for it.
            PublishTimeout: It could not be handed over in time.
            SpoolFull, SpoolUnavailable: This machine's disk cannot take it.
            PermanentError: A signal handler has interrupted a publish of its thread with another.
            CFQueuesError: It was refused.
        """
        self._inplace_augment_message(message, exchange, routing_key)
        # Here, so that its copies for several queues share it.
        properties = message["properties"]
        properties.setdefault("message_id", properties["delivery_tag"])
        queues: Iterable[str] = [queue for queue in self._lookup(exchange, routing_key) if queue]
        if not queues:
            _refuse_unroutable(exchange, routing_key, mandatory=kwargs.get("mandatory", False))
        if "publish_batch" in kwargs:  # which collects, and waits for nobody
            for queue in queues:
                self._put(queue, message, **kwargs)
            return None
        with no_reentry:
            spooled = [row for queue in queues for row in self._put(queue, message, **kwargs)]
        return self.session.account.publisher.promise(spooled) if spooled else _fulfilled()

    def _put(
        self,
        queue: str,
        message: dict[str, Any],
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        publish_batch: PublishBatch | None = None,
        **_: Any,
    ) -> list[int]:
        """Publish to one queue; return what was spooled for it."""
        if is_control_name(queue):
            return []  # remote control and events need fanout: they cost no request, do nothing
        packed = envelope.pack(message, queue, self.session.options)
        if self.session.options.publish_mode == "spool":
            return self._spool(self._spooled(queue, packed, message), publish_batch)
        if publish_batch is not None:
            publish_batch.add(queue, packed)
            return []
        # In this order, which a timeout of NaN does not survive.
        given = (self.session.options.publish_timeout, timeout, confirm_timeout)
        seconds = min(seconds for seconds in given if seconds is not None)
        deadline = time.monotonic() + seconds

        def submit(target: Queue) -> None:
            error = envelope.outlived(packed, queue, target.retention_seconds)
            if error is not None:
                raise error
            self.session.account.publisher.submit(
                self._address(queue, target),
                packed,
                deadline=deadline,
                switches=self.session.has_alternates,
            )

        try:
            self.session.use_queue(queue, deadline, submit)
        except (TransientError, PublishTimeout) as error:
            # An earlier try may have arrived; the next URL is no worse than one more try here.
            certain = error.delivered == "no" or self.session.options.retry_uncertain
            if self.session.has_alternates and isinstance(error, ConnectionFailed) and certain:
                raise
            raise _timed_out(queue, error, seconds)  # noqa: B904  it sets its cause itself
        return []

    def _spooled(self, queue: str, packed: Packed, message: dict[str, Any]) -> Spooled:
        address = self.session.account.directory.address(queue, self.session.options)
        retention = self.session.account.directory.retention_seconds(address)
        error = envelope.outlived(packed, queue, retention)
        if error is not None:
            raise error
        return Spooled(address, packed, envelope.expires(message))

    def _spool(self, spooled: Spooled, publish_batch: PublishBatch | None) -> list[int]:
        if publish_batch is None:
            return self._spool_all([spooled])
        publish_batch.add_spooled(spooled)
        return []

    def spool_many(self, messages: Sequence[Spooled]) -> list[int]:
        """Put messages on this machine's disk, all or none; return their rows there."""
        with no_reentry:
            return self._spool_all(messages)

    def _spool_all(self, messages: Sequence[Spooled]) -> list[int]:
        max_bytes = self.session.options.spool_max_bytes
        return self.session.account.publisher.spool(messages, max_bytes=max_bytes)

    def _address(self, queue: str, target: Queue) -> Address:
        address = self.session.account.directory.address(queue, self.session.options)
        return address._replace(cloudflare_id=target.id)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Collect messages for ``Producer.batch()`` (Kombu 5.7 and newer)."""
        return PublishBatch(self, max_size)

    def put_many(
        self, queue: str, messages: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Publish many packed messages to one queue; block until all are settled.

        Args:
            queue: Kombu's name of the queue.
            messages: The messages.
            deadline: When to give up, in seconds of `time.monotonic`.

        Returns:
            For each, why it was not accepted; None: it was.
        """
        errors: list[CFQueuesError | None] = []

        def submit(target: Queue) -> None:
            late = [
                envelope.outlived(packed, queue, target.retention_seconds) for packed in messages
            ]
            todo = [packed for packed, error in zip(messages, late, strict=True) if not error]
            sent = self.session.account.publisher.submit_many(
                self._address(queue, target), todo, deadline=deadline
            )
            others = iter(sent)
            errors[:] = [error or next(others) for error in late]
            # The server says this of the queue, so of all.
            if sent and isinstance(sent[0], QueueNotFound):
                raise sent[0]

        try:
            self.session.use_queue(queue, deadline, submit)
        except CFQueuesError as error:
            return errors or [error] * len(messages)
        return errors

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

    def _has_queue(self, queue: str, **_: Any) -> bool:
        if is_control_name(queue):
            return True
        deadline = self.session.deadline()
        return (
            self.session.retry(
                deadline,
                lambda: self.session.find_queue(queue, deadline),
            )
            is not None
        )

    def _size(self, queue: str) -> int:
        # Every declare asks this, so it costs no request.
        return 0

    def _purge(self, queue: str) -> int:
        if is_control_name(queue):
            return 0
        deadline = self.session.deadline()
        found = self.session.find_queue(queue, deadline)
        if found is None:
            return 0
        count = self.session.account.client.backlog(found.id, deadline=deadline).messages
        self.session.account.client.purge(found.id, deadline=deadline)
        self._discard_arrived(queue)
        return count or 0

    def queue_declare(
        self, queue: str | None = None, passive: bool = False, **kwargs: Any
    ) -> queue_declare_ok_t:
        """Declare a queue; nothing is asked of the server until it is used.

        Args:
            queue: Its name; None: a new one.
            passive: Only look: one or two requests, for about how many messages it has.
            **kwargs: ``auto_delete`` has an effect.

        Raises:
            ChannelError: *passive*, and there is no such queue.
        """
        declared: queue_declare_ok_t = super().queue_declare(queue, passive=passive, **kwargs)
        if not passive or is_control_name(declared.queue):
            return declared
        count = self._backlog(declared.queue) or 0
        return queue_declare_ok_t(declared.queue, count, declared.consumer_count)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Delete a queue, and all that is in it.

        Args:
            queue: Its name.
            if_unused: Not if this channel consumes it; of others nobody knows.
            if_empty: Not if it has messages, or if the server does not say.  What was published
                just now it may not know of.
            **kwargs: Without effect.
        """
        consumers = [tag for tag, name in self._tag_to_queue.items() if name == queue]
        if if_unused and consumers:
            return
        if not is_control_name(queue):
            if if_empty and self._backlog(queue) != 0:
                return
            self.session.delete_queue(queue, self.session.deadline())
        for tag in consumers:
            self.basic_cancel(tag)
        self._to_delete.discard(queue)
        self.state.queue_bindings_delete(queue)

    def _backlog(self, queue: str) -> int | None:
        """How many messages the queue has, about; None if the server does not say."""
        deadline = self.session.deadline()
        found = self.session.find_queue(queue, deadline)
        if found is None:
            return 0
        try:
            return self.session.account.client.backlog(found.id, deadline=deadline).messages
        except PermanentError as error:
            # A token may publish and consume, and not read metrics.
            logger.warning("how many messages queue %r has cannot be read: %s", queue, error)
            return None


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
    cause = error.__cause__ if isinstance(error, PublishTimeout) else error
    last = cause if isinstance(cause, CFQueuesError) else error
    timeout = PublishTimeout(
        f"the message to queue {queue!r} could not be handed over (publish_timeout is "
        f"{seconds:g} s) and {arrived}; {error}",
        status=last.status,
        code=last.code,
        ray_id=last.ray_id,
        retry_after=last.retry_after,
        delivered=error.delivered,
    )
    timeout.__cause__ = last
    return timeout


def _fulfilled() -> promise:
    done = promise()
    done()
    return done
