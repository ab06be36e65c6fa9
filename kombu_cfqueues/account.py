"""What all connections of a process to one account share."""

from __future__ import annotations

import logging
import time
from typing import Final

from .api.client import Client
from .api.directory import Directory
from .consume.doorbell import Beyond, Doorbell
from .consume.receiver import Receiver
from .envelope import Address, Packed
from .options import ACCOUNT_OPTIONS, Options, Secret, Token, is_missing
from .publish.publisher import Publisher, post_seconds
from .rate_limit import Budget, Limit
from .redis_allowance import RedisAllowance
from .runtime.fork import living, notice_fork, renew_in_child
from .runtime.locks import new_lock
from .runtime.once import once
from .spool import SharedBudget, Spool

logger = logging.getLogger(__name__)

TOKEN_MAX_AGE_SECONDS: Final = 10.0
"""How long the spool uses one result of a callable `api_token`.

The spool needs the token only to find the allowance that a permit is taken from, so the token may
be a little old.  The application's callable is then not called for every permit.
"""

MAX_IDLE_ACCOUNTS: Final = 100
"""Maximum number of accounts that are kept without a connection.

An application may pass a new callable as `api_token` for each connection, and each makes a new
account.
"""

Key = tuple[str, str, Token]


class Account:
    """What the connections of this process with one (base URL, account id, token) share.

    Every reconnect and every fail-over replaces connections; an account outlives them.  Closing the
    last connection closes only the sockets.  The account keeps what it knows of queues.

    Use `Account.open`, which returns the account of this process.

    Attributes:
        budget: The request allowance.
        client: The HTTP API.
        directory: Finds the id of a queue by its name.
        publisher: Publishes messages.
        receiver: Pulls messages, acknowledges them and returns them.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._connections = 0  # guarded by the registry's lock
        rate = options.request_rate
        limit = None if rate is None else Limit(rate, options.request_burst)
        by_host = limit is not None and options.shares_budget
        alone = Budget(limit)
        spool = None
        if Spool.available:
            spool = open_spool(options, None if by_host else alone)
        self.budget: Budget | SharedBudget = alone
        if limit is not None and by_host:
            if spool is not None:
                self.budget = spool.budget(limit)
            else:  # pragma: no cover  Windows
                logger.warning(
                    "this system cannot share the request allowance between processes: each one "
                    "uses all of request_rate, so divide request_rate by the number of processes"
                )
        self.client = Client(
            options.base_url,
            options.account_id,
            options.api_token,
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            permits=self.budget,
        )
        shares = isinstance(self.budget, SharedBudget)
        self.directory = Directory(self.client, spool.facts if spool and shares else None)
        doorbell = Doorbell(options, _beyond(options))
        self.publisher = Publisher(
            self.client, self.directory, self.budget, options, spool, ring=doorbell.ring
        )
        self.receiver = Receiver(self.client, self.directory, self._publish_copy, doorbell)

    @classmethod
    def open(cls, options: Options) -> Account:
        """Return the account of *options*, and create it for the first connection.

        Each call needs one call of `close`.

        Raises:
            ConfigurationError: ``budget_url`` cannot be used.
        """
        notice_fork()
        key = (options.base_url, options.account_id, options.api_token)
        with _registry.lock:
            account = _registry.accounts.pop(key, None)
            if account is None:
                _registry.forget_idle()
                account = cls(options)
            account._connections += 1
            _registry.accounts[key] = account
        account._warn_of_differences(options)
        return account

    def close(self) -> None:
        """Give up one connection; the last one closes the sockets.  Never raises."""
        notice_fork()
        with _registry.lock:
            self._connections -= 1
            last = self._connections <= 0
        if last:
            self.client.close()

    @classmethod
    def all(cls) -> list[Account]:
        """Return the accounts of this process."""
        return living(_registry.accounts.values())

    def _publish_copy(self, queue_id: str, packed: Packed, *, deadline: float) -> None:
        self.publisher.submit(Address.of_id(queue_id), packed, deadline=deadline)

    def _warn_of_differences(self, options: Options) -> None:
        # Kombu and Celery pass different connect timeouts, which no user has chosen.
        for name in set(ACCOUNT_OPTIONS) - {"connect_timeout"}:
            first, given = getattr(self._options, name), getattr(options, name)
            if first != given:
                if isinstance(given, Secret) or isinstance(first, Secret):
                    first, given = "another value", "a value that is not shown"
                _warn_of_difference(name, given, first)


@once  # not for each connection
def _warn_of_difference(name: str, given: object, first: object) -> None:
    logger.warning(
        "%s=%s has no effect: all connections of a process to one account share it, and the first "
        "connection has set it to %s",
        name,
        given,
        first,
    )


def open_spool(options: Options, permits: Budget | None = None) -> Spool:
    """Return the spool of an account on this machine; its file is opened when it is used.

    Args:
        options: The account, its allowance and the place of the spool.
        permits: The allowance of this process, where the machine does not share one.

    Raises:
        ConfigurationError: ``budget_url`` cannot be used.
    """
    limit = fleet = None
    if options.request_rate is not None and options.shares_budget:
        limit = Limit(options.request_rate, options.request_burst)
    if limit is not None and options.budget_url:
        fleet = RedisAllowance(options.budget_url, options.base_url, options.account_id, limit)
    return Spool.open(
        options.base_url,
        options.account_id,
        limit,
        _CurrentToken(options.api_token),
        spool_dir=options.spool_dir,
        post_seconds=post_seconds(options) + options.lookup_seconds,
        permits=permits,
        fleet=fleet,
    )


def _beyond(options: Options) -> Beyond | None:
    """Return what rings at other machines; None if no option asks for it."""
    if options.doorbell != "everywhere" or options.control_url is None:
        return None
    from .side import ControlBell, control_broker  # noqa: PLC0415  most processes never need it

    return ControlBell(control_broker(options.control_url))


class _CurrentToken:
    """Returns the API token, which the spool needs to find the allowance of the token.

    A callable `api_token` is called at most once per `TOKEN_MAX_AGE_SECONDS`.
    """

    def __init__(self, token: Token) -> None:
        self._token = token
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Call the callable again, because a thread of the parent may be calling it."""
        self._latest: tuple[Secret, float] | None = None  # the token, and until when to use it
        self._is_called = False

    def __call__(self) -> str:
        if not callable(self._token):
            return self._token
        latest = self._latest
        # While one thread calls, the others use the previous token.  If there is none, each thread
        # calls, because the allowance cannot be found without the token.
        if latest is not None and (self._is_called or time.monotonic() < latest[1]):
            return latest[0]
        self._is_called = True
        token = latest[0] if latest is not None else Secret()
        try:
            given = self._token()
            token = token if is_missing(given) else Secret(given)
            del given  # not masked like a Secret, so an error reporter would print it
        # The application's callable may raise anything.  The client calls it again for the next
        # request, and reports the failure to the caller of that request.
        except Exception:
            logger.debug("the callable api_token failed", exc_info=True)
        finally:
            self._is_called = False
        if not token:
            return token
        self._latest = token, time.monotonic() + TOKEN_MAX_AGE_SECONDS
        return token


class _Registry:
    """The accounts of this process, in the order in which they were last opened."""

    def __init__(self) -> None:
        self.accounts: dict[Key, Account] = {}
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep the accounts, but replace the lock: a thread of the parent may have held it."""
        self.lock = new_lock()  # guards accounts and each account's _connections

    def forget_idle(self) -> None:
        """Forget the idle accounts that were opened longest ago.  The caller holds the lock."""
        idle = [key for key, account in self.accounts.items() if not account._connections]
        for key in idle[: max(0, len(idle) - MAX_IDLE_ACCOUNTS)]:
            del self.accounts[key]


_registry = _Registry()
