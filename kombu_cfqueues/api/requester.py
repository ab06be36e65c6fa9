"""One authenticated request to the API: its token, its timeouts, its response.

The token never reaches a log line or an error from here, nor a local variable of a frame that stays
in a traceback, because some error reporters print local variables.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import AuthenticationFailed, CFQueuesError, ConnectionFailed
from ..options import Secret, Token, is_missing
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.imports import importing
from ..runtime.locks import new_lock
from .passing_refusals import PassingRefusals
from .permits import RequestPermits
from .responses import PULL_STATUSES, Response, payload_of

if TYPE_CHECKING:
    from .exchange import Exchange

logger = logging.getLogger(__name__)


class ApiRequest(NamedTuple):
    """A request as an endpoint describes it.

    Attributes:
        method: The HTTP method.
        path: The part of the URL after ``.../queues``.
        action: What it is for, such as ``publishing to queue 'jobs'``; log lines and errors begin
            with it.
        deadline: When to give up, in seconds of `time.monotonic`.
        body: JSON; None if there is none.
        queue_id: The queue whose messages it is about; its refusal may stop only that queue.
    """

    method: str
    path: str
    action: str
    deadline: float
    body: bytes | None = None
    queue_id: str | None = None


class Requester:
    """Makes requests over one pool of connections.  Threads may share it.

    Args:
        url: The URL of the account's queues; the paths of requests are appended to it.
        token: The API token, or a callable that returns it, which is called before each request.
        connect_timeout: Longest wait for a connection, TLS included, in seconds.
        read_timeout: Longest wait for a response, in seconds.
        permits: The request allowance; gets what responses say about the allowance.

    Attributes:
        latest_headers: Headers of the latest response to any thread; empty before the first.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        connect_timeout: float,
        read_timeout: float,
        permits: RequestPermits,
    ) -> None:
        self._url = url
        self._host = urlsplit(url).netloc
        self._token = token
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._permits = permits
        self.latest_headers: Mapping[str, str] = {}
        self._exchanges_of_parent: list[Exchange] = []
        self._exchange: Exchange | None = None  # guarded by _lock
        self._lock = new_lock()
        self._refusals = PassingRefusals()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Let a forked child open its own connections."""
        self._lock = new_lock()
        if self._exchange is not None:
            # Keep it: closing it here would close the parent's connections at the server.
            self._exchanges_of_parent.append(self._exchange)
            self._exchange = None

    def close(self) -> None:
        """Close the connections.  The next request opens new ones."""
        notice_fork()
        with self._lock:
            exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()

    def trust_token(self) -> None:
        """Note that the API has accepted the token from another process of the machine."""
        self._refusals.trust()

    def send(self, request: ApiRequest) -> dict[str, Any]:
        """Make one request and return the JSON object of its response.

        Blocks until the response was read, at most until the request's deadline.

        Raises:
            CFQueuesError: There was no response, or it is not a success.
        """
        notice_fork()
        token = self._current_token(request.action)
        response = self._send(request, token)
        if logger.isEnabledFor(logging.DEBUG):
            ray_id = response.headers.get("CF-Ray", "none").replace(token, "**")
            logger.debug("%s: HTTP %d, ray %s", request.action, response.status, ray_id)
        self.latest_headers = response.headers
        self._permits.observe(response.headers.get("Ratelimit"))
        statuses = PULL_STATUSES if request.path.endswith("/pull") else {}
        try:
            payload = payload_of(response, request.action, statuses, token)
        except CFQueuesError as refusal:
            error = self._refusals.judge(refusal, token, request.method, request.path)
            self._permits.refused(error, queue=request.queue_id)
            # Local variables here and in the frames below hold the response, in which a server
            # may repeat the token.
            # *error* may be a new one, which has the refusal as its context.
            del response
            refusal.with_traceback(None)
            raise error.with_traceback(None) from None
        self._refusals.accepted(token, request.method, request.path)
        return payload

    def _send(self, request: ApiRequest, token: Secret) -> Response:
        headers = {
            "Accept-Encoding": "gzip",
            "Authorization": Secret(f"Bearer {token}"),
            "Content-Type": "application/json",
            "User-Agent": "kombu-cfqueues",
        }
        url = self._url + request.path
        exchange = self.open()
        remaining = request.deadline - time.monotonic()
        if not remaining > 0:  # in this order, NaN is refused too
            raise ConnectionFailed(
                f"{request.action} failed: its deadline passed before a request to {self._host}; "
                "try again"
            )
        return exchange.send(
            (request.method, url, headers, request.body),
            seconds=remaining,
            connect_seconds=min(remaining, self._connect_timeout),
            read_seconds=min(remaining, self._read_timeout),
            action=request.action,
            token=token,
        )

    def open(self) -> Exchange:
        """Return the exchange; the first call imports the library requests, which takes a while."""
        exchange = self._exchange
        if exchange is None:
            # Not under the lock: to find the proxies, macOS may look up names.
            new = _load_exchange()(self._url, self._host)
            with self._lock:
                exchange = self._exchange = self._exchange or new
        return exchange

    def _current_token(self, action: str) -> Secret:
        try:
            given = self._token() if callable(self._token) else self._token
        except CFQueuesError:
            raise
        # The application's callable may raise anything, but a worker understands only our errors.
        # This error is transient: a secret store may be down for a moment, or a file may be empty.
        except Exception as error:
            raise ConnectionFailed(
                f"{action} failed: the callable api_token raised {type(error).__name__}, which is "
                "chained to this error: check the callable"
            ) from error
        if callable(self._token) and is_missing(given):
            raise ConnectionFailed(
                f"{action} failed: the callable api_token returned no token: check whether the "
                "file or the store from which it reads is empty"
            )
        token = Secret(given) if isinstance(given, str) else Secret()
        del given  # not a Secret, so an error reporter would print it
        # An HTTP header can carry a token of printable ASCII without spaces.
        if not re.fullmatch(r"[!-~]+", token):
            raise AuthenticationFailed(
                "the API token is malformed: it is empty, or contains a space, a line break or a "
                "letter that no token has (the word 'Bearer' is not part of it); check api_token"
            )
        return token


def _load_exchange() -> type[Exchange]:
    """Import requests, which takes as long as the rest of this package.

    A process whose messages other processes post does not need it.
    """
    with importing:
        from .exchange import Exchange  # noqa: PLC0415
    return Exchange


importing.before_forks(_load_exchange)
