"""The control brokers of this process, by URL."""

from __future__ import annotations

from typing import Final

from ..options import ControlUrl
from .broker import ControlBroker
from .link import check_url

_brokers: Final[dict[ControlUrl, ControlBroker]] = {}


def control_broker(url: ControlUrl) -> ControlBroker:
    """Return this process's `ControlBroker` for *url*.

    Raises:
        ConfigurationError: Kombu does not know the broker, or it cannot broadcast.
    """
    found = _brokers.get(url)
    if found is None:
        if not callable(url):
            check_url(url)
        # `setdefault` is atomic, so this needs no lock.
        found = _brokers.setdefault(url, ControlBroker(url))
    return found


def forget_control_brokers() -> None:
    """Close all connections to control brokers, so that a test starts as a new process does."""
    brokers = list(_brokers.values())
    _brokers.clear()
    for broker in brokers:
        broker.finish()
