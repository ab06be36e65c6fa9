"""Posts what was claimed, and reads in the answer what becomes of each message.

Also when to try again, and what this process may be trusted with: both follow from the answers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, TypeAlias

from ..envelope import Address, Packed
from ..errors import (
    CFQueuesError,
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    PermanentError,
    QueueNotFound,
    SpoolFull,
    SpoolUnavailable,
    TransientError,
    copy_of,
)
from ..metrics import metrics
from ..retry import Backoff, Verdict
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child
from ..waiting_room import Claim, ClaimOutcome, Item, Kind, RoomBusy, Settled, WaitingRoom

logger = logging.getLogger(__name__)

REFUSED_ALIKE: Final = 5
"""Single messages of a split batch that are refused alike, with none accepted, before the rest is
not asked: requests are scarce, and a queue may take nothing at all."""

SAMPLED: Final = 3
"""How many of `REFUSED_ALIKE` are picked from all that were split, since bad messages are often
neighbours."""

OUTAGE_BACKOFF: Final = Backoff(first_seconds=0.2, longest_seconds=5.0)
"""Pauses while the server cannot be reached, or fails."""

REFUSAL_BACKOFF: Final = Backoff(first_seconds=0.2, longest_seconds=60.0)
"""Pauses while the server refuses the token."""

QUEUE_BACKOFF: Final = Backoff(first_seconds=1.0, longest_seconds=60.0)
"""Pauses of what is spooled for a queue that is missing, or takes nothing."""

FILE_RETRY_SECONDS: Final = 0.2
"""Pause after the waiting room could not be used."""

SETTLE_SECONDS: Final = 1.0
"""How long a caller whose message was posted tries to say so in a room that cannot be used."""

Post: TypeAlias = Callable[[Address, Sequence[Packed], float], None]
"""Sends messages to a queue by a deadline in monotonic seconds, or raises a `CFQueuesError`."""

Judge: TypeAlias = Callable[[CFQueuesError], Verdict]
"""Says what a failure means."""

Tell: TypeAlias = Callable[[Settled], None]
"""Tells the callers of this process the outcomes of their messages."""


def verdict_of(error: CFQueuesError) -> Verdict:
    """Return what *error* says of the messages in a request, if they can go nowhere else."""
    if isinstance(error, TransientError):
        return Verdict.NOT_NOW
    if isinstance(error, (InvalidMessage, MessageTooLarge)):
        return Verdict.THE_ITEMS
    return Verdict.NEVER


class Pause(NamedTuple):
    """Why nothing leaves now.

    Attributes:
        since: When it began, in monotonic seconds.
        until: When it ends.
        asked_until: Until when the server asked for it; what is longer is only our caution.
        why: The failure.
    """

    since: float
    until: float
    asked_until: float
    why: CFQueuesError


class Sender:
    """Posts claims, for the callers and the relay of a process.

    Args:
        room: Where claims come from.
        post: Sends messages.
        judge: Says what a failure means, for messages without a caller in this process.
        post_seconds: How long one post takes at most.
        lookup_seconds: How long a post waits in addition if its queue has to be looked up first.
        clock: Time and waiting.
    """

    def __init__(
        self,
        room: WaitingRoom,
        post: Post,
        judge: Judge = verdict_of,
        *,
        post_seconds: float,
        lookup_seconds: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self.post_seconds = post_seconds
        self._lookup_seconds = lookup_seconds
        self._room = room
        self._post = post
        self._judge = judge
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Begin without the parent's experience."""
        # Single values, each read and written at once: they need no lock.
        self.pause: Pause | None = None
        self.trusted = True
        """Whether this process may take what others wait for.  Whatever failed may be this
        process's alone, its proxy or its token, until a request of its own succeeds."""
        self.request_seconds = 0.0
        """How long the last accepted request took."""
        self._outage = OUTAGE_BACKOFF
        self._refusal = REFUSAL_BACKOFF
        self._queue = QUEUE_BACKOFF
        # What could not be told to the room: claims, their outcomes, and until when they hold.
        self._unsettled: deque[tuple[Claim, ClaimOutcome, float]] = deque()
        # By queue: how the first single messages of a split batch were refused.
        self._refusals: dict[str, list[tuple[type[CFQueuesError], int | None]]] = {}
        self._mixed: set[str] = set()  # queues that have accepted some of such a batch

    def suspected(self) -> Collection[str]:
        """Return the queues of which one message is to be asked alone, from anywhere."""
        neighbours = REFUSED_ALIKE - SAMPLED
        return [name for name, alike in self._refusals.items() if len(alike) >= neighbours]

    def send(
        self, claim: Claim, tell: Tell, *, deadline: float, judge: Callable[[Item], Judge | None]
    ) -> None:
        """Post a claim, tell the callers, and settle it.

        Args:
            claim: From the room.
            tell: Called with all that is settled for callers of this process.
            deadline: When to give up at the latest, in monotonic seconds.
            judge: Says what a failure means to the caller of an item; None: what it means to all.
        """
        if claim.expired:
            logger.warning(
                "%d spooled messages to queue %r expired before they could be delivered, and "
                "were dropped",
                claim.expired,
                claim.address.name,
            )
        if not claim.items:
            return
        outcome: ClaimOutcome | None = None
        try:
            outcome = self._try(claim, deadline, judge)
        finally:
            # Whatever ends this thread, others wait for these messages.
            outcome = outcome or self._interrupted(claim)
            tell(_told(outcome.settled))
            tell(_told(self._settle(claim, outcome, deadline)))

    def _try(
        self, claim: Claim, deadline: float, judge: Callable[[Item], Judge | None]
    ) -> ClaimOutcome:
        started = self._clock.monotonic()
        end = started + self.post_seconds
        if claim.address.cloudflare_id is None:
            end += self._lookup_seconds
        end = min(deadline, end)
        try:
            self._post(claim.address, [item.message for item in claim.items], end)
        except CFQueuesError as error:
            if error.__traceback__ is not None:
                # Drop our frame, so that the traceback does not keep the batch alive.
                error.__traceback__ = error.__traceback__.tb_next
            return self._failed(claim, error, judge)
        self.request_seconds = self._clock.monotonic() - started
        self._succeeded(claim.address)
        return ClaimOutcome(dict.fromkeys(claim.items))

    def _failed(
        self, claim: Claim, error: CFQueuesError, judge: Callable[[Item], Judge | None]
    ) -> ClaimOutcome:
        for item in claim.items:
            item.error = error
        if self._judge(error) is Verdict.THE_ITEMS:
            return self._refused(claim, error)
        self._wait_after(error)
        uncertain = error.delivered == "unknown"
        settled: dict[Item, CFQueuesError | None] = {}
        for item in claim.items:
            item.uncertain |= uncertain
            verdict = Verdict.NOT_NOW
            if item.owned_here:
                verdict = (judge(item) or self._judge)(error)
            if verdict is Verdict.NEVER or (uncertain and not item.repeats):
                settled[item] = error
        self._log_refused(claim, settled, error)
        returned = [item for item in claim.items if item not in settled]
        if returned:
            metrics.retried(error)
        pause = None
        if isinstance(error, QueueNotFound):
            pause = QUEUE_BACKOFF
        return ClaimOutcome(settled, returned, error=error, pause=pause)

    # -- refused for what they are ------------------------------------------------------------

    def _refused(self, claim: Claim, error: CFQueuesError) -> ClaimOutcome:
        """Split a batch of which something was refused, until what it is is alone."""
        count, name = len(claim.items), claim.address.name
        if count > 1:
            if claim.items[0].max_batch == self._room.max_batch:  # refused for the first time
                self._refusals[name] = []
                self._mixed.discard(name)
            return ClaimOutcome({}, claim.items, max_batch=(count + 1) // 2, error=error)
        settled: dict[Item, CFQueuesError | None] = {claim.items[0]: error}
        self._log_refused(claim, settled, error)
        if not self._all_are_refused(name, error):
            return ClaimOutcome(settled)
        logger.error(
            "queue %r refused %d messages alike and accepted none, so the others of the batch are "
            "not sent: %s",
            name,
            REFUSED_ALIKE,
            error,
        )
        unsent = PermanentError(
            f"the message was not sent: queue {name!r} refused {REFUSED_ALIKE} others like it, and "
            f"accepted none ({error})"
        )
        unsent.__cause__ = error
        return ClaimOutcome(settled, error=error, pause=QUEUE_BACKOFF, give_up=unsent)

    def _all_are_refused(self, name: str, error: CFQueuesError) -> bool:
        """Note that one was refused; return whether it is no use to ask the others."""
        if name in self._mixed:
            return False
        alike = self._refusals.setdefault(name, [])
        alike.append((type(error), error.code))
        if len(set(alike)) > 1:
            self._accepts_some(name)
            return False
        if len(alike) < REFUSED_ALIKE:
            return False
        self._refusals[name] = []  # what is spooled is tried again after a pause
        return True

    def _accepts_some(self, name: str) -> None:
        """Note that a queue does not refuse all alike, so each message is worth asking about."""
        self._refusals.pop(name, None)
        self._mixed.add(name)

    def _log_refused(self, claim: Claim, settled: Settled, error: CFQueuesError) -> None:
        count = sum(item.kind is Kind.SPOOLED for item in settled)
        if count:
            logger.error(
                "%d spooled messages to queue %r were refused and are kept (cfqueues spool): %s",
                count,
                claim.address.name,
                error,
            )

    def _interrupted(self, claim: Claim) -> ClaimOutcome:
        """Let what an interrupted thread was posting go out once more under another."""
        error = ConnectionFailed(
            "the thread that was posting the message was interrupted", delivered="unknown"
        )
        settled: dict[Item, CFQueuesError | None] = {}
        for item in claim.items:
            item.uncertain = True
            # Once: an item that ends whoever posts it must not go through all callers.
            if not item.repeats or (item.orphaned and item.owned_here):
                settled[item] = error
            item.orphaned = True
        returned = [item for item in claim.items if item not in settled]
        return ClaimOutcome(settled, returned)

    # -- what the room is told ----------------------------------------------------------------

    def _settle(self, claim: Claim, outcome: ClaimOutcome, deadline: float) -> Settled:
        """Say what became of *claim*; if that cannot be now, whoever comes next says it."""
        now = self._clock.monotonic()
        until = min(deadline, now + SETTLE_SECONDS)
        while True:
            try:
                return self._room.settle(claim, outcome, until=until)
            except (SpoolFull, SpoolUnavailable, RoomBusy):  # noqa: PERF203  it is seldom
                left = until - self._clock.monotonic()
                if left <= 0:
                    self._unsettled.append((claim, outcome, now + self.post_seconds))
                    return {}
                self._clock.sleep(min(FILE_RETRY_SECONDS, left))

    def catch_up(self, tell: Tell) -> None:
        """Say what became of earlier claims, if that could not be said at the time."""
        for _ in range(len(self._unsettled)):
            try:
                claim, outcome, end = self._unsettled.popleft()
            except IndexError:  # another thread was faster
                return
            now = self._clock.monotonic()
            try:
                tell(_told(self._room.settle(claim, outcome, until=now)))
            except (SpoolFull, SpoolUnavailable, RoomBusy) as error:
                if now < end:
                    self._unsettled.append((claim, outcome, end))
                    return
                logger.error(
                    "what became of %d messages to queue %r could not be noted, so they may be "
                    "sent once more: %s",
                    len(claim.items),
                    claim.address.name,
                    error,
                )

    # -- when to try again --------------------------------------------------------------------

    def _succeeded(self, address: Address) -> None:
        self.trusted, self.pause = True, None
        self._outage, self._refusal = OUTAGE_BACKOFF, REFUSAL_BACKOFF
        if address.name in self._refusals:
            self._accepts_some(address.name)

    def _wait_after(self, error: CFQueuesError) -> None:
        """Send nothing for a while: as long as the server asks for, else a little longer each time.

        A 429 stops what it stops in the allowance, which the processes of a machine share.
        """
        self.trusted = False
        now = self._clock.monotonic()
        self._outage, self._refusal = self._outage.after_failure(), self._refusal.after_failure()
        backoff = self._refusal if isinstance(error, PermanentError) else self._outage
        seconds = backoff.pause_seconds()
        if isinstance(error, QueueNotFound):
            seconds = 0.0  # the queue's trouble: others may go on
        asked = error.retry_after or 0.0
        if self._room.shared and error.stops is not None:
            asked = 0.0
        self.pause = Pause(now, now + max(seconds, asked), now + asked, error)


def _told(settled: Settled) -> Settled:
    """Return what callers of this process are told: an earlier try may have delivered a message."""
    told: dict[Item, CFQueuesError | None] = {}
    for item, error in settled.items():
        if item.owned_here:
            told[item] = error
            if error is not None and item.uncertain and error.delivered != "unknown":
                told[item] = copy = copy_of(error)
                copy.delivered = "unknown"
    return told
