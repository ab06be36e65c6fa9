"""What the channels of one connection share: its options, its account and its inbox.

A transport creates one session and gives it to its channels, which need not know the transport
then.  Whatever outlives a connection belongs to the account.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .. import retry
from ..account import Account
from ..api.models import Queue
from ..consume.inbox import Inbox
from ..errors import ConnectionFailed, QueueNotFound, TransientError
from ..options import Options
from .bindings import Bindings, bindings_of

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

    @property
    def account(self) -> Account:
        """What all connections of the process to this account share.

        Opened at its first use, and again after `close`.
        """
        if self._account is None:
            self._account = Account.open(self.options)
        return self._account

    @property
    def inbox(self) -> Inbox:
        """The messages that were pulled for the consumers of this connection."""
        if self._inbox is None:
            self._inbox = self.account.receiver.open_inbox(self)
        return self._inbox

    @property
    def bindings(self) -> Bindings:
        """The exchanges and bindings, which all connections to the account share."""
        return bindings_of(self.options)

    def deadline(self) -> float:
        """The deadline of a call that starts now: ``publish_timeout`` from now."""
        return time.monotonic() + self.options.publish_timeout

    def retry(self, deadline: float, call: Callable[[], T]) -> T:
        """Return what *call* returns; repeat it until *deadline* while its failures may pass.

        If Kombu has another URL, a connection that failed is not retried: failing over is better.

        Raises:
            CFQueuesError: What the last try raised.
        """
        return retry.until(deadline, call, self._is_for_failover)

    def use_queue(self, name: str, deadline: float, use: Callable[[Queue], T]) -> T:
        """Look up a queue, create it if it does not exist, and return what *use* returns.

        If the queue turns out to have been deleted, look it up and use it once more.

        Args:
            name: Kombu's name of the queue.
            deadline: When the look-up gives up.
            use: Called with the queue.

        Raises:
            CFQueuesError: What the look-up or *use* raised.
        """
        queue = self._look_up(name, deadline)
        try:
            return use(queue)
        except QueueNotFound:
            if not self.account.directory.forget(name, queue.id, self.options):
                raise
            return use(self._look_up(name, deadline))

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
        found = self.find_queue(name, deadline)
        if found is not None:
            self.account.client.delete_queue(found.id, deadline=deadline)
            self.account.directory.forget(name, found.id, self.options)

    def doubt(self) -> None:
        """Note that the connection has failed: the next one asks the server before it is used.

        Kombu before 5.7 fails over to the next URL only if connecting fails.
        """
        if self._account is not None and self.has_alternates:
            self._account.directory.require_probe()

    def close(self) -> None:
        """Leave the account; its last session closes the HTTP connections.  Never raises."""
        account, self._account = self._account, None
        if account is not None:
            account.close()

    def _look_up(self, name: str, deadline: float) -> Queue:
        return self.retry(
            deadline, lambda: self.account.directory.queue(name, self.options, deadline=deadline)
        )

    def _is_for_failover(self, error: TransientError) -> bool:
        return self.has_alternates and isinstance(error, ConnectionFailed)


class Connected(Protocol):
    """What a channel uses of Kombu's transport."""

    @property
    def session(self) -> Session:
        """What the channels of the connection share."""

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver one message to any channel of the connection; raise `TimeoutError` otherwise."""
