"""Whether a request may have left, whatever its connection raises.

The type of an exception does not tell: before and after a request was sent, sockets, TLS, urllib3
and requests raise the same ones, and behind a proxy urllib3 often blames the proxy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Sending:
    """A request on its way out.

    Attributes:
        begun: Whether a byte of the request may have left.  What a connection needs before it, such
            as a proxy's CONNECT and the TLS handshake, does not count.
    """

    begun = False


@contextmanager
def sending() -> Iterator[Sending]:
    """Follow the request that this thread makes inside the block."""
    request = Sending()
    outer = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(outer)


class SendingConnection:
    """A connection of http.client, or a part of one, that notes when its request leaves."""

    def endheaders(self: Any, *args: Any, **kwargs: Any) -> None:
        """Send the headers, and the body that http.client sends with them."""
        if self.sock is None:
            self.connect()  # otherwise http.client connects later, while it sends
        request = _current.get()
        if request is not None:
            request.begun = True
        super().endheaders(*args, **kwargs)  # type: ignore[misc]


# Not a thread's: where threads are greenlets, each has a context of its own.
_current: ContextVar[Sending | None] = ContextVar("kombu_cfqueues_sending", default=None)
