"""The HTTP API of Cloudflare Queues, one method an endpoint.  It knows nothing of Kombu.

Every call makes exactly one request and returns, or raises a `CFQueuesError`; trying again is the
caller's business.  Deadlines are in seconds of `time.monotonic`.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode, urlsplit

import requests
import urllib3
from urllib3.util.ssl_match_hostname import CertificateError

from ..errors import (
    AuthenticationFailed,
    CFQueuesError,
    ConfigurationError,
    ConnectionFailed,
    Delivered,
    PullNotEnabled,
    QueueDisabled,
    QueueNotFound,
    ServerError,
)
from ..metrics import Request, metrics
from ..options import Secret, Token
from ..runtime.fork import renew_in_child
from ..telemetry import Operation
from .connections import Pool, read_body
from .responses import STATUS_PAGE, Answer, Meaning, envelope_of

logger = logging.getLogger(__name__)

CHECK_ROUTE = "check the host of the broker URL, the network, a firewall, and HTTPS_PROXY"

#: What these statuses mean on the route that pulls.
_PULL: dict[int, Meaning] = {
    405: (PullNotEnabled, "The queue has no HTTP pull consumer, or a Worker consumes it."),
    409: (QueueDisabled, "Delivery from the queue is paused; resume it in the dashboard."),
}


class Queue(NamedTuple):
    """A queue as the API describes it.

    Attributes:
        id: 32 hex digits.
        name: The queue's name at Cloudflare.
        retention_seconds: How long it keeps messages; None if the answer did not say.
        consumers: As the API describes them; empty if there are none, or the answer did not say.
        paused: Whether its delivery is paused; None if the answer did not say.
    """

    id: str
    name: str
    retention_seconds: int | None
    consumers: tuple[Mapping[str, Any], ...] = ()
    paused: bool | None = None


class QueuePage(NamedTuple):
    """One page of an account's queues, and whether there are more pages."""

    queues: list[Queue]
    has_more: bool


class Backlog(NamedTuple):
    """What is in a queue, about; leased and delayed messages are counted too.

    Attributes:
        messages: How many; None if the answer did not say.
        bytes: Their size; None if the answer did not say.
        oldest_ms: When the oldest was published, in milliseconds since the epoch; None if unknown.
    """

    messages: int | None
    bytes: int | None
    oldest_ms: int | None


class Settled(NamedTuple):
    """What the API made of acknowledgements: how many it counted, and its warnings by lease."""

    acks: int | None
    retries: int | None
    warnings: dict[str, str]


class Gate(Protocol):
    """The request allowance, as far as a client needs it."""

    def acquire(
        self,
        deadline: float,
        *,
        for_message: bool = False,
        is_known: Callable[[], bool] | None = None,
    ) -> None:
        """Block until one more request may leave; raise if that would pass *deadline*.

        A request that is made *for_message* ranks as the message that waits for it.  Raises
        `Unneeded` as soon as what it asks for *is_known* to another process.
        """

    def observe(self, ratelimit: str | None) -> None:
        """Heed the ``Ratelimit`` header of an answer."""

    def refused(self, error: CFQueuesError, *, queue: str | None = None) -> None:
        """Stop what an answer with status 429 stops."""


