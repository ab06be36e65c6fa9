"""What the channels of one connection share: its options, its account and its inbox.

A transport creates one session and gives it to its channels, so they need not know the transport.
Whatever outlives a connection belongs to the account.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .. import retry
from ..account import Account
from ..api.models import Queue
from ..consume.inbox import Inbox
from ..envelope import Address
from ..errors import (
    CFQueuesError,
    ConfigurationError,
    ConnectionFailed,
    PlanLimitReached,
    PublishTimeout,
    QueueNotFound,
    RateLimited,
    TransientError,
    copy_of,
)
from ..options import Options
from ..runtime.fork import notice_fork
from .bindings import Bindings, bindings_of

if TYPE_CHECKING:
    from ..side import ControlBroker

T = TypeVar("T")


class Session:
    """One connection to one account.

    Deadlines are in seconds of `time.monotonic`; every call that has one blocks until then at
    most.

    Args:
        options: The settings of the connection.
        has_alternates: Whether Kombu has other URLs to fail over to.

    Attributes:
        options: The same.
        has_alternates: The same.
    """

    def __init__(self, options: Options, *, has_alternates: bool) -> None:
        self.options = options
        self.has_alternates = has_alternates
        self._account: Account | None = None
        self._inbox: Inbox | None = None
        self._control: ControlBroker | None = None
        self._refusal: TransientError | None = None  # of the last publish that this URL failed

    @property
    def account(self) -> Account:
        """What all connections of the process to this account share.

        Opened at its first use, and again after `close`.
        """
        notice_fork()
        if self._account is None:
            self._account = Account.open(self.options)
        return self._account

    @property
    def inbox(self) -> Inbox:
        """The messages that were pulled for the consumers of this connection."""
        notice_fork()
        if self._inbox is None:
            self._inbox = self.account.receiver.open_inbox(self)
        return self._inbox

    @property
    def control(self) -> ControlBroker:
        """What this process has at the control broker; only with ``control_url``.

        Raises:
            ConfigurationError: The control broker cannot be used.
        """
        if self._control is None:
            from ..side import control_broker  # noqa: PLC0415  most processes never need it

            if self.options.control_url is None:
                raise ConfigurationError("control_url is not set")
            self._control = control_broker(self.options.control_url)
        return self._control

    @property
    def bindings(self) -> Bindings:
        """The exchanges and bindings, which all connections to the account share."""
        return bindings_of(self.options)

    def deadline(self) -> float:
        """The deadline of a call that starts now: ``publish_timeout`` from now."""
        return time.monotonic() + self.options.publish_timeout

    def retry(self, deadline: float, call: Callable[[], T]) -> T:
        """Return what *call* returns; retry it after transient failures, until *deadline*.

        If Kombu has another URL, a connection that failed is not retried: failing over is better.

        Raises:
            CFQueuesError: What the last try raised.
        """
        return retry.until(deadline, call, self._is_for_failover)

    def use_queue(
        self, name: str, deadline: float, use: Callable[[Queue], T], *, publishes: bool = False
    ) -> T:
        """Look up a queue, create it if it does not exist, and return what *use* returns.

        If the queue turns out to have been deleted, look it up and use it once more.

        Args:
            name: Kombu's name of the queue.
            deadline: When the look-up gives up.
            use: Called with the queue.
            publishes: Whether *use* publishes: then Kombu also fails over from a broker that
                answers but does not accept messages.

        Raises:
            CFQueuesError: What the look-up or *use* raised.
        """
        give_up = self._is_for_next_url if publishes else self._is_for_failover
        queue = self._look_up(name, deadline, give_up)
        try:
            return use(queue)
        except QueueNotFound:
            if not self.account.directory.forget(name, queue.id, self.options):
                raise
            return use(self._look_up(name, deadline, give_up))

    def address(self, name: str, queue: Queue) -> Address:
        """Return the address of *queue*, which Kombu calls *name*."""
        address = self.account.directory.address(name, self.options)
        return address._replace(cloudflare_id=queue.id)

    def find_queue(self, name: str, deadline: float) -> Queue | None:
        """Return Kombu's queue *name*, or None if it does not exist.  Does not retry.

        Raises:
            CFQueuesError: A request failed.
        """
        return self.account.directory.find(name, self.options, deadline=deadline)

    def delete_queue(self, name: str, deadline: float) -> None:
        """Delete Kombu's queue *name* and its messages, if it exists.  Does not retry.

        Raises:
            CFQueuesError: A request failed.
        """
        for _ in range(2):  # another program may have deleted it, and created another one
            found = self.find_queue(name, deadline)
            if found is None:
                return
            try:
                self.account.client.delete_queue(found.id, deadline=deadline)
            except QueueNotFound:
                if not self.account.directory.forget(name, found.id, self.options):
                    raise
            else:
                self.account.directory.forget(name, found.id, self.options)
                return

    def doubt(self) -> None:
        """Note that the connection has failed: the next one asks the server before it is used.

        Kombu before 5.7 fails over to the next URL only if connecting fails.  So connecting fails
        for a moment if the server answers but does not accept messages.
        """
        if self._account is not None and self.has_alternates:
            self._account.directory.require_probe(self._refusal)

    def may_repeat(self, error: CFQueuesError) -> bool:
        """Return whether a message may be published again after *error*."""
        return error.delivered == "no" or self.options.retry_uncertain

    def for_next_url(self, error: CFQueuesError, deadline: float) -> TransientError | None:
        """Return what to raise so that Kombu publishes to its next URL; None to stay with this one.

        Args:
            error: The failure of the publish.
            deadline: The deadline of the publish.
        """
        if not (self.may_repeat(error) and self.has_alternates):
            return None
        in_time = time.monotonic() < deadline
        if error.delivered == "unknown" and not in_time:
            return None  # the caller has waited its full time, and would wait as long again
        if isinstance(error, PublishTimeout) and in_time:
            # No request could leave before the deadline, because of a 429 for instance.
            error = (
                copy_of(error.__cause__) if isinstance(error.__cause__, TransientError) else error
            )
        if isinstance(error, PlanLimitReached):
            # Permanent here until midnight, but the next URL may be for another account.
            error = _as_rate_limit(error)
        if not isinstance(error, TransientError):
            return None
        self._refusal = None if isinstance(error, ConnectionFailed) else error
        return error

    def close(self) -> None:
        """Leave the account; its last session closes the HTTP connections.  Never raises."""
        account, self._account = self._account, None
        if self._inbox is not None:
            self._inbox.is_open = False
        if account is not None:
            account.close()

    def _look_up(
        self, name: str, deadline: float, give_up: Callable[[TransientError], bool]
    ) -> Queue:
        return retry.until(
            deadline,
            lambda: self.account.directory.queue(name, self.options, deadline=deadline),
            give_up,
        )

    def _is_for_next_url(self, _: TransientError) -> bool:
        return self.has_alternates

    def _is_for_failover(self, error: TransientError) -> bool:
        return self.has_alternates and isinstance(error, ConnectionFailed)


def _as_rate_limit(error: PlanLimitReached) -> RateLimited:
    """Return *error* as an error after which Kombu goes on to its next URL."""
    return RateLimited(
        str(error),
        status=error.status,
        code=error.code,
        ray_id=error.ray_id,
        retry_after=error.retry_after,
        delivered=error.delivered,
    )


class Connected(Protocol):
    """What a channel uses of Kombu's transport."""

    @property
    def session(self) -> Session:
        """What the channels of the connection share."""

    @property
    def client(self) -> Any:
        """The Kombu connection."""

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message to any channel of the connection; raise `TimeoutError` otherwise."""
