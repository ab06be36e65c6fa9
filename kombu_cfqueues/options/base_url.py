"""Where the API is served: the base URL of requests, and when they may go by http."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from .. import limits
from ..errors import ConfigurationError
from ..runtime.once import once
from .host import is_host, is_loopback, is_private, may_be_secret, netloc

logger = logging.getLogger(__name__)

_HIDDEN: Final = "the given value, which is hidden because it may contain a secret"


def base_url(host: str | None, port: int | None, option: Any, *, insecure: bool) -> str:
    """Return the base URL of the API: of the URL's host, else of the option, else Cloudflare's.

    Args:
        host: Host of the broker URL; None and ``""`` if it has none.
        port: Port of the broker URL.
        option: The option ``base_url``; None if it is not given.
        insecure: Whether plain http to another machine is allowed.

    Raises:
        ConfigurationError: The option is not a base URL, or needs *insecure*.
    """
    if option is not None:
        parts = _split(option)
        # If both name the same host, the option completes the URL: it adds scheme and path, which
        # the URL cannot have, and the port if the URL has none.  Otherwise the URL's host wins, so
        # that one option can serve all URLs of a fail-over list.
        if not host or (host.lower() == parts.hostname and port in (None, parts.port)):
            _check_scheme(parts.scheme, parts.hostname or "", insecure=insecure)
            return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or limits.API_PATH}"
    if not host:
        return limits.API_BASE_URL
    scheme = "https"
    if is_loopback(host) or (insecure and is_private(host)):
        scheme = "http"
        _check_scheme(scheme, host, insecure=insecure)
    return f"{scheme}://{netloc(host, port)}{limits.API_PATH}"


def shown_place(
    host: str | None, port: int | None, transport_options: Mapping[str, Any] | None
) -> str:
    """Return where requests go, as ``host`` or ``host:port`` for display.  Never raises.

    Args:
        host: Host of the broker URL; None and ``""`` if it has none.
        port: Port of the broker URL.
        transport_options: Kombu's dictionary, of which ``base_url`` is used.
    """
    if host:
        return netloc(host, port)
    option = (transport_options or {}).get("base_url")
    try:
        parts = urlsplit(option if isinstance(option, str) else "")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    return netloc(host, port) if host else urlsplit(limits.API_BASE_URL).netloc


def _split(option: Any) -> SplitResult:
    try:
        parts = urlsplit(option if isinstance(option, str) else "")
        well_formed = (
            parts.scheme in ("http", "https") and is_host(parts.hostname or "") and parts.port != 0
        )
    except ValueError:
        parts, well_formed = urlsplit(""), False
    if parts.username or parts.password:
        raise ConfigurationError(
            "base_url contains a user name or password: remove it, and use account_id and api_token"
        )
    if not well_formed or parts.query or parts.fragment:
        # A value with one of these characters may contain a secret.
        hidden = set("@?#") & set(str(option)) or may_be_secret(str(option))
        raise ConfigurationError(
            "base_url must look like 'https://host' or 'https://host/client/v4', not "
            f"{_HIDDEN if hidden else repr(option)}"
        )
    return parts


def _check_scheme(scheme: str, host: str, *, insecure: bool) -> None:
    if scheme == "https" or is_loopback(host):
        return
    host = "a host that is hidden because it may be a secret" if may_be_secret(host) else host
    if not insecure:
        raise ConfigurationError(
            f"base_url would send the API token unencrypted to {host}: use https, or set "
            "allow_insecure_http=True if you trust that network"
        )
    _warn_of_plain_http(host)


@once
def _warn_of_plain_http(host: str) -> None:
    logger.warning("the API token travels unencrypted to %s (allow_insecure_http is set)", host)
