"""``with producer.batch():`` of Kombu 5.7: one thread publishes thousands of messages fast.

A batch collects messages until there are ``max_size``, or until a flush, and sends them in full
requests, two at a time, while it collects the next ones.  So it keeps at most twice ``max_size``
messages in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, Final, Protocol

from .. import limits
from ..envelope import Packed
from ..errors import BatchPublishError, CFQueuesError, Outcome, PermanentError
from ..publish.group_commit import BULK_IN_FLIGHT
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.thread_pool import Job, StartingLock, ThreadPool
from ..spool import Place, Spooled
from .session import Session

REFUSED_REQUESTS: Final = 2
"""A batch sends nothing more to a queue that has refused every message of this many requests in a
row.  To find the bad messages of a request takes a dozen further ones, and requests are scarce."""


class BatchChannel(Protocol):
    """What a batch uses of its channel: routing, and two ways of sending."""

    @property
    def session(self) -> Session:
        """What the channels of the connection share."""

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> Any:
        """Route a message, and `add` it to the batch that *kwargs* has as ``publish_batch``."""

    def put_many(
        self, queue: str, messages: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Publish messages to one queue; return the error of each, or None if it is accepted."""

    def spool_many(self, messages: Sequence[Spooled]) -> list[Place]:
        """Put all messages or none into the spool of this machine; return where they are."""


