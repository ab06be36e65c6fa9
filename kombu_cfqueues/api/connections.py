"""Connections to the API, and how to get there: what lies between the client and the sockets.

No login from ``~/.netrc`` is taken, no redirect followed, no request repeated, no cookie kept, and
no answer outlives its timeout.  Proxies and CA bundles of the environment are honoured.
"""

from __future__ import annotations

import io
import os
import socket
import time
from http.client import HTTPResponse
from typing import Any, cast
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
from urllib3.util.connection import allowed_gai_family

from ..options import is_loopback

#: Connections that are kept open; more are made when more threads ask, and closed after use.
POOL_SIZE = 32

#: Most bytes of an answer that are read.  A pull of 100 messages of 128 KB, in which JSON needs six
#: bytes for some characters, stays below it.
MOST_ANSWER_BYTES = 100 << 20


class Pool:
    """Connections to one host, for any number of threads.

    The adapter of requests is used without a `requests.Session` around it.  What a session adds is
    what must not happen here: it follows redirects, keeps cookies, and lets ~/.netrc replace our
    Authorization header; and it takes a quarter of the CPU of a request.

    Args:
        url: Any URL of the host.
    """

    def __init__(self, url: str) -> None:
        # No retries by urllib3: each one would be a request that nobody has counted.
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=POOL_SIZE, max_retries=0)
        # What a session would read from the environment for each request, read once.
        loopback = is_loopback(urlsplit(url).hostname or "")
        self._proxies = {} if loopback else get_environ_proxies(url)
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        self._verify = bundle or True

    def send(self, request: requests.Request, timeout: urllib3.Timeout) -> requests.Response:
        """The answer's status and headers; `read_body` reads the rest."""
        return self._adapter.send(
            _prepare(request),
            stream=True,
            timeout=cast("Any", timeout),  # requests passes it on; its stubs do not know
            verify=self._verify,
            proxies=self._proxies,
        )

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()


def _prepare(request: requests.Request) -> requests.PreparedRequest:
    """As ``request.prepare()``, which takes a sixth of the CPU of a request.

    It parses and quotes the URL, which is ours and finished, and looks for cookies and a login.
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
    """The whole body, unless it is too long to be an answer of the API."""
    # What was asked for.  Each further packing makes an answer up to a thousand times as long.
    if response.headers.get("Content-Encoding", "identity") not in ("gzip", "identity", ""):
        raise requests.exceptions.ContentDecodingError("the answer is packed as nobody asked for")
    chunks, size = [], 0
    for chunk in response.iter_content(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > MOST_ANSWER_BYTES:
            raise requests.exceptions.ContentDecodingError("the answer is too long to be one")
    return b"".join(chunks)


class _TimedReader(io.RawIOBase):
    """Reads a socket until the timeout that the socket has now has passed, once and for all.

    A socket's own timeout starts anew with each byte, so that a server that sends its answer drop
    by drop would be waited for as long as it likes.
    """

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock = sock
        self._raw = raw
        timeout = sock.gettimeout()
        self._until = None if timeout is None else time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer did not end in time")
            self._sock.settimeout(left)
        return cast("int | None", self._raw.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        # urllib3 has just set the socket's timeout to the time that is left for the answer.
        self.fp = io.BufferedReader(_TimedReader(sock, self.fp.detach()))


class _SharedTimeout(HTTPConnection):
    """Shares its timeout out among the addresses of the host.

    urllib3 gives the whole of it to each, and Cloudflare's API has four: behind a firewall that
    drops packets, a connection would take four times as long as it may.
    """

    def _new_conn(self) -> socket.socket:
        host, timeout = self._dns_host, cast("float", self.timeout)
        try:
            found = socket.getaddrinfo(host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NewConnectionError(self, f"{host} has no address: {error}") from error
        addresses = list(dict.fromkeys(cast("str", address[0]) for *_, address in found))
        until = time.monotonic() + timeout
        try:
            while True:
                self._dns_host = addresses.pop(0)
                left = max(until - time.monotonic(), 0.001)  # 0 would not wait for an answer at all
                self.timeout = left / (1 + len(addresses))
                try:
                    sock = super()._new_conn()
                except (ConnectTimeoutError, NewConnectionError):
                    if not addresses:
                        raise
                else:
                    sock.settimeout(timeout)
                    return sock
        finally:
            self._dns_host, self.timeout = host, timeout


class _HTTPConnection(_SharedTimeout):
    response_class = _Response
    debuglevel = 0  # where it is set for all, http.client prints headers, and so the token


class _HTTPSConnection(_SharedTimeout, HTTPSConnection):
    response_class = _Response
    debuglevel = 0

    def connect(self) -> None:
        try:
            super().connect()
        except OSError as error:
            if self.proxy:
                raise  # urllib3 tells by the type that it was the proxy
            # The same types are raised after the request has left; here surely nothing was sent.
            raise NewConnectionError(self, f"connecting failed: {error}") from error


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        try:
            manager = super().proxy_manager_for(proxy, **kwargs)
        except ValueError as error:  # a version of SOCKS that there is not, and others
            raise requests.exceptions.InvalidProxyURL(str(error)) from error
        if not proxy.lower().startswith("socks"):  # these need connections of their own
            _use_our_pools(manager)
        return manager


def _use_our_pools(manager: Any) -> None:
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
