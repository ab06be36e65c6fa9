"""``cfhub://:TOKEN@HOST/NAMESPACE``: a Kombu transport for the hub.

The hub routes messages and holds no queues: a queue lives in the connection that declared it, and
ends with that connection.  So the hub broadcasts, and is not a broker for tasks.  ``docs/hub.md``
lists what it guarantees.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import Any, Final

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual

from ..envelope import json_text
from ..errors import ConfigurationError, PermanentError, TransientError
from ..options import is_loopback
from ..runtime.extras import missing
from ..runtime.rng import new_id

try:
    import websockets

    from .hub_session import Entry, Session
    from .hub_socket import Address, checked_token
except ModuleNotFoundError as error:
    raise missing("the hub (cfhub://)", "hub", error) from error

CONNECT_SECONDS: Final = 5.0
"""Maximum time for connecting, if the application has no ``connect_timeout``."""

HELD_BACK_SECONDS: Final = 0.05
"""Poll interval of a consumer whose prefetch count is used up: another thread may acknowledge a
message."""

WAIT_SECONDS: Final = 5.0
"""Maximum duration of one wait for the hub; between two waits, a silent connection is pinged."""

MAX_DELIVERIES: Final = 100
"""Maximum number of messages that the event loop delivers at once."""

TEXT_AS_BYTES: Final = "utf-8"
"""The ``body_encoding`` of a body that was given as bytes and is sent as text."""

NAMESPACE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Channel(virtual.Channel):
    """A channel; its queues belong to the connection."""

    supports_fanout = True
    do_restore = False
    body_encoding = "base64"

    connection: Transport

    @property
    def session(self) -> Session:
        """The connection to the hub."""
        return self.connection.session

    # Queues

    def queue_declare(
        self, queue: str | None = None, passive: bool = False, **kwargs: Any
    ) -> queue_declare_ok_t:
        """Hold a queue in this process.

        Raises:
            ChannelError: *passive* is set, and no process holds the queue.
        """
        queue = queue or f"amq.gen-{new_id()}"
        if not passive:
            self.session.declare(queue)
            if kwargs.get("auto_delete"):
                self.connection.auto_delete.add(queue)
        elif not self.session.holds(queue) and not self.session.find("", queue):
            raise ChannelError(
                f"NOT_FOUND - no queue {queue!r} at the hub", (50, 10), "Channel.queue_declare"
            )
        return queue_declare_ok_t(queue, self._size(queue), 0)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **_: Any,
    ) -> None:
        """Bind a queue that this process holds, for the publishers of all processes.

        Raises:
            HubRefused: Another process uses the exchange with another type.
        """
        exchange = exchange or "amq.direct"
        if not self.state.has_binding(queue, exchange, routing_key):
            self.session.declare(queue)
            self.session.bind(queue, exchange, self.typeof(exchange).type, routing_key or "")
            self.state.binding_declare(queue, exchange, routing_key, arguments)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,
        **_: Any,
    ) -> None:
        """Remove a binding."""
        exchange = exchange or "amq.direct"
        self.state.binding_delete(queue, exchange, routing_key)
        self.session.unbind(queue, exchange, routing_key or "")

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: Any
    ) -> None:
        """Delete a queue, its messages and its bindings."""
        if (if_empty and self._size(queue)) or (if_unused and self.connection.consumers(queue)):
            return
        self.state.queue_bindings_delete(queue)
        self.connection.auto_delete.discard(queue)
        self.session.delete(queue)

    def has_exchange(self, exchange: str) -> bool:
        """Whether a queue of any process is bound to *exchange*."""
        return self.session.find(exchange)

    def _size(self, queue: str) -> int:
        return self.session.size(queue)

    def _purge(self, queue: str) -> int:
        return self.session.purge(queue)

    # Publishing

    def basic_publish(
        self,
        message: dict[str, Any],
        exchange: str,
        routing_key: str,
        *,
        confirm: bool = True,
        **_: Any,
    ) -> None:
        """Publish a message to the processes that are connected now.

        Args:
            message: Kombu's dictionary.
            exchange: The exchange; ``""`` for the queue *routing_key*.
            routing_key: The routing key.
            confirm: Wait until the hub has the message.  Otherwise it is sent with the next ones,
                and only if somebody listens.

        Raises:
            MessageTooLarge: It is larger than the hub's limit.
            ConnectionFailed: The connection is lost.
        """
        self._inplace_augment_message(message, exchange, routing_key)
        text = json_text.encode_kombu(message)
        self.session.publish(exchange or "", routing_key or "", text, confirm=confirm)

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Leave text as it is, even if it is given as bytes; encode other bytes."""
        if not isinstance(body, bytes):
            return body, None
        try:
            return body.decode(), TEXT_AS_BYTES
        except UnicodeDecodeError:
            encoded: tuple[Any, str | None] = super().encode_body(body, encoding)
            return encoded

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        """Return what `encode_body` was given."""
        if encoding == TEXT_AS_BYTES:
            return body.encode()
        return super().decode_body(body, encoding)

    # Consuming

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> None:
        """Deliver the messages of *queue* to *callback* from now on."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self.session.consume(queue, consumes=True)

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer; the last one ends an ``auto_delete`` queue."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is None or self.connection.consumers(queue):
            return
        # The connection may be lost; then its queues are gone.
        with suppress(TransientError):
            if queue in self.connection.auto_delete:
                self.queue_delete(queue)
            else:
                self.session.consume(queue, consumes=False)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return the next message of *queue* in this process, or None."""
        if not self._size(queue):
            self.session.poll(0)
        return super().basic_get(queue, no_ack, **kwargs)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        entry = self.session.take(queue)
        payload = json_text.loads(entry.text)
        properties = payload["properties"]
        properties["delivery_tag"] = self._next_delivery_tag()
        properties["delivery_info"] = {
            **(properties.get("delivery_info") or {}),
            "exchange": entry.exchange,
            "routing_key": entry.key,
            "queue": queue,
        }
        return payload

    def _restore(self, message: Any) -> None:
        given = message.delivery_info
        payload = {**message.serializable(), "redelivered": True}
        text = json_text.encode_kombu(payload)
        entry = Entry(given["exchange"], given["routing_key"], text, None)
        self.session.put_back(given["queue"], entry)

    def close(self) -> None:
        """Close the channel; its unacknowledged messages return to their queues."""
        if not self.closed and self._qos is not None:
            self._qos.restore_unacked()
        super().close()


