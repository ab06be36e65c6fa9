"""The spool's interface to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..rate_limit import Budget, Limit
from ..redis_allowance import RedisAllowance
from .election import Election
from .facts import FileFacts
from .file import File
from .listing import Allowed, Listing
from .liveness import AVAILABLE
from .message_table import MessageTable
from .paced_room import PacedRoom
from .room import SpoolRoom
from .shared_budget import Permits, SharedBudget

CLAIM_RESERVE_SECONDS: Final = 5.0
"""A claim expires this long after the timeout of its request.

It covers the time between the claim and the request, and between the answer and its transaction.
A claim of a process that is alive expires only if that process hangs."""


class Spool:
    """What the processes of a machine share for one account: allowance, requests and messages.

    Every method, also of its parts, may raise `SpoolUnavailable` if no file can be used, and every
    method that writes `SpoolFull` if the disk is full.

    Args:
        file: The spool's file.
        claim_seconds: A claim expires after this time, even if its process is alive.
        permits: The allowance of this process; None if the machine shares one, in the file.
    """

    available = AVAILABLE
    """Whether this system has the locks that a spool needs; Windows does not."""

    def __init__(self, file: File, claim_seconds: float, permits: Budget | None = None) -> None:
        self._file = file
        self.room = (
            SpoolRoom(file, claim_seconds)
            if permits is None
            else PacedRoom(file, claim_seconds, permits)
        )
        """The waiting room: messages that wait for a request."""
        self.messages = MessageTable(file)
        """The messages that are spooled."""
        self.election = Election(file)
        """The choice of the process that empties the spool."""
        self.allowance = Permits(file)
        """The machine's request allowance, and its stops."""
        self.facts = FileFacts(file)
        """Facts that the processes of the machine share."""
        self.listing = Listing(file)
        """Shows what is in the file, and retries or drops refused messages."""

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

    def shrink(self) -> bool:
        """Return some free pages to the disk; return False if there were few."""
        return self._file.shrink()
