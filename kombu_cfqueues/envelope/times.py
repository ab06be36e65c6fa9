"""When a message is due, and when it expires: its delay, its eta and its expiration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .. import limits
from ..errors import InvalidMessage
from .packed import Packed


def due_at(message: Mapping[str, Any], queue: str, *, native_delay: bool) -> float | None:
    """Return when the message is due, in seconds since the epoch; None if it does not say.

    Its property ``delay_seconds`` decides; without it, its header ``eta``.

    Args:
        message: Kombu's dictionary.
        queue: Kombu's name of the queue, for the text of an error.
        native_delay: Whether an eta counts.

    Raises:
        InvalidMessage: ``delay_seconds`` is not a number, negative, or longer than 24 hours.
    """
    delay = (message.get("properties") or {}).get("delay_seconds")
    if delay is not None:
        is_number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
        if not (is_number and 0 <= delay <= limits.DELAY_SECONDS):
            raise InvalidMessage(
                f"delay_seconds of the message to queue {queue!r} must be a number from 0 to "
                f"{limits.DELAY_SECONDS:,}, not {delay!r}"
            )
        return time.time() + float(delay)
    eta = (message.get("headers") or {}).get("eta")
    return _timestamp(eta) if native_delay else None


def seconds_until_due(message: Mapping[str, Any], now: float) -> float:
    """Return the seconds from *now* (since the epoch) to the message's eta; 0 without an eta."""
    due = _timestamp(message["headers"].get("eta"))
    return 0.0 if due is None else max(0.0, due - now)


def retention_error(
    packed: Packed, queue: str, retention_seconds: int | None
) -> InvalidMessage | None:
    """Return the error of a message that its queue would delete before it is due, else None.

    Args:
        packed: The message.
        queue: Kombu's name of the queue, for the text of the error.
        retention_seconds: How long the queue keeps messages; None if unknown.
    """
    if packed.due is None or retention_seconds is None:
        return None
    delay = packed.due - time.time()
    if delay <= retention_seconds:
        return None
    return InvalidMessage(
        f"the message to queue {queue!r} is due in {delay:,.0f} s and would never arrive, because "
        f"the queue deletes messages after {retention_seconds:,} s: shorten the delay, or raise "
        "the queue's message retention"
    )


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
    """
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
