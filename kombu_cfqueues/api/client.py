"""The HTTP API of Cloudflare Queues, one method per endpoint.  It knows nothing of Kombu.

A method makes exactly one request.  It returns, or raises a `CFQueuesError`; whether to retry is
for the caller to decide.  Deadlines are in seconds of `time.monotonic`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from ..errors import CFQueuesError, QueueNotFound, ServerError
from ..metrics import CountedRequest, metrics
from ..options import Token
from ..runtime.recent import Recent
from ..telemetry import Operation
from .models import Backlog, Queue, QueuePage, mapping, objects
from .permits import RequestPermits
from .requester import ApiRequest, Requester
from .responses import STATUS_PAGE


class Client:
    """Calls the Queues API of one account over one pool of connections.  Threads may share it.

    A method blocks until the response was read, at most until its deadline.  Methods about queues
    and consumers, `peek` and `request` block for a permit first.  The caller of `push` and
    `push_batch` has a permit already; `pull` and `ack` need none.

    Args:
        base_url: Where the API is served, up to and including ``/client/v4``.
        account_id: The account.
        token: The API token, or a callable that returns it, which is called before each request.
        connect_timeout: Longest wait for a connection, TLS included, in seconds.
        read_timeout: Longest wait for a response, in seconds.
        permits: The request allowance.
    """

    def __init__(
        self,
        base_url: str,
        account_id: str,
        token: Token,
        *,
        connect_timeout: float,
        read_timeout: float,
        permits: RequestPermits,
    ) -> None:
        self._requester = Requester(
            f"{base_url}/accounts/{quote(account_id, safe='')}/queues",
            token,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            permits=permits,
        )
        self._permits = permits
        self._names: Recent[str, str] = Recent()  # queue id -> name, for errors and metrics

    @property
    def latest_headers(self) -> Mapping[str, str]:
        """Headers of the latest response to any thread; empty before the first."""
        return self._requester.latest_headers

    def load(self) -> None:
        """Import what requests need, which the first request would do otherwise."""
        self._requester.open()

    def close(self) -> None:
        """Close the connections.  The next call opens new ones."""
        self._requester.close()

    def remember_name(self, queue_id: str, name: str) -> None:
        """Call the queue by *name* in errors and metrics."""
        self._names.put(queue_id, name)

    def trust_token(self) -> None:
        """Note that the API has accepted the token from another process of the machine."""
        self._requester.trust_token()

    # Queues

    def list_queues(
        self,
        *,
        page: int = 1,
        name: str | None = None,
        deadline: float,
        wanted: str | None = None,
        is_known: Callable[[], bool] | None = None,
    ) -> QueuePage:
        """Return one page of the account's queues.

        Args:
            page: The number of the page, from 1.
            name: Ask only for queues with this name.  The server may ignore it.
            deadline: When to give up.
            wanted: The queue that the caller looks for.  With it, as with *name*, the request ranks
                as the message that waits for it.
            is_known: Returns whether another process has learned the result.

        Raises:
            Unneeded: *is_known* returned true, so no request was made.
        """
        query = urlencode({"page": page} | ({"name": name} if name else {}))
        wanted = name or wanted
        action = f"looking up queue {wanted!r}" if wanted else "listing the queues"
        self.load()  # takes a while on a busy machine, and then the answer may be known
        self._permits.acquire(deadline, for_message=bool(wanted), is_known=is_known)
        payload = self._permitted("GET", f"?{query}", action=action, deadline=deadline)
        found = QueuePage.from_json(payload, page)
        for queue in found.queues:
            self.remember_name(queue.id, queue.name)
        return found

    def create_queue(
        self, name: str, *, settings: Mapping[str, Any] | None = None, deadline: float
    ) -> Queue:
        """Create a queue.

        Args:
            name: Its name at Cloudflare.
            settings: ``delivery_delay`` and ``message_retention_period``, in seconds; Cloudflare
                chooses those that are missing or None.
            deadline: When to give up.
        """
        action = f"creating queue {name!r}"
        body = {"queue_name": name, **({"settings": dict(settings)} if settings else {})}
        self._permits.acquire(deadline, for_message=True)
        payload = self._permitted("POST", "", body, action=action, deadline=deadline)
        queue = Queue.from_json(payload.get("result"))
        if queue is None:
            raise ServerError(f"{action} failed: the response has no queue id. {STATUS_PAGE}")
        self.remember_name(queue.id, queue.name)
        return queue

    def delete_queue(self, queue_id: str, *, deadline: float) -> None:
        """Delete a queue and all its messages."""
        action = f"deleting {self._name(queue_id)}"
        self._admin("DELETE", _path(queue_id), action=action, deadline=deadline)

    def backlog(self, queue_id: str, *, deadline: float) -> Backlog:
        """Return approximately what a queue holds."""
        action = f"reading the metrics of {self._name(queue_id)}"
        path = _path(queue_id, "/metrics")
        payload = self._admin("GET", path, action=action, deadline=deadline)
        return Backlog.from_json(payload.get("result"))

    def read_queue(self, queue_id: str, *, deadline: float) -> Mapping[str, Any]:
        """Return the JSON object of a queue, with its settings and consumers."""
        action = f"reading {self._name(queue_id)}"
        payload = self._admin("GET", _path(queue_id), action=action, deadline=deadline)
        return mapping(payload.get("result"))

    def edit_queue(self, queue: Queue, settings: Mapping[str, Any], *, deadline: float) -> None:
        """Change some settings of a queue.

        Args:
            queue: The queue.
            settings: ``delivery_delay`` and ``message_retention_period``, in seconds, and
                ``delivery_paused``: a paused queue accepts messages, and its messages expire.
            deadline: When to give up.
        """
        action = f"changing {self._name(queue.id)}"
        # wrangler sends the name too.
        body = {"queue_name": queue.name, "settings": dict(settings)}
        self._admin("PATCH", _path(queue.id), body, action=action, deadline=deadline)

    def purge(self, queue_id: str, *, deadline: float) -> None:
        """Start to delete all messages of a queue; the deletion ends some time after this call."""
        action = f"purging {self._name(queue_id)}"
        body = {"delete_messages_permanently": True}
        self._admin("POST", _path(queue_id, "/purge"), body, action=action, deadline=deadline)

    # Consumers

    def list_consumers(self, queue_id: str, *, deadline: float) -> list[dict[str, Any]]:
        """Return the JSON objects of a queue's consumers."""
        action = f"reading the consumers of {self._name(queue_id)}"
        path = _path(queue_id, "/consumers")
        return objects(self._admin("GET", path, action=action, deadline=deadline).get("result"))

    def create_pull_consumer(
        self,
        queue_id: str,
        *,
        max_retries: int,
        visibility_timeout_ms: int,
        dead_letter_queue: str | None,
        deadline: float,
    ) -> None:
        """Let a queue be pulled over HTTP.

        Args:
            queue_id: The queue.
            max_retries: Deliveries after which a message is deleted or dead-lettered.
            visibility_timeout_ms: Lease of a pull that does not state one, in milliseconds.
            dead_letter_queue: Name, at Cloudflare, of the dead-letter queue; None if there is none.
            deadline: When to give up.
        """
        settings = {"max_retries": max_retries, "visibility_timeout_ms": visibility_timeout_ms}
        consumer: dict[str, Any] = {"type": "http_pull", "settings": settings}
        if dead_letter_queue:
            consumer["dead_letter_queue"] = dead_letter_queue
        action = f"enabling HTTP pull for {self._name(queue_id)}"
        path = _path(queue_id, "/consumers")
        self._admin("POST", path, consumer, action=action, deadline=deadline)

    def replace_consumer(
        self, queue_id: str, consumer_id: str, consumer: Mapping[str, Any], *, deadline: float
    ) -> None:
        """Replace a consumer; what *consumer* leaves out gets its default."""
        action = f"changing the consumer of {self._name(queue_id)}"
        path = _path(queue_id, f"/consumers/{quote(consumer_id, safe='')}")
        self._admin("PUT", path, dict(consumer), action=action, deadline=deadline)

    # Messages

    def push(self, queue_id: str, message: bytes, *, deadline: float) -> None:
        """Publish one message: a JSON object as `Packed.encode` makes it."""
        action = f"publishing to {self._name(queue_id)}"
        with self._counted("publish", queue_id, messages=1):
            self._message_call(queue_id, "", message, action=action, deadline=deadline)

    def push_batch(self, queue_id: str, messages: Sequence[bytes], *, deadline: float) -> None:
        """Publish up to 100 messages in one request; Cloudflare accepts all of them or none."""
        action = f"publishing {len(messages)} messages to {self._name(queue_id)}"
        body = b'{"messages":[' + b",".join(messages) + b"]}"
        with self._counted("publish", queue_id, messages=len(messages)):
            self._message_call(queue_id, "/batch", body, action=action, deadline=deadline)

    def pull(
        self, queue_id: str, *, batch_size: int, visibility_timeout_ms: int, deadline: float
    ) -> list[dict[str, Any]]:
        """Lease up to *batch_size* messages for *visibility_timeout_ms*, often fewer or none."""
        action = f"pulling up to {batch_size} messages from {self._name(queue_id)}"
        body = _json({"batch_size": batch_size, "visibility_timeout_ms": visibility_timeout_ms})
        with self._counted("pull", queue_id) as request:
            result = self._message_call(queue_id, "/pull", body, action=action, deadline=deadline)
            messages = objects(mapping(result).get("messages"))
            request.messages = len(messages)
        return messages

    def peek(self, queue_id: str, *, batch_size: int, deadline: float) -> list[dict[str, Any]]:
        """Return up to *batch_size* ready messages, without a lease and without a delivery attempt.

        Takes a permit: Cloudflare documents that pull and ack are exempt, but not that peek is.
        """
        action = f"peeking at {self._name(queue_id)}"
        path = _path(queue_id, "/messages/peek")
        body = {"batch_size": batch_size}
        payload = self._admin("POST", path, body, action=action, deadline=deadline)
        return objects(mapping(payload.get("result")).get("messages"))

    def ack(
        self,
        queue_id: str,
        *,
        acks: Iterable[str] = (),
        retries: Mapping[str, int] | None = None,
        deadline: float,
    ) -> dict[str, str]:
        """Acknowledge and retry messages.

        Args:
            queue_id: The queue.
            acks: Lease ids of messages to acknowledge.
            retries: Lease id -> delay in seconds, of messages to redeliver.
            deadline: When to give up.

        Returns:
            Lease id -> the reason, for each lease that was not settled.
        """
        acks, retries = list(acks), retries or {}
        action = f"settling {len(acks) + len(retries)} messages of {self._name(queue_id)}"
        body = {
            "acks": [{"lease_id": lease} for lease in acks],
            "retries": [
                {"lease_id": lease, "delay_seconds": delay} for lease, delay in retries.items()
            ],
        }
        with self._counted("ack", queue_id):
            result = self._message_call(
                queue_id, "/ack", _json(body), action=action, deadline=deadline
            )
        warnings = dict(mapping(mapping(result).get("warnings")))
        metrics.settled(
            self._names.get(queue_id) or queue_id,
            acks=sum(lease not in warnings for lease in acks),
            retries=sum(lease not in warnings for lease in retries),
        )
        return warnings

    def request(
        self, method: str, path: str, body: Any = None, *, deadline: float
    ) -> dict[str, Any]:
        """Make a request that no other method makes, to find out how the API responds to it.

        Args:
            method: The HTTP method.
            path: The part of the URL after ``.../queues``.
            body: Sent as JSON; None for no body.
            deadline: When to give up.

        Returns:
            The JSON object of the response.
        """
        if not path.endswith(("/messages/pull", "/messages/ack")):
            self._permits.acquire(deadline)
        data = None if body is None else _json(body)
        return self._requester.send(ApiRequest(method, path, f"{method} {path}", deadline, data))

    # Below: what the endpoints have in common

    def _admin(
        self, method: str, path: str, body: Any = None, *, action: str, deadline: float
    ) -> dict[str, Any]:
        """Take a permit, then make a request that carries no message."""
        self._permits.acquire(deadline)
        return self._permitted(method, path, body, action=action, deadline=deadline)

    def _permitted(
        self, method: str, path: str, body: Any = None, *, action: str, deadline: float
    ) -> dict[str, Any]:
        """Make a request that carries no message; its permit is taken."""
        data = None if body is None else _json(body)
        try:
            with metrics.request("admin"):
                return self._requester.send(ApiRequest(method, path, action, deadline, data))
        except CFQueuesError as error:
            error.delivered = "no"  # the request carries no message, so none is in doubt
            raise

    def _message_call(
        self, queue_id: str, route: str, body: bytes, *, action: str, deadline: float
    ) -> Any:
        """Make a request about the messages of a queue, and return its result."""
        path = _path(queue_id, f"/messages{route}")
        request = ApiRequest("POST", path, action, deadline, body, queue_id)
        return self._requester.send(request).get("result")

    def _counted(self, operation: Operation, queue_id: str, *, messages: int = 0) -> CountedRequest:
        return metrics.request(operation, self._names.get(queue_id) or queue_id, messages=messages)

    def _name(self, queue_id: str) -> str:
        name = self._names.get(queue_id)
        return f"queue {name!r}" if name else f"the queue with id {queue_id!r}"


def _path(queue_id: str, route: str = "") -> str:
    """Return the part of the URL after ``.../queues`` that leads to one queue."""
    if not queue_id:
        raise QueueNotFound("a queue id is empty: check the option 'queues'")
    return f"/{quote(queue_id, safe='')}{route}"


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()
