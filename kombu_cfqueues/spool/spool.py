"""The front door of the spool: what the rest of the package uses of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path

from ..envelope import Address
from ..errors import CFQueuesError
from ..rate_limit import Limit
from .election import Election
from .facts import FileFacts
from .file import File
from .listing import Allowed, Listing, QueueState, Refused
from .liveness import AVAILABLE
from .message_table import MessageTable, Place, Spooled
from .room import SpoolRoom
from .shared_budget import SharedBudget
from .sweep import sweep

CLAIM_RESERVE_SECONDS = 5.0
"""A claim is anybody's this long after its request must have ended."""


class Spool:
    """What all processes of a machine share for one account: allowance, requests and messages.

    Every method may raise `SpoolUnavailable` if no file can be used, and each that writes
    `SpoolFull` if the disk is full.

    Args:
        file: Where it is.
        claim_seconds: After this long a claim is anybody's, although its process lives.
    """

    available = AVAILABLE
    """Whether this system has the locks that a spool needs; Windows has not."""

    def __init__(self, file: File, claim_seconds: float) -> None:
        self._file = file
        self._messages = MessageTable(file)
        self._election = Election(file)
        self._listing = Listing(file)
        self.room = SpoolRoom(file, claim_seconds)
        """Where the messages wait for their requests."""
        self.facts = FileFacts(file)
        """What the processes of the machine tell each other."""

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
    ) -> Spool:
        """Return the spool of an account; its file is opened when it is used.

        Args:
            base_url: Where the API is; with *account_id* it chooses the file.
            account_id: The account.
            limit: The request allowance; None: none.
            token: Returns the API token, whose hash chooses the allowance.
            spool_dir: The option.
            post_seconds: How long one request takes at most.
        """
        file = File(base_url, account_id, limit, token, spool_dir=spool_dir)
        return cls(file, post_seconds + CLAIM_RESERVE_SECONDS)

    @property
    def path(self) -> Path:
        """The spool's file."""
        return self._file.path

    def budget(self, limit: Limit) -> SharedBudget:
        """Return the machine's request allowance."""
        return SharedBudget(self._file, limit)

    def close(self) -> None:
        """Let go of the file; the next use opens it again.  Never raises."""
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
        """Return once *messages* are on the disk, all or none; see `MessageTable.spool`."""
        return self._messages.spool(messages, max_bytes=max_bytes, repeats=repeats, until=until)

    def left(self, places: Sequence[Place]) -> Mapping[Place, CFQueuesError | None]:
        """Return what became of spooled messages that do not wait any more."""
        return self._messages.left(places)

    def has_backlog(self) -> bool:
        """Whether spooled messages wait or are on their way."""
        return self._messages.has_backlog()

    def take_over(self) -> None:
        """Keep what older versions of this package have spooled."""
        self._messages.take_over()

    def learn(self, address: Address) -> None:
        """Tell the other processes a queue's id."""
        self._messages.learn(address)

    def shrink(self) -> bool:
        """Give the disk back some of what a backlog has taken; return whether there was much."""
        return self._file.shrink()

    def sweep(self) -> None:
        """Free what dead processes have claimed."""
        sweep(self._file)

    # -- who empties it

    def elect(self) -> bool:
        """Become the process that empties the spool; return False if another one does."""
        return self._election.win()

    def resign(self) -> None:
        """Let another process empty the spool."""
        self._election.resign()

    # -- for people

    def queues(self) -> list[QueueState]:
        """Return every queue for which something is here."""
        return self._listing.queues()

    def refused(self) -> list[Refused]:
        """Return every message that was refused, the oldest first."""
        return self._listing.refused()

    def allowed(self) -> Allowed:
        """Return what is left of the allowance."""
        return self._listing.allowed()

    def sharers(self) -> list[int]:
        """Return the ids of the other processes that use the spool now."""
        return self._listing.sharers()

    def retry(self, messages: Sequence[int]) -> int:
        """Let refused messages wait again; return how many."""
        return self._listing.retry(messages)

    def drop(self, messages: Sequence[int]) -> int:
        """Delete refused messages; return how many."""
        return self._listing.drop(messages)
