"""What this process has done, in numbers: for `stats`, and through `telemetry` for OpenTelemetry.

The client counts most of it once per request, so that a message costs almost nothing.  Each process
counts the requests that it made itself, even if they carried messages of other processes.  A forked
child starts at 0.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from typing import Any, Final

from .errors import CFQueuesError
from .runtime.fork import notice_fork, renew_in_child
from .runtime.locks import new_reentrant_lock
from .telemetry import Operation, instruments

QUEUE_COUNTS: Final = {
    "published": "Messages that Cloudflare accepted.",
    "publish_failed": "Messages in publishing requests that failed, once for each request.",
    "publish_requests": "Requests that carried messages.",
    "publish_seconds": "Total duration of these requests.",
    "pulled": "Messages that were pulled.",
    "pull_requests": "Pulls.",
    "pull_seconds": "Total duration of pulls.",
    "empty_pulls": "Pulls that returned no message.",
    "acked": "Messages that were acknowledged.",
    "given_back": "Messages that were given back, for another delivery.",
    "ack_requests": "Requests that acknowledged messages or gave them back.",
    "ack_seconds": "Total duration of these requests.",
    "leases_expired": "Messages whose lease had ended before they were delivered or settled.",
    "failed_requests": "Requests about messages that failed.",
    "limited_requests": "Requests that a rate limit refused.",
}
"""The counts of each queue, with a description of each.  docs/observability.md says more."""

PROCESS_COUNTS: Final = {
    "admin_requests": "Requests that carry no message, such as look-ups.",
    "admin_seconds": "Total duration of these requests.",
    "blocks": "Blocks of the token that this process met.",
    "control_dropped": "Events and replies that were dropped while the control broker was down.",
    "permits": "Requests that needed a permit of the request allowance.",
    "permit_wait_seconds": "Total time that these requests waited for their permit.",
    "refused": "Messages whose publisher got an error, and that certainly did not arrive.",
    "retries": "Failures that were followed by a retry.",
    "uncertain": "Messages whose publisher got an error, and that may have arrived.",
    "unroutable": "Messages that were dropped because no queue is bound for them.",
}
"""The counts that only the process has, with a description of each."""

MAX_QUEUES: Final = 1000
"""Maximum number of queues with counts of their own, because every reply queue has a new name."""

OTHER_QUEUES: Final = "(others)"
"""The name under which all further queues are counted."""


class Metrics:
    """The counts of this process; any thread may add to them."""

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start at 0: the parent reports its own counts."""
        # Guards all fields below; held only during arithmetic.  Reentrant, because a signal
        # handler or a finalizer that interrupts a thread here may make requests too.
        self._lock = new_reentrant_lock()
        self._since = time.time()
        self._queues: set[str] = set()
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(int)  # by queue and name
        self.share = 1.0
        """The part of the request rate that is this machine's, as last seen; set without a lock."""
        self._hints: dict[str, str] = {}  # by the setting that they name
        # By the server; the child uses the same servers, and has asked none.
        self._budgets: dict[str, bool | None] = dict.fromkeys(getattr(self, "_budgets", {}))

    def request(
        self, operation: Operation, queue: str = "", *, messages: int = 0
    ) -> CountedRequest:
        """Return a context manager that counts one request.

        Args:
            operation: What the request does.
            queue: The queue's name at Cloudflare; ``""`` if the request is not about one queue.
            messages: Number of messages that the request publishes.  For a pull, set `messages` of
                the context to the number that it returned.
        """
        return CountedRequest(self, operation, queue, messages)

    def requested(
        self,
        operation: Operation,
        queue: str,
        seconds: float,
        messages: int,
        error: BaseException | None,
    ) -> None:
        """Count a request that has ended; *error* is its failure."""
        with self._lock:
            queue = self._counted_as(queue)
            counts = self._counts
            counts[queue, operation + "_requests"] += 1
            counts[queue, operation + "_seconds"] += seconds
            if operation == "publish":
                counts[queue, "publish_failed" if error else "published"] += messages
            elif operation == "pull" and error is None:
                counts[queue, "pulled"] += messages
                counts[queue, "empty_pulls"] += not messages
            if error is not None:
                counts[queue, "failed_requests"] += 1
                counts[queue, "limited_requests"] += getattr(error, "stops", None) is not None
        if telemetry := instruments():
            telemetry.requested(operation, queue, seconds, messages, error)

    def settled(self, queue: str, acks: int, retries: int) -> None:
        """Count messages whose acknowledgement or return the server has accepted."""
        queue = self._count(queue, acked=acks, given_back=retries)
        if telemetry := instruments():
            telemetry.settled(queue, acks, retries)

    def expired(self, queue: str, leases: int = 1) -> None:
        """Count messages whose lease expired before they were delivered or settled."""
        if not leases:
            return
        queue = self._count(queue, leases_expired=leases)
        if telemetry := instruments():
            telemetry.expired(queue, leases)

    def retried(self, error: CFQueuesError) -> None:
        """Count a retry after *error*."""
        self._count(retries=1)
        if telemetry := instruments():
            telemetry.retried(error)

    def blocked(self) -> None:
        """Count a block of the token that this process has met."""
        self._count(blocks=1)
        if telemetry := instruments():
            telemetry.blocked()

    def unroutable(self) -> None:
        """Count a message that was dropped because no queue is bound for it."""
        self._count(unroutable=1)
        if telemetry := instruments():
            telemetry.unroutable()

    def control_dropped(self) -> None:
        """Count an event or a reply that was dropped because the control broker did not take it."""
        self._count(control_dropped=1)

    def not_accepted(self, *, refused: int = 0, uncertain: int = 0) -> None:
        """Count messages whose publisher got an error: certainly not delivered, or perhaps."""
        self._count(refused=refused, uncertain=uncertain)
        if telemetry := instruments():
            telemetry.not_accepted(refused, uncertain)

    def waited(self, seconds: float) -> None:
        """Count a permit for which a request waited *seconds*."""
        self._count(permits=1, permit_wait_seconds=seconds)
        if telemetry := instruments():
            telemetry.waited(seconds)

    def hint(self, setting: str, text: str) -> None:
        """Note what a change of *setting* would improve."""
        with self._lock:
            self._hints[setting] = text

    def shared_budget(self, server: str, *, answers: bool | None) -> None:
        """Note whether *server*, which shares the allowance, answers; None if it is not known."""
        with self._lock:
            self._budgets[server] = answers

    def snapshot(self) -> dict[str, Any]:
        """Return what `stats` returns."""
        with self._lock:
            counts = dict(self._counts)
            names = sorted(self._queues)
            hints = dict(self._hints)
            budgets = dict(self._budgets)
        queues = {
            name: {count: counts.get((name, count), 0) for count in QUEUE_COUNTS} for name in names
        }
        total: dict[str, Any] = dict.fromkeys((*QUEUE_COUNTS, *PROCESS_COUNTS), 0)
        for (_, count), value in counts.items():
            total[count] += value
        head = {"pid": os.getpid(), "since": self._since}
        notes = {"share": self.share, "hints": hints, "shared_budgets": budgets}
        return {**head, **total, **notes, "queues": queues}

    def _count(self, queue: str = "", **numbers: float) -> str:
        """Add to counts; return the name under which *queue* is counted."""
        with self._lock:
            queue = self._counted_as(queue)
            for name, number in numbers.items():
                self._counts[queue, name] += number
        return queue

    def _counted_as(self, queue: str) -> str:
        """Return the name under which *queue* is counted.  The caller holds the lock."""
        if queue and queue not in self._queues:
            if len(self._queues) >= MAX_QUEUES:
                queue = OTHER_QUEUES
            self._queues.add(queue)
        return queue


