"""Carries claimed messages to the server, and reads in its answer what becomes of each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeAlias

from ..envelope import Address, Packed
from ..errors import (
    CFQueuesError,
    PermanentError,
    QueueNotFound,
    SpoolFull,
    SpoolUnavailable,
    copy_of,
)
from ..metrics import metrics
from ..publish.group_commit import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Verdict
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child
from ..runtime.rng import rng
from .claims import Claim, Claims, Entry, Fate
from .schema import Kind
from .turns import Wait

logger = logging.getLogger(__name__)

LONGEST_REFUSAL_SECONDS: Final = 60.0
"""Longest pause after the server refused the token, or a queue is missing."""

FILE_TROUBLE_SECONDS: Final = 0.2
"""How long to wait after the file could not be used."""

Post: TypeAlias = Callable[[Address, Sequence[Packed], float], None]
"""Sends messages to a queue by a deadline in monotonic seconds, or raises a `CFQueuesError`."""

Judge: TypeAlias = Callable[[CFQueuesError], Verdict]

Settled: TypeAlias = "dict[int, CFQueuesError | None]"
"""Rows of this process that are settled: None if the message was accepted, else why not."""


class Carrier:
    """Posts what a claim holds, for the callers and the relay of a process.

    Args:
        claims: Where claims come from.
        post: Sends messages.
        judge: Says what a failed post means for messages that other processes wait for.
        post_seconds: Most seconds that one post may take.
        clock: Time and waiting.
    """

    def __init__(
        self,
        claims: Claims,
        post: Post,
        judge: Judge,
        *,
        post_seconds: float,
        clock: Clock | None = None,
    ) -> None:
        self._claims = claims
        self._post = post
        self._judge = judge
        self._post_seconds = post_seconds
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Begin without the parent's experience."""
        # Single values, each read and written at once: they need no lock.
        self.resume_at = 0.0  # monotonic; nothing leaves before, because of trouble
        self.trouble: CFQueuesError | None = None
        self._pauses = 0
        # Whatever failed may be this process's alone, its proxy or its token.  Until a request of
        # its own succeeds, it does not touch what others wait for.
        self._trusted = True

    def claim(
        self, *, without: Collection[str] = (), only_mine: bool = False, spooled: bool = False
    ) -> Claim | Wait:
        """Take what the next permit is for.

        Args:
            without: Names of queues that are not to be posted to now.
            only_mine: Take nothing that other processes wait for.
            spooled: Whether the spool's backlog is this process's own business.
        """
        now = self._clock.monotonic()
        if now < self.resume_at:
            return Wait(self.resume_at)
        if self._trusted and not only_mine:
            return self._claims.claim(without=without)
        if spooled:
            return self._claims.claim(kinds=(Kind.SPOOLED,), without=without)
        return self._claims.claim(kinds=(Kind.SINGLE, Kind.BULK), only_mine=True, without=without)

    def carry(
        self,
        claim: Claim,
        *,
        deadline: float = math.inf,
        judge: Callable[[int], Judge] | None = None,
    ) -> Settled:
        """Post a claim and settle it.

        Args:
            claim: From `claim`.
            deadline: When to give up at the latest, in monotonic seconds.
            judge: Says for a row of this process what a failure means to its caller.

        Returns:
            What of this process's is settled.  What is missing waits on.
        """
        if claim.expired:
            logger.warning(
                "%d spooled messages to queue %r expired before they could be delivered, and "
                "were dropped",
                claim.expired,
                claim.address.name,
            )
        if not claim.entries:
            return {}
        settled = False
        try:
            end = min(deadline, self._clock.monotonic() + self._post_seconds)
            try:
                self._post(claim.address, [entry.packed for entry in claim.entries], end)
            except CFQueuesError as error:
                outcomes = self._failed(claim, error, judge)
            else:
                outcomes = self._accepted(claim)
            settled = True
        finally:
            # Whatever ends this thread, others wait for these messages.
            if not settled:
                rows = [entry.row for entry in claim.entries]
                self._settle(claim, Fate(returned=rows, uncertain=True))
        return outcomes

    def direct(self, address: Address, packed: Packed, deadline: float) -> None:
        """Post one message that waits for nobody, with a permit that was taken for it.

        Raises:
            CFQueuesError: Why it was not accepted.
        """
        try:
            self._post(address, [packed], deadline)
        except CFQueuesError as error:
            if self._judge(error) is not Verdict.THE_ITEMS:
                self._pause(error)
            raise
        self._succeeded()

    def _accepted(self, claim: Claim) -> Settled:
        self._succeeded()
        self._settle(claim, Fate(dict.fromkeys(entry.row for entry in claim.entries)))
        return {entry.row: None for entry in claim.entries if entry.mine}

    def _failed(
        self, claim: Claim, error: CFQueuesError, judge: Callable[[int], Judge] | None
    ) -> Settled:
        if self._judge(error) is Verdict.THE_ITEMS:
            return self._refused(claim, error)
        self._pause(error)
        uncertain = error.delivered == "unknown"
        outcomes: Settled = {}
        refused: dict[int, CFQueuesError] = {}
        for entry in claim.entries:
            if uncertain and not entry.repeats:
                refused[entry.row] = error
            elif entry.mine:
                verdict = (judge(entry.row) if judge else self._judge)(error)
                if verdict is Verdict.NEVER:
                    refused[entry.row] = error
            if entry.mine and entry.row in refused:
                outcomes[entry.row] = _told(entry, error)
        self._tell_of_refused(claim, [e for e in claim.entries if e.row in refused], error)
        returned = [entry.row for entry in claim.entries if entry.row not in refused]
        if returned:
            metrics.retried(error)
        self._settle(claim, Fate(refused, returned=returned, uncertain=uncertain, error=error))
        if isinstance(error, QueueNotFound):
            self._claims.pause(claim.queue, LONGEST_REFUSAL_SECONDS)
        return outcomes

    def _refused(self, claim: Claim, error: CFQueuesError) -> Settled:
        """Split a batch of which something was refused, until what it is is alone."""
        if len(claim.entries) > 1:
            rows = [entry.row for entry in claim.entries]
            half = (len(rows) + 1) // 2
            self._settle(claim, Fate(returned=rows, most=half, error=error))
            return {}
        (entry,) = claim.entries
        self._tell_of_refused(claim, claim.entries, error)
        self._claims.refuse_alone(claim, error)
        return {entry.row: _told(entry, error)} if entry.mine else {}

    def _tell_of_refused(
        self, claim: Claim, entries: Sequence[Entry], error: CFQueuesError
    ) -> None:
        rows = [entry.row for entry in entries if entry.kind is Kind.SPOOLED]
        if rows:
            logger.error(
                "%d spooled messages to queue %r were refused and are kept (cfqueues spool): %s",
                len(rows),
                claim.address.name,
                error,
            )

    def _settle(self, claim: Claim, fate: Fate) -> None:
        """Say what became of *claim*; if the file cannot be written now, until the claim ends."""
        give_up_at = self._clock.monotonic() + self._post_seconds
        while (error := self._try_to_settle(claim, fate)) is not None:
            if self._clock.monotonic() > give_up_at:
                logger.error(
                    "what became of %d messages to queue %r could not be noted, so they may be "
                    "sent once more: %s",
                    len(claim.entries),
                    claim.address.name,
                    error,
                )
                return
            self._clock.sleep(FILE_TROUBLE_SECONDS)

    def _try_to_settle(self, claim: Claim, fate: Fate) -> CFQueuesError | None:
        try:
            self._claims.settle(claim, fate)
        except (SpoolFull, SpoolUnavailable) as error:
            return error
        return None

    def _succeeded(self) -> None:
        self._trusted, self._pauses, self.resume_at, self.trouble = True, 0, 0.0, None

    def _pause(self, error: CFQueuesError) -> None:
        """Send nothing for a while, twice as long each time.

        The pause is random, so that those whom one outage stopped do not come back as one.
        """
        self._trusted = False
        self.trouble = error
        if isinstance(error, QueueNotFound):
            return  # the queue's trouble: others may go on
        most = LONGEST_PAUSE_SECONDS
        if isinstance(error, PermanentError):
            most = LONGEST_REFUSAL_SECONDS
        longest = min(most, FIRST_PAUSE_SECONDS * 2 ** min(self._pauses, 10))
        self._pauses += 1
        pause = rng.uniform(0, longest)
        if error.retry_after is not None and error.stops is None:
            pause = max(pause, error.retry_after)  # the file has what an answer stops
        self.resume_at = self._clock.monotonic() + pause


def _told(entry: Entry, error: CFQueuesError) -> CFQueuesError:
    """What the caller of *entry* is told: an earlier try may have delivered it."""
    if not entry.uncertain or error.delivered == "unknown":
        return error
    error = copy_of(error)
    error.delivered = "unknown"
    return error
