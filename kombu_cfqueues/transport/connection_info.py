"""Removes the secrets from what ``Connection.info()`` returns.

Celery sends it as JSON to any process that asks a worker for its statistics, and removes only the
password.  With this transport, the token may also be in the URL or in the transport options.
"""

from __future__ import annotations

import weakref
from typing import Any

from kombu.utils.url import maybe_sanitize_url

from ..options import BrokerUrl, is_ours, shown_option, shown_place


class ConnectionInfo:
    """Replaces the method ``info`` of one connection.

    Args:
        client: The Kombu connection.
    """

    def __init__(self, client: Any) -> None:
        self._client = weakref.ref(client)

    def __call__(self) -> dict[str, Any]:
        """Return what Kombu's method returns, with all secrets masked, as JSON can hold it."""
        info = dict(self._complete())
        options = info["transport_options"] or {}
        info["transport_options"] = {
            name: shown_option(name, value) for name, value in options.items()
        }
        info["hostname"] = _shown(info["hostname"], options)
        info["alternates"] = [_shown(url, options) for url in info["alternates"] or ()]
        if callable(info["password"]):
            info["password"] = "**"  # noqa: S105  the mask
        return info

    def reduce(self) -> tuple[Any, ...]:
        """Return what a pickled connection is made from: Kombu would take it from `info`."""
        return type(self._client()), tuple(dict(self._complete()).values()), None

    def _complete(self) -> Any:
        client = self._client()
        if client is None:  # only its own method can call this
            raise ReferenceError("the connection is gone")
        return client._info()


def mask_info(client: Any) -> None:
    """Have ``client.info()`` mask secrets.  Copies and pickles of *client* keep them."""
    info = ConnectionInfo(client)
    client.info = info
    client.__reduce__ = info.reduce


def _shown(url: Any, options: Any) -> Any:
    if not isinstance(url, str) or "://" not in url:
        return url
    if not is_ours(url):
        return maybe_sanitize_url(url)
    place = shown_place(None, None, options)
    return BrokerUrl.parse(url).shown(default_host=place, with_password=False, mask="**")
