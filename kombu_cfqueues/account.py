"""What all connections of a process to one account share."""

from __future__ import annotations

import logging
import os
import threading

from .client import Client
from .directory import Directory
from .options import ACCOUNT_OPTIONS, Options, Token
from .publisher import Publisher
from .receiver import Receiver

logger = logging.getLogger(__name__)

Key = tuple[str, str, Token]


class Account:
    """One HTTP session, one directory and one publisher for a (base URL, account, token).

    Connections come and go, with every reconnect and every fail-over; what must outlive them is
    here.  With the last connection only the sockets are closed: what was learned stays.

    Use `Account.open`, which finds the one of this process.

    Attributes:
        client: The HTTP API.
        directory: Queue name -> queue id.
        publisher: Publishing.
        receiver: Pulling and settling.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._connections = 0  # guarded by _registry_lock
        self._build(None)

    @classmethod
    def open(cls, options: Options) -> Account:
        """The account of *options*, made if it is the first connection's.

        Each call is to be followed by one of `close`.
        """
        key = (options.base_url, options.account_id, options.api_token)
        with _registry_lock:
            account = _registry.get(key)
            if account is None:
                account = _registry[key] = cls(options)
            account._connections += 1
        account._tell_of_differences(options)
        return account

    def close(self) -> None:
        """One connection less; the last one closes the sockets.  Never raises."""
        with _registry_lock:
            self._connections -= 1
            last = self._connections <= 0
        if last:
            self.client.close()

    def remake_after_fork(self) -> None:
        """Start anew in a forked child: locks and sockets of the parent are worthless here."""
        # Kept, because closing them here would say goodbye in the parent's name.
        self._of_the_parent = (self.client, self.directory, self.publisher, self.receiver)
        self._build(self.directory)

    def _build(self, learned: Directory | None) -> None:
        options = self._options
        self.client = Client(
            options.base_url,
            options.account_id,
            options.api_token,
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
        )
        self.directory = learned.copy_for(self.client) if learned else Directory(self.client)
        self.publisher = Publisher(self.client, retry_uncertain=options.retry_uncertain)
        self.receiver = Receiver(self.client)

    def _tell_of_differences(self, options: Options) -> None:
        for name in ACCOUNT_OPTIONS:
            first, now = getattr(self._options, name), getattr(options, name)
            if first != now:
                logger.warning(
                    "%s=%s has no effect: all connections of a process to one account share it, "
                    "and the first one set it to %s",
                    name,
                    now,
                    first,
                )


_registry: dict[Key, Account] = {}  # guarded by _registry_lock
_registry_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _registry_lock  # noqa: PLW0603  another thread of the parent may have held it
    _registry_lock = threading.Lock()
    for account in _registry.values():
        account.remake_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
