"""What `metrics` counts, as OpenTelemetry instruments, where its API is installed.

Names and attributes are those of OpenTelemetry's semantic conventions for messaging clients
(opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics, status: development) where these
have one, and begin with ``kombu_cfqueues.`` where not.  No attribute holds a token or anything of
a message.
"""

from __future__ import annotations

import functools
import logging
from typing import Final, Literal, TypeAlias

from .errors import CFQueuesError

logger = logging.getLogger(__name__)

Operation: TypeAlias = Literal["publish", "pull", "ack", "admin"]
"""What a request does: each route of messages is one, and all other routes together."""

_Attributes: TypeAlias = dict[str, str | int]

#: The conventions' kinds of operation.  They have none for the administration of queues.
_TYPES: Final = {"publish": "send", "pull": "receive", "ack": "settle"}

#: Bounds of histograms: of seconds those that the conventions ask for, and more for long waits.
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_LONG_SECONDS: Final = (*_SECONDS, 30, 60, 300)
_MESSAGES: Final = (1, 2, 5, 10, 25, 50, 75, 99, 100)


class Instruments:
    """OpenTelemetry's instruments of this package.

    Raises:
        ImportError: ``opentelemetry-api`` is not installed.
        TypeError: It is older than 1.30, in which histograms have no bounds.
    """

    def __init__(self) -> None:
        from opentelemetry import metrics  # noqa: PLC0415 - an extra

        meter = metrics.get_meter("kombu_cfqueues")
        self._duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of requests to the API",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._permit = meter.create_histogram(
            "kombu_cfqueues.permit.wait.duration",
            "s",
            "How long requests waited for the allowance",
            explicit_bucket_boundaries_advisory=_LONG_SECONDS,
        )
        self._fill = meter.create_histogram(
            "kombu_cfqueues.publish.batch.size",
            "{message}",
            "Messages of a request that published",
            explicit_bucket_boundaries_advisory=_MESSAGES,
        )
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Messages that requests carried"
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Messages that were pulled"
        )
        self._empty = meter.create_counter(
            "kombu_cfqueues.pull.empty", "{request}", "Pulls that brought no message"
        )
        self._settled = meter.create_counter(
            "kombu_cfqueues.settled.messages", "{message}", "Messages acknowledged or given back"
        )
        self._expired = meter.create_counter(
            "kombu_cfqueues.lease.expired", "{message}", "Leases that ended before they were used"
        )
        self._retries = meter.create_counter(
            "kombu_cfqueues.retries", "{request}", "Failures after which another try was due"
        )

    def requested(
        self,
        operation: Operation,
        queue: str,
        seconds: float,
        messages: int,
        error: BaseException | None,
    ) -> None:
        """A request has ended, with *error* if it failed."""
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
        """Leases were settled."""
        for outcome, messages in (("ack", acks), ("retry", retries)):
            if messages:
                attributes = _attributes("ack", queue) | {"kombu_cfqueues.outcome": outcome}
                self._settled.add(messages, attributes)

    def expired(self, queue: str, leases: int) -> None:
        """Leases ended before they were used."""
        self._expired.add(leases, _attributes("ack", queue))

    def retried(self, error: CFQueuesError) -> None:
        """Another try is due, because of *error*."""
        self._retries.add(1, _of_error(type(error).__name__))

    def waited(self, seconds: float) -> None:
        """A request got its permit."""
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


@functools.cache
def instruments() -> Instruments | None:
    """OpenTelemetry's instruments; None where its API is not installed, or cannot be used."""
    try:
        return Instruments()
    except ImportError:
        return None
    # A version before 1.30, or a provider of the application: whatever is wrong costs no message.
    except Exception:
        logger.warning("OpenTelemetry gets no metrics of kombu_cfqueues", exc_info=True)
        return None
