"""Batches: the messages of a block share full requests, and each message gets an outcome.

``with producer.batch():`` of Kombu 5.7 collects into a `PublishBatch`; ``kombu_cfqueues.batch``
collects into a `Batch`, see `block`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .. import envelope
from ..api.models import Queue
from ..envelope import Packed
from ..errors import CFQueuesError, QueueNotFound
from ..publish.collector import Collector
from ..publish.reentrancy import no_reentry
from ..spool import Spooled
from .session import Session


class Batch:
    """What one block publishes, over any number of connections.

    Args:
        max_size: Full requests are sent once this many messages are collected.
    """

    def __init__(self, max_size: int) -> None:
        self._collector = Collector(max_size)
        self._outlets: list[_Outlet] = []
        self._by_session: WeakKeyDictionary[Session, _Outlet] = WeakKeyDictionary()

    def collect(
        self, session: Session, queue: str, packed: Packed, spooled: Spooled | None
    ) -> None:
        """Collect a message of *session* for *queue*, or for the spool if it is *spooled*.

        Raises:
            RuntimeError: The batch has ended.
        """
        self._collector.check()
        outlet = self._by_session.get(session)
        if outlet is None:
            outlet = self._by_session[session] = self._outlet_for(session)
        if spooled is None:
            self._collector.collect(outlet, queue, packed)
        else:
            self._collector.collect_spooled(outlet, spooled)

    def send_full(self) -> None:
        """If ``max_size`` messages are collected, send the full requests among them.

        Raises:
            BatchPublishError: Messages that were sent earlier were not all accepted.
        """
        self._collector.send_full()

    def flush(self) -> None:
        """Send what was collected, and block until each message is accepted or has failed.

        Raises:
            BatchPublishError: Not every message was accepted.  The batch has ended.
            PermanentError: A signal handler flushes while its thread is publishing.
            RuntimeError: The batch had ended before.
        """
        with no_reentry:
            self._collector.flush()

    def mark(self) -> int:
        """Return a number for `discard_since`."""
        return self._collector.mark()

    def discard_since(self, mark: int) -> None:
        """Forget what was collected since *mark* and was not sent."""
        with no_reentry:
            self._collector.discard_since(mark)

    def discard(self) -> None:
        """End the batch without sending what was collected; block until sent requests end."""
        self._collector.end("it was aborted")
        self._close_outlets()

    def close(self) -> None:
        """End the batch, and block until its sent requests end."""
        self._collector.end("it is closed")
        self._close_outlets()

    def _outlet_for(self, session: Session) -> _Outlet:
        """Return the outlet of *session*; connections with the same options share one."""
        for outlet in self._outlets:
            if outlet.serves(session):
                return outlet
        self._outlets.append(_Outlet(session))
        return self._outlets[-1]

    def _close_outlets(self) -> None:
        outlets, self._outlets = self._outlets, []
        for outlet in outlets:
            outlet.close()


class PublishingChannel(Protocol):
    """What a `PublishBatch` uses of its channel."""

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> Any:
        """Route a message, and collect it in the ``batch`` of *kwargs*."""


class PublishBatch(Batch):
    """The batch that `Channel.create_publish_batch` returns to Kombu.

    Args:
        channel: Routes the messages.
        max_size: Full requests are sent once this many messages are collected.

    Attributes:
        channel: The same; Kombu reads it.
    """

    def __init__(self, channel: PublishingChannel, max_size: int) -> None:
        super().__init__(max_size)
        self.channel = channel

    def publish(self, message: dict[str, Any], **kwargs: Any) -> None:
        """Route a message and collect it.  With ``max_size`` messages, block and send.

        Args:
            message: Kombu's dictionary, as `prepare_message` returned it.
            **kwargs: Exchange and routing key.

        Raises:
            BatchPublishError: Messages that were sent earlier were not all accepted.
            CFQueuesError: This message cannot be sent; the others are not affected.
            RuntimeError: The batch has ended.
        """
        self.channel.basic_publish(message, batch=self, **kwargs)


class _Outlet:
    """Sends what was collected for connections with the same options.

    It has a session of its own, because the connections may be closed before the block ends.
    """

    def __init__(self, session: Session) -> None:
        self._session = Session(session.options, has_alternates=session.has_alternates)
        # Opened here, because two threads will use it.
        self._publisher = self._session.account.publisher

    @property
    def publish_timeout(self) -> float:
        return self._session.options.publish_timeout

    def serves(self, session: Session) -> bool:
        """Whether the outlet may send what was published over *session*."""
        mine = self._session
        return (mine.options, mine.has_alternates) == (session.options, session.has_alternates)

    def post(
        self, queue: str, messages: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Publish many packed messages to one queue; block until each is accepted or has failed.

        Args:
            queue: Kombu's name of the queue.
            messages: The messages.
            deadline: When to give up, in seconds of `time.monotonic`.

        Returns:
            The error of each message, or None if it is accepted.
        """
        errors: list[CFQueuesError | None] = []

        def submit(target: Queue) -> None:
            late = [
                envelope.retention_error(packed, queue, target.retention_seconds)
                for packed in messages
            ]
            todo = [packed for packed, error in zip(messages, late, strict=True) if not error]
            sent = self._publisher.submit_many(
                self._session.address(queue, target), todo, deadline=deadline
            )
            outcomes = iter(sent)
            errors[:] = [error or next(outcomes) for error in late]
            # This concerns the queue, so all messages have the same outcome.
            if sent and isinstance(sent[0], QueueNotFound):
                raise sent[0]

        try:
            self._session.use_queue(queue, deadline, submit)
        except CFQueuesError as error:
            return errors or [error] * len(messages)
        return errors

    def spool(self, messages: Sequence[Spooled]) -> None:
        """Put all messages or none into the spool of this machine.

        Raises:
            PublishTimeout: The spool's file was in use for ``publish_timeout``.
            SpoolFull, SpoolUnavailable: The spool cannot take them.
        """
        self._publisher.spool(
            messages,
            max_bytes=self._session.options.spool_max_bytes,
            deadline=self._session.deadline(),
        )

    def close(self) -> None:
        self._session.close()
