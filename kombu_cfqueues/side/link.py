"""One connection to the control broker, and the differences between kinds of brokers.

Only the thread that opened a link may use it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from kombu.connection import Connection

from ..errors import ConfigurationError
from ..runtime.inherited import abandon
from .readable import readable
from .redis_channel import control_channel, open_files

OPERATION_SECONDS: Final = 2.0
"""Maximum time for the control broker to connect, and to answer one operation.  A broker that is
stopped must not keep the owner thread from reconnecting."""

HEARTBEAT_SECONDS: Final = 10.0
"""Heartbeat of a connection to RabbitMQ, by which each side notices that the other is gone."""

FRAME_SECONDS: Final = 0.001
"""How long a read waits for the next frame.  With 0, py-amqp would spin while a frame is
incomplete."""

POLL_SECONDS: Final = 0.05
"""Poll interval for brokers whose connection cannot be waited for, such as ``memory://``."""

MAX_READS: Final = 100
"""Maximum number of messages to read before the owner thread looks for something else to do."""

EVENTS: Final = "events"
"""The kind of Celery's exchange of events, which depends on the driver."""

FANOUT_EVENTS: Final = ("redis", "gcpubsub")
"""Drivers on which Celery's exchange of events is a fanout exchange.  On others it is a topic
exchange.  Celery asks its own transport for the driver, and that transport is ours."""


