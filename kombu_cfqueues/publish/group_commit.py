"""Group commit: many callers, few requests, an outcome for each caller.

Requests are scarce and each carries many messages, so callers that arrive at about the same time
share one.  A group commit has no thread of its own: one of the callers *leads*.  The leader asks
the waiting room for a permit and the messages that go with it, posts them, and reports each
caller's outcome.  The others sleep until they are settled, become the leader, or run out of time.

An exception may end a caller between any two instructions: a signal, a killed greenlet, a bug.  So
nothing here depends on a caller that cleans up after itself.  The leader states when it will act
next, and each request in flight states when it will be over.  The next caller that looks repairs
what is overdue.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Final

from ..envelope import Address
from ..errors import CFQueuesError, SpoolFull, SpoolUnavailable, copy_of
from ..runtime.clock import Clock
from ..runtime.fork import renew_in_child
from ..runtime.rng import rng
from ..waiting_room import (
    Claim,
    ClaimTerms,
    Item,
    Kind,
    Outcomes,
    RoomBusy,
    Settled,
    Wait,
    WaitingRoom,
)
from .callers import Caller
from .in_flight import InFlight
from .leadership import DEADLINE_TOLERANCE_SECONDS, LEADER_LEASE_SECONDS, Leadership
from .sender import ROOM_RETRY_SECONDS, Sender
from .try_times import TryTimes
from .withdrawal import timeout, withdraw

BULK_IN_FLIGHT: Final = 2
"""Requests in flight for `GroupCommit.submit_many`.  Two are enough for the 5,000 messages per
second that one queue accepts."""

ROOM_TIMEOUT_SECONDS: Final = LEADER_LEASE_SECONDS / 2
"""How long a leader waits for a busy room.  Half of its lease, so that the other callers do not
consider it dead meanwhile."""

PERMIT_JITTER_SECONDS: Final = 0.004
"""Maximum random delay before a process asks for a permit that other processes wait for.  It keeps
them from using the file at the same instant, and is short compared with the 0.25 s between
permits."""

FIRST_POST_DELAY_SECONDS: Final = 0.02
"""Extra delay before a process that has not posted yet asks for a permit that others wait for.