class PublishBatch:
    """The batch that `Channel.create_publish_batch` returns to Kombu; one thread uses it.

    Args:
        channel: Routes messages and sends them.
        max_size: With this many messages collected, the full requests among them are sent.

    Attributes:
        channel: The same; Kombu reads it.
    """

    def __init__(self, channel: BatchChannel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._publish_timeout = channel.session.options.publish_timeout
        self._collected = 0
        self._full: list[_Request] = []
        self._partial: dict[str, _Request] = {}  # by queue
        self._to_spool: list[Spooled] = []
        self._sent: list[tuple[_Request, _Future]] = []  # and perhaps not answered yet
        self._senders: _Senders | None = None
        # The senders' threads write the next two, each by a single assignment.
        self._progressed_at = 0.0  # monotonic seconds: when a message was last accepted
        self._refused_in_a_row: dict[str, int] = {}  # requests, by queue
        self._ended_by = ""  # why nothing can be published any more
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget what was collected: the parent sends it, and has the threads for that."""
        self._ended_by = "it belongs to the parent of this forked process"
        self._senders = None
        self._stop()

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
        self._check()
        self.channel.basic_publish(message, publish_batch=self, **kwargs)
        if self._collected >= self._max_size:
            self._settle()
            self._spool()
            self._send(everything=not self._full)

    def add(self, queue: str, packed: Packed) -> None:
        """Collect a message that was routed to *queue*."""
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
        """Collect a message for the spool of this machine."""
        self._to_spool.append(message)
        self._collected += 1

    def flush(self) -> None:
        """Send what was collected, and block until each message is accepted or has failed.

        Each queue may take ``publish_timeout`` since a message was last accepted.

        Raises:
            BatchPublishError: Not everything was accepted.  The batch has ended.
            RuntimeError: The batch had ended before.
        """
        self._check()
        self._settle()
        self._spool()
        self._send(everything=True)
        self._settle()

    def discard(self) -> None:
        """End the batch without sending what was collected; block until sent requests end."""
        notice_fork()
        self._ended_by = self._ended_by or "it was aborted"
        self._stop()

    def close(self) -> None:
        """End the batch, and block until its sent requests end."""
        notice_fork()
        self._ended_by = self._ended_by or "it is closed"
        self._stop()

    def _check(self) -> None:
        notice_fork()
        if self._ended_by:
            raise RuntimeError(
                f"cannot publish through this batch, because {self._ended_by}: open another one"
            )

    def _send(self, *, everything: bool) -> None:
        """Send the full requests, or *everything* that was collected."""
        requests, self._full = self._full, []
        if everything:
            requests += self._partial.values()
            self._partial = {}
        self._collected -= sum(len(request.messages) for request in requests)
        if self._senders is None:
            self._senders = _Senders(self._post)
        self._progressed_at = time.monotonic()
        for request in requests:
            self._sent.append((request, self._senders.submit(request)))

    def _post(self, request: _Request) -> list[CFQueuesError | None]:
        """Send one request; return the error of each message, or None if it is accepted."""
        # Counted from the last accepted message.  So a long batch may take its time, and a server
        # that does not answer is waited for once, and not once for each request.
        deadline = self._progressed_at + self._publish_timeout
        refused = self._refused_in_a_row.get(request.queue, 0)
        if refused >= REFUSED_REQUESTS:
            return [_not_sent("its queue refused the requests before it")] * len(request.messages)
        errors = self.channel.put_many(request.queue, request.messages, deadline=deadline)
        if not all(errors):
            self._progressed_at = time.monotonic()
        all_refused = all(isinstance(error, PermanentError) for error in errors)
        # Read again: the other thread may have counted its request meanwhile.
        refused = self._refused_in_a_row.get(request.queue, 0)
        self._refused_in_a_row[request.queue] = refused + 1 if all_refused else 0
        return errors

    def _spool(self) -> None:
        """Spool what was collected for the spool, with one commit; raise if that fails."""
        messages, self._to_spool = self._to_spool, []
        self._collected -= len(messages)
        try:
            if messages:
                self.channel.spool_many(messages)
        except CFQueuesError as error:
            self._ended_by = "a flush failed"
            self._stop()
            outcomes = [Outcome(m.address.name, m.packed.message(), error) for m in messages]
            raise _failure(outcomes, error) from error

    def _settle(self) -> None:
        """Block until the sent requests have ended; raise if a message was not accepted."""
        settled = [(request, future.result()) for request, future in self._sent]
        self._sent.clear()
        first = next((error for _, errors in settled for error in errors if error), None)
        if first is None:
            return
        self._ended_by = "a flush failed"
        # `publish` returned without an error for these, so this error must list them.
        unsent = _not_sent("earlier messages of its batch failed")
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
        self._sent.clear()
        senders, self._senders = self._senders, None
        if senders is not None:
            senders.stop()


class _Request:
    """Messages of one queue that are sent together."""

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


_Errors = list[CFQueuesError | None]
_Future = Future[_Errors]


class _Senders:
    """Threads that send the requests of one batch, `BULK_IN_FLIGHT` at a time.

    Not a `ThreadPoolExecutor`, which starts threads under a lock that all executors of the process
    share: see `StartingLock`.

    Args:
        post: Sends one request.
    """

    def __init__(self, post: Callable[[_Request], _Errors]) -> None:
        self._post = post
        self._lock = StartingLock()  # guards the next two
        self._waiting: deque[tuple[_Request, _Future]] = deque()
        self._running: set[_Future] = set()
        self._threads = ThreadPool(
            "cfqueues-batch", BULK_IN_FLIGHT, self._lock, self._next_job, linger_seconds=0.0
        )

    def submit(self, request: _Request) -> _Future:
        """Send *request* soon; return the future error of each of its messages."""
        future: _Future = Future()
        with self._lock:
            self._waiting.append((request, future))
            self._threads.call()
        while work := self._work_without_threads():
            work()
        return future

    def stop(self) -> None:
        """Send nothing more; block until the requests that were sent have ended."""
        with self._lock:
            cancelled, running = list(self._waiting), list(self._running)
            self._waiting.clear()
        for _, future in cancelled:
            future.cancel()
        wait(running)

    def _next_job(self) -> Job:
        if not self._waiting:
            return Job()
        request, future = self._waiting.popleft()
        self._running.add(future)
        return Job(partial(self._send, request, future), more=bool(self._waiting))

    def _work_without_threads(self) -> Callable[[], None] | None:
        """Return what is to be done here, because the interpreter exits and starts no threads."""
        with self._lock:
            return self._next_job().work if self._threads.absent else None

    def _send(self, request: _Request, future: _Future) -> None:
        try:
            future.set_result(self._post(request))
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                self._running.discard(future)


def _not_sent(why: str) -> CFQueuesError:
    return CFQueuesError(f"the message was not sent: {why}")


def _failure(outcomes: Sequence[Outcome], first: CFQueuesError) -> BatchPublishError:
    error = BatchPublishError("", tuple(outcomes))
    text = (
        f"of {len(outcomes):,} messages, {len(error.accepted):,} were accepted, "
        f"{len(error.refused):,} certainly did not arrive and {len(error.uncertain):,} are "
        f"uncertain (see this error's accepted, refused and uncertain); the first failure: {first}"
    )
    error.args = (text, tuple(outcomes))
    return error
