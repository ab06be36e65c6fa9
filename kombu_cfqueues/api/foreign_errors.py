"""Translates what requests, urllib3, http.client, ssl and sockets raise into one of our errors.

No other file of the package translates their exceptions.  An exception that is not translated
would end a Celery worker.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from urllib3.util.ssl_match_hostname import CertificateError

from .. import limits
from ..errors import CFQueuesError, ConfigurationError, ConnectionFailed, Delivered, NothingListens
from ..options import is_loopback

FOREIGN: Final = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)
"""What a request may raise: the exceptions of requests, and those that requests lets through."""


_API_HOST: Final = urlsplit(limits.API_BASE_URL).netloc

CHECK_ROUTE: Final = "check the host of the broker URL, the network, a firewall, and HTTPS_PROXY"
"""What to do if the API cannot be reached."""


class _Translation(NamedTuple):
    """What an exception means for a request.

    Attributes:
        ours: The class of our error.
        reason: What happened and what to do, with ``{host}`` for the API's host.
    """

    ours: type[CFQueuesError]
    reason: str


# Before the request was sent

_NO_CERTIFICATES: Final = _Translation(
    ConfigurationError,
    "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE does not name a file with certificates",
)
_NO_SOCKS: Final = _Translation(
    ConfigurationError,
    "a proxy variable of the environment names a SOCKS proxy, which needs the package PySocks",
)
_NOTHING_LISTENS: Final = _Translation(
    NothingListens,
    "{host} cannot be reached: nothing listens on {host}; is 'cfqueues emulator' running?",
)
_PLAIN: Final = _Translation(
    ConnectionFailed,
    "this server speaks plain http: use base_url and allow_insecure_http, as in "
    "base_url='http://{host}', if you trust the network to {host}",
)
_UNREACHABLE: Final = _Translation(ConnectionFailed, "{host} cannot be reached: " + CHECK_ROUTE)

_UNSENT: Final[tuple[tuple[tuple[type[BaseException], ...], _Translation], ...]] = (
    (
        (
            requests.exceptions.InvalidProxyURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.InvalidURL,
            requests.exceptions.MissingSchema,
            urllib3.exceptions.LocationValueError,
            UnicodeError,
        ),
        _Translation(
            ConfigurationError,
            "base_url or a proxy variable of the environment is not a valid URL",
        ),
    ),
    (
        (ssl.SSLCertVerificationError, CertificateError),
        _Translation(
            ConnectionFailed,
            "the certificate of {host} could not be verified; behind a proxy that inspects TLS, "
            "set REQUESTS_CA_BUNDLE to the proxy's CA bundle",
        ),
    ),
    (
        (urllib3.exceptions.ProxyError,),
        _Translation(
            ConnectionFailed,
            "the proxy for {host} refused the connection or cannot be reached: check HTTPS_PROXY",
        ),
    ),
)
"""The most specific first, because an exception often has others as its cause or argument."""

# After a byte of it may have left

_SLOW: Final = _Translation(ConnectionFailed, "{host} did not answer in time: " + CHECK_ROUTE)
_BROKEN: Final = _Translation(
    ConnectionFailed,
    "the connection to {host} broke before the response arrived: " + CHECK_ROUTE,
)


def translate(
    error: BaseException,
    *,
    sent: bool,
    handled: BaseException | None,
    action: str,
    host: str,
    token: str,
) -> CFQueuesError:
    """Return our error for one of `FOREIGN`.

    This also removes the tracebacks of *error* and of its causes: the frames of requests and
    http.client have the Authorization header in local variables, which some error reporters print.

    Args:
        error: What the request raised.
        sent: Whether a byte of the request may have left.
        handled: The exception that the application was handling before the request; Python links
            *error* to it, but it is not a cause.
        action: What the request was for, such as ``publishing to queue 'jobs'``.
        host: Host and port of the API.
        token: The API token, which is masked in the text.
    """
    links = list(_links(error, handled))
    for link in links:
        link.__traceback__ = None
    ours, reason = _meaning_of_sent(links) if sent else _meaning_of_unsent(links, host)
    detail = _detail(links).replace(token, "**")
    delivered: Delivered = "unknown" if sent else "no"
    return ours(f"{action} failed: {reason.format(host=host)} ({detail})", delivered=delivered)


def _meaning_of_sent(links: Sequence[BaseException]) -> _Translation:
    slow = requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError
    return _SLOW if any(isinstance(link, slow) for link in links) else _BROKEN


def _meaning_of_unsent(links: Sequence[BaseException], host: str) -> _Translation:
    # requests says this in the text of a plain OSError, and OpenSSL in the reason of an SSLError.
    if "CA certificate bundle" in str(links[0]) or any(
        getattr(link, "reason", None) == "NO_CERTIFICATE_OR_CRL_FOUND" for link in links
    ):
        return _NO_CERTIFICATES
    if "dependencies for SOCKS" in str(links[0]):
        return _NO_SOCKS
    for classes, translation in _UNSENT:
        if any(isinstance(link, classes) for link in links):
            return translation
    if _is_here(host) and any(isinstance(link, ConnectionRefusedError) for link in links):
        return _NOTHING_LISTENS
    # Cloudflare itself speaks TLS: something on the way has answered, and must not get the token.
    is_plain = host != _API_HOST and any(map(_is_no_tls, links))
    return _PLAIN if is_plain else _UNREACHABLE


def _is_no_tls(link: BaseException) -> bool:
    """Whether OpenSSL was answered by something that is not TLS."""
    return getattr(link, "reason", None) in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


def _is_here(host: str) -> bool:
    """Whether *host*, with its port, is an address of this machine."""
    return is_loopback(urlsplit(f"//{host}").hostname or "")


def _links(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield *error*, its causes, and the exceptions that urllib3 and requests keep as arguments."""
    seen = {id(None), id(handled)}
    waiting: list[Any] = [error]
    while waiting:
        link = waiting.pop()
        if id(link) in seen or not isinstance(link, BaseException):
            continue
        seen.add(id(link))
        yield link
        waiting += [*link.args, getattr(link, "reason", None), link.__context__, link.__cause__]


def _detail(links: Sequence[BaseException]) -> str:
    """Return the text of the operating system, or the name of the innermost exception."""
    texts = [
        # A proxy's refusal to connect is a plain OSError that has only a text.
        link.strerror or (str(link)[:200] if type(link) is OSError else "")
        for link in links
        if isinstance(link, OSError)
    ]
    return next((text for text in reversed(texts) if text), type(links[-1]).__name__)
