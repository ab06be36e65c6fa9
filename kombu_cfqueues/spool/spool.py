"""The spool's interface to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Final

from ..envelope import Address
from ..errors import CFQueuesError
from ..rate_limit import Budget, Limit
from ..redis_allowance import RedisAllowance
from .bucket import LearnedShare
from .election import Election
from .facts import FileFacts
from .file import File
from .listing import Allowed, Listing, QueueState, Refused
from .liveness import AVAILABLE
from .message_table import MessageTable, Place, Spooled
from .paced_room import PacedRoom
from .room import SpoolRoom
from .shared_budget import Permits, SharedBudget

CLAIM_RESERVE_SECONDS: Final = 5.0
"""A claim expires this long after the timeout of its request.

It covers the time between the claim and the request, and between the answer and its transaction.
A claim of a process that is alive expires only if that process hangs."""


class Spool:
    """What the processes of a machine share for one account: allowance, requests and messages.

    Every method may raise `SpoolUnavailable` if no file can be used, and every method that writes
    `SpoolFull` if the disk is full.

    Args:
        file: The spool's file.
        claim_seconds: A claim expires after this time, even if its process is alive.
        permits: The allowance of this process; None if the machine shares one, in the file.
    """

    available = AVAILABLE
    """Whether this system has the locks that a spool needs; Windows does not."""

    def __init__(self, file: File, claim_seconds: float, permits: Budget | None = None) -> None:
        self._file = file
        self._messages = MessageTable(file)
        self._election = Election(file)
        self._listing = Listing(file)
        self._permits = Permits(file)
        self.room = (
            SpoolRoom(file, claim_seconds)
            if permits is None
            else PacedRoom(file, claim_seconds, permits)
        )
        """The waiting room: messages that wait for a request."""
        self.facts = FileFacts(file)
        """Facts that the processes of the machine share."""

    @classmethod
    def open(
        cls,
        base_url: str,
        account_id: str,
        limit: Limit | None,
        token: Callable[[], str],
        *,
        spool_dir: str | None = None,
        post_seconds: float = 15.0,
        permits: Budget | None = None,
        fleet: RedisAllowance | None = None,
    ) -> Spool:
        """Return the spool of an account; its file is opened at the first use.

        Args:
            base_url: The API's URL; together with *account_id* it selects the file.
            account_id: The account.
            limit: The machine's allowance; None means no limit, or one for each process.
            token: Returns the API token, whose hash selects the allowance.
            spool_dir: The option of this name.
            post_seconds: Timeout of one request.
            permits: The allowance of this process; None if the machine shares one.
            fleet: Shares *limit* among all machines; None if the machine has it for itself.
        """
        stop_log = None if permits is None else permits.stop_log
        file = File(
            base_url, account_id, limit, token, spool_dir=spool_dir, stop_log=stop_log, fleet=fleet
        )
        return cls(file, post_seconds + CLAIM_RESERVE_SECONDS, permits)

    @property
    def path(self) -> Path:
        """The spool's file."""
        return self._file.path

    @property
    def fleet(self) -> RedisAllowance | None:
        """The allowance of all machines; None if this machine has its own."""
        return self._file.fleet

    def fleet_allowed(self) -> Allowed:
        """Return what is left of the allowance of all machines, in one call to Redis.

        Raises:
            BudgetUnavailable: Redis did not answer, or refused.
        """
        assert self._file.fleet is not None  # noqa: S101  the caller has looked
        left = self._file.fleet.look(self._file.token_hash)
        return Allowed(left.free, max(left.stopped, left.publishing_stopped))

    def budget(self, limit: Limit) -> SharedBudget:
        """Return the machine's request allowance."""
        return SharedBudget(self._file, limit)

    def close(self) -> None:
        """Close the file; the next use opens it again.  Never raises."""
        self._file.close()

    # -- messages that are spooled

    def keep(
        self,
        messages: Sequence[Spooled],
        *,
        max_bytes: int,
        repeats: bool = True,
        until: float = inf,
    ) -> list[Place]:
        """Store *messages*, all or none; return once they are on the disk.

        See `MessageTable.spool`.
        """
        return self._messages.spool(messages, max_bytes=max_bytes, repeats=repeats, until=until)

    def left(self, places: Sequence[Place]) -> Mapping[Place, CFQueuesError | None]:
        """Return the outcomes of spooled messages that no longer wait; see `MessageTable.left`."""
        return self._messages.left(places)

    def has_backlog(self) -> bool:
        """Whether spooled messages wait or are being posted."""
        return self._messages.has_backlog()

    def take_over(self) -> None:
        """Take over messages that older versions of this package spooled."""
        self._messages.take_over()

    def learn(self, address: Address) -> None:
        """Record a queue's id for all processes."""
        self._messages.learn(address)

    def shrink(self) -> bool:
        """Return some free pages to the disk; return False if there were few."""
        return self._file.shrink()

    def stop(self, error: CFQueuesError, cloudflare_id: str | None) -> None:
        """Stop the requests that *error* concerns, for every process that empties the spool."""
        self._permits.stop(error, cloudflare_id)

    def notice_stop(self) -> None:
        """Log a stop of publishing, or its end, that another process has recorded in the file."""
        self._permits.notice_stop()

    # -- the process that empties the spool

    def elect(self) -> bool:
        """Become the process that empties the spool; return False if another one does."""
        return self._election.win()

    def resign(self) -> None:
        """Let another process empty the spool."""
        self._election.resign()

    # -- for display

    def queues(self) -> list[QueueState]:
        """Return every queue that has messages here."""
        return self._listing.queues()

    def refused(self) -> list[Refused]:
        """Return every refused message, the oldest first."""
        return self._listing.refused()

    def allowed(self) -> Allowed:
        """Return what is left of the allowance."""
        return self._listing.allowed()

    def share(self) -> LearnedShare | None:
        """Return the share of the rate that the machine has learned; None if there is none."""
        return self._listing.share()

    def sharers(self) -> list[int]:
        """Return the ids of the other processes that use the spool."""
        return self._listing.sharers()

    def retry(self, messages: Sequence[int]) -> int:
        """Let refused messages wait again; return their number."""
        return self._listing.retry(messages)

    def drop(self, messages: Sequence[int]) -> int:
        """Delete refused messages; return their number."""
        return self._listing.drop(messages)