class Client:
    """Calls of one account's Queues API over one pool of connections, for any number of threads.

    Args:
        base_url: Where the API is served, up to and with ``/client/v4``.
        account_id: The account.
        token: The API token, or a callable that returns it, asked before each request.
        connect_timeout: Most seconds to wait for a connection, TLS included.
        read_timeout: Most seconds to wait for an answer.
        gate: The request allowance.  Each admin request takes its permit here; publishing takes
            its permits before it comes here, and pull and ack need none.

    Attributes:
        heard: Headers of the latest answer, whoever asked; empty before the first.
    """

    def __init__(
        self,
        base_url: str,
        account_id: str,
        token: Token,
        *,
        connect_timeout: float = 5.0,
        read_timeout: float = 10.0,
        gate: Gate,
    ) -> None:
        self._queues_url = f"{base_url}/accounts/{quote(account_id, safe='')}/queues"
        self._host = urlsplit(base_url).netloc
        self._token = token
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._gate = gate
        self.heard: Mapping[str, str] = {}
        self._names: dict[str, str] = {}  # queue id -> name, for the texts of errors
        self._of_the_parent: list[Pool] = []
        self._pool: Pool | None = None  # guarded by _lock
        self._lock = threading.Lock()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Open connections of our own in a forked child."""
        self._lock = threading.Lock()
        if self._pool is not None:
            # Kept: closing them here would say goodbye in the parent's name.
            self._of_the_parent.append(self._pool)
            self._pool = None

    def close(self) -> None:
        """Close the connections.  The next call opens new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def remember_name(self, queue_id: str, name: str) -> None:
        """Call the queue by *name* in the texts of errors."""
        self._names[queue_id] = name

    # Queues

    def list_queues(
        self,
        *,
        page: int = 1,
        name: str | None = None,
        deadline: float,
        is_known: Callable[[], bool] | None = None,
    ) -> QueuePage:
        """One page of the account's queues.

        Args:
            page: The page, from 1.
            name: Ask for queues of this name only.  The server may ignore it.
            deadline: When to give up.
            is_known: Whether another process has the answer already, asked while this one waits
                for its permit.

        Raises:
            Unneeded: It has.
        """
        query = urlencode({"page": page} | ({"name": name} if name else {}))
        doing = "listing the queues" if name is None else f"looking up queue {name!r}"
        envelope = self._admin(
            "GET",
            f"?{query}",
            doing=doing,
            deadline=deadline,
            whole=True,
            for_message=name is not None,
            is_known=is_known,
        )
        result = envelope.get("result")
        queues = [queue for entry in _dicts(result) if (queue := self._queue(entry))]
        return QueuePage(queues, _has_more(envelope.get("result_info"), page, len(queues)))

    def create_queue(
        self, name: str, *, settings: Mapping[str, Any] | None = None, deadline: float
    ) -> Queue:
        """Create a queue.

        Args:
            name: Its name at Cloudflare.
            settings: ``delivery_delay`` and ``message_retention_period`` in seconds; what is left
                out, or None, is as Cloudflare sets it.
            deadline: When to give up.
        """
        doing = f"creating queue {name!r}"
        body = {"queue_name": name, **({"settings": dict(settings)} if settings else {})}
        result = self._admin("POST", "", body, doing=doing, deadline=deadline, for_message=True)
        queue = self._queue(result)
        if queue is None:
            raise ServerError(f"{doing} was answered without a queue id. {STATUS_PAGE}")
        return queue

    def delete_queue(self, queue_id: str, *, deadline: float) -> None:
        """Delete a queue and all that is in it."""
        doing = f"deleting {self._name(queue_id)}"
        self._admin("DELETE", f"/{_segment(queue_id)}", doing=doing, deadline=deadline)

    def backlog(self, queue_id: str, *, deadline: float) -> Backlog:
        """What the queue holds, as far as the service tells: its metrics."""
        doing = f"reading the metrics of {self._name(queue_id)}"
        path = f"/{_segment(queue_id)}/metrics"
        result = self._admin("GET", path, doing=doing, deadline=deadline)
        given = result if isinstance(result, Mapping) else {}
        names = ("backlog_count", "backlog_bytes", "oldest_message_timestamp_ms")
        count, size, oldest = (
            value if isinstance(value := given.get(name), int) else None for name in names
        )
        return Backlog(count, size, oldest or None)  # 0 says that it is not known

    def pause_delivery(self, queue: Queue, *, paused: bool, deadline: float) -> None:
        """Stop or resume delivery; publishing goes on, and messages expire all the same."""
        doing = f"{'pausing' if paused else 'resuming'} {self._name(queue.id)}"
        # The name too, as wrangler sends it.
        body = {"queue_name": queue.name, "settings": {"delivery_paused": paused}}
        self._admin("PATCH", f"/{_segment(queue.id)}", body, doing=doing, deadline=deadline)

    def purge(self, queue_id: str, *, deadline: float) -> None:
        """Start deleting all messages of a queue; it ends some time after the answer."""
        doing = f"purging {self._name(queue_id)}"
        path = f"/{_segment(queue_id)}/purge"
        body = {"delete_messages_permanently": True}
        self._admin("POST", path, body, doing=doing, deadline=deadline)

    # Consumers

    def list_consumers(self, queue_id: str, *, deadline: float) -> list[dict[str, Any]]:
        """The queue's consumers as the API describes them."""
        doing = f"reading the consumers of {self._name(queue_id)}"
        path = f"/{_segment(queue_id)}/consumers"
        return _dicts(self._admin("GET", path, doing=doing, deadline=deadline))

    def create_pull_consumer(
        self,
        queue_id: str,
        *,
        max_retries: int,
        visibility_timeout_ms: int,
        dead_letter_queue: str | None,
        deadline: float,
    ) -> None:
        """Let the queue be pulled over HTTP.

        Args:
            queue_id: The queue.
            max_retries: Deliveries after which a message is dead.
            visibility_timeout_ms: Lease of a pull that does not state one, in milliseconds.
            dead_letter_queue: Name, at Cloudflare, of the queue for dead messages.
            deadline: When to give up.
        """
        consumer: dict[str, Any] = {
            "type": "http_pull",
            "settings": {
                "max_retries": max_retries,
                "visibility_timeout_ms": visibility_timeout_ms,
            },
        }
        if dead_letter_queue:
            consumer["dead_letter_queue"] = dead_letter_queue
        doing = f"enabling HTTP pull for {self._name(queue_id)}"
        path = f"/{_segment(queue_id)}/consumers"
        self._admin("POST", path, consumer, doing=doing, deadline=deadline)

    # Messages

    def push(self, queue_id: str, message: bytes, *, deadline: float) -> None:
        """Publish one message: the JSON object that `Packed.encode` made."""
        doing = f"publishing to {self._name(queue_id)}"
        with self._counted("publish", queue_id, messages=1):
            self._message_call(queue_id, "", message, doing=doing, deadline=deadline)

    def push_batch(self, queue_id: str, messages: Sequence[bytes], *, deadline: float) -> None:
        """Publish up to 100 messages in one request; all of them are accepted, or none."""
        doing = f"publishing {len(messages)} messages to {self._name(queue_id)}"
        body = b'{"messages":[' + b",".join(messages) + b"]}"
        with self._counted("publish", queue_id, messages=len(messages)):
            self._message_call(queue_id, "/batch", body, doing=doing, deadline=deadline)

    def pull(
        self, queue_id: str, *, batch_size: int, visibility_timeout_ms: int, deadline: float
    ) -> list[dict[str, Any]]:
        """Lease up to *batch_size* messages for *visibility_timeout_ms*; often fewer, or none."""
        doing = f"pulling up to {batch_size} messages from {self._name(queue_id)}"
        body = {"batch_size": batch_size, "visibility_timeout_ms": visibility_timeout_ms}
        data = json.dumps(body).encode()
        with self._counted("pull", queue_id) as request:
            result = self._message_call(queue_id, "/pull", data, doing=doing, deadline=deadline)
            messages = _dicts(result.get("messages")) if isinstance(result, Mapping) else []
            request.messages = len(messages)
        return messages

    def peek(self, queue_id: str, *, batch_size: int, deadline: float) -> list[dict[str, Any]]:
        """Up to *batch_size* messages that are ready, which stay so: no lease, no attempt.

        Takes a permit: only pull and ack are documented as exempt.
        """
        doing = f"looking into {self._name(queue_id)}"
        path = f"/{_segment(queue_id)}/messages/peek"
        body = {"batch_size": batch_size}
        result = self._admin("POST", path, body, doing=doing, deadline=deadline)
        return _dicts(result.get("messages")) if isinstance(result, Mapping) else []

    def ask(self, method: str, path: str, body: Any = None, *, deadline: float) -> dict[str, Any]:
        """Make a request that nothing above makes, to find out what the API says to it.

        Args:
            method: The HTTP method.
            path: Below ``…/queues``.
            body: Sent as JSON; None: none.
            deadline: When to give up.

        Returns:
            The envelope of the answer.
        """
        if not path.endswith(("/messages/pull", "/messages/ack")):
            self._gate.acquire(deadline)
        data = None if body is None else json.dumps(body).encode()
        return self._send(method, path, data, doing=f"asking for {path}", deadline=deadline)

    def ack(
        self,
        queue_id: str,
        *,
        acks: Iterable[str] = (),
        retries: Mapping[str, int] | None = None,
        deadline: float,
    ) -> Settled:
        """Settle leases: *acks* are done, *retries* (lease -> seconds of delay) come again."""
        acks, retries = list(acks), retries or {}
        body = {
            "acks": [{"lease_id": lease} for lease in acks],
            "retries": [
                {"lease_id": lease, "delay_seconds": delay} for lease, delay in retries.items()
            ],
        }
        doing = f"settling {len(acks) + len(retries)} messages of {self._name(queue_id)}"
        data = json.dumps(body).encode()
        with self._counted("ack", queue_id):
            result = self._message_call(queue_id, "/ack", data, doing=doing, deadline=deadline)
        result = result if isinstance(result, Mapping) else {}
        warnings = result.get("warnings")
        warnings = dict(warnings) if isinstance(warnings, Mapping) else {}
        metrics.settled(
            self._names.get(queue_id, queue_id),
            acks=sum(lease not in warnings for lease in acks),
            retries=sum(lease not in warnings for lease in retries),
        )
        return Settled(result.get("ackCount"), result.get("retryCount"), warnings)

    # Below here: one request

    def _admin(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        doing: str,
        deadline: float,
        whole: bool = False,
        for_message: bool = False,
        is_known: Callable[[], bool] | None = None,
    ) -> Any:
        self._gate.acquire(deadline, for_message=for_message, is_known=is_known)
        data = None if body is None else json.dumps(body).encode()
        try:
            with metrics.request("admin"):
                envelope = self._send(method, path, data, doing=doing, deadline=deadline)
        except CFQueuesError as error:
            error.delivered = "no"  # it carried no message, so no message is in doubt
            raise
        return envelope if whole else envelope.get("result")

    def _counted(self, operation: Operation, queue_id: str, *, messages: int = 0) -> Request:
        return metrics.request(operation, self._names.get(queue_id, queue_id), messages=messages)

    def _message_call(
        self, queue_id: str, route: str, data: bytes, *, doing: str, deadline: float
    ) -> Any:
        path = f"/{_segment(queue_id)}/messages{route}"
        envelope = self._send("POST", path, data, doing=doing, deadline=deadline, queue_id=queue_id)
        return envelope.get("result")

    def _send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        *,
        doing: str,
        deadline: float,
        queue_id: str | None = None,
    ) -> dict[str, Any]:
        token = self._current_token(doing)
        answer = self._request(method, path, data, token, doing=doing, deadline=deadline)
        if logger.isEnabledFor(logging.DEBUG):
            ray_id = answer.headers.get("CF-Ray", "none").replace(token, "**")
            logger.debug("%s: HTTP %d, ray %s", doing, answer.status, ray_id)
        self.heard = answer.headers
        self._gate.observe(answer.headers.get("Ratelimit"))
        try:
            return envelope_of(answer, doing, _PULL if path.endswith("/pull") else None, token)
        except CFQueuesError as error:
            self._gate.refused(error, queue=queue_id)
            # Some reporters of errors print local variables; the answer is one here and in the
            # frames below, and a server may repeat in it what it was sent.
            del answer
            raise error.with_traceback(None) from None

    def _request(
        self,
        method: str,
        path: str,
        data: bytes | None,
        token: Secret,
        *,
        doing: str,
        deadline: float,
    ) -> Answer:
        left = deadline - time.monotonic()
        if not left > 0:  # this way round, NaN is none as well
            raise ConnectionFailed(
                f"{doing} failed: no time was left to ask {self._host}; try again"
            )
        timeout = urllib3.Timeout(
            total=left,
            connect=min(left, self._connect_timeout),
            read=min(left, self._read_timeout),
        )
        headers = {
            "Accept-Encoding": "gzip",
            "Authorization": Secret(f"Bearer {token}"),
            "Content-Type": "application/json",
            "User-Agent": "kombu-cfqueues",
        }
        request = requests.Request(method, self._queues_url + path, headers=headers, data=data)
        # What the application is handling just now is none of ours, although Python links to it.
        handling = sys.exc_info()[1]
        try:
            response = self._open_pool().send(request, timeout)
            with response:
                return Answer(response.status_code, response.headers, read_body(response))
        except _FOREIGN as e:
            links = list(_chain(e, outside=handling))
            for link in links:
                # Frames of requests and http.client hold the Authorization header in local
                # variables, which some reporters of errors print.
                link.__traceback__ = None
            raise self._translate(links, doing, token) from e

    def _open_pool(self) -> Pool:
        with self._lock:
            if self._pool is None:
                self._pool = Pool(self._queues_url)
            return self._pool

    def _current_token(self, doing: str) -> Secret:
        try:
            given = self._token() if callable(self._token) else self._token
        except CFQueuesError:
            raise
        # The callable is the application's and may raise anything; a worker understands only what
        # is ours.  The cause may pass, as that of a secret store that is down for a moment.
        except Exception as error:
            raise ConnectionFailed(
                f"{doing} failed: the callable api_token raised {type(error).__name__}, which is "
                "chained to this error: check the callable"
            ) from error
        token = Secret(given) if isinstance(given, str) else Secret()
        del given  # some reporters of errors print local variables
        # Printable ASCII without blanks is what a header can carry as a token.
        if not re.fullmatch(r"[!-~]+", token):
            raise AuthenticationFailed(
                "the API token is malformed: it is empty, or holds a blank, a line break or a "
                "letter that no token has (the word 'Bearer' is not part of it); check api_token"
            )
        return token

    def _translate(
        self, links: Sequence[BaseException], doing: str, token: Secret
    ) -> CFQueuesError:
        """The one place where what requests, urllib3 and sockets raise becomes ours."""
        kind, delivered, what = _meaning(links)
        reason = what.format(host=self._host)
        words = _words(links).replace(token, "**")
        return kind(f"{doing} failed: {reason} ({words})", delivered=delivered)

    def _name(self, queue_id: str) -> str:
        name = self._names.get(queue_id)
        return f"queue {name!r}" if name else f"the queue with id {queue_id!r}"

    def _queue(self, entry: Any) -> Queue | None:
        if not isinstance(entry, Mapping):
            return None
        queue_id, name = entry.get("queue_id"), entry.get("queue_name")
        if not (isinstance(queue_id, str) and queue_id and isinstance(name, str)):
            return None
        settings = entry.get("settings")
        settings = settings if isinstance(settings, Mapping) else {}
        retention = settings.get("message_retention_period")
        paused = settings.get("delivery_paused")
        self.remember_name(queue_id, name)
        return Queue(
            queue_id,
            name,
            retention if isinstance(retention, int) else None,
            tuple(_dicts(entry.get("consumers"))),
            paused if isinstance(paused, bool) else None,
        )


