"""The spool's waiting room where each process has its own request allowance."""

from __future__ import annotations

from ..rate_limit import Budget, Waiter
from ..waiting_room import Claim, ClaimTerms, Wait
from .file import File
from .room import SpoolRoom


class PacedRoom(SpoolRoom):
    """A `SpoolRoom` whose permits come from the allowance of the process.

    Spooled and confirmed messages share that allowance, and a stop applies to both.  Only the
    relay's thread makes claims, so the fields below need no lock.

    Args:
        file: Where the messages are.
        claim_seconds: As in `SpoolRoom`.
        permits: The allowance of the process.
    """

    def __init__(self, file: File, claim_seconds: float, permits: Budget) -> None:
        self._permits = permits
        super().__init__(file, claim_seconds)

    def renew_after_fork(self) -> None:
        """Forget what the parent waits for, and its permit."""
        super().renew_after_fork()
        self._waiter = Waiter()
        self._has_permit = False

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """See `WaitingRoom.claim`.  A permit that finds no message is kept for the next claim."""
        if not self._has_permit:
            # The queue is not known yet; the file records the stops of a single queue.
            why = self._permits.try_take(self._waiter, queue="")
            if why is not None:
                return Wait(self._waiter.ready_at, why)
            self._has_permit = True
        found = super().claim(terms)
        if isinstance(found, Claim) and found.items:
            self._has_permit = False
        return found
