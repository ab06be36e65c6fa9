"""What all connections of a process to one account share."""

from __future__ import annotations

import functools
import logging
import threading

from .budget import Budget, Limit
from .client import Client
from .directory import Directory
from .fork import renew_in_child
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
        self._connections = 0  # guarded by the registry's lock
        rate = options.request_rate
        self._budget = Budget(None if rate is None else Limit(rate, options.request_burst))
        self.client = Client(
            options.base_url,
            options.account_id,
            options.api_token,
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            gate=self._budget,
        )
        self.directory = Directory(self.client)
        self.publisher = Publisher(self.client, self._budget, options)
        self.receiver = Receiver(self.client, self.directory, self.publisher.submit)

    @classmethod
    def open(cls, options: Options) -> Account:
        """The account of *options*, made if it is the first connection's.

        Each call is to be followed by one of `close`.
        """
        key = (options.base_url, options.account_id, options.api_token)
        with _registry.lock:
            account = _registry.accounts.get(key)
            if account is None:
                account = _registry.accounts[key] = cls(options)
            account._connections += 1
        account._tell_of_differences(options)
        return account

    def close(self) -> None:
        """One connection less; the last one closes the sockets.  Never raises."""
        with _registry.lock:
            self._connections -= 1
            last = self._connections <= 0
        if last:
            self.client.close()

    def _tell_of_differences(self, options: Options) -> None:
        # Kombu and Celery bring different connect timeouts, which nobody has chosen.
        for name in set(ACCOUNT_OPTIONS) - {"connect_timeout"}:
            first, now = getattr(self._options, name), getattr(options, name)
            if first != now:
                _warn_of_difference(name, now, first)


@functools.lru_cache(maxsize=256)  # said once, not by each connection
def _warn_of_difference(name: str, now: object, first: object) -> None:
    logger.warning(
        "%s=%s has no effect: all connections of a process to one account share it, and the first "
        "one set it to %s",
        name,
        now,
        first,
    )


class _Registry:
    """The accounts of this process."""

    def __init__(self) -> None:
        self.accounts: dict[Key, Account] = {}
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep the accounts; a thread of the parent may have held the lock."""
        self.lock = threading.Lock()  # guards accounts, and each account's count of connections


_registry = _Registry()
