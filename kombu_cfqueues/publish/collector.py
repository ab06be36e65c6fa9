"""Collects the messages of one thread, and sends them in full requests, two at a time.

`Producer.batch()` and ``kombu_cfqueues.batch`` both use it.  It sends while more is collected, so
it keeps at most twice ``max_size`` messages in memory.
"""

from __future__ import annotations

import itertools
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final, Generic, Protocol, TypeVar

from .. import limits
from ..envelope import Packed
from ..errors import BatchPublishError, CFQueuesError, Outcome, PermanentError
from ..metrics import metrics
from ..runtime.fork import notice_fork, renew_in_child
from ..spool import Spooled
from .request_threads import RequestThreads

REFUSED_REQUESTS: Final = 2
"""A batch sends nothing more to a queue that has refused every message of this many requests in a
row.  Finding the bad messages of a request takes about a dozen more requests."""


class Outlet(Protocol):
    """Sends what was collected with one set of options."""

    @property
    def publish_timeout(self) -> float:
        """Maximum seconds that a request may take, retries included."""

    def post(
        self, queue: str, messages: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Publish messages to one queue; return the error of each, or None if it is accepted."""

    def spool(self, messages: Sequence[Spooled]) -> None:
        """Put all messages or none into the spool of this machine."""


class Collector:
    """Collects messages for any number of queues; one thread uses it.

    Args:
        max_size: Full requests are sent once this many messages are collected.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._numbers = itertools.count()
        self._collected = 0
        self._full: list[_Request] = []
        self._partial: dict[tuple[Outlet, str], _Request] = {}
        self._to_spool: dict[Outlet, _Part[Spooled]] = {}
        self._sent: list[tuple[_Request, Future[_Errors]]] = []  # some may still be in flight
        self._threads: RequestThreads[_Request, _Errors] | None = None
        # The threads write the next two, each by a single assignment.
        self._progressed_at = 0.0  # monotonic seconds: when a message was last accepted
        self._refused_in_a_row: dict[tuple[Outlet, str], int] = {}  # requests
        self._ended_by = ""  # why nothing can be published any more
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget what was collected: the parent sends it in its own threads."""
        self._ended_by = "it belongs to the parent of this forked process"
        self._threads = None
        self._stop()

    @property
    def ended(self) -> bool:
        """Whether nothing can be collected any more."""
        notice_fork()
        return bool(self._ended_by)

    def check(self) -> None:
        """Raise `RuntimeError` if nothing can be collected any more."""
        notice_fork()
        if self._ended_by:
            raise RuntimeError(
                f"cannot publish through this batch, because {self._ended_by}: open another one"
            )

    def collect(self, outlet: Outlet, queue: str, packed: Packed) -> None:
        """Collect a message that was routed to *queue*."""
        request = self._partial.get((outlet, queue))
        if request is not None and not request.has_room_for(packed):
            self._full.append(request)
            request = None
        if request is None:
            request = self._partial[outlet, queue] = _Request(outlet, queue)
        request.add(next(self._numbers), packed)
        self._collected += 1

    def collect_spooled(self, outlet: Outlet, message: Spooled) -> None:
        """Collect a message for the spool of this machine."""
        self._to_spool.setdefault(outlet, _Part()).add(next(self._numbers), message)
        self._collected += 1

    def send_full(self) -> None:
        """If ``max_size`` messages are collected, block until the last ones are settled, and send.

        Raises:
            BatchPublishError: Messages that were sent earlier were not all accepted.
        """
        if self._collected >= self._max_size:
            self._settle()
            self._spool()
            self._send(everything=not self._full)

    def flush(self) -> None:
        """Send what was collected, and block until each message is accepted or has failed.

        Each queue may take ``publish_timeout`` since a message was last accepted.

        Raises:
            BatchPublishError: Not everything was accepted.  The batch has ended.
            RuntimeError: The batch had ended before.
        """
        self.check()
        self._settle()
        self._spool()
        self._send(everything=True)
        self._settle()

    def mark(self) -> int:
        """Return a number for `discard_since`."""
        return next(self._numbers)

    def discard_since(self, mark: int) -> None:
        """Forget what was collected since *mark* and was not sent."""
        parts: list[_Part[Any]] = [*self._full, *self._partial.values(), *self._to_spool.values()]
        self._collected -= sum(part.cut(mark) for part in parts)

    def end(self, why: str) -> None:
        """Send nothing more, because of *why*; block until the sent requests end."""
        notice_fork()
        self._ended_by = self._ended_by or why
        self._stop()

    def _send(self, *, everything: bool) -> None:
        """Send the full requests, or *everything* that was collected."""
        requests, self._full = self._full, []
        if everything:
            requests += self._partial.values()
            self._partial = {}
        self._collected -= sum(len(request.messages) for request in requests)
        if self._threads is None:
            self._threads = RequestThreads(self._post)
        self._progressed_at = time.monotonic()
        for request in requests:
            if request.messages:
                self._sent.append((request, self._threads.submit(request)))

    def _post(self, request: _Request) -> _Errors:
        """Send one request; return the error of each message, or None if it is accepted."""
        # The deadline counts from the last accepted message.  So a long batch does not time out,
        # and a server that does not answer delays the batch once, and not once per request.
        outlet, queue = key = request.outlet, request.queue
        deadline = self._progressed_at + outlet.publish_timeout
        if self._refused_in_a_row.get(key, 0) >= REFUSED_REQUESTS:
            return [_not_sent("its queue refused the requests before it")] * len(request.messages)
        errors = outlet.post(queue, request.messages, deadline=deadline)
        if not all(errors):
            self._progressed_at = time.monotonic()
        all_refused = all(isinstance(error, PermanentError) for error in errors)
        # Read again: the other thread may have counted its request meanwhile.
        refused = self._refused_in_a_row.get(key, 0)
        self._refused_in_a_row[key] = refused + 1 if all_refused else 0
        return errors

    def _spool(self) -> None:
        """Spool what was collected for the spool, with one commit; raise if that fails."""
        to_spool, self._to_spool = self._to_spool, {}
        waiting = [(outlet, part.messages) for outlet, part in to_spool.items()]
        self._collected -= sum(len(messages) for _, messages in waiting)
        spooled = [(messages, self._spool_by(outlet, messages)) for outlet, messages in waiting]
        if any(error for _, error in spooled):
            self._raise_failures(
                [(m.address.name, m.packed, error) for messages, error in spooled for m in messages]
            )

    def _spool_by(self, outlet: Outlet, messages: Sequence[Spooled]) -> CFQueuesError | None:
        try:
            if messages:
                outlet.spool(messages)
        except CFQueuesError as error:
            return error
        return None

    def _settle(self) -> None:
        """Block until the sent requests have ended; raise if a message was not accepted."""
        settled = [(request, future.result()) for request, future in self._sent]
        self._sent.clear()
        if any(error for _, errors in settled for error in errors):
            self._raise_failures(
                [
                    (request.queue, packed, error)
                    for request, errors in settled
                    for packed, error in zip(request.messages, errors, strict=True)
                ]
            )

    def _raise_failures(self, settled: list[tuple[str, Packed, CFQueuesError | None]]) -> None:
        """End the batch, and raise the error that lists *settled* and the unsent messages."""
        first = next(error for _, _, error in settled if error)
        self._ended_by = "a flush failed"
        # `publish` returned without an error for these, so this error must list them.
        unsent = _not_sent("earlier messages of its batch failed")
        for request in [*self._full, *self._partial.values()]:
            settled += [(request.queue, packed, unsent) for packed in request.messages]
        for part in self._to_spool.values():
            settled += [(m.address.name, m.packed, unsent) for m in part.messages]
        self._stop()
        outcomes = [Outcome(queue, packed.message(), error) for queue, packed, error in settled]
        failure = _failure(outcomes, first)
        metrics.not_accepted(refused=len(failure.refused), uncertain=len(failure.uncertain))
        raise failure from first

    def _stop(self) -> None:
        self._collected = 0
        self._full.clear()
        self._partial.clear()
        self._to_spool.clear()
        self._sent.clear()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.stop()


M = TypeVar("M")


class _Part(Generic[M]):
    """Messages that leave together, in the order in which they were collected."""

    def __init__(self) -> None:
        self.messages: list[M] = []
        self._numbers = array("Q")  # of the messages: ascending

    def add(self, number: int, message: M) -> None:
        self.messages.append(message)
        self._numbers.append(number)

    def cut(self, mark: int) -> int:
        """Drop the messages from number *mark* on; return how many were dropped."""
        kept = bisect_left(self._numbers, mark)
        dropped = len(self.messages) - kept
        del self.messages[kept:], self._numbers[kept:]
        return dropped


class _Request(_Part[Packed]):
    """Messages of one queue that are sent together."""

    def __init__(self, outlet: Outlet, queue: str) -> None:
        super().__init__()
        self.outlet = outlet
        self.queue = queue
        self._size = 0

    def add(self, number: int, message: Packed) -> None:
        super().add(number, message)
        self._size += message.size

    def cut(self, mark: int) -> int:
        dropped = super().cut(mark)
        self._size = sum(packed.size for packed in self.messages)
        return dropped

    def has_room_for(self, packed: Packed) -> bool:
        return (
            len(self.messages) < limits.BATCH_MESSAGES
            and self._size + packed.size <= limits.BATCH_BYTES
        )


_Errors = list[CFQueuesError | None]


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
