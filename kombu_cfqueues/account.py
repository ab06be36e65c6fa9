"""What all connections of a process to one account share."""

from __future__ import annotations

import functools
import logging
import threading
import time

from .api.client import Client
from .api.directory import Directory
from .consume.receiver import Receiver
from .envelope import Address, Packed
from .options import ACCOUNT_OPTIONS, Options, Secret, Token
from .publish.publisher import Publisher
from .rate_limit import Budget, Limit
from .runtime.fork import renew_in_child
from .spool.file import File
from .spool.gate import SharedBudget
from .spool.posters import AVAILABLE

logger = logging.getLogger(__name__)

#: How old the token may be by which a permit is counted.
TOKEN_SECONDS = 10.0

#: Accounts that are remembered while nothing is connected to them.  An application may give each
#: of its connections a new callable as `api_token`, and so make an account each time.
MOST_IDLE = 100

Key = tuple[str, str, Token]


class Account:
    """One HTTP session, one directory and one publisher for a (base URL, account, token).

    Connections come and go, with every reconnect and every fail-over; what must outlive them is
    here.  With the last connection only the sockets are closed: what was learned stays.

    Use `Account.open`, which finds the one of this process.

    Attributes:
        budget: The request allowance.
        client: The HTTP API.
        directory: Queue name -> queue id.
        publisher: Publishing.
        receiver: Pulling and settling.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._connections = 0  # guarded by the registry's lock
        rate = options.request_rate
        limit = None if rate is None else Limit(rate, options.request_burst)
        file = _file(options, limit) if AVAILABLE else None
        self.budget: Budget | SharedBudget = Budget(limit)
        if limit is not None and options.budget_scope == "host":
            if file is not None:
                self.budget = SharedBudget(file, limit)
            else:  # pragma: no cover  Windows
                logger.warning(
                    "this system cannot share the request allowance between processes: each one "
                    "paces its own requests, so divide request_rate by their number"
                )
        self.client = Client(
            options.base_url,
            options.account_id,
            options.api_token,
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            permits=self.budget,
        )
        self.directory = Directory(self.client)
        self.publisher = Publisher(self.client, self.directory, self.budget, options, file)
        self.receiver = Receiver(self.client, self.directory, self._publish_copy)

    @classmethod
    def open(cls, options: Options) -> Account:
        """The account of *options*, made if it is the first connection's.

        Each call is to be followed by one of `close`.
        """
        key = (options.base_url, options.account_id, options.api_token)
        with _registry.lock:
            account = _registry.accounts.pop(key, None)
            if account is None:
                _registry.forget_idle()
                account = cls(options)
            account._connections += 1
            _registry.accounts[key] = account
        account._tell_of_differences(options)
        return account

    def close(self) -> None:
        """One connection less; the last one closes the sockets.  Never raises."""
        with _registry.lock:
            self._connections -= 1
            last = self._connections <= 0
        if last:
            self.client.close()

    def _publish_copy(self, queue_id: str, packed: Packed, *, deadline: float) -> None:
        self.publisher.submit(Address.of_id(queue_id), packed, deadline=deadline)

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


def _file(options: Options, limit: Limit | None) -> File:
    return File(
        options.base_url,
        options.account_id,
        limit,
        _CurrentToken(options.api_token),
        spool_dir=options.spool_dir,
    )


class _CurrentToken:
    """The API token, by which the spool finds its bucket.

    A callable is asked for every request as it is; here it need not be as new.
    """

    def __init__(self, token: Token) -> None:
        self._token = token
        self._known = Secret()
        self._good_until = 0.0

    def __call__(self) -> str:
        if not callable(self._token):
            return self._token
        now = time.monotonic()
        if now >= self._good_until:
            self._good_until = now + TOKEN_SECONDS
            try:
                self._known = Secret(self._token())
            # The application's, which may raise anything.  The request that follows asks again,
            # and whoever waits for it is told.
            except Exception:
                logger.debug("the callable api_token failed", exc_info=True)
        return self._known


class _Registry:
    """The accounts of this process, the last opened last."""

    def __init__(self) -> None:
        self.accounts: dict[Key, Account] = {}
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep the accounts; a thread of the parent may have held the lock."""
        self.lock = threading.Lock()  # guards accounts, and each account's count of connections

    def forget_idle(self) -> None:
        """Forget the accounts that were opened longest ago; the caller holds the lock."""
        idle = [key for key, account in self.accounts.items() if not account._connections]
        for key in idle[: max(0, len(idle) - MOST_IDLE)]:
            del self.accounts[key]


_registry = _Registry()
