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
from ..errors import CFQueuesError, PublishTimeout, SpoolFull, SpoolUnavailable, copy_of
from ..retry import LAST_TRY_SECONDS
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
from .callers import Caller
from .sender import FILE_RETRY_SECONDS, Judge, Sender

BULK_IN_FLIGHT: Final = 2
"""Requests in flight for `GroupCommit.submit_many`: two reach what one queue takes (5,000/s)."""

LEASE_SECONDS: Final = 1.0
"""A leader that is overdue by this much is taken for dead, and replaced."""

ROOM_SECONDS: Final = LEASE_SECONDS / 2
"""How long a leader tries to use a room that is busy, before it looks at its own time again."""

HURRY_SECONDS: Final = 1.0
"""A caller this close to its deadline posts only messages of its own process: it might have to give
up on a slow answer, and the others would be sent twice."""

ALIKE_SECONDS: Final = 1.0
"""Callers whose deadlines differ by less may share a request, whichever of them posts it."""

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
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty.  What the parent's callers wait for is the parent's to settle."""
        # _lock guards all that follows and the callers.  It is never held over the room, a post or
        # a sleep.  _leader is also read without it.
        self._lock = self._clock.lock()
        self._callers: dict[Caller, None] = {}  # who waits, the first first
        self._leader: Caller | None = None
        self._in_flight: dict[int, _Flight] = {}  # requests on their way, by claim

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
            self.sender.send(found, self._tell, deadline=inf, judge=_judge_of)
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
            if caller.unsettled or caller.claims or caller in self._callers:
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
            self._settle_all(dict.fromkeys(items, _timeout(error, sent=False)))
            return
        if claim is not None:
            self._carry(caller, claim)
        else:
            caller.claims.pop(number)
        with self._lock:
            self._callers[caller] = None
            self._make_way(caller, self._clock.monotonic())

    def _step(self, caller: Caller) -> None:
        now = self._clock.monotonic()
        if caller.deadline <= now:
            self._withdraw([caller], None, claimed=True)
        elif not caller.is_late and self._last_moment(caller) <= now:
            # A request that cannot be answered in time would leave it open whether it arrived.
            self._make_late(caller)
        elif self._is_hopeless(caller):
            pause = self.sender.pause
            self._withdraw([caller], pause and pause.why, claimed=False)
            caller.is_late = bool(caller.unsettled)
        elif self._leader is caller:
            self._lead(caller, now)
        else:
            self._follow(caller, now)

    def _follow(self, caller: Caller, now: float) -> None:
        """Sleep until there is news; lead, if who leads is dead or sleeps for longer than this."""
        wake_at = caller.deadline if caller.is_late else self._last_moment(caller)
        with self._lock:
            self._callers[caller] = None  # one that was taken for dead comes back here
            self._appoint(now)
            leader = self._leader
            if leader is caller:
                return
            if leader is not None:
                wake_at = min(wake_at, leader.acts_by + LEASE_SECONDS)
                resumes_at = self._resumes_at(caller)
                if leader.paused_until > resumes_at and not caller.is_late:
                    if resumes_at <= now:
                        self._appoint(now, caller)
                        return
                    wake_at = min(wake_at, resumes_at)
            else:
                wake_at = min(wake_at, now + LEASE_SECONDS)
        caller.sleep(wake_at - now)

    # -- the leader's work --------------------------------------------------------------------

    def _lead(self, caller: Caller, now: float) -> None:
        """Look once for news and for a permit; post, or sleep until there can be some."""
        caller.acts_by = now
        try:
            self.sender.catch_up(self._tell)
            news = self._room.outcomes(until=now + ROOM_SECONDS)
            self._tell(news.settled)
            if not caller.unsettled or self._leader is not caller:
                return
            if not news.waiting or caller.is_late:
                look_at = caller.deadline if news.look_at is None else news.look_at
                self._sleep(caller, look_at, idle=True)
                return
            resumes_at = self._resumes_at(caller)
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
        until = min(until, caller.deadline if caller.is_late else self._last_moment(caller))
        caller.acts_by, caller.idle = max(until, now), idle
        caller.sleep(until - now)
        caller.idle = False

    def _carry(self, caller: Caller, claim: Claim) -> None:
        """Post a claim; meanwhile another caller leads."""
        now = self._clock.monotonic()
        end = min(caller.deadline, now + self.sender.post_seconds)
        with self._lock:
            caller.posts = True
            self._in_flight[claim.number] = _Flight(claim.address.name, end + LEASE_SECONDS)
            self._step_down(caller, now)
        try:
            self.sender.send(claim, self._tell, deadline=caller.deadline, judge=_judge_of)
        finally:
            pause = self.sender.pause
            caller.failed |= pause is not None and pause.since >= now
            self._land(caller, claim)
        caller.claims.pop(claim.number, None)

    def _land(self, caller: Caller, claim: Claim) -> None:
        now = self._clock.monotonic()
        with self._lock:
            caller.posts = False
            self._in_flight.pop(claim.number, None)
            self._appoint(now)
            if self._leader is not None:
                self._leader.call()
            for other in self._callers:
                if self._is_hopeless(other):
                    other.call()
            for item in claim.items:  # those that wait again may have no more time to
                owner = item.owner
                if owner is not None and item in owner.unsettled and owner.is_late:
                    owner.is_late = False
                    owner.call()

    # -- when a caller may post ---------------------------------------------------------------

    def _last_moment(self, caller: Caller) -> float:
        """Return until when a request for *caller* may leave.

        It has to be answered in time.  One slow answer must not silence everybody, so half of a
        caller's whole time is always there for tries.
        """
        return max(caller.deadline - self.sender.request_seconds, caller.half_time)

    def _resumes_at(self, caller: Caller) -> float:
        """Return when *caller* may post, after a failure.

        A pause that the server did not ask for is only our caution.  It must keep no caller from a
        first try, since the trouble may be over, nor from a last one.
        """
        pause = self.sender.pause
        if pause is None:
            return 0.0
        until = pause.until
        if not caller.has_failed():
            until = min(until, caller.half_time)
        margin = min(LAST_TRY_SECONDS, (caller.deadline - caller.half_time) / 5)
        last_try = self._last_moment(caller) - margin
        if pause.since < last_try:
            until = min(until, last_try)
        return max(until, pause.asked_until)

    def _is_hopeless(self, caller: Caller) -> bool:
        """Whether a pause outlasts all that *caller* can do."""
        pause = self.sender.pause
        if caller.is_late or pause is None:
            return False
        # In a shared room others may post, if only our own caution is in the way.
        until = pause.asked_until if self._room.shared else self._resumes_at(caller)
        return until > self._last_moment(caller)

    def _is_busy(self, caller: Caller, now: float) -> bool:
        return caller.address.name in self._busy(caller, now)

    def _busy(self, caller: Caller, now: float) -> list[str]:
        """Return the queues to which this process posts as much as it may, for *caller*."""
        most = self._max_in_flight
        if caller.kind is Kind.BULK:
            most = max(most, BULK_IN_FLIGHT)
        counts: dict[str, int] = {}
        for flight in list(self._in_flight.values()):
            if flight.over_at > now:  # else whoever posted it has ended without a word
                counts[flight.queue] = counts.get(flight.queue, 0) + 1
        return [name for name, count in counts.items() if count >= most]

    # -- giving up ----------------------------------------------------------------------------

    def _make_late(self, caller: Caller) -> None:
        """Take back what nobody has claimed, from when on no request would be answered in time."""
        self._withdraw([caller], None, claimed=False)
        with self._lock:
            caller.is_late = True
            if self._leader is caller:
                self._step_down(caller, self._clock.monotonic())

    def _give_up_before(self, until: float, why: CFQueuesError, queue: str | None) -> None:
        """Tell those who cannot wait until then: nothing of theirs can leave."""
        with self._lock:
            late = [
                caller
                for caller in self._callers
                if queue in (None, caller.address.name) and self._last_moment(caller) < until
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
                settled[item] = _timeout(reason, sent=found is Withdrawn.PERHAPS_SENT)
            else:
                settled[item] = found
        self._tell(settled)
        if claimed:  # whatever the room says: nobody waits past its deadline
            self._tell({item: _timeout(why, sent=True) for item in items})

    def _leave(self, caller: Caller) -> None:
        """Leave nothing behind: an interrupt, a killed greenlet or a bug may have ended it."""
        try:
            for number in list(caller.claims):
                self._room.release(number)
                self._in_flight.pop(number, None)
            if caller.unsettled:
                self._withdraw([caller], None, claimed=True)
        except (SpoolUnavailable, SpoolFull, RoomBusy):
            pass  # the room frees what the dead have claimed
        with self._lock:
            self._callers.pop(caller, None)
            self._step_down(caller, self._clock.monotonic())

    # -- below, the caller of each method holds _lock -----------------------------------------

    def _make_way(self, caller: Caller, now: float) -> None:
        """Let the leader know of a new caller, or let that lead."""
        self._appoint(now)
        leader = self._leader
        if leader is None or leader is caller:
            return
        sleeps = leader.acts_by > now
        in_a_hurry = leader.paused_until > self._resumes_at(caller)
        more_patient = (
            leader.deadline + ALIKE_SECONDS < caller.deadline
            and leader.deadline - now < self.sender.post_seconds
        )
        if sleeps and (in_a_hurry or more_patient) and not self._is_busy(caller, now):
            self._appoint(now, caller)
        elif leader.idle and not self._is_busy(caller, now):
            leader.call()

    def _step_down(self, caller: Caller, now: float) -> None:
        if self._leader is caller:
            self._leader = None
        self._appoint(now)

    def _appoint(self, now: float, caller: Caller | None = None) -> None:
        """Give the lead to *caller*; or, if nobody has it or who has it is dead, to the best."""
        leader = self._leader
        if caller is None:
            if leader is not None:
                if leader.acts_by + LEASE_SECONDS > now:
                    return
                self._callers.pop(leader, None)
            caller = self._best(now)
        self._leader = caller
        if caller is not None:
            caller.acts_by = now
            caller.call()

    def _best(self, now: float) -> Caller | None:
        """Choose who leads: the first that has about as much time as any, or as a request takes."""
        for caller in [c for c in self._callers if c.deadline + LEASE_SECONDS < now]:
            del self._callers[caller]  # its thread ended without a word
        free = [c for c in self._callers if c.unsettled and not c.posts]
        if not free:
            return None
        free = [c for c in free if not c.is_late] or free
        able = [c for c in free if not self._is_busy(c, now)] if self._in_flight else free
        longest = max(c.deadline for c in able or free)
        enough = min(now + self.sender.post_seconds, longest - ALIKE_SECONDS)
        return next(c for c in able or free if c.deadline >= enough)

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


class _Flight:
    """A request on its way."""

    __slots__ = ("over_at", "queue")

    def __init__(self, queue: str, over_at: float) -> None:
        self.queue = queue
        self.over_at = over_at  # monotonic: by then it is over, whatever became of its thread


def _judge_of(item: Item) -> Judge | None:
    caller: Caller = item.owner
    return caller.judge


def _timeout(why: CFQueuesError | None, *, sent: bool) -> PublishTimeout:
    text = "no request could leave for the message in time"
    if sent:
        text = "the request that carries the message was not answered in time"
    error = PublishTimeout(
        f"{text} (last failure: {why})" if why else text,
        retry_after=why.retry_after if why else None,
        delivered="unknown" if sent else "no",
    )
    error.__cause__ = why
    return error