class CountedRequest:
    """A context manager that counts one request when it exits.

    Attributes:
        messages: Number of messages that the request carried.
    """

    __slots__ = ("_metrics", "_operation", "_queue", "_started", "messages")

    def __init__(self, metrics: Metrics, operation: Operation, queue: str, messages: int) -> None:
        self._metrics = metrics
        self._operation = operation
        self._queue = queue
        self.messages = messages

    def __enter__(self) -> CountedRequest:  # noqa: PYI034 - Self is not in Python 3.10
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        seconds = time.monotonic() - self._started
        self._metrics.requested(self._operation, self._queue, seconds, self.messages, error)


metrics: Final = Metrics()
"""The counts of this process."""


def stats() -> dict[str, Any]:
    """Return what this process has done so far.  Makes no request.

    Returns:
        A new dictionary that JSON can hold: ``pid``; ``since``, when counting started, in seconds
        since the epoch; each count summed over all queues; ``share``, this machine's part of the
        request rate, as learned from blocks; ``hints``, texts by the setting that they recommend
        to change; ``shared_budgets``, whether each server of ``budget_url`` answers (None if it
        was not asked); and ``queues``, which has the counts of each queue by its name at
        Cloudflare.  Names that end in ``_seconds`` are sums of seconds.
        docs/observability.md explains each of them.
    """
    notice_fork()
    return metrics.snapshot()