class Link:
    """An open connection.

    Blocks for a few seconds at most.

    Args:
        url: The URL of the control broker, which may list several.
        number: Number of the attempt.  If the URL lists several brokers, each attempt takes the
            next one.

    Attributes:
        driver: Kombu's type of the transport, such as ``redis``.

    Raises:
        Exception: Whatever Kombu and its client libraries raise if they cannot connect.
    """

    def __init__(self, url: str, number: int = 0) -> None:
        # Given the list, Kombu would use the TLS options of the first URL for all of them.
        urls = url.split(";")
        self._connection = _new_connection(urls[number % len(urls)])
        transport = self._connection.transport
        self.driver: str = transport.driver_type
        self._connection.transport_options = _options(self.driver)
        if self.driver == "redis":
            transport.Channel = control_channel(transport.Channel)
        connected = False
        try:
            # `connect` would try twice, and sleep for 2 seconds in between.
            self._connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            if self.driver == "amqp":
                wire = self._connection.connection.transport
                wire.raise_on_initial_eintr = True  # a read that finds nothing must end
                wire.sock.settimeout(OPERATION_SECONDS)  # it also bounds the operations of channels
            self._events = self._connection.channel()
            self._requests = self._connection.channel()
            connected = True
        finally:
            if not connected:
                self.drop()

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return str(self._connection.as_uri())

    def channel(self) -> Any:
        """Return a new channel of Kombu's."""
        return self._connection.channel()

    def is_refusal(self, error: BaseException) -> bool:
        """Whether *error* says that an operation is not allowed, and the connection still works."""
        if isinstance(error, OSError) or getattr(error, "reply_code", 0) == 405:
            return False  # RESOURCE_LOCKED: our previous connection is not quite gone
        return not isinstance(error, self._connection.connection_errors)

    def closes_channel(self, refusal: Exception) -> bool:
        """Whether the channel of a refused operation was closed, and all that it consumed ended.

        By then, py-amqp has opened another channel under its number.
        """
        return self.driver == "amqp" and isinstance(refusal, self._connection.channel_errors)

    # Publishing

    def declare_exchange(self, exchange: str, kind: str, **given: Any) -> None:
        """Declare an exchange, on a channel that RabbitMQ may close."""
        with self._own_channel() as channel:
            channel.exchange_declare(exchange=exchange, type=self._kind(kind), **given)

    def publish(self, message: Any, exchange: str, routing_key: str, *, confirm: bool) -> None:
        """Publish Kombu's dictionary *message*; with *confirm*, block until the broker has it."""
        channel = self._requests if confirm else self._events
        publish = channel.basic_publish
        if confirm and self.driver == "amqp":
            publish = channel.basic_publish_confirm
        if self.driver != "amqp" and exchange and exchange not in channel.state.exchanges:
            # Another process has declared it, and a virtual transport must know its kind.
            channel.exchange_declare(exchange=exchange, type="fanout", durable=True)
        if self.driver == "cfhub":
            publish = partial(publish, confirm=confirm)
        publish(for_channel(channel, message), exchange=exchange, routing_key=routing_key)

    def one_request(self) -> contextlib.AbstractContextManager[Any]:
        """Publish the events of a block at its end, in one request if the broker allows that."""
        if self.driver != "redis":
            return contextlib.nullcontext()
        together: contextlib.AbstractContextManager[Any] = self._events.one_request()
        return together

    def has_exchange(self, exchange: str) -> bool:
        """Whether the exchange exists: declared in RabbitMQ; elsewhere, a queue is bound to it."""
        if self.driver == "cfhub":
            return bool(self._requests.has_exchange(exchange))
        if self.driver != "amqp":
            try:
                return bool(self._requests.get_table(exchange))
            except KeyError:
                return False
        with self._own_channel() as channel:
            try:
                channel.exchange_declare(exchange=exchange, type="fanout", passive=True)
            except self._connection.channel_errors:
                return False
        return True

    def once(self, act: Callable[[Any], Any]) -> Any:
        """Return what *act* returns, on a channel whose end would do no harm."""
        with self._own_channel() as channel:
            return act(channel)

    def _kind(self, kind: str) -> str:
        if kind != EVENTS:
            return kind
        return "fanout" if self.driver in FANOUT_EVENTS else "topic"

    @contextlib.contextmanager
    def _own_channel(self) -> Iterator[Any]:
        """Yield a channel which RabbitMQ may close; the one for events on other brokers."""
        if self.driver != "amqp":
            yield self._events
            return
        channel = self._connection.channel()
        try:
            yield channel
        finally:
            if channel.is_open:
                channel.close()

    # Consuming

    def wait(self, bell: int, seconds: float) -> tuple[bool, bool]:
        """Wait until *bell*, a file, can be read, or messages may have arrived.

        Returns:
            Whether the bell can be read, and whether messages may have arrived.
        """
        files = self._files()
        if files is None:
            return bool(readable([bell], min(seconds, POLL_SECONDS))), True
        if self._has_unread:
            return bool(readable([bell], 0)), True
        ready = readable([bell, *files], seconds)
        return bell in ready, any(file in ready for file in files)

    def drain(self) -> None:
        """Deliver what has arrived to the callbacks of the consumers."""
        with contextlib.suppress(socket.timeout):
            for _ in range(MAX_READS):
                self._connection.drain_events(timeout=FRAME_SECONDS if self.driver == "amqp" else 0)

    def probe(self) -> None:
        """Find out whether the connection works, if its broker allows that."""
        if self.driver == "amqp":
            self._connection.heartbeat_check()
        elif self.driver == "redis":
            self._requests.client.ping()
        elif self.driver == "cfhub":
            self._connection.transport.session.probe()

    def subscribed_anew(self, channel: Any) -> None:
        """Note that *channel* has one more consumer."""
        # At Redis, Kombu subscribes a channel only once, to the queues that it consumes then.
        if getattr(channel, "_in_listen", None):
            channel._in_listen = None
        self._files()  # at Redis, that subscribes: what is published from now on arrives

    def cancelled(self, channel: Any) -> None:
        """Note that *channel* has one consumer less."""
        # A read of that queue is still open at Redis, and would delay other reads by a second.
        if getattr(channel, "_in_poll", None) and not channel.active_queues:
            channel.client.connection.disconnect()

    @property
    def _has_unread(self) -> bool:
        """Whether more was read than delivered, or decrypted than read, which no file shows."""
        if self.driver == "cfhub":
            return bool(self._connection.transport.has_undelivered)
        sock = self._connection.connection.transport.sock if self.driver == "amqp" else None
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _files(self) -> list[int] | None:
        """The files that are readable when something arrives; None if that is unknown."""
        if self.driver == "amqp":
            return [self._connection.connection.transport.sock.fileno()]
        cycle = getattr(self._connection.transport, "cycle", None)
        if self.driver == "redis" and cycle is not None:
            cycle.on_poll_start()  # asks the server for messages
            return open_files(cycle)
        if self.driver == "cfhub":
            session = self._connection.transport.session
            session.flush()  # sends what nobody waits for, as one frame
            return [session.socket.fileno()]
        return None

    # Closing

    def close(self) -> None:
        """Close the connection, and tell the broker."""
        with contextlib.suppress(Exception):
            self._connection.release()

    def drop(self) -> None:
        """Close the sockets without telling the broker, which does not answer."""
        # Each library has its own errors for a lost connection.
        with contextlib.suppress(Exception):
            if self.driver == "amqp":
                self._connection.collect()
            elif self.driver == "cfhub":
                self._connection.transport.close_connection(self._connection)
            else:
                for channel in list(getattr(self._connection.transport, "channels", None) or ()):
                    _disconnect(channel)
                self._connection.transport.channels = []
                self._connection.collect()

    def abandon(self) -> None:
        """Leave the connection to the parent, in a forked child: closing it would end both."""
        abandon(self, self._sockets())

    def _sockets(self) -> Iterator[int]:
        transport = self._connection._transport
        wire = getattr(self._connection._connection, "transport", None)
        found = [getattr(wire, "sock", None)] if self.driver == "amqp" else []
        for channel in getattr(transport, "channels", None) or ():
            for pool in (getattr(channel, "_pool", None), getattr(channel, "_async_pool", None)):
                connections = [
                    *getattr(pool, "_available_connections", ()),
                    *getattr(pool, "_in_use_connections", ()),
                ]
                found += [getattr(connection, "_sock", None) for connection in connections]
        session = getattr(transport, "_session", None)
        if session is not None:
            found.append(session.socket)
        for one in found:
            if one is not None and one.fileno() >= 0:
                yield one.fileno()


