"""Connections to the API: everything between a request and the sockets.

They take no login from ``~/.netrc``, follow no redirect, repeat no request, keep no cookie, skip
interim responses, and end every response at its timeout.  They use the proxies and CA bundles of
the environment.
"""

from __future__ import annotations

import functools
import io
import os
import select
import socket
import time
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, parse_headers
from typing import Any, Final, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.hooks import default_hooks
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from ..options import is_loopback
from .idle_connections import IdleConnections
from .name_resolution import names
from .sending import SendingConnection

POOL_SIZE: Final = 32
"""Connections that stay open.  If more threads make requests, the additional connections are closed
after use."""

MAX_RESPONSE_BYTES: Final = 100 << 20
"""Maximum size of a response body.  A pull of 100 messages of 128 KB stays below it, even if JSON
needs six bytes for each character."""

MIN_CONNECT_SECONDS: Final = 0.001
"""The last address of a host gets at least this connect timeout, and other addresses a share of it:
a socket with the timeout 0 would not wait at all."""


class Pool:
    """Connections to one host.  Threads may share it.

    This uses the adapter of requests without a `requests.Session`.  A session would follow
    redirects, keep cookies and let ~/.netrc replace our Authorization header, and it takes a
    quarter of the CPU time of a request.

    Args:
        url: Any URL of the host.
    """

    def __init__(self, url: str) -> None:
        # No retries by urllib3: the request allowance would not count them.
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=POOL_SIZE, max_retries=0)
        # A session would read the environment for each request; read it once.
        loopback = is_loopback(urlsplit(url).hostname or "")
        self._proxies = {} if loopback else get_environ_proxies(url)
        ca_bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        self._verify = ca_bundle or True

    def send(self, request: requests.Request, timeout: urllib3.Timeout) -> requests.Response:
        """Make a request, and return its response with the body unread (`read_body` reads it).

        Raises whatever requests and urllib3 raise.
        """
        return self._adapter.send(
            _prepare(request),
            stream=True,
            timeout=cast("Any", timeout),  # requests passes it on, but its stubs do not say so
            verify=self._verify,
            proxies=self._proxies,
        )

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()


def _prepare(request: requests.Request) -> requests.PreparedRequest:
    """Do the needed part of ``request.prepare()``, which takes a sixth of a request's CPU time.

    ``prepare`` also parses and quotes the URL, which is already quoted, and looks for cookies and a
    login.
    """
    prepared = requests.PreparedRequest()
    prepared.method = request.method
    prepared.url = request.url
    prepared.headers = CaseInsensitiveDict(request.headers)
    prepared.body = cast("bytes | None", request.data) or None
    if prepared.body is not None or request.method != "GET":
        prepared.headers["Content-Length"] = str(len(prepared.body or b""))
    prepared.hooks = default_hooks()
    return prepared


def read_body(response: requests.Response) -> bytes:
    """Read the whole body, and keep the connection for another request; if that fails, close it.

    Raises:
        ContentDecodingError: The body is larger than `MAX_RESPONSE_BYTES`, or has an encoding that
            the request did not ask for: each layer of compression can make a body a thousand times
            as large.

    Also raises whatever requests and urllib3 raise.
    """
    raw: Any = response.raw
    # Taken from the response, which gives it back in two steps.  An exception of a signal handler
    # in between would have it given back twice, and two threads would use it at the same time.
    connection, raw._connection = raw._connection, None
    try:
        body = _read(response)
    except BaseException:
        connection.close()
        raise
    raw._pool._put_conn(connection)
    return body


