"""Remembers, after a fail-over, that the first broker may have accepted the message.

Kombu publishes again over the next URL, and the error of that attempt does not know of the first.
The two attempts share only the Kombu connection and the content of the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from ..errors import CFQueuesError


class Content(NamedTuple):
    """What is the same in each attempt to publish one message."""

    body: Any
    headers: Any
    exchange: str
    routing_key: str

    @classmethod
    def of(cls, message: Mapping[str, Any], exchange: str, routing_key: str) -> Content:
        """Return the content of Kombu's *message*."""
        return cls(message.get("body"), message.get("headers"), exchange, routing_key)


_left: Final[WeakKeyDictionary[Any, Content]] = WeakKeyDictionary()
"""By Kombu connection: the message that the last publish left in doubt."""


def begin(client: object, content: Content) -> bool:
    """Return whether an earlier attempt with the same message may have arrived."""
    if _left.get(client) == content:
        return True
    _left.pop(client, None)
    return False


def leave(client: object, content: Content) -> None:
    """Note that Kombu goes on to its next URL, although the message may have arrived."""
    _left[client] = content


def end(client: object) -> None:
    """Note that the message was accepted."""
    _left.pop(client, None)


def say_so(client: object, error: CFQueuesError) -> None:
    """Set ``delivered`` of an *error* of connecting if an earlier attempt may have arrived."""
    if client in _left:
        error.delivered = "unknown"
