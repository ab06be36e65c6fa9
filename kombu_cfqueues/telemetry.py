"""What `metrics` counts, as OpenTelemetry instruments, if the program uses OpenTelemetry's metrics.

Names and attributes follow OpenTelemetry's semantic conventions for messaging clients
(opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics, status: development).  Names that
the conventions lack start with ``kombu_cfqueues.``.  No attribute contains a token or any part of a
message.
"""

from __future__ import annotations

import functools
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from .errors import CFQueuesError

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

logger = logging.getLogger(__name__)

Operation: TypeAlias = Literal["publish", "pull", "ack", "admin"]
"""What a request does.  ``admin`` stands for every route that does not carry messages."""

_Attributes: TypeAlias = dict[str, str | int]

_TYPES: Final = {"publish": "send", "pull": "receive", "ack": "settle"}
"""The conventions' operation types.  They have none for the administration of queues."""

_DURATION_BUCKETS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1),
    *(0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
"""Bucket bounds in seconds for the duration of requests, as the conventions ask for."""

_PERMIT_DURATION_BUCKETS: Final = (*_DURATION_BUCKETS, 30, 60, 300)
"""Bucket bounds in seconds for waits for a permit, which can last minutes."""

_SIZE_BUCKETS: Final = (1, 2, 5, 10, 25, 50, 75, 99, 100)
"""Bucket bounds in messages for the size of a publishing request."""


class Instruments:
    """The OpenTelemetry instruments of this package.

    Args:
        api: The module `opentelemetry.metrics`.

    Raises:
        TypeError: ``opentelemetry-api`` is older than 1.30, where histograms take no bounds.
    """

    def __init__(self, api: ModuleType) -> None:
        meter: Meter = api.get_meter("kombu_cfqueues")
        self._duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of requests to the API",
            explicit_bucket_boundaries_advisory=_DURATION_BUCKETS,
        )
        self._permit = meter.create_histogram(
            "kombu_cfqueues.permit.wait.duration",
            "s",
            "Time that requests waited for a permit of the request allowance",
            explicit_bucket_boundaries_advisory=_PERMIT_DURATION_BUCKETS,
        )
        self._fill = meter.create_histogram(
            "kombu_cfqueues.publish.batch.size",
            "{message}",
            "Messages in each publishing request",
            explicit_bucket_boundaries_advisory=_SIZE_BUCKETS,
        )
        self._make_counters(meter)

    def _make_counters(self, meter: Meter) -> None:
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Messages in publishing requests"
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Messages that were pulled"
        )
        self._empty = meter.create_counter(
            "kombu_cfqueues.pull.empty", "{request}", "Pulls that returned no message"
        )
        self._settled = meter.create_counter(
            "kombu_cfqueues.settled.messages", "{message}", "Messages acknowledged or returned"
        )
        self._expired = meter.create_counter(
            "kombu_cfqueues.lease.expired", "{message}", "Leases that expired before use"
        )
        self._retries = meter.create_counter(
            "kombu_cfqueues.retries", "{request}", "Failures that were followed by a retry"
        )
        self._refused = meter.create_counter(
            "kombu_cfqueues.refused", "{message}", "Messages that were certainly not delivered"
        )
        self._uncertain = meter.create_counter(
            "kombu_cfqueues.uncertain", "{message}", "Messages that may have been delivered"
        )
        self._blocks = meter.create_counter(
            "kombu_cfqueues.blocks", "{block}", "Blocks of the API token that publishing met"
        )
        self._unroutable = meter.create_counter(
            "kombu_cfqueues.unroutable", "{message}", "Messages dropped because no queue is bound"
        )

    def requested(
        self,
        operation: Operation,
        queue: str,
        seconds: float,
        messages: int,
        error: BaseException | None,
    ) -> None:
        """Record a request that has ended; *error* is its failure."""
        kind = None if error is None else type(error).__name__
        status = error.status if isinstance(error, CFQueuesError) else None
        attributes = _attributes(operation, queue, kind, status)
        self._duration.record(seconds, attributes)
        if operation == "publish":
            self._sent.add(messages, attributes)
            if error is None:
                self._fill.record(messages, attributes)
        elif operation == "pull" and error is None:
            if messages:
                self._consumed.add(messages, attributes)
            else:
                self._empty.add(1, attributes)

    def settled(self, queue: str, acks: int, retries: int) -> None:
        """Record messages that were acknowledged, or returned for redelivery."""
        for outcome, messages in (("ack", acks), ("retry", retries)):
            if messages:
                attributes = _attributes("ack", queue) | {"kombu_cfqueues.outcome": outcome}
                self._settled.add(messages, attributes)

    def expired(self, queue: str, leases: int) -> None:
        """Record leases that expired before their message was delivered or settled."""
        self._expired.add(leases, _attributes("ack", queue))

    def retried(self, error: CFQueuesError) -> None:
        """Record a retry after *error*."""
        self._retries.add(1, _of_error(type(error).__name__))

    def blocked(self) -> None:
        """Record a block of the token."""
        self._blocks.add(1, _SYSTEM)

    def unroutable(self) -> None:
        """Record a message that was dropped because no queue is bound for it."""
        self._unroutable.add(1, _SYSTEM)

    def not_accepted(self, refused: int, uncertain: int) -> None:
        """Record messages whose publisher got an error."""
        for counter, messages in ((self._refused, refused), (self._uncertain, uncertain)):
            if messages:
                counter.add(messages, _SYSTEM)

    def waited(self, seconds: float) -> None:
        """Record a permit for which a request waited *seconds*."""
        self._permit.record(seconds, _SYSTEM)


_SYSTEM: Final[_Attributes] = {"messaging.system": "cloudflare_queues"}


@functools.lru_cache(maxsize=1024)
def _attributes(
    operation: str, queue: str, error: str | None = None, status: int | None = None
) -> _Attributes:
    attributes = _SYSTEM | {"messaging.operation.name": operation}
    if operation in _TYPES:
        attributes["messaging.operation.type"] = _TYPES[operation]
    if queue:
        attributes["messaging.destination.name"] = queue
    if error is not None:
        attributes["error.type"] = error
    if status is not None:
        attributes["http.response.status_code"] = status
    return attributes


@functools.lru_cache(maxsize=64)
def _of_error(kind: str) -> _Attributes:
    return _SYSTEM | {"error.type": kind}


def instruments() -> Instruments | None:
    """Return the instruments; None where they would be of no use.

    Who reads OpenTelemetry's metrics has imported its API.  Nobody else pays for the import, which
    takes as long as half of a process's first publish; and nothing is imported here, where a child
    that is forked meanwhile would find the module half loaded.
    """
    api = sys.modules.get("opentelemetry.metrics")
    if api is None or "get_meter" not in vars(api):  # another thread may be importing it
        return None
    return _instruments_of(api)


@functools.cache
def _instruments_of(api: ModuleType) -> Instruments | None:
    try:
        return Instruments(api)
    # A version before 1.30 or a provider of the application may raise anything.  That must not
    # fail a publish.
    except Exception:
        logger.warning(
            "kombu_cfqueues sends no metrics to OpenTelemetry, because creating its instruments "
            "failed",
            exc_info=True,
        )
        return None
