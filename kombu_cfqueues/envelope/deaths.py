"""Why a message was dead-lettered: a header in the manner of RabbitMQ's ``x-death``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

HEADER: Final = "x-death"
"""Name of the header: its value is a list of objects, the latest death first.

Each has ``queue``, ``reason``, ``count`` and ``time`` as in RabbitMQ, and ``exception``, ``text``,
``hostname`` and ``attempts``.
"""

MAX_DEATHS: Final = 10
"""Maximum number of deaths in the header; the oldest ones are dropped."""

Death = Mapping[str, Any]
"""One object of the header."""


def deaths_of(headers: Mapping[str, Any]) -> list[Death]:
    """Return the deaths in *headers*, the latest first.  Never raises on a malformed header."""
    found = headers.get(HEADER)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def with_death(message: Mapping[str, Any], death: Death) -> dict[str, Any]:
    """Return an envelope with one more death.

    It replaces an earlier one of the same queue and reason, and continues the ``count`` of that.

    Args:
        message: Kombu's dictionary of the message.
        death: An object as `HEADER` describes it, without its ``count``.
    """
    headers = message["headers"]
    earlier, count = [], 1
    for one in deaths_of(headers):
        if (one.get("queue"), one.get("reason")) != (death["queue"], death["reason"]):
            earlier.append(one)
        elif isinstance(before := one.get("count"), int):
            count += before
    latest = {**death, "count": count}
    return {**message, "headers": {**headers, HEADER: [latest, *earlier][:MAX_DEATHS]}}


def without_deaths(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return an envelope without the header."""
    headers = {name: value for name, value in message["headers"].items() if name != HEADER}
    return {**message, "headers": headers}
