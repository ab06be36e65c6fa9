"""Kombu's transport: how to connect and close, which errors are which, and what is implemented."""

from __future__ import annotations

import logging
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from kombu.transport import virtual

from ..consume.inbox import Arrival, Call
from ..errors import (
    ConfigurationError,
    ConnectionFailed,
    PermanentError,
    PublishTimeout,
    RateLimited,
    Scope,
    TransientError,
    copy_of,
)
from ..options import BrokerUrl, Options, has_control_url, is_ours, place_of, shown_place
from ..publish.at_end import refuse_at_end
from ..publish.reentrancy import no_reentry
from . import celery_task, uncertain
from .bindings import fail_over
from .channel import Channel
from .connection_info import mask_info
from .event_loop import EventLoopReader
from .session import Session
from .worker_start import prepare_workers

if TYPE_CHECKING:
    from kombu.connection import Connection

logger = logging.getLogger(__name__)

# Kombu imports this module when the worker makes its first connection object.  Under gevent and
# eventlet, that object has no transport yet when the worker signals its start.
prepare_workers()


class Transport(virtual.Transport):
    """Cloudflare Queues over its HTTP API: ``cfqueues://ACCOUNT_ID:API_TOKEN@/``.

    Args:
        client: The Kombu connection that this transport serves.
        **kwargs: Passed on to Kombu.
    """

    Channel = Channel

    driver_type = "cfqueues"
    driver_name = "cfqueues"
    # Kombu hands the URL over as it is: see `BrokerUrl`.
    can_parse_url = True

    implements = virtual.Transport.implements.extend(
        asynchronous=True,
        exchange_type=frozenset({"direct", "topic"}),
        heartbeats=False,
        batch_publish=True,
    )

    # After a recoverable error, Kombu reconnects and repeats the call.  `PublishTimeout` is not
    # recoverable: the publish has used up its time, and Kombu would multiply that time.
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

    _reader: EventLoopReader | None = None

    def __init__(self, client: Connection, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        mask_info(client)
        if has_control_url(client.transport_options):
            # On the instance, where Kombu and Celery look, and not for other connections.
            from .control import ControlledChannel  # noqa: PLC0415  most processes do not need it

            prepare_workers()
            self.Channel = ControlledChannel
            self.implements = self.implements.extend(
                exchange_type=self.implements.exchange_type | {"fanout"}
            )

    @property
    def client(self) -> Any:
        """The Kombu connection.

        Raises:
            ConnectionFailed: Another thread has closed it, perhaps while this one was connecting.
        """
        if self._client is None:
            raise ConnectionFailed("the connection was closed: open another one")
        return self._client

    @client.setter
    def client(self, client: Connection | None) -> None:
        self._client = client

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the broker URL for ``Connection.as_uri()``, which reprs and Celery's logs show.

        A part of the URL that may be the token by mistake is masked too.

        Args:
            uri: Ignored.
            include_password: Show the token if it came with the URL.
            mask: Shown instead of the token otherwise.
        """
        url, options = self._url, self.client.transport_options or {}
        has_place = url.password or options.get("api_token") or options.get("base_url")
        default_host = shown_place(*((None, None) if has_place else place_of()), options)
        return url.shown(default_host=default_host, with_password=include_password, mask=mask)

    @property
    def _url(self) -> BrokerUrl:
        """The broker URL of the connection."""
        client = self.client
        host = client.hostname
        if host == "localhost" and not (client.port or client.userid or client.password):
            host = None  # Kombu's default for a connection without a URL
        return BrokerUrl.of(host, client.port, client.userid, client.password, client.virtual_host)

    @property
    def state(self) -> virtual.BrokerState:
        """The exchanges and bindings, which all connections to the account share."""
        return self.session.bindings

    @state.setter
    def state(self, value: virtual.BrokerState) -> None:
        """Ignore what Kombu's base class sets: bindings for this connection only."""

    @cached_property
    def session(self) -> Session:
        """What the channels of this connection share.

        Created once: Kombu writes the retry policy of a publish into the dictionary of transport
        options, so the options of a later session could differ.

        Raises:
            ConfigurationError: An option, the URL or the environment is wrong.
        """
        client = self.client
        url = self._url
        # Kombu itself parses the further URLs of a fail-over list, and its errors show the token.
        others = [other for other in client.alt or () if is_ours(other)]
        for fault in [url.fault, *(BrokerUrl.parse(other).fault for other in others)]:
            if fault:
                raise ConfigurationError(fault)
        options = Options.read(
            host=url.host,
            port=url.port,
            user=url.user,
            password=url.password,
            virtual_host=url.virtual_host,
            transport_options=client.transport_options,
            connect_timeout=client.connect_timeout,
        )
        session = Session(options, has_alternates=len(client.alt or ()) > 1)
        if session.has_alternates:
            fail_over(client, options)
        if options.control_url is not None:
            session.control  # noqa: B018  checked now, and connected to at its first use
        return session

    def drain_events(self, connection: Transport, timeout: float | None = None, **_: Any) -> None:
        """Deliver one message to one consumer.

        Args:
            connection: This transport.
            timeout: Maximum number of seconds to wait for a message; None waits forever.
            **_: Ignored.

        Raises:
            TimeoutError: (``socket.timeout``) No message came.  This is also raised if the server
                is unreachable, which is logged.
            PermanentError: A queue cannot be pulled any more, for instance because the token was
                revoked or the queue was deleted.
        """
        arrival = self.session.inbox.take(None if timeout is None else time.monotonic() + timeout)
        if arrival is None:
            raise TimeoutError(f"no message within {timeout} s")
        self._deliver_arrival(arrival)

    def register_with_event_loop(self, connection: Transport, loop: Any) -> None:
        """Deliver messages through *loop* from now on, until the connection is closed.

        Args:
            connection: This transport.
            loop: A ``kombu.asynchronous.Hub``.
        """
        self._leave_loop()
        dropped = self.session.account.receiver.dropped
        if dropped.expected:
            celery_task.forget_dropped_tasks()
            dropped.collect()
        self._reader = EventLoopReader(loop, self.session.inbox, self._deliver_arrival)

    def _leave_loop(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _deliver_arrival(self, arrival: Arrival | Call) -> None:
        if callable(arrival):
            arrival()
        elif not any(channel.deliver(arrival) for channel in list(self.channels)):
            # Another thread has cancelled the consumer since.
            receiver = self.session.account.receiver
            receiver.free_slots(arrival.subscription.window)
            receiver.settlement.give_back(arrival.delivery)

    def establish_connection(self) -> Transport:
        """Connect: check with one request per process that the server accepts the token.

        With ``publish_mode="spool"`` there is no request: an application that spools must be able
        to start while the server is unreachable.  There is no request either while the API has
        stopped the token: the server is reachable, and each call says how long it is stopped.
        Connecting fails then only if Kombu has another URL.

        Raises:
            CFQueuesError: The request failed.
        """
        refuse_at_end()
        options = self.session.options
        seconds = min(options.connect_timeout + options.read_timeout, options.publish_timeout)
        try:
            # Before the base class opens a channel, which would be left on a dead transport.
            if options.publish_mode != "spool":
                self._probe(options, time.monotonic() + seconds)
            super().establish_connection()
        except BaseException as error:
            self._leave_account()
            if isinstance(error, TransientError):
                uncertain.say_so(self._client, error)
                # With other transports, Kombu's error has the transport's own as its cause.
                raise copy_of(error) from error
            raise
        return self

    def _probe(self, options: Options, deadline: float) -> None:
        try:
            with no_reentry:
                self.session.account.directory.probe(options, deadline=deadline)
        except RateLimited as error:
            # Kombu would connect again and again, and its caller would hear of it late.
            if self.session.has_alternates or error.stops is Scope.QUEUE:
                raise
            logger.debug("connecting without a request: %s", error)

    def verify_connection(self, connection: Transport) -> bool:
        """Whether *connection* is open.  Another thread may close it while this one connects."""
        return connection is self

    def close_connection(self, connection: Transport) -> None:
        """Close the channels.  The last connection to an account also closes the sockets.

        Blocks for at most 5 seconds per channel, and not again once the server does not answer.
        """
        self._leave_loop()
        try:
            super().close_connection(connection)
        finally:
            self._leave_account()

    def _collect(self, connection: Transport | None) -> None:
        """Drop the connection, which failed or belongs to another process, without any traffic."""
        self._leave_loop()
        for channel in [*self._avail_channels, *self.channels]:
            channel.abandon()
        self._avail_channels.clear()
        self.channels.clear()
        session = self._session_if_made
        if session is not None:
            session.doubt()
            session.close()

    def driver_version(self) -> str:
        """Return the version of this package."""
        from .. import __version__  # noqa: PLC0415  the package imports this module

        return __version__

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """Nothing, because a URL without a host means Cloudflare, and not localhost."""
        return {}

    def _leave_account(self) -> None:
        session = self._session_if_made
        if session is not None:
            session.close()

    @property
    def _session_if_made(self) -> Session | None:
        return cast("Session | None", self.__dict__.get("session"))
