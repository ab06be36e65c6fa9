"""Posts claims, and decides from the answer what happens to each message.

The answers also decide when to try again, and whether this process may post messages of other
processes.
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
    ServerError,
    SpoolFull,
    SpoolUnavailable,
    TransientError,
    copy_of,
)
from ..metrics import metrics
from ..retry import Backoff
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child
from ..runtime.recent import Recent
from ..waiting_room import Claim, ClaimOutcome, Item, Kind, RoomBusy, Settled, WaitingRoom
from .request_time import RequestTime

logger = logging.getLogger(__name__)

REFUSED_ALIKE: Final = 8
"""If a queue refuses this many single messages of a split batch with the same error and accepts
none, the rest of the batch is not sent, because the queue may accept nothing."""

SAMPLED: Final = 6
"""How many of the `REFUSED_ALIKE` messages are picked at random from the split batch, because bad
messages are often neighbours.  If half of the messages are bad, six random ones are all bad in one
case of 64."""

OUTAGE_BACKOFF: Final = Backoff(first_seconds=0.2, longest_seconds=5.0)
"""Pauses while the server cannot be reached, or fails.  Short, because callers wait."""

REFUSAL_BACKOFF: Final = Backoff(first_seconds=0.2, longest_seconds=60.0)
"""Pauses while the server refuses the token.  Somebody has to change the token, which takes
minutes."""

QUEUE_BACKOFF: Final = Backoff(first_seconds=1.0, longest_seconds=60.0)
"""Pauses of spooled messages to a queue that does not exist, or accepts nothing.  No caller waits
for them, so the first pause is longer."""

QUICK_FAILURE_SECONDS: Final = 1.0
"""A request that fails within this time has not held up the messages of other processes."""

ROOM_RETRY_SECONDS: Final = 0.2
"""Pause before the next use of a waiting room that could not be used.  Five tries per second add
little load to a busy file, and cost a caller little of its time."""

CLAIM_SETTLE_SECONDS: Final = 5 * ROOM_RETRY_SECONDS
"""How long a caller that has posted tries to settle its claim in a room that cannot be used: five
tries.  After that the caller returns, and a later one settles the claim (`Sender.catch_up`)."""

Post: TypeAlias = Callable[[Address, Sequence[Packed], float], None]
"""Sends messages to a queue by a deadline in monotonic seconds, or raises a `CFQueuesError`."""

Report: TypeAlias = Callable[[Settled], None]
"""Gives the callers of this process the outcomes of their messages."""


class Pause(NamedTuple):
    """Why nothing leaves now.

    Attributes:
        since: When it began, in monotonic seconds.
        until: When it ends, in monotonic seconds.
        asked_until: Until when the server asked for it.  The rest of the pause is a precaution.
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
        post_seconds: Maximum seconds that one post takes.
        lookup_seconds: Maximum seconds that *post* waits for permits, in order to look up the id or
            the retention of the queue.
        request_time: How long requests take, of all senders of a process.
        clock: Tells the time and sleeps.
    """

    def __init__(
        self,
        room: WaitingRoom,
        post: Post,
        *,
        post_seconds: float,
        lookup_seconds: float = 0.0,
        request_time: RequestTime | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.post_seconds = post_seconds
        self.request_time = request_time or RequestTime()
        self._lookup_seconds = lookup_seconds
        self._room = room
        self._post = post
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget the failures of the parent."""
        # Each is read and written in a single step, so it needs no lock.
        self.pause: Pause | None = None
        self.trusted = True
        """Whether a request for a caller of this process may carry messages of other processes.

        After a failure it may not, until one of its requests succeeds: the cause may be its own
        proxy or token.  It still may if a server has answered at once that it does not serve: that
        concerns all processes, and afterwards there is no permit for a request of each."""
        self._outage = OUTAGE_BACKOFF
        self._refusal = REFUSAL_BACKOFF
        # Claims that could not be settled in the room, their outcomes, and until when to try.
        self._unsettled: deque[tuple[Claim, ClaimOutcome, float]] = deque()
        # By queue: the errors with which it refused the first single messages of a split batch;
        # None if it has accepted some of that batch.
        self._refusals: Recent[str, list[tuple[type[CFQueuesError], int | None]] | None] = Recent()

    @property
    def request_seconds(self) -> float:
        """How many seconds an accepted request takes; 0 if this process has made none."""
        return self.request_time.seconds

    def suspected(self) -> Collection[str]:
        """Return the queues for which the next message of a split batch is picked at random."""
        neighbours = REFUSED_ALIKE - SAMPLED
        return [name for name, alike in self._refusals.items() if len(alike or ()) >= neighbours]

    def send(self, claim: Claim, report: Report, *, deadline: float) -> None:
        """Post a claim, report the outcomes to the callers, and settle the claim in the room.

        Args:
            claim: From the room.
            report: Called with the outcomes of callers of this process.
            deadline: When to give up, in monotonic seconds.
        """
        if claim.expired:
            expired = "%d spooled messages to queue %r expired before delivery and were dropped"
            logger.warning(expired, claim.expired, claim.address.name)
        if not claim.items:
            return
        outcome: ClaimOutcome | None = None
        try:
            outcome = self._try(claim, deadline)
        finally:
            # Even if this thread is interrupted: other callers wait for these messages.
            outcome = outcome or self._interrupted(claim)
            report(_owned_here(outcome.settled))
            report(_owned_here(self._settle(claim, outcome, deadline)))

    def _try(self, claim: Claim, deadline: float) -> ClaimOutcome:
        started = self._clock.monotonic()
        end = min(deadline, started + self._lookup_seconds + self.post_seconds)
        try:
            self._post(claim.address, [item.message for item in claim.items], end)
        except CFQueuesError as error:
            if error.__traceback__ is not None:
                # Drop our frame, so that the traceback does not keep the batch alive.
                error.__traceback__ = error.__traceback__.tb_next
            took = self._clock.monotonic() - started
            return self._failed(claim, error, is_quick=took < QUICK_FAILURE_SECONDS)
        self.request_time.note(self._clock.monotonic() - started)
        self._succeeded(claim.address)
        return ClaimOutcome(dict.fromkeys(claim.items))

    def _failed(self, claim: Claim, error: CFQueuesError, *, is_quick: bool) -> ClaimOutcome:
        for item in claim.items:
            item.error = error
        if isinstance(error, (InvalidMessage, MessageTooLarge)):
            return self._refused(claim, error)
        self._pause_after(error)
        may_pass = isinstance(error, TransientError)
        uncertain = error.delivered == "unknown"
        self.trusted &= isinstance(error, ServerError) and is_quick and not uncertain
        settled: dict[Item, CFQueuesError | None] = {}
        for item in claim.items:
            item.uncertain |= uncertain
            is_final = item.switches if may_pass else item.owned_here
            if is_final or (uncertain and not item.repeats):
                settled[item] = error
        self._log_refused(claim, settled, error)
        returned = [item for item in claim.items if item not in settled]
        if returned:
            metrics.retried(error)
        pause = QUEUE_BACKOFF if isinstance(error, QueueNotFound) else None
        return ClaimOutcome(settled, returned, error=error, pause=pause)

    # -- messages that are refused ------------------------------------------------------------

    def _refused(self, claim: Claim, error: CFQueuesError) -> ClaimOutcome:
        """Split a batch that was refused, until each bad message is alone in its request."""
        count, name = len(claim.items), claim.address.name
        if count > 1:
            if claim.items[0].max_batch == self._room.max_batch:  # refused for the first time
                self._refusals.put(name, [])
            return ClaimOutcome({}, claim.items, max_batch=(count + 1) // 2, error=error)
        settled: dict[Item, CFQueuesError | None] = {claim.items[0]: error}
        self._log_refused(claim, settled, error)
        if not self._refuses_all(name, error):
            return ClaimOutcome(settled)
        text = "queue %r refused %d messages of a batch and accepted none; not sending the rest: %s"
        logger.error(text, name, REFUSED_ALIKE, error)
        return ClaimOutcome(settled, error=error, pause=QUEUE_BACKOFF, give_up=_unsent(name, error))

    def _refuses_all(self, name: str, error: CFQueuesError) -> bool:
        """Record a refused message; return whether the queue will refuse the others as well."""
        alike = self._refusals.get_or_make(name, list)
        if alike is None:
            return False
        alike.append((type(error), error.code))
        if len(set(alike)) > 1:
            self._accepts_some(name)
            return False
        if len(alike) < REFUSED_ALIKE:
            return False
        self._refusals.put(name, [])  # spooled messages are tried again after a pause
        return True

    def _accepts_some(self, name: str) -> None:
        """Record that a queue does not refuse all messages with the same error: try each one."""
        self._refusals.put(name, None)

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
        """Return the messages of an interrupted thread, so that another thread posts them once."""
        error = ConnectionFailed(
            "the thread that was posting the message was interrupted", delivered="unknown"
        )
        settled: dict[Item, CFQueuesError | None] = {}
        for item in claim.items:
            item.uncertain = True
            # Only once: a message that ends every thread that posts it must not end every caller.
            if not item.repeats or (item.orphaned and item.owned_here):
                settled[item] = error
            item.orphaned = True
        returned = [item for item in claim.items if item not in settled]
        return ClaimOutcome(settled, returned)

    # -- settling claims in the room ----------------------------------------------------------

    def _settle(self, claim: Claim, outcome: ClaimOutcome, deadline: float) -> Settled:
        """Settle *claim* in the room; if that fails, leave it to the next `catch_up`."""
        now = self._clock.monotonic()
        until = min(deadline, now + CLAIM_SETTLE_SECONDS)
        while True:
            try:
                return self._room.settle(claim, outcome, until=until)
            except (SpoolFull, SpoolUnavailable, RoomBusy) as error:  # noqa: PERF203  they are rare
                left = until - self._clock.monotonic()
                if left <= 0:
                    self._unsettled.append((claim, outcome, now + self.post_seconds))
                    logger.warning(
                        "the outcome of %d messages to queue %r is not recorded yet; if this "
                        "process ends before it is, they may be sent again: %s",
                        *(len(claim.items), claim.address.name, error),
                    )
                    return {}
                self._clock.sleep(min(ROOM_RETRY_SECONDS, left))

    def catch_up(self, report: Report) -> None:
        """Settle earlier claims that could not be settled in the room at the time."""
        for _ in range(len(self._unsettled)):
            try:
                claim, outcome, end = self._unsettled.popleft()
            except IndexError:  # another thread took it
                return
            now = self._clock.monotonic()
            try:
                report(_owned_here(self._room.settle(claim, outcome, until=now)))
                recorded = "the outcome of %d messages to queue %r is recorded now"
                logger.info(recorded, len(claim.items), claim.address.name)
            except (SpoolFull, SpoolUnavailable, RoomBusy) as error:
                if now < end:
                    self._unsettled.append((claim, outcome, end))
                    return
                logger.error(
                    "the outcome of %d messages to queue %r could not be recorded; they may be "
                    "sent again: %s",
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

    def _pause_after(self, error: CFQueuesError) -> None:
        """Back off, at least for as long as the server asks.

        In a shared room, the request allowance is shared too and already waits after a 429.
        """
        now = self._clock.monotonic()
        self._outage, self._refusal = self._outage.after_failure(), self._refusal.after_failure()
        backoff = self._refusal if isinstance(error, PermanentError) else self._outage
        seconds = backoff.pause_seconds()
        if isinstance(error, QueueNotFound):
            seconds = 0.0  # messages to other queues may leave
        asked = error.retry_after or 0.0
        if self._room.shared and error.stops is not None:
            asked = 0.0
        self.pause = Pause(now, now + max(seconds, asked), now + asked, error)


def _unsent(name: str, error: CFQueuesError) -> PermanentError:
    """Return the error for a message that was not sent because the queue seems to refuse all."""
    unsent = PermanentError(
        f"the message was not sent: queue {name!r} refused {REFUSED_ALIKE} other messages of the "
        f"batch and accepted none ({error})"
    )
    unsent.__cause__ = error
    return unsent


def _owned_here(settled: Settled) -> Settled:
    """Return the outcomes for callers of this process; an earlier try may have delivered some."""
    outcomes: dict[Item, CFQueuesError | None] = {}
    for item, error in settled.items():
        if item.owned_here:
            outcomes[item] = error
            if error is not None and item.uncertain and error.delivered != "unknown":
                outcomes[item] = copy = copy_of(error)
                copy.delivered = "unknown"
    return outcomes
