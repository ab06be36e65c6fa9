"""Kombu's transport: connect, close, error tuples, what it implements."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from kombu.transport import virtual

from ..errors import ConnectionFailed, PermanentError, PublishTimeout, TransientError
from ..options import Options, shown_place
from ..publish.reentrancy import no_reentry
from .channel import Channel
from .session import Session

if TYPE_CHECKING:
    from kombu.connection import Connection


class Transport(virtual.Transport):
    """Cloudflare Queues over its HTTP API: ``cfqueues://ACCOUNT_ID:API_TOKEN@/``.

    Args:
        client: The Kombu connection that this is the transport of.
    """

    Channel = Channel

    driver_type = "cfqueues"
    driver_name = "cfqueues"
    can_parse_url = False

    implements = virtual.Transport.implements.extend(
        asynchronous=False,
        exchange_type=frozenset({"direct", "topic"}),
        heartbeats=False,
        batch_publish=True,
    )

    # What is recoverable, Kombu repeats after a reconnect.  A `PublishTimeout` is not: publishing
    # has used up its time, and Kombu would multiply it.
    recoverable_connection_errors = (TransientError,)
    connection_errors: tuple[type[Exception], ...] = (  # type: ignore[assignment]
        TransientError,
        PublishTimeout,
        *virtual.Transport.connection_errors,
    )
    recoverable_channel_errors = ()
    channel_errors: tuple[type[Exception], ...] = (  # type: ignore[assignment]
        PermanentError,
        *virtual.Transport.channel_errors,
    )

    def __init__(self, client: Connection, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # On the instance alone: Kombu takes the URL apart, by the class, and `as_uri` asks us.
        self.can_parse_url = True

    @property
    def client(self) -> Any:
        """The Kombu connection.

        Raises:
            ConnectionFailed: Another thread has closed it, this one perhaps connecting meanwhile.
        """
        if self._client is None:
            raise ConnectionFailed("the connection was closed")
        return self._client

    @client.setter
    def client(self, client: Connection | None) -> None:
        self._client = client

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The broker's URL for ``Connection.as_uri()``, which reprs and Celery's logs show.

        Kombu's own says localhost where a URL has no host, and shows its path: after a slip, such
        as a third slash, that is the token.

        Args:
            uri: Without effect.
            include_password: Show the token, if it came with the URL.
            mask: Stands for it otherwise.
        """
        client = self.client
        login = quote(client.userid or "", safe="")
        if client.password:
            token = client.password() if callable(client.password) else client.password
            login += f":{quote(token, safe='') if include_password else mask}"
        place = shown_place(self._host, client.port, client.transport_options)
        return f"cfqueues://{login}{'@' if login else ''}{place}/"

    @property
    def _host(self) -> str | None:
        """The URL's host."""
        client = self.client
        if client.hostname == "localhost" and not (client.port or client.userid or client.password):
            return None  # Kombu's default for a connection that was given no URL
        return cast("str | None", client.hostname)

    @cached_property
    def session(self) -> Session:
        """What the channels of this connection share.

        Made once, because Kombu writes the retry policy of a publish into the dictionary of our
        options.

        Raises:
            ConfigurationError: An option, the URL or the environment is wrong.
        """
        client = self.client
        options = Options.read(
            host=self._host,
            port=client.port,
            user=client.userid,
            password=client.password,
            virtual_host=client.virtual_host,
            transport_options=client.transport_options,
            connect_timeout=client.connect_timeout,
        )
        return Session(options, has_alternates=len(client.alt or ()) > 1)

    def drain_events(self, connection: Transport, timeout: float | None = None, **_: Any) -> None:
        """Deliver one message to one consumer.

        Args:
            connection: This transport.
            timeout: Most seconds to wait for a message; None: for ever.

        Raises:
            TimeoutError: (``socket.timeout``) None came.  A server that cannot be reached is no
                other than an empty queue; it is logged.
            PermanentError: A queue can no more be pulled: the token is revoked, the queue is gone.
        """
        arrival = self.session.inbox.take(None if timeout is None else time.monotonic() + timeout)
        if arrival is None:
            raise TimeoutError(f"no message within {timeout} s")
        if not any(channel.deliver(arrival) for channel in list(self.channels)):
            # Cancelled by another thread since.
            receiver = self.session.account.receiver
            receiver.settled(arrival.subscription.window)
            receiver.give_back(arrival.delivery)

    def establish_connection(self) -> Transport:
        """Connect: one request a process, to see that the server answers and takes the token.

        With ``publish_mode="spool"`` there is none.
        """
        options = self.session.options
        seconds = min(options.connect_timeout + options.read_timeout, options.publish_timeout)
        try:
            # Before the base class makes a channel, which would stay behind on a dead transport.
            # Who spools needs no server, and must be able to start without one.
            if options.publish_mode != "spool":
                with no_reentry:
                    self.session.account.directory.probe(
                        options, deadline=time.monotonic() + seconds
                    )
            super().establish_connection()
        except BaseException:
            self._leave_account()
            raise
        return self

    def verify_connection(self, connection: Transport) -> bool:
        """Whether it lives: another thread may have closed it while this one was connecting."""
        return connection is self

    def close_connection(self, connection: Transport) -> None:
        """Close the channels; the last connection of the process also closes the sockets."""
        try:
            super().close_connection(connection)
        finally:
            self._leave_account()

    def _collect(self, connection: Transport | None) -> None:
        """Drop the connection without any traffic: it failed, or belongs to another process."""
        for channel in [*self._avail_channels, *self.channels]:
            channel.abandon()
        self._avail_channels.clear()
        self.channels.clear()
        session = self._session_if_made
        if session is not None:
            session.doubt()
            session.close()

    def driver_version(self) -> str:
        """The version of this package."""
        from .. import __version__  # noqa: PLC0415  the package imports this module

        return __version__

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """Nothing: a URL without a host means Cloudflare, not localhost."""
        return {}

    def _leave_account(self) -> None:
        session = self._session_if_made
        if session is not None:
            session.close()

    @property
    def _session_if_made(self) -> Session | None:
        return cast("Session | None", self.__dict__.get("session"))
