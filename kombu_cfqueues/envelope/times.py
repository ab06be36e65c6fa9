"""When a message is due, and when it expires: its delay, its eta and its expiration."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

from .. import limits
from ..errors import InvalidMessage
from .packed import Packed
from .task import is_task

_DELAYS: Final = ("delay_seconds", "DelaySeconds")
"""Names of the property that delays a message: ours, and that of Kombu's SQS transport."""


def delayed_until(message: Mapping[str, Any], queue: str) -> float | None:
    """Return when a message with a delay is due, in seconds since the epoch; None without a delay.

    Args:
        message: Kombu's dictionary.
        queue: Kombu's name of the queue, for the text of an error.

    Raises:
        InvalidMessage: The delay is not a number, negative, or longer than 24 hours.
    """
    properties = message.get("properties") or {}
    for name in _DELAYS:
        delay = properties.get(name)
        if delay is None:
            continue
        seconds = _number(delay)
        if not 0 <= seconds <= limits.DELAY_SECONDS:
            raise InvalidMessage(
                f"{name} of the message to queue {queue!r} must be a number from 0 to "
                f"{limits.DELAY_SECONDS:,}, not {delay!r}"
            )
        return time.time() + seconds
    return None


def _number(value: Any) -> float:
    """Return a number, or text that is one, as a float; NaN if *value* is neither."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def eta_of(message: Mapping[str, Any]) -> float | None:
    """Return the eta of a Celery task, in seconds since the epoch; None if it has none.

    In any other message, the application gives the header ``eta`` its meaning.
    """
    headers = message.get("headers") or {}
    return _timestamp(headers.get("eta")) if is_task(headers) else None


def seconds_until_due(message: Mapping[str, Any], now: float) -> float:
    """Return the seconds from *now* (since the epoch) to the eta of a task; 0 without an eta."""
    due = eta_of(message)
    return 0.0 if due is None else max(0.0, due - now)


def retention_error(
    packed: Packed, queue: str, retention_seconds: int | None
) -> InvalidMessage | None:
    """Return the error of a message that its queue would delete before it is due, else None.

    Args:
        packed: The message.
        queue: Kombu's name of the queue, for the text of the error.
        retention_seconds: How long the queue keeps messages; None if unknown, which means the
            longest time for which any queue may keep them.
    """
    if packed.due is None and packed.eta is None:
        return None
    delay = max(at for at in (packed.due, packed.eta) if at is not None) - time.time()
    kept = limits.MAX_RETENTION_SECONDS if retention_seconds is None else retention_seconds
    if delay <= kept:
        return None
    deletes = "any queue deletes" if retention_seconds is None else "the queue deletes"
    return InvalidMessage(
        f"the message to queue {queue!r} is due in {delay:,.0f} s and would be lost, because "
        f"{deletes} messages after {kept:,} s: choose an earlier eta or a shorter delay, or raise "
        "the queue's message retention (14 days at most)"
    )


def is_revoked_by_worker(message: Mapping[str, Any]) -> bool:
    """Whether *message* is a Celery task that its worker revokes once it has expired.

    The worker reads the time from the header ``expires``.  It stores the state REVOKED, sends the
    signal `task_revoked`, and fails the chord of the task, so the library must not drop the
    message.
    """
    headers = message.get("headers") or {}
    return is_task(headers) and _timestamp(headers.get("expires")) is not None


def expires_at(message: Mapping[str, Any]) -> float | None:
    """Return when Kombu's *message* expires, in seconds since the epoch; None if it never does."""
    expiration: Any = (message.get("properties") or {}).get("expiration")
    try:
        return time.time() + float(expiration) / 1000  # milliseconds as text, as in AMQP
    except (OverflowError, TypeError, ValueError):
        return None


def expired(message: Mapping[str, Any], now: float) -> bool:
    """Return whether a received message has expired at *now* (seconds since the epoch).

    Its ``expiration`` is in milliseconds, as in AMQP, and starts when the queue got the message.
    A Celery task that its worker revokes never expires here.
    """
    if is_revoked_by_worker(message):
        return False
    properties = message["properties"]
    expiration = properties.get("expiration")
    since = properties["delivery_info"]["cloudflare"]["timestamp_ms"]
    if expiration is None or not isinstance(since, (int, float)):
        return False
    try:
        return since + float(expiration) <= now * 1000
    except (OverflowError, TypeError, ValueError):
        return False  # not an expiration of Kombu's


def _timestamp(eta: Any) -> float | None:
    """Return the seconds since the epoch of Celery's eta; None if *eta* is not a time."""
    if isinstance(eta, str):
        try:
            # fromisoformat of Python 3.10 does not accept Z for UTC.
            eta = datetime.fromisoformat(f"{eta[:-1]}+00:00" if eta.endswith("Z") else eta)
        except ValueError:
            return None  # the application uses the header eta for something else
    if not isinstance(eta, datetime):
        return None
    if eta.tzinfo is None:
        eta = eta.replace(tzinfo=timezone.utc)  # as Celery's worker reads it
    return float(eta.timestamp())
