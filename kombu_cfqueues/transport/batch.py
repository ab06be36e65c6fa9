"""``with producer.batch():`` of Kombu 5.7: one thread publishes thousands of messages fast.

Messages are collected until there are ``max_size``, or until a flush, and leave in full requests,
two at a time, while the block collects the next.  So at most twice ``max_size`` are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Protocol

from .. import limits
from ..envelope import Packed
from ..errors import BatchPublishError, CFQueuesError, Outcome, PermanentError
from ..publish.group_commit import BULK_IN_FLIGHT
from ..runtime.fork import renew_in_child
from ..spool import Place, Spooled
from .session import Session

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

REFUSED_REQUESTS: Final = 2
"""So many requests in a row, all of whose messages a queue refused for good: it is not asked any
more.  Finding out which message of a request is bad takes a dozen requests, and they are scarce."""


class BatchChannel(Protocol):
    """What a batch needs of its channel: routing, and two ways of sending."""

    @property
    def session(self) -> Session:
        """What the channels of its connection share."""

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> Any:
        """Route a message, and give it back to the batch: ``publish_batch`` of *kwargs*."""

    def put_many(
        self, queue: str, messages: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Publish messages to one queue; return why each was not accepted, or None."""

    def spool_many(self, messages: Sequence[Spooled]) -> list[Place]:
        """Put messages on this machine's disk, all or none."""


