"""What this process has done, in numbers: for `stats`, and through `telemetry` for OpenTelemetry.

Nearly all is counted once a request, by its client, so it costs next to nothing a message.  Each
process counts what it does itself: requests that carried what others wait for are counted where
they were made, and a forked child begins at 0.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from typing import Any, Final

from .errors import CFQueuesError
from .runtime.fork import renew_in_child
from .telemetry import Operation, instruments

OF_A_QUEUE: Final = (
    "published",
    "publish_failed",
    "publish_requests",
    "publish_seconds",
    "pulled",
    "pull_requests",
    "pull_seconds",
    "empty_pulls",
    "acked",
    "given_back",
    "ack_requests",
    "ack_seconds",
    "leases_expired",
    "failed_requests",
    "limited_requests",
)
"""What is counted for each queue.  docs/observability.md says what each one means."""

OF_THE_PROCESS: Final = (
    "admin_requests",
    "admin_seconds",
    "permits",
    "permit_wait_seconds",
    "retries",
)
"""What is counted for the process alone."""

MOST_QUEUES: Final = 1000
"""Queues that are told apart: the names of reply queues come to no end."""

OTHER_QUEUES: Final = "(others)"


class Metrics:
    """The counts of this process; any thread may add to them."""

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Begin at 0: what the parent did, the parent tells."""
        # Reentrant, because a signal's handler or a finalizer that runs while its thread counts
        # may make requests too.  Guards all that follows; held over arithmetic alone.
        self._lock = threading.RLock()
        self._since = time.time()
        self._queues: set[str] = set()
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(int)  # by queue and what

    def request(self, operation: Operation, queue: str = "", *, messages: int = 0) -> Request:
        """A context in which one request is made.

        Args:
            operation: What it does.
            queue: Of which queue; ``""`` if of none.
            messages: How many it publishes; of a pull, set in the context.
        """
        return Request(self, operation, queue, messages)

    def requested(
        self,
        operation: Operation,
        queue: str,
        seconds: float,
        messages: int,
        error: BaseException | None,
    ) -> None:
        """A request has ended, with *error* if it failed."""
        with self._lock:
            queue = self._known(queue)
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
                counts[queue, "limited_requests"] += getattr(error, "status", None) == 429
        if telemetry := instruments():
            telemetry.requested(operation, queue, seconds, messages, error)

    def settled(self, queue: str, acks: int, retries: int) -> None:
        """The server has taken so many acknowledgements, and messages that are to come again."""
        with self._lock:
            queue = self._known(queue)
            self._counts[queue, "acked"] += acks
            self._counts[queue, "given_back"] += retries
        if telemetry := instruments():
            telemetry.settled(queue, acks, retries)

    def expired(self, queue: str, leases: int = 1) -> None:
        """The leases of so many messages ended before they were delivered or settled."""
        if not leases:
            return
        with self._lock:
            queue = self._known(queue)
            self._counts[queue, "leases_expired"] += leases
        if telemetry := instruments():
            telemetry.expired(queue, leases)

    def retried(self, error: CFQueuesError) -> None:
        """A request failed with *error*, and is to be made again."""
        with self._lock:
            self._counts["", "retries"] += 1
        if telemetry := instruments():
            telemetry.retried(error)

    def waited(self, seconds: float) -> None:
        """A request has its permit, after so long."""
        with self._lock:
            self._counts["", "permits"] += 1
            self._counts["", "permit_wait_seconds"] += seconds
        if telemetry := instruments():
            telemetry.waited(seconds)

    def snapshot(self) -> dict[str, Any]:
        """What `stats` returns."""
        with self._lock:
            counts = dict(self._counts)
            names = sorted(self._queues)
        queues = {
            name: {what: counts.get((name, what), 0) for what in OF_A_QUEUE} for name in names
        }
        total: dict[str, Any] = dict.fromkeys((*OF_A_QUEUE, *OF_THE_PROCESS), 0)
        for (_, what), value in counts.items():
            total[what] += value
        return {"pid": os.getpid(), "since": self._since, **total, "queues": queues}

    def _known(self, queue: str) -> str:
        """The name to count under.  The caller holds the lock."""
        if queue and queue not in self._queues:
            if len(self._queues) >= MOST_QUEUES:
                queue = OTHER_QUEUES
            self._queues.add(queue)
        return queue


class Request:
    """A request that is counted when its context ends."""

    __slots__ = ("_metrics", "_operation", "_queue", "_started", "messages")

    def __init__(self, metrics: Metrics, operation: Operation, queue: str, messages: int) -> None:
        self._metrics = metrics
        self._operation = operation
        self._queue = queue
        self.messages = messages

    def __enter__(self) -> Request:  # noqa: PYI034 - Self is not in Python 3.10
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        seconds = time.monotonic() - self._started
        self._metrics.requested(self._operation, self._queue, seconds, self.messages, error)


metrics: Final = Metrics()
"""Of this process."""


def stats() -> dict[str, Any]:
    """What this process has done so far: counts, and sums of seconds.

    Returns:
        A new dictionary that JSON can hold: ``pid``; ``since`` (seconds since the epoch, when
        counting began); each count for all queues together; and ``queues``, the same by the name
        that the queue has at Cloudflare.  docs/observability.md explains each of them.
    """
    return metrics.snapshot()