def _read(response: requests.Response) -> bytes:
    if response.headers.get("Content-Encoding", "identity") not in ("gzip", "identity", ""):
        raise requests.exceptions.ContentDecodingError("the response has an unrequested encoding")
    chunks, size = [], 0
    for chunk in response.iter_content(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise requests.exceptions.ContentDecodingError("the response is too large")
    return b"".join(chunks)


class _TimedReader(io.RawIOBase):
    """Reads a whole response within the timeout that its socket has when reading begins.

    A socket's own timeout starts again with each byte, so a server that sends one byte at a time
    could keep the reader waiting without limit.
    """

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw
        timeout = sock.gettimeout()
        self._ends = None if timeout is None else time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._ends is not None:
            remaining = self._ends - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("the response did not end in time")
            self._sock.settimeout(remaining)
        return cast("int | None", self._raw.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """The final response to a request.

    Python's own class takes an interim response (such as 102 or 103) for the final one, unless it
    is 100.  The next request on the connection would then read the response to this one.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        # urllib3 has just set the socket's timeout to the time that remains for the response.
        self.fp = io.BufferedReader(_TimedReader(sock, self.fp.detach()))

    def _read_status(self) -> tuple[str, int, str]:
        """Return the status line of the final response; also used for a proxy's tunnel."""
        while True:
            line: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            status = line[1]
            if status == HTTPStatus.SWITCHING_PROTOCOLS:  # no request asks for it
                raise HTTPException("the server switched to another protocol")
            if status >= HTTPStatus.OK:
                return line
            parse_headers(self.fp)

    def begin(self) -> None:
        super().begin()
        # These statuses have no body (RFC 9110).  If the headers announce a body, the server may
        # send it late, and the next request on the connection would read it.
        if self.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED) and (
            self.chunked or self.headers.get("Content-Length", "0").strip() != "0"
        ):
            self.will_close = True


class _SharedTimeout(SendingConnection, HTTPConnection):
    """Divides its connect timeout among looking up the name and the addresses of the host.

    urllib3 gives the whole timeout to each address, and Cloudflare's API has four: behind a
    firewall that drops packets, connecting would take four times the timeout.  Looking up the name
    has no timeout at all.
    """

    @property
    def is_connected(self) -> bool:
        """Whether the server has kept the connection open.

        urllib3 remembers ``select.poll``, which eventlet removes when it patches a process.
        """
        return self.sock is not None and not _is_readable(self.sock)

    def _new_conn(self) -> socket.socket:
        host, timeout = self._dns_host, cast("float", self.timeout)
        ends = time.monotonic() + timeout
        addresses = _addresses(self, host, self.port, ends)
        try:
            sock = self._first_that_connects(addresses, ends)
        finally:
            self._dns_host, self.timeout = host, timeout
        sock.settimeout(timeout)
        return sock

    def _first_that_connects(self, addresses: list[str], ends: float) -> socket.socket:
        while True:
            self._dns_host = addresses.pop(0)
            remaining = max(ends - time.monotonic(), MIN_CONNECT_SECONDS)
            self.timeout = remaining / (1 + len(addresses))
            try:
                return super()._new_conn()
            except (ConnectTimeoutError, NewConnectionError):
                if not addresses:
                    raise


def _is_readable(sock: socket.socket) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])


class _HTTPConnection(_SharedTimeout):
    response_class = _Response
    debuglevel = 0  # http.client prints headers, and so the token, if an application sets it


class _HTTPSConnection(_SharedTimeout, HTTPSConnection):
    response_class = _Response
    debuglevel = 0


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection
    QueueCls: Any = IdleConnections


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection
    QueueCls: Any = IdleConnections


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        try:
            manager = super().proxy_manager_for(proxy, **kwargs)
        except ValueError as error:  # such as an unknown version of SOCKS
            raise requests.exceptions.InvalidProxyURL(str(error)) from error
        if proxy.lower().startswith("socks"):
            _use_our_responses(manager)
        else:
            _use_our_pools(manager)
        return manager


def _use_our_pools(manager: Any) -> None:
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


def _use_our_responses(manager: Any) -> None:
    """Keep the SOCKS connections of *manager*, but read responses with our class."""
    manager.pool_classes_by_scheme = {
        scheme: _reading_our_responses(pool)
        for scheme, pool in manager.pool_classes_by_scheme.items()
    }


class _NamesInTime:
    """Looks up names within the connect timeout: of a SOCKS proxy, and with ``socks5`` of the host.

    PySocks would look them up without a timeout.
    """

    def _new_conn(self: Any) -> socket.socket:
        host, options, timeout = self._dns_host, self._socks_options, self.timeout
        ends = time.monotonic() + timeout
        try:
            proxies = _addresses(self, options["proxy_host"], int(options["proxy_port"]), ends)
            if not options["rdns"]:
                self._dns_host = _addresses(self, host, self.port, ends)[0]
            while True:
                self._socks_options = options | {"proxy_host": proxies.pop(0)}
                remaining = max(ends - time.monotonic(), MIN_CONNECT_SECONDS)
                self.timeout = remaining / (1 + len(proxies))
                try:
                    return cast("socket.socket", super()._new_conn())  # type: ignore[misc]
                except (ConnectTimeoutError, NewConnectionError):
                    if not proxies:
                        raise
        finally:
            self._dns_host, self._socks_options, self.timeout = host, options, timeout


def _addresses(connection: Any, host: str, port: int, ends: float) -> list[str]:
    """Return the addresses of *host*; look them up until *ends* (monotonic seconds) at most."""
    timeout = max(ends - time.monotonic(), MIN_CONNECT_SECONDS)
    try:
        return names.addresses(host, port, timeout)
    except OSError as error:
        raise NewConnectionError(connection, f"{host} has no address: {error}") from error


@functools.cache  # otherwise each request would make a new class
def _reading_our_responses(pool: Any) -> Any:
    connection = pool.ConnectionCls
    if connection.response_class is _Response:
        return pool
    ours = type(
        connection.__name__,
        (SendingConnection, _NamesInTime, connection),
        {"response_class": _Response, "debuglevel": 0},
    )
    return type(pool.__name__, (pool,), {"ConnectionCls": ours, "QueueCls": IdleConnections})
