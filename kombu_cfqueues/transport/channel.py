"""Kombu's channel: the methods that publish, and those that manage queues.

Each is a few lines that call other modules.  The methods that consume are in `consumer`.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Sequence
from typing import Any

from amqp.protocol import queue_declare_ok_t
from vine import promise

from .. import envelope
from ..api.models import Queue
from ..envelope import Packed
from ..errors import (
    CFQueuesError,
    ConnectionFailed,
    PermanentError,
    PlanLimitReached,
    PublishTimeout,
    TransientError,
)
from ..metrics import metrics
from ..publish.at_end import refuse_at_end
from ..publish.reentrancy import no_reentry
from ..spool import Place, Spooled
from . import uncertain
from .at_exit import exit_work
from .batch import Batch, PublishBatch
from .block import batch_for
from .celery_task import is_control_queue, is_result_queue
from .consumer import ConsumingChannel
from .session import Session
from .uncertain import Content

logger = logging.getLogger(__name__)


class Channel(ConsumingChannel):
    """A channel of one connection: publishes messages and manages queues."""

    # Kombu's name for a body that is sent as text.  Base64 would make it a third larger, and the
    # limit is 128 KB; `encode_body` uses base64 only for bodies that are not text.
    body_encoding = "utf-8"

    # Without ``body_encoding``, which the base class would let the options change.
    from_transport_options: tuple[str, ...] = ("deadletter_queue",)  # type: ignore[assignment]

    # Publishing

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> promise | None:
        """Publish to every queue that the exchange routes to; block until all have accepted it.

        With ``publish_mode="spool"``, block until the message is on the disk of this machine.  All
        queues together take ``publish_timeout`` at most.

        Args:
            message: Kombu's dictionary, as `prepare_message` returned it.
            exchange: Name of the exchange; if it is ``""``, *routing_key* is the queue.
            routing_key: The routing key.
            **kwargs: ``timeout`` and ``confirm_timeout`` (seconds; each shortens
                ``publish_timeout``), ``mandatory`` and ``batch`` (the `Batch` that collects the
                message) have an effect.

        Returns:
            A fulfilled promise; with ``publish_mode="spool"`` one that is fulfilled once the
            message is delivered; None in a batch.

        Raises:
            BatchPublishError: Messages that a batch has sent earlier were not all accepted.
            InvalidMessage: No queue is bound for the message; see the option ``unroutable``.
            PublishTimeout: A queue did not accept the message in time.
            SpoolFull, SpoolUnavailable: The spool cannot take the message.
            PermanentError: A signal handler publishes while its thread is publishing; another
                asyncio task has a batch open; or the interpreter is ending.
            CFQueuesError: The message was refused.
        """
        try:
            return self._publish(message, exchange, routing_key, kwargs)
        except CFQueuesError as error:
            if not isinstance(error, TransientError):  # after those, Kombu publishes again
                perhaps = error.delivered == "unknown"
                metrics.not_accepted(refused=not perhaps, uncertain=perhaps)
            raise

    def _publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, kwargs: dict[str, Any]
    ) -> promise | None:
        refuse_at_end()
        self._inplace_augment_message(message, exchange, routing_key)
        # Set here, so that the copies for several queues share it.
        properties = message["properties"]
        properties.setdefault("message_id", properties["delivery_tag"])
        mandatory = bool(kwargs.get("mandatory"))
        queues = self.route(message, exchange, routing_key, mandatory=mandatory)
        batch = kwargs.get("batch") or batch_for(self.session)
        if batch is not None:
            with no_reentry:
                for queue in queues:
                    self._collect(queue, message, batch)
                batch.send_full()
            return None
        # Read now: another thread may close the connection while Cloudflare accepts the message.
        account = self.session.account
        spooled = self._put_all(queues, message, Content.of(message, exchange, routing_key), kwargs)
        reply_to = properties.get("reply_to")
        if isinstance(reply_to, str) and is_result_queue(reply_to):
            account.receiver.expect(reply_to)
        return account.publisher.promise(spooled) if spooled else _fulfilled()

    def _put_all(
        self,
        queues: Sequence[str],
        message: dict[str, Any],
        content: Content,
        given: dict[str, Any],
    ) -> list[Place]:
        """Publish to each queue; return where the spooled messages are."""
        client = self.connection.client if self.session.has_alternates else None
        in_doubt = client is not None and uncertain.begin(client, content)
        began = time.monotonic()
        try:
            with no_reentry:
                spooled = [
                    one
                    for queue in queues
                    for one in self._put(queue, message, began=began, **given)
                ]
        except CFQueuesError as error:
            if in_doubt:
                error.delivered = "unknown"
            elif client is not None and error.delivered == "unknown":
                uncertain.leave(client, content)
            raise
        if in_doubt:
            uncertain.end(client)
        return spooled

    def _put(
        self,
        queue: str,
        message: dict[str, Any],
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        *,
        began: float | None = None,
        **_: Any,
    ) -> list[Place]:
        """Publish to one queue; return where the message is if it is spooled.

        The time of the publish runs from *began*, in monotonic seconds; from now if it is None.
        """
        if is_control_queue(queue):
            return []  # without fanout no process receives it, so it must not cost a request
        packed = envelope.pack(message, queue, self.session.options)
        seconds = self._seconds(timeout, confirm_timeout)
        deadline = (time.monotonic() if began is None else began) + seconds
        if self.session.options.publish_mode == "spool":
            return self.session.account.publisher.spool(
                [self._spooled(queue, packed, message)],
                max_bytes=self.session.options.spool_max_bytes,
                deadline=deadline,
            )
        self._submit(queue, packed, seconds, deadline)
        return []

    def _collect(self, queue: str, message: dict[str, Any], batch: Batch) -> None:
        """Collect a message for one queue."""
        if is_control_queue(queue):
            return
        session = self.session
        packed = envelope.pack(message, queue, session.options)
        spools = session.options.publish_mode == "spool"
        spooled = self._spooled(queue, packed, message) if spools else None
        batch.collect(session, queue, packed, spooled)

    def _seconds(self, *timeouts: float | None) -> float:
        """Return how long a publish may take."""
        # `min` in this order ignores a timeout that is NaN.
        given = (self.session.options.publish_timeout, *timeouts)
        return min(seconds for seconds in given if seconds is not None)

    def _submit(self, queue: str, packed: Packed, seconds: float, deadline: float) -> None:
        """Publish to one queue; block until *deadline*, of a publish that may take *seconds*."""
        # If another thread has closed the connection, `self.session` raises `ConnectionFailed`, and
        # Kombu publishes again over a new one.  After the message is accepted, use only `account`.
        session = self.session
        account = session.account

        def submit(target: Queue) -> None:
            error = envelope.retention_error(packed, queue, target.retention_seconds)
            if error is not None:
                raise error
            self.session.account.publisher.submit(
                self.session.address(queue, target),
                packed,
                deadline=deadline,
                switches=self.session.has_alternates,
            )
            if (packed.due or 0) <= time.time():  # this process may consume the queue, too
                account.receiver.pull_now(target.id)

        try:
            self.session.use_queue(queue, deadline, submit, publishes=True)
        except (TransientError, PublishTimeout, PlanLimitReached) as error:
            again = self._for_kombu_to_retry(session, error, deadline)
            if again is not None:
                raise again from error.__cause__
            if isinstance(error, PlanLimitReached):
                raise
            raise _timed_out(queue, error, seconds)  # noqa: B904  it sets its cause itself

    def _for_kombu_to_retry(
        self, session: Session, error: CFQueuesError, deadline: float
    ) -> TransientError | None:
        """Return what to raise so that Kombu publishes again; None if it should not.

        It publishes to its next URL, or over a new connection if another thread has closed this
        one.  An earlier attempt may have arrived.  Then a retry at the next URL is no worse.
        """
        if not session.may_repeat(error):
            return None
        try:
            return self.session.for_next_url(error, deadline)
        except ConnectionFailed as closed:
            closed.delivered = error.delivered
            return closed

    def _spooled(self, queue: str, packed: Packed, message: dict[str, Any]) -> Spooled:
        address = self.session.account.directory.spool_address(queue, self.session.options)
        retention = self.session.account.directory.retention_seconds(address)
        error = envelope.retention_error(packed, queue, retention)
        if error is not None:
            raise error
        return Spooled(address, packed, self._expires_at(message))

    def _expires_at(self, message: dict[str, Any]) -> float | None:
        """Return when the spool may drop *message*, in seconds since the epoch; None is never."""
        # A plain body has no header from which a worker could know the time.
        is_plain = self.session.options.body_format == "plain"
        if not is_plain and envelope.is_revoked_by_worker(message):
            return None
        return envelope.expires_at(message)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what collects messages for ``Producer.batch()`` (Kombu 5.7 and newer)."""
        return PublishBatch(self, max_size)

    def encode_body(
        self, body: str | bytes, encoding: str | None = None
    ) -> tuple[str | bytes, str | None]:
        """Return text as it is, and bytes that are not UTF-8 as base64, as elsewhere in Kombu.

        Returns:
            The body as text, and the name of its encoding.
        """
        if isinstance(body, bytes):
            try:
                return body.decode(), "utf-8"
            except UnicodeDecodeError:
                return base64.b64encode(body).decode(), "base64"
        return body, encoding

    def decode_body(self, body: str, encoding: str | None = None) -> Any:
        """Return the bytes that `encode_body` was given."""
        if encoding == "utf-8" and isinstance(body, str):
            return body.encode()
        return super().decode_body(body, encoding)

    # Queues

    def _has_queue(self, queue: str, **_: Any) -> bool:
        if is_control_queue(queue):
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
        # Kombu asks at every declare, so this must not cost a request.  What the last pull counted
        # would be no better: programs that ask for the length of a queue seldom consume it.
        return 0

    def _purge(self, queue: str) -> int:
        if is_control_queue(queue):
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
        """Declare a queue.  Makes no request unless *passive*: the first use creates the queue.

        Blocks for ``publish_timeout`` at most.

        Args:
            queue: Its name; None for a new name.
            passive: Make one or two requests to see whether the queue exists and about how many
                messages it has.
            **kwargs: ``auto_delete`` has an effect.

        Raises:
            ChannelError: *passive* is set, and the queue does not exist.
            CFQueuesError: *passive* is set, and a request failed.
        """
        declared: queue_declare_ok_t
        if not passive:
            declared = super().queue_declare(queue, **kwargs)
            return declared
        deadline = self.session.deadline()  # that of the look-up, which begins now
        declared = super().queue_declare(queue, passive=True, **kwargs)
        if is_control_queue(declared.queue):
            return declared
        count = self._backlog(declared.queue, deadline) or 0
        return queue_declare_ok_t(declared.queue, count, declared.consumer_count)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Delete a queue and its messages; block for ``publish_timeout`` at most.

        Args:
            queue: Its name.
            if_unused: Keep the queue if this channel consumes it.  Other consumers are unknown.
            if_empty: Keep the queue if it has messages, or if their number cannot be read.  The
                server may not count messages that were published just now.
            **kwargs: Ignored.

        Raises:
            CFQueuesError: A request failed.
        """
        consumers = [tag for tag, name in self._tag_to_queue.items() if name == queue]
        if if_unused and consumers:
            return
        if not is_control_queue(queue):
            deadline = self.session.deadline()
            if if_empty and self._backlog(queue, deadline) != 0:
                return
            self.session.delete_queue(queue, deadline)
        for tag in consumers:
            self.basic_cancel(tag)
        self._to_delete.discard(queue)
        exit_work.keep(self.session, queue)
        self.state.queue_bindings_delete(queue)

    def _backlog(self, queue: str, deadline: float) -> int | None:
        """Return about how many messages a queue has; None if that cannot be read."""
        found = self.session.find_queue(queue, deadline)
        if found is None:
            return 0
        try:
            return self.session.account.client.backlog(found.id, deadline=deadline).messages
        except PermanentError as error:
            # The token may have the permission to publish and consume, but not to read metrics.
            logger.warning("the number of messages in queue %r cannot be read: %s", queue, error)
            return None


def _timed_out(queue: str, error: CFQueuesError, seconds: float) -> PublishTimeout:
    """Return the error of a publish that gave up: it names the queue and the last failure."""
    arrived = "may or may not have arrived" if error.delivered == "unknown" else "did not arrive"
    cause = error.__cause__ if isinstance(error, PublishTimeout) else error
    last = cause if isinstance(cause, CFQueuesError) else error
    timeout = PublishTimeout(
        f"the message to queue {queue!r} was not accepted within {seconds:g} s (publish_timeout) "
        f"and {arrived}: {error}",
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
