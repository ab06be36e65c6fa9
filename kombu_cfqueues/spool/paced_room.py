"""The spool's room where the allowance is not the machine's: the process paces its own requests."""

from __future__ import annotations

from ..rate_limit import Budget, Place
from ..waiting_room import Claim, ClaimTerms, Wait
from .file import File
from .room import SpoolRoom


class PacedRoom(SpoolRoom):
    """A `SpoolRoom` whose permits are those of the process, for all that it posts.

    So what is spooled and what is confirmed share one allowance, and a stop holds for both.  One
    thread makes claims: the relay's.

    Args:
        file: Where the messages are.
        claim_seconds: As in `SpoolRoom`.
        permits: The allowance of the process.
    """

    def __init__(self, file: File, claim_seconds: float, permits: Budget) -> None:
        self._permits = permits
        super().__init__(file, claim_seconds)

    def renew_after_fork(self) -> None:
        """Know of nothing that the parent waits for, and hold no permit of it."""
        super().renew_after_fork()
        self._place = Place()
        self._has_permit = False

    def claim(self, terms: ClaimTerms) -> Claim | Wait:
        """See `WaitingRoom.claim`.  A permit for which nothing was found is kept for the next."""
        if not self._has_permit:
            # Which queue it is for is not known yet: the file has what stops a single queue.
            why = self._permits.try_take(self._place, queue="")
            if why is not None:
                return Wait(self._place.ready_at, why)
            self._has_permit = True
        found = super().claim(terms)
        if isinstance(found, Claim) and found.items:
            self._has_permit = False
        return found