def _meaning(links: Sequence[BaseException]) -> tuple[type[CFQueuesError], Delivered, str]:
    """Our class, whether the request may have arrived, and words for it."""
    # An OSError that says so in its text only, and an SSLError that does in its reason.
    if "CA certificate bundle" in str(links[0]) or any(
        getattr(link, "reason", None) == "NO_CERTIFICATE_OR_CRL_FOUND" for link in links
    ):
        words = "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names no file with certificates"
        return ConfigurationError, "no", words
    if "dependencies for SOCKS" in str(links[0]):
        words = "the proxy of the environment speaks SOCKS, which needs the package PySocks"
        return ConfigurationError, "no", words
    for foreign, ours, delivered, words in _MEANINGS:
        if any(isinstance(link, foreign) for link in links):
            return ours, delivered, words
    return (
        ConnectionFailed,
        "unknown",
        "the connection to {host} broke before the response arrived: " + CHECK_ROUTE,
    )


#: What requests may raise, its own and what it lets through.
_FOREIGN = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)

#: What is raised on the way to the API, the most telling first.
_MEANINGS: tuple[
    tuple[tuple[type[BaseException], ...], type[CFQueuesError], Delivered, str], ...
] = (
    (
        (
            requests.exceptions.InvalidHeader,
            requests.exceptions.InvalidProxyURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.InvalidURL,
            requests.exceptions.MissingSchema,
            urllib3.exceptions.LocationValueError,
            UnicodeError,
        ),
        ConfigurationError,
        "no",
        "base_url or a proxy of the environment is not a valid URL",
    ),
    (
        (ssl.SSLCertVerificationError, CertificateError),
        ConnectionFailed,
        "no",
        (
            "the certificate of {host} could not be verified; behind a proxy that inspects TLS, "
            "set REQUESTS_CA_BUNDLE to its CA bundle"
        ),
    ),
    (
        (urllib3.exceptions.ProxyError,),
        ConnectionFailed,
        "no",
        "the proxy between here and {host} refused or is unreachable: check HTTPS_PROXY",
    ),
    (
        (
            requests.ConnectTimeout,
            urllib3.exceptions.ConnectTimeoutError,
            urllib3.exceptions.NewConnectionError,
        ),
        ConnectionFailed,
        "no",
        "{host} cannot be reached: " + CHECK_ROUTE,
    ),
    (
        (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError),
        ConnectionFailed,
        "unknown",
        "{host} did not answer in time: " + CHECK_ROUTE,
    ),
)


