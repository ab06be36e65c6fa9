"""Group commit: many callers, few requests, an outcome for each caller.

A request is what is scarce, and it carries many messages, so callers that come at about the same
time share one.  No thread stands behind a group commit: one of the callers *leads*.  It asks the
waiting room for a permit and what it is for, posts that, and tells each caller its outcome.  The
others sleep until they are told, are asked to lead, or run out of time.

An exception may end a caller between any two instructions: a signal, a killed greenlet, a bug.  So
nothing here depends on a caller that cleans up behind itself: who leads says until when it will
have acted, and what is on its way says when it is over; whoever comes later repairs the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    RoomBusy,
    Settled,
    Wait,
    WaitingRoom,
    Withdrawn,
)
from .callers import Caller, judge_of, timeout_error
from .in_flight import InFlight
from .leadership import ALIKE_SECONDS, LEASE_SECONDS, Leadership
from .sender import FILE_RETRY_SECONDS, Judge, Sender
from .try_times import TryTimes

BULK_IN_FLIGHT: Final = 2
"""Requests in flight for `GroupCommit.submit_many`: two reach what one queue takes (5,000/s)."""

ROOM_SECONDS: Final = LEASE_SECONDS / 2
"""How long a leader tries to use a room that is busy, before it looks at its own time again."""

HURRY_SECONDS: Final = 1.0
"""A caller this close to its deadline posts only messages of its own process: it might have to give
up on a slow answer, and the others would be sent twice."""

JITTER_SECONDS: Final = 0.004
"""Processes that wait for the same permit wake at random within this time."""


class GroupCommit:
    """Callers of this process that share requests.

    An error that several callers share reaches each as a copy of its own.

    Args:
        room: Where their messages wait.
        sender: Posts claims.
        max_in_flight: Requests of this process on their way at once for one queue.
        repeats: Whether messages are posted again that may have arrived.
        clock: Time and waiting.
    """

    def __init__(
        self,
        room: WaitingRoom,
        sender: Sender,
        *,
        max_in_flight: int = 1,
        repeats: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.sender = sender
        self._room = room
        self._max_in_flight = max_in_flight
        self._repeats = repeats
        self._clock = clock or Clock()
        self._times = TryTimes(sender, shared=room.shared)
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty.  What the parent's callers wait for is the parent's to settle."""
        # _lock guards _lead and the callers.  It is never held over the room, a post or a sleep.
        # Who leads is also read without it.
        self._lock = self._clock.lock()
        self._in_flight = InFlight()
        self._lead = Leadership(self.sender, self._times, self._is_busy)

    def submit(
        self, address: Address, message: Any, *, deadline: float, judge: Judge | None = None
    ) -> None:
        """Publish; block until the message is accepted.

        Args:
            address: The queue.
            message: What is posted; has a ``size`` in bytes.
            deadline: When to give up, in monotonic seconds.
            judge: What a failure means to this caller; None: what it means to all.

        Raises:
            PublishTimeout: No request could leave, or was answered, by *deadline*.  The last
                failure is its cause; ``delivered`` is ``"no"`` only if it surely is not.
            CFQueuesError: Why this message was refused; ``delivered`` counts earlier tries too.
            SpoolUnavailable, SpoolFull: The room cannot be used, and nothing was sent.
        """
        (outcome,) = self._serve(address, [message], Kind.SINGLE, deadline, judge)
        if outcome is not None:
            try:
                raise outcome
            finally:
                del outcome  # its traceback holds this frame: no cycle

    def submit_many(
        self,
        address: Address,
        messages: Sequence[Any],
        *,
        deadline: float,
        judge: Judge | None = None,
    ) -> list[CFQueuesError | None]:
        """Publish many; block until each message is settled.

        They leave in their order, behind what single callers wait for.

        Returns:
            The outcome of each: None if it was accepted, else what `submit` would raise.  What
            ends the caller itself (an interrupt, a bug) is raised, and what has not left is
            taken back.
        """
        if not messages:
            return []
        return self._serve(address, messages, Kind.BULK, deadline, judge)

    def catch_up(self) -> None:
        """Say what became of earlier requests, if that could not be said at the time."""
        self.sender.catch_up(self._tell)

    def post_backlog(self) -> Wait | None:
        """Post one request of what waits in the room, for nobody in particular.

        Returns:
            None if something was posted, else when to ask again.
        """
        pause, now = self.sender.pause, self._clock.monotonic()
        if pause is not None and pause.until > now:
            return Wait(pause.until)
        kinds = tuple(Kind)[:3] if self.sender.trusted else (Kind.SPOOLED,)
        terms = ClaimTerms(rng.getrandbits(62), kinds, sample=self.sender.suspected())
        try:
            found = self._room.claim(terms)
            if isinstance(found, Wait):
                return found
            self.sender.send(found, self._tell, deadline=inf, judge=judge_of)
        except BaseException:
            self._room.release(terms.number)
            raise
        return None

    # -- a caller's way through ---------------------------------------------------------------

    def _serve(
        self,
        address: Address,
        messages: Sequence[Any],
        kind: Kind,
        deadline: float,
        judge: Judge | None,
    ) -> list[CFQueuesError | None]:
        now = self._clock.monotonic()
        caller = Caller(
            address, kind, now=now, deadline=deadline, judge=judge, wake=self._clock.lock()
        )
        items = [
            Item(
                address, message, kind, entered=now, deadline=deadline, repeats=self._repeats,
                owner=caller,
            )
            for message in messages
        ]  # fmt: skip
        caller.unsettled = dict.fromkeys(items)
        try:
            self._enter(caller, items)
            while caller.unsettled:
                self._step(caller)
        finally:
            if caller.unsettled or caller.claims or caller in self._lead.callers:
                self._leave(caller)
        outcomes = [caller.outcomes[item] for item in items]
        caller.outcomes = {}  # no cycle: memory is free at once
        return [error and copy_of(error) for error in outcomes]

    def _enter(self, caller: Caller, items: list[Item]) -> None:
        """Let the messages wait; or, where nothing has to, post at once."""
        now = self._clock.monotonic()
        may_skip = (
            caller.kind is Kind.SINGLE
            and self.sender.pause is None
            and not self._is_busy(caller, now)
        )
        number = caller.new_claim()
        try:
            claim = self._room.enter(items, number=number, may_skip=may_skip, until=caller.deadline)
        except RoomBusy as error:
            caller.claims.pop(number)
            self._settle_all(dict.fromkeys(items, timeout_error(error, sent=False)))
            return
        if claim is not None:
            self._carry(caller, claim)
        else:
            caller.claims.pop(number)
        with self._lock:
            self._lead.join(caller, self._clock.monotonic())

    def _step(self, caller: Caller) -> None:
        now = self._clock.monotonic()
        if caller.deadline <= now:
            self._withdraw([caller], None, claimed=True)
        elif not caller.is_late and self._times.last_moment(caller) <= now:
            # A request that cannot be answered in time would leave it open whether it arrived.
            self._make_late(caller)
        elif self._times.is_hopeless(caller):
            pause = self.sender.pause
            self._withdraw([caller], pause and pause.why, claimed=False)
            caller.is_late = bool(caller.unsettled)
        elif self._lead.leader is caller:
            self._act(caller, now)
        else:
            self._follow(caller, now)

    def _follow(self, caller: Caller, now: float) -> None:
        """Sleep until there is news; lead, if who leads is dead or sleeps for longer than this."""
        wake_at = caller.deadline if caller.is_late else self._times.last_moment(caller)
        with self._lock:
            self._lead.callers[caller] = None  # one that was taken for dead comes back here
            self._lead.appoint(now)
            leader = self._lead.leader
            if leader is caller:
                return
            if leader is not None:
                wake_at = min(wake_at, leader.acts_by + LEASE_SECONDS)
                resumes_at = self._times.resumes_at(caller)
                if leader.paused_until > resumes_at and not caller.is_late:
                    if resumes_at <= now:
                        self._lead.appoint(now, caller)
                        return
                    wake_at = min(wake_at, resumes_at)
            else:
                wake_at = min(wake_at, now + LEASE_SECONDS)
        caller.sleep(wake_at - now)

    # -- the leader's work --------------------------------------------------------------------

    def _act(self, caller: Caller, now: float) -> None:
        """Look once for news and for a permit; post, or sleep until there can be some."""
        caller.acts_by = now
        try:
            self.sender.catch_up(self._tell)
            news = self._room.outcomes(until=now + ROOM_SECONDS)
            self._tell(news.settled)
            if not caller.unsettled or self._lead.leader is not caller:
                return
            if not news.waiting or caller.is_late:
                look_at = caller.deadline if news.look_at is None else news.look_at
                self._sleep(caller, look_at, idle=True)
                return
            resumes_at = self._times.resumes_at(caller)
            if resumes_at > now:
                self._pause(caller, resumes_at)
                return
            terms = self._terms(caller, now)
            found = self._room.claim(terms)
            if isinstance(found, Claim):
                self._carry(caller, found)
                return
            caller.claims.pop(terms.number, None)
            self._wait(caller, found)
        except (SpoolUnavailable, SpoolFull, RoomBusy):
            # The messages are in the room, and others may reach it.  Each caller has its deadline.
            self._sleep(caller, now + FILE_RETRY_SECONDS)

    def _terms(self, caller: Caller, now: float) -> ClaimTerms:
        left = caller.deadline - now
        return ClaimTerms(
            caller.new_claim(),
            (Kind.SINGLE, Kind.BULK, Kind.SPOOLED),
            busy=self._busy(caller, now),
            only_own=not self.sender.trusted or left < HURRY_SECONDS,
            # A request that carries others is not to be shorter than they allow.
            latest=inf if left >= self.sender.post_seconds else caller.deadline + ALIKE_SECONDS,
            request_seconds=self.sender.request_seconds,
            sample=self.sender.suspected(),
            until=now + ROOM_SECONDS,
        )

    def _wait(self, caller: Caller, wait: Wait) -> None:
        """Sleep until a permit may be there; those who cannot wait as long are told at once."""
        if wait.until is not None and wait.why is not None:
            self._give_up_before(wait.until, wait.why, wait.queue)
        # Once more: another process may have taken ours along, and its answer comes long before
        # the next permit.
        news = self._room.outcomes(until=self._clock.monotonic() + ROOM_SECONDS)
        self._tell(news.settled)
        if not caller.unsettled:
            return
        wake_at = caller.deadline
        if wait.until is not None:
            wake_at = wait.until
            if self._room.shared:
                wake_at += rng.uniform(0, JITTER_SECONDS)
        if news.look_at is not None:
            wake_at = min(wake_at, news.look_at)
        self._sleep(caller, wake_at, idle=wait.until is None)

    def _pause(self, caller: Caller, until: float) -> None:
        """Sleep out a pause after a failure."""
        caller.paused_until = until
        self._sleep(caller, until)
        caller.paused_until = 0.0

    def _sleep(self, caller: Caller, until: float, *, idle: bool = False) -> None:
        now = self._clock.monotonic()
        until = min(until, caller.deadline if caller.is_late else self._times.last_moment(caller))
        caller.acts_by, caller.idle = max(until, now), idle
        caller.sleep(until - now)
        caller.idle = False

    def _carry(self, caller: Caller, claim: Claim) -> None:
        """Post a claim; meanwhile another caller leads."""
        now = self._clock.monotonic()
        end = min(caller.deadline, now + self.sender.post_seconds)
        with self._lock:
            caller.posts = True
            self._in_flight.add(claim, over_at=end + LEASE_SECONDS)
            self._lead.step_down(caller, now)
        try:
            self.sender.send(claim, self._tell, deadline=caller.deadline, judge=judge_of)
        finally:
            pause = self.sender.pause
            caller.failed |= pause is not None and pause.since >= now
            self._land(caller, claim)
        caller.claims.pop(claim.number, None)

    def _land(self, caller: Caller, claim: Claim) -> None:
        now = self._clock.monotonic()
        with self._lock:
            caller.posts = False
            self._in_flight.remove(claim.number)
            self._lead.appoint(now)
            if self._lead.leader is not None:
                self._lead.leader.call()
            for other in self._lead.callers if self.sender.pause else ():
                if self._times.is_hopeless(other):
                    other.call()
            for item in claim.items:  # those that wait again may have no more time to
                owner = item.owner
                if owner is not None and item in owner.unsettled and owner.is_late:
                    owner.is_late = False
                    owner.call()

    def _is_busy(self, caller: Caller, now: float) -> bool:
        return caller.address.name in self._busy(caller, now)

    def _busy(self, caller: Caller, now: float) -> list[str]:
        """Return the queues to which this process posts as much as it may, for *caller*."""
        most = self._max_in_flight
        if caller.kind is Kind.BULK:
            most = max(most, BULK_IN_FLIGHT)
        return self._in_flight.busy(most, now)

    # -- giving up ----------------------------------------------------------------------------

    def _make_late(self, caller: Caller) -> None:
        """Take back what nobody has claimed, from when on no request would be answered in time."""
        self._withdraw([caller], None, claimed=False)
        with self._lock:
            caller.is_late = True
            if self._lead.leader is caller:
                self._lead.step_down(caller, self._clock.monotonic())

    def _give_up_before(self, until: float, why: CFQueuesError, queue: str | None) -> None:
        """Tell those who cannot wait until then: nothing of theirs can leave."""
        with self._lock:
            late = [
                caller
                for caller in self._lead.callers
                if queue in (None, caller.address.name) and self._times.last_moment(caller) < until
            ]
        if late:
            self._withdraw(late, why, claimed=False)

    def _withdraw(
        self, callers: Sequence[Caller], why: CFQueuesError | None, *, claimed: bool
    ) -> None:
        """Settle what callers wait for in vain: what nobody has claimed surely did not arrive."""
        pause = self.sender.pause
        items = [item for caller in callers for item in list(caller.unsettled)]
        known: Mapping[Item, Withdrawn | CFQueuesError | None]
        try:
            known = self._room.withdraw(items, claimed=claimed, until=self._clock.monotonic())
        except (SpoolUnavailable, SpoolFull, RoomBusy):
            known = dict.fromkeys(items, Withdrawn.PERHAPS_SENT) if claimed else {}
        settled: dict[Item, CFQueuesError | None] = {}
        for item, found in known.items():
            if isinstance(found, Withdrawn):
                reason = why or item.error or (pause and pause.why)
                settled[item] = timeout_error(reason, sent=found is Withdrawn.PERHAPS_SENT)
            else:
                settled[item] = found
        self._tell(settled)
        if claimed:  # whatever the room says: nobody waits past its deadline
            self._tell({item: timeout_error(why, sent=True) for item in items})

    def _leave(self, caller: Caller) -> None:
        """Leave nothing behind: an interrupt, a killed greenlet or a bug may have ended it."""
        try:
            for number in list(caller.claims):
                self._room.release(number)
                self._in_flight.remove(number)
            if caller.unsettled:
                self._withdraw([caller], None, claimed=True)
        except (SpoolUnavailable, SpoolFull, RoomBusy):
            pass  # the room frees what the dead have claimed
        with self._lock:
            self._lead.leave(caller, self._clock.monotonic())

    # -- telling ------------------------------------------------------------------------------

    def _tell(self, settled: Settled) -> None:
        """Tell the callers of this process what became of their messages."""
        if settled:
            with self._lock:
                self._settle_all(settled)

    def _settle_all(self, settled: Settled) -> None:
        for item, error in settled.items():
            owner: Caller | None = item.owner
            if owner is not None:
                owner.settle(item, error)