Its first post loads the HTTP client and opens a connection (0.1 to 0.3 s), and all other messages
would wait for that.  During the delay, another process can wake up, even on a busy machine."""


class GroupCommit:
    """Callers of this process that share requests.

    If several callers share an error, each gets a copy of its own.

    Args:
        room: Where their messages wait.
        sender: Posts claims.
        max_in_flight: Maximum number of requests of this process in flight to one queue.
        repeats: Whether to post messages again that may have arrived.
        clock: Tells the time and makes locks.
    """

    def __init__(
        self, room: WaitingRoom, sender: Sender, *, max_in_flight: int, repeats: bool,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.sender = sender
        self._room = room
        bulk_in_flight = max(max_in_flight, BULK_IN_FLIGHT)
        self._max_in_flight = {Kind.SINGLE: max_in_flight, Kind.BULK: bulk_in_flight}
        self._repeats = repeats
        self._clock = clock or Clock()
        self._times = TryTimes(sender, shared=room.shared)
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty: only the parent settles what its callers wait for."""
        # _lock guards _leadership and the callers, and is never held over the room, a post or a
        # sleep.  `Leadership.leader` is also read without it.
        self._lock = self._clock.lock()
        self._in_flight = InFlight(self._max_in_flight)
        self._leadership = Leadership(self.sender, self._times, self._in_flight)

    def submit(
        self, address: Address, message: Any, *, deadline: float, switches: bool = False
    ) -> None:
        """Publish a message; block until it is accepted.

        Args:
            address: The queue.
            message: What to post; has a ``size`` in bytes.
            deadline: When to give up, in monotonic seconds.
            switches: Whether the caller has another broker, so that no failed request is repeated.

        Raises:
            PublishTimeout: No request was made or answered before *deadline*.  Its cause is the
                last failure; ``delivered`` is ``"no"`` only if the message was certainly not sent.
            CFQueuesError: Why the message was refused; ``delivered`` covers earlier tries too.
            SpoolUnavailable, SpoolFull: The room cannot be used, and nothing was sent.
        """
        (outcome,) = self._serve(address, [message], Kind.SINGLE, deadline, switches=switches)
        if outcome is not None:
            try:
                raise outcome
            finally:
                del outcome  # its traceback holds this frame: break the cycle

    def submit_many(
        self, address: Address, messages: Sequence[Any], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Publish many messages; block until each is settled.

        They leave in their order, after the messages of `submit`.

        Returns:
            The outcome of each: None if it was accepted, else what `submit` would raise.  An
            exception that ends the caller itself (an interrupt, a bug) is raised, and messages that
            have not left are taken back.

        Raises:
            SpoolUnavailable, SpoolFull: The room cannot be used, and nothing was sent.
        """
        return self._serve(address, messages, Kind.BULK, deadline) if messages else []

    def catch_up(self) -> None:
        """Settle earlier claims that could not be settled in the room at the time."""
        self.sender.catch_up(self._report)

    def post_backlog(self) -> Wait | None:
        """Post one request of what waits in the room, for no caller in particular.

        Returns:
            None if something was posted, else when to ask again.
        """
        pause = self.sender.pause
        if pause is not None and pause.until > self._clock.monotonic():
            return Wait(pause.until)
        # After any failure, messages that somebody waits for are left to other processes.
        takes_all = self.sender.trusted and pause is None
        kinds = (Kind.SINGLE, Kind.BULK, Kind.SPOOLED) if takes_all else (Kind.SPOOLED,)
        terms = ClaimTerms(rng.getrandbits(62), kinds, sample=self.sender.suspected())
        try:
            found = self._room.claim(terms)
            if isinstance(found, Wait):
                return found
            self.sender.send(found, self._report, deadline=inf)
        except BaseException:
            self._room.release(terms.number)
            raise
        return None

    # -- from the first step of a caller to its last ------------------------------------------

    def _serve(
        self, address: Address, messages: Sequence[Any], kind: Kind, deadline: float,
        *, switches: bool = False,
    ) -> list[CFQueuesError | None]:  # fmt: skip
        now, asleep = self._clock.monotonic(), self._clock.lock()
        caller = Caller(address, kind, now=now, deadline=deadline, asleep=asleep)
        items = [
            Item(
                address, message, kind, deadline=deadline, half_time=caller.half_time,
                repeats=self._repeats, switches=switches, owner=caller,
            )
            for message in messages
        ]  # fmt: skip
        caller.unsettled = dict.fromkeys(items)
        try:
            self._enter(caller, items)
            while caller.unsettled:
                self._step(caller)
        finally:
            if caller.unsettled or caller.claims or caller in self._leadership.callers:
                self._leave(caller)
        outcomes = [caller.outcomes[item] for item in items]
        caller.outcomes = {}  # break the cycle, so that the memory is free at once
        return [error and copy_of(error) for error in outcomes]

    def _enter(self, caller: Caller, items: list[Item]) -> None:
        """Put the messages into the room; post at once if nothing else waits there."""
        may_skip = (
            caller.kind is Kind.SINGLE
            and self.sender.pause is None
            and not self._leadership.is_blocked(caller, self._clock.monotonic())
        )
        number = caller.new_claim()
        try:
            claim = self._room.enter(items, number=number, may_skip=may_skip, until=caller.deadline)
        except RoomBusy as error:
            caller.claims.pop(number)
            self._settle({item: timeout(item, error, sent=False) for item in items})
            return
        if claim is not None:
            self._post(caller, claim)
        else:
            caller.claims.pop(number)
        with self._lock:
            self._leadership.join(caller, self._clock.monotonic())

    def _step(self, caller: Caller) -> None:
        now = self._clock.monotonic()
        if caller.deadline <= now:
            self._withdraw([caller], None, claimed=True)
        elif not caller.is_late and self._times.last_moment(caller) <= now:
            # The deadline would pass before the answer, so it would stay unknown whether the
            # message arrived.
            self._make_late(caller)
        elif self._times.pause_is_too_long(caller):
            pause = self.sender.pause
            self._withdraw([caller], pause and pause.why, claimed=False)
            caller.is_late = bool(caller.unsettled)
        elif self._leadership.leader is caller:
            self._lead(caller, now)
        else:
            self._follow(caller, now)

    def _follow(self, caller: Caller, now: float) -> None:
        """Sleep until woken; lead if the leader is dead or pauses longer than this caller must."""
        wake_at = self._limit_of_sleep(caller)
        if not caller.is_late:
            wake_at = min(wake_at, self._times.next_within_pause(caller, now))
        with self._lock:
            self._leadership.callers[caller] = None  # it was removed if it was considered dead
            self._leadership.appoint(now)
            leader = self._leadership.leader
            if leader is caller:
                return
            acts_by = now if leader is None else leader.acts_by
            wake_at = min(wake_at, acts_by + LEADER_LEASE_SECONDS)
            resumes_at = self._times.resumes_at(caller)
            if leader is not None and leader.paused_until > resumes_at and not caller.is_late:
                if resumes_at <= now:
                    self._leadership.appoint(now, caller)
                    return
                wake_at = min(wake_at, resumes_at)
        caller.sleep(wake_at - now)

    # -- the leader's work --------------------------------------------------------------------

    def _lead(self, caller: Caller, now: float) -> None:
        """Look once for outcomes and for a permit; post, or sleep until a permit may be free."""
        caller.acts_by = now
        try:
            self.sender.catch_up(self._report)
            outcomes = self._room.outcomes(until=now + ROOM_TIMEOUT_SECONDS)
            self._report(outcomes.settled)
            if caller.unsettled and self._leadership.leader is caller:
                self._claim_or_sleep(caller, outcomes, now)
        except (SpoolUnavailable, SpoolFull, RoomBusy):
            # The messages are in the room, and other processes may reach it.  Each caller still
            # has its deadline.
            self._sleep(caller, now + ROOM_RETRY_SECONDS)

    def _claim_or_sleep(self, caller: Caller, outcomes: Outcomes, now: float) -> None:
        if not outcomes.waiting or caller.is_late:
            look_at = caller.deadline if outcomes.look_at is None else outcomes.look_at
            self._sleep(caller, look_at, idle=True)
            return
        resumes_at = self._times.resumes_at(caller)
        if resumes_at > now:
            caller.paused_until = resumes_at
            self._sleep(caller, resumes_at)
            caller.paused_until = 0.0
            return
        terms = self._terms(caller, now)
        found = self._room.claim(terms)
        if isinstance(found, Claim):
            self._post(caller, found)
        else:
            caller.claims.pop(terms.number, None)
            self._wait(caller, found)

    def _terms(self, caller: Caller, now: float) -> ClaimTerms:
        left = caller.deadline - now
        # The caller's deadline ends the request.  So the request carries no message whose deadline
        # is much later: it may have to give up on a slow answer, and the message is sent twice.
        latest = caller.deadline + min(DEADLINE_TOLERANCE_SECONDS, left)
        return ClaimTerms(
            caller.new_claim(),
            busy=self._in_flight.full_queues(caller.kind, now),
            only_own=not self.sender.trusted,
            latest=inf if left >= self.sender.post_seconds else latest,
            request_seconds=self.sender.request_seconds,
            sample=self.sender.suspected(),
            until=now + ROOM_TIMEOUT_SECONDS,
        )

    def _wait(self, caller: Caller, wait: Wait) -> None:
        """Sleep until a permit may be free; settle callers that cannot wait that long."""
        if wait.until is not None and wait.why is not None:
            self._withdraw_before(wait.until, wait.why, wait.queue)
        # Look again: another process may have posted messages of this process, and its answer comes
        # long before the next permit.
        outcomes = self._room.outcomes(until=self._clock.monotonic() + ROOM_TIMEOUT_SECONDS)
        self._report(outcomes.settled)
        if not caller.unsettled:
            return
        wake_at = caller.deadline
        if wait.until is not None:
            wake_at = wait.until + self._delay_after_permit()
        if outcomes.look_at is not None:
            wake_at = min(wake_at, outcomes.look_at)
        self._sleep(caller, wake_at, idle=wait.until is None)

    def _delay_after_permit(self) -> float:
        """Return how long after a permit is free this process asks for it, in seconds."""
        if not self._room.shared:
            return 0.0
        has_posted = self.sender.request_seconds > 0
        return rng.uniform(0, PERMIT_JITTER_SECONDS) + (not has_posted) * FIRST_POST_DELAY_SECONDS

    def _sleep(self, caller: Caller, until: float, *, idle: bool = False) -> None:
        now = self._clock.monotonic()
        until = min(until, self._limit_of_sleep(caller))
        caller.acts_by, caller.idle = max(until, now), idle
        caller.sleep(until - now)
        caller.idle = False

    def _limit_of_sleep(self, caller: Caller) -> float:
        return caller.deadline if caller.is_late else self._times.last_moment(caller)

    def _post(self, caller: Caller, claim: Claim) -> None:
        """Post a claim; meanwhile another caller leads."""
        now = self._clock.monotonic()
        end = min(caller.deadline, now + self.sender.post_seconds)
        with self._lock:
            caller.posts = True
            self._in_flight.add(claim, over_at=end + LEADER_LEASE_SECONDS)
            self._leadership.step_down(caller, now)
        try:
            self.sender.send(claim, self._report, deadline=caller.deadline)
        finally:
            pause = self.sender.pause
            caller.failed |= pause is not None and pause.since >= now
            self._finish_post(caller, claim)
        caller.claims.pop(claim.number, None)

    def _finish_post(self, caller: Caller, claim: Claim) -> None:
        """Wake the callers for which the end of a request changes something."""
        now = self._clock.monotonic()
        with self._lock:
            caller.posts = False
            self._in_flight.remove(claim.number)
            self._leadership.appoint(now)
            if self._leadership.leader is not None:
                self._leadership.leader.wake()
            for other in self._leadership.callers if self.sender.pause else ():
                if self._times.pause_is_too_long(other):
                    other.wake()
            for item in claim.items:  # a message that waits again may be out of time
                owner = item.owner
                if owner is not None and item in owner.unsettled and owner.is_late:
                    owner.is_late = False
                    owner.wake()

    # -- giving up ----------------------------------------------------------------------------

    def _make_late(self, caller: Caller) -> None:
        """Take back messages that nobody has claimed: it is too late for another request."""
        self._withdraw([caller], None, claimed=False)
        with self._lock:
            caller.is_late = True
            if self._leadership.leader is caller:
                self._leadership.step_down(caller, self._clock.monotonic())

    def _withdraw_before(self, until: float, why: CFQueuesError, queue: str | None) -> None:
        """Settle callers that cannot wait for *until*: none of their messages can leave."""
        with self._lock:
            late = [
                caller
                for caller in self._leadership.callers
                if queue in (None, caller.address.name) and self._times.last_moment(caller) < until
            ]
        if late:
            self._withdraw(late, why, claimed=False)

    def _withdraw(
        self, callers: Sequence[Caller], why: CFQueuesError | None, *, claimed: bool
    ) -> None:
        """Take messages back and settle them; see `withdrawal.withdraw`."""
        pause = self.sender.pause
        items = [item for caller in callers for item in list(caller.unsettled)]
        now = self._clock.monotonic()
        self._report(withdraw(self._room, items, claimed=claimed, now=now, reason=why, pause=pause))

    def _leave(self, caller: Caller) -> None:
        """Leave nothing behind, even if an interrupt, a killed greenlet or a bug ends *caller*."""
        try:
            for number in list(caller.claims):
                self._room.release(number)
                self._in_flight.remove(number)
            if caller.unsettled:
                self._withdraw([caller], None, claimed=True)
        except (SpoolUnavailable, SpoolFull, RoomBusy):
            pass  # the room frees claims whose thread has ended
        with self._lock:
            self._leadership.leave(caller, self._clock.monotonic())

    # -- outcomes -----------------------------------------------------------------------------

    def _report(self, settled: Settled) -> None:
        """Give the callers of this process the outcomes of their messages."""
        if settled:
            with self._lock:
                self._settle(settled)

    def _settle(self, settled: Settled) -> None:
        for item, error in settled.items():
            owner: Caller | None = item.owner
            if owner is not None:
                owner.settle(item, error)