def _chain(error: BaseException, outside: BaseException | None) -> Iterator[BaseException]:
    """The error, its causes, and what urllib3 and requests wrapped into arguments."""
    seen = {id(None), id(outside)}
    waiting: list[Any] = [error]
    while waiting:
        link = waiting.pop()
        if id(link) in seen or not isinstance(link, BaseException):
            continue
        seen.add(id(link))
        yield link
        waiting += [*link.args, getattr(link, "reason", None), link.__context__, link.__cause__]


def _words(links: Sequence[BaseException]) -> str:
    """What the system itself said, or the name of what was raised."""
    said = [
        # A proxy's refusal to connect has only a text.
        link.strerror or (str(link)[:200] if type(link) is OSError else "")
        for link in links
        if isinstance(link, OSError)
    ]
    return next((text for text in reversed(said) if text), type(links[-1]).__name__)


def _segment(queue_id: str) -> str:
    if not queue_id:
        raise QueueNotFound("a queue id is empty")
    return quote(queue_id, safe="")


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _has_more(info: Any, page: int, count: int) -> bool:
    """Whether another page may follow, by whichever of the counters the answer has."""
    if not count:
        return False
    info = info if isinstance(info, Mapping) else {}
    pages, total, per_page = (info.get(key) for key in ("total_pages", "total_count", "per_page"))
    if isinstance(pages, int):
        return page < pages
    if isinstance(total, int) and isinstance(per_page, int) and per_page > 0:
        return page * per_page < total
    return True