class PublishBatch:
    """What `Channel.create_publish_batch` gives to Kombu; used by one thread.

    Args:
        channel: Routes the messages, and sends them.
        max_size: Messages that may be collected before the full requests among them leave.
    """

    def __init__(self, channel: BatchChannel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._publish_timeout = channel.session.options.publish_timeout
        self._collected = 0
        self._full: list[_Request] = []
        self._partial: dict[str, _Request] = {}  # by queue
        self._to_spool: list[Spooled] = []
        self._leaving: list[tuple[_Request, _Future]] = []
        self._senders: ThreadPoolExecutor | None = None
        # The senders write these two, each a single assignment.
        self._progressed_at = 0.0  # seconds of time.monotonic; when one was accepted
        self._refused_in_a_row: dict[str, int] = {}  # whole requests, by queue
        self._over = ""  # why no more can be published
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget what was collected: the parent sends it, and has the threads for it."""
        self._over = "it is of the process that this one was forked from"
        self._senders = None
        self._stop()

    def publish(self, message: dict[str, Any], **kwargs: Any) -> None:
        """Route *message*, and collect it for the queues that it goes to.

        Raises:
            BatchPublishError: Messages that left earlier were not all accepted.
            CFQueuesError: This message can never be sent; the others are not affected.
        """
        self._check()
        self.channel.basic_publish(message, publish_batch=self, **kwargs)
        if self._collected >= self._max_size:
            self._settle()
            self._spool()
            self._send(everything=not self._full)

    def add(self, queue: str, packed: Packed) -> None:
        """Take a message that was routed to *queue*."""
        request = self._partial.get(queue)
        if request is None:
            request = self._partial[queue] = _Request(queue)
        elif not request.has_room_for(packed):
            self._full.append(request)
            request = self._partial[queue] = _Request(queue)
        request.messages.append(packed)
        request.size += packed.size
        self._collected += 1

    def add_spooled(self, message: Spooled) -> None:
        """Take a message that is for this machine's disk."""
        self._to_spool.append(message)
        self._collected += 1

    def flush(self) -> None:
        """Send what is collected, and block until all is settled.

        Raises:
            BatchPublishError: Not everything was accepted; the batch can no more be used.
        """
        self._check()
        self._settle()
        self._spool()
        self._send(everything=True)
        self._settle()

    def discard(self) -> None:
        """Forget what is collected.  What has left cannot be taken back; it is waited for."""
        self._over = self._over or "it was aborted"
        self._stop()

    def close(self) -> None:
        """Return when nothing of the batch is on its way any more."""
        self._over = self._over or "it is closed"
        self._stop()

    def _check(self) -> None:
        if self._over:
            raise RuntimeError(f"nothing can be published through this batch: {self._over}")

    def _send(self, *, everything: bool) -> None:
        """Let the full requests leave, or *everything*."""
        requests, self._full = self._full, []
        if everything:
            requests += self._partial.values()
            self._partial = {}
        self._collected -= sum(len(request.messages) for request in requests)
        if self._senders is None:
            self._senders = _new_senders()
        self._progressed_at = time.monotonic()
        for request in requests:
            self._leaving.append((request, self._begin(request)))

    def _begin(self, request: _Request) -> _Future:
        if self._senders is not None:
            try:
                return self._senders.submit(self._post, request)
            except RuntimeError:  # the interpreter is ending, and starts no thread any more
                self._senders.shutdown(cancel_futures=True)
        done: _Future = Future()
        done.set_result(self._post(request))
        return done

    def _post(self, request: _Request) -> list[CFQueuesError | None]:
        """Send one request, in a sender's thread; return the outcome of each message."""
        # Counted from the last progress: a long block may take its time, and a server that never
        # answers is waited for once, not once a request.
        deadline = self._progressed_at + self._publish_timeout
        refused = self._refused_in_a_row.get(request.queue, 0)
        if refused >= REFUSED_REQUESTS:
            return [_unsent("all of the requests before it were refused")] * len(request.messages)
        errors = self.channel.put_many(request.queue, request.messages, deadline=deadline)
        if not all(errors):
            self._progressed_at = time.monotonic()
        for_good = all(isinstance(error, PermanentError) for error in errors)
        self._refused_in_a_row[request.queue] = refused + 1 if for_good else 0
        return errors

    def _spool(self) -> None:
        """Put what is for the disk there, with one commit; raise if it cannot take it."""
        messages, self._to_spool = self._to_spool, []
        self._collected -= len(messages)
        try:
            if messages:
                self.channel.spool_many(messages)
        except CFQueuesError as error:
            self._over = "a flush failed"
            self._stop()
            outcomes = [Outcome(m.address.name, m.packed.message(), error) for m in messages]
            raise _failure(outcomes, error) from error

    def _settle(self) -> None:
        """Block until what left is settled; raise if not all of it was accepted."""
        settled = [(request, sent.result()) for request, sent in self._leaving]
        self._leaving.clear()
        first = next((error for _, errors in settled for error in errors if error), None)
        if first is None:
            return
        self._over = "a flush failed"
        # They were published without an error, so this one must account for them.
        unsent = _unsent("earlier ones of its batch failed")
        settled += [
            (request, [unsent] * len(request.messages))
            for request in [*self._full, *self._partial.values()]
        ]
        self._stop()
        outcomes = [
            Outcome(request.queue, packed.message(), error)
            for request, errors in settled
            for packed, error in zip(request.messages, errors, strict=True)
        ]
        raise _failure(outcomes, first) from first

    def _stop(self) -> None:
        self._collected = 0
        self._full.clear()
        self._partial.clear()
        self._to_spool.clear()
        self._leaving.clear()
        senders, self._senders = self._senders, None
        if senders is not None:
            senders.shutdown(cancel_futures=True)


class _Request:
    """Messages that leave together, all for one queue."""

    __slots__ = ("messages", "queue", "size")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.messages: list[Packed] = []
        self.size = 0

    def has_room_for(self, packed: Packed) -> bool:
        return (
            len(self.messages) < limits.BATCH_MESSAGES
            and self.size + packed.size <= limits.BATCH_BYTES
        )


_Future = Future[list[CFQueuesError | None]]


def _new_senders() -> ThreadPoolExecutor | None:
    """Threads that send; None while the interpreter ends, when none can be started."""
    try:
        # Not at the top: after the main thread's end, this module can no longer be imported.
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415
    except RuntimeError:
        return None
    return ThreadPoolExecutor(BULK_IN_FLIGHT, "cfqueues-batch")


def _unsent(why: str) -> CFQueuesError:
    return CFQueuesError(f"the message was not sent: {why}")


def _failure(outcomes: Sequence[Outcome], first: CFQueuesError) -> BatchPublishError:
    error = BatchPublishError("", tuple(outcomes))
    text = (
        f"of {len(outcomes):,} messages, {len(error.accepted):,} were accepted, "
        f"{len(error.refused):,} surely did not arrive and {len(error.uncertain):,} are uncertain; "
        f"the first failure: {first}"
    )
    error.args = (text, tuple(outcomes))
    return error