class Transport(virtual.Transport):
    """A connection to a hub: one WebSocket, which one thread at a time may use."""

    Channel = Channel

    driver_type = "cfhub"
    driver_name = "cfhub"
    default_port = None
    polling_interval = None  # type: ignore[assignment]

    implements = virtual.Transport.implements.extend(
        asynchronous=True,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
        heartbeats=False,
    )

    recoverable_connection_errors = (TransientError,)
    connection_errors: tuple[type[Exception], ...] = (  # type: ignore[assignment]
        TransientError,
        *virtual.Transport.connection_errors,
    )
    recoverable_channel_errors = ()
    channel_errors: tuple[type[Exception], ...] = (  # type: ignore[assignment]
        PermanentError,
        *virtual.Transport.channel_errors,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.auto_delete: set[str] = set()
        self._session: Session | None = None
        self._leave_loop: list[Callable[[], Any]] = []

    @property
    def session(self) -> Session:
        """The connection to the hub.

        Raises:
            ConnectionResetError: The connection is closed.
        """
        if self._session is None:
            raise ConnectionResetError("the connection to the hub is closed")
        return self._session

    def driver_version(self) -> str:
        """Return the version of the WebSocket library."""
        return str(websockets.__version__)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """Nothing: a URL must name the hub."""
        return {}

    def check_url(self) -> None:
        """Check the URL, without connecting.

        Raises:
            ConfigurationError: The URL is not complete.
        """
        client: Any = self.client
        address_of(client)
        checked_token(client.password or "")

    def establish_connection(self) -> Transport:
        """Connect.

        Raises:
            ConnectionFailed: The hub does not answer.
            AuthenticationFailed: The hub does not know the token.
            ConfigurationError: The URL is not complete.
        """
        client: Any = self.client
        seconds = client.connect_timeout or CONNECT_SECONDS
        self._session = Session(address_of(client), client.password or "", seconds, _own_name())
        super().establish_connection()
        return self

    def verify_connection(self, connection: Any) -> bool:
        """Whether the connection is open, as far as is known."""
        return self._session is not None and self._session.socket.fileno() >= 0

    def close_connection(self, connection: Any) -> None:
        """Close the connection, and with it all its queues."""
        session = self._session
        try:
            super().close_connection(connection)
        finally:
            while self._leave_loop:
                self._leave_loop.pop()()
            self._session = None
            if session is not None:
                session.close()

    def consumers(self, queue: str) -> int:
        """Return how many consumers *queue* has in this connection."""
        return sum(channel._active_queues.count(queue) for channel in self.channels)

    @property
    def has_undelivered(self) -> bool:
        """Whether a message waits here that may be delivered now."""
        return any(
            channel.qos.can_consume()
            and any(self.session.size(queue) for queue in channel._active_queues)
            for channel in list(self.channels)
        )

    @property
    def _has_held_back(self) -> bool:
        return any(
            self.session.size(queue)
            for channel in list(self.channels)
            for queue in channel._active_queues
        )

    # Delivering

    def drain_events(self, connection: Any, timeout: float | None = None, **_: Any) -> None:
        """Deliver one message.

        Args:
            connection: This.
            timeout: Maximum time in seconds; None waits forever.

        Raises:
            socket.timeout: No message came in time.
            ConnectionFailed: The connection is lost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._deliver_one():
            longest = HELD_BACK_SECONDS if self._has_held_back else WAIT_SECONDS
            left = longest if deadline is None else deadline - time.monotonic()
            self.session.keep_alive()
            self.session.poll(max(0.0, min(left, longest)))
            if left <= 0 and not self.has_undelivered:
                raise TimeoutError("no message came in time")

    def _deliver_one(self) -> bool:
        cycle: Any = self.cycle
        try:
            cycle.get(self._deliver)
        except Empty:
            return False
        return True

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have Kombu's event loop deliver the messages of *connection*."""
        file = self.session.socket.fileno()
        loop.add_reader(file, self._on_readable)
        loop.on_tick.add(self._deliver_waiting)
        timer = loop.call_repeatedly(WAIT_SECONDS, self._keep_alive)
        self._leave_loop = [
            partial(loop.remove_reader, file),
            partial(loop.on_tick.discard, self._deliver_waiting),
            timer.cancel,
        ]

    def _keep_alive(self) -> None:
        if self._session is not None:
            self._session.keep_alive()

    def _on_readable(self, *_: Any) -> None:
        self.session.poll(0)
        self._deliver_waiting()

    def _deliver_waiting(self) -> None:
        if self._session is None:
            return
        self._session.flush()
        for _ in range(MAX_DELIVERIES):
            if not self._deliver_one():
                return


def address_of(client: Any) -> Address:
    """Return where the hub of a Kombu connection is.

    Raises:
        ConfigurationError: The URL does not name a hub.
    """
    host, namespace = client.hostname, (client.virtual_host or "").strip("/")
    if not host or not NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(
            "the URL of the hub must be cfhub://:TOKEN@HOST/NAMESPACE, where the namespace "
            "consists of at most 64 letters, digits, dashes and underscores"
        )
    is_secure = bool(client.ssl) or not is_loopback(host)
    return Address(host, client.port or (443 if is_secure else 80), is_secure, namespace)


def _own_name() -> str:
    """Return what the hub shows for this process."""
    program = os.path.basename(sys.argv[0]) if sys.argv else ""  # noqa: PTH119  not a path here
    return f"{program or 'python'} {os.getpid()}@{socket.gethostname()}"