def check_url(url: str) -> None:
    """Check that Kombu knows the control broker, and that it has fanout.  Does not connect.

    Raises:
        ConfigurationError: Otherwise.  The text does not show the URL.
    """
    for one in url.split(";"):
        _check_one(one)


def _check_one(url: str) -> None:
    scheme = url.partition("://")[0]
    try:
        transport = _new_connection(url).transport
        implements = transport.implements
        if transport.driver_type == "cfhub":
            transport.check_url()
    except ConfigurationError as error:
        raise ConfigurationError(f"control_url ({scheme}://...) cannot be used: {error}") from None
    # Such as a missing client library, a port that is not a number, or an unknown scheme.
    except Exception as error:  # noqa: BLE001
        why = str(error) if isinstance(error, ImportError) else type(error).__name__
        raise ConfigurationError(
            f"control_url ({scheme}://...) cannot be used: {why}; check its form (it is "
            "not shown, because it may hold a password), and that the client library of its broker "
            "is installed (pip install redis, for example)"
        ) from None
    if "fanout" not in implements.exchange_type:
        raise ConfigurationError(
            f"control_url ({scheme}://...) must name a broker that can broadcast, and this one has "
            "no fanout exchanges: use Redis (redis://...), RabbitMQ (amqp://...) or the hub "
            "(cfhub://...)"
        )


def for_channel(channel: Any, message: Any) -> Any:
    """Return a message of *channel* with the contents of Kombu's dictionary *message*."""
    properties = {
        name: value
        for name, value in message["properties"].items()
        if name not in ("body_encoding", "delivery_info", "delivery_tag", "priority")
    }
    return channel.prepare_message(
        message["body"],
        priority=message["properties"].get("priority"),
        content_type=message["content-type"],
        content_encoding=message["content-encoding"],
        headers=message["headers"],
        properties=properties,
    )


def _new_connection(url: str) -> Connection:
    return Connection(
        url, connect_timeout=OPERATION_SECONDS, heartbeat=HEARTBEAT_SECONDS, ssl=_tls(url)
    )


def _tls(url: str) -> dict[str, Any] | bool:
    """Return TLS options that verify the server, in case the URL has none.

    By default, Kombu does not verify the certificate of Redis, nor the host in that of RabbitMQ.
    """
    scheme = url.partition("://")[0]
    if scheme == "rediss":
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    if scheme == "amqps":
        return {"server_hostname": None}  # Kombu puts the host of the URL here
    return False


def _options(driver: str) -> dict[str, Any]:
    if driver == "redis":
        return {
            "socket_timeout": OPERATION_SECONDS,
            "socket_connect_timeout": OPERATION_SECONDS,
            "socket_keepalive": True,
        }
    return {}


def _disconnect(channel: Any) -> None:
    disconnect: Callable[[], None] = getattr(channel, "_disconnect_pools", lambda: None)
    with contextlib.suppress(Exception):
        disconnect()
    channel.closed = True
