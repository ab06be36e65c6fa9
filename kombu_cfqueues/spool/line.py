"""The callers of a process whose messages wait in the file for a permit of the machine.

A caller whose message cannot leave at once writes it into the file, where whichever process gets
the next permit may take it along.  Then it waits.  One caller of the process *leads*: it alone
looks at the file, takes permits, and tells the others what became of theirs.  While it posts,
another leads.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Final

from ..envelope import Address, Packed
from ..errors import (
    CFQueuesError,
    ConnectionFailed,
    PublishTimeout,
    SpoolFull,
    SpoolUnavailable,
    copy_of,
)
from ..metrics import metrics
from ..publish.lane import BULK_IN_FLIGHT, Verdict
from ..runtime.clock import Clock, Lock
from ..runtime.fork import renew_in_child
from ..runtime.rng import rng
from .carrier import FILE_TROUBLE_SECONDS, Carrier, Judge
from .claims import Claim, Claims
from .intake import Intake
from .schema import Kind, State
from .turns import Wait

LOOK_SECONDS: Final = 0.008
"""How often is looked for an answer while another process posts, or tries to."""

LONGEST_LOOK_SECONDS: Final = 0.05
"""The same once it has taken longer than a request usually does."""

SWEEP_SECONDS: Final = 0.25
"""How often is looked whether those who post are alive."""

HURRY_SECONDS: Final = 1.0
"""Who has less time left takes nothing along that is not its process's: it might have to give up
on a slow answer, and what it took would be sent twice."""

JITTER_SECONDS: Final = 0.004
"""Over so long are those spread who wake for one permit."""


class Line:
    """Confirmed publishing of one process, in requests shared with all processes of the machine.

    An error that several callers share reaches each as a copy of its own.

    Args:
        intake: Where messages wait.
        claims: Is swept now and then.
        carrier: Posts.
        max_in_flight: Requests of this process on their way at once for one queue.
        retry_uncertain: Whether messages are posted again that may have arrived.
        clock: Time and waiting.
    """

    def __init__(
        self,
        intake: Intake,
        claims: Claims,
        carrier: Carrier,
        *,
        max_in_flight: int = 1,
        retry_uncertain: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._intake = intake
        self._claims = claims
        self._carrier = carrier
        self._max_in_flight = max_in_flight
        self._retry_uncertain = retry_uncertain
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty.  What the parent's callers wait for is the parent's to settle."""
        self._lock = self._clock.lock()  # guards all that follows; never held over file or network
        self._callers: dict[_Caller, None] = {}  # who waits, the first first
        self._by_row: dict[int, _Caller] = {}
        self._leader: _Caller | None = None
        self._posting: Counter[str] = Counter()  # requests on their way, by queue
        self._entering = 0  # callers who may be in the file, and are not yet known here
        self._early: dict[int, CFQueuesError | None] = {}  # outcomes that were faster than they
        self._swept_at = 0.0
        self._quiet_looks = 0

    def submit(self, address: Address, packed: Packed, *, deadline: float, judge: Judge) -> None:
        """Publish; block until it is accepted.

        Args:
            address: The queue; its id is known.
            packed: The message.
            deadline: When to give up, in monotonic seconds.
            judge: What a failure means to this caller.

        Raises:
            PublishTimeout: *deadline* passed, or a stop of the API outlasts it.
            CFQueuesError: Why it was refused.
            SpoolUnavailable, SpoolFull: The file cannot be used, and nothing was sent.
        """
        (error,) = self._serve(address, [packed], deadline, judge, Kind.SINGLE)
        if error is not None:
            raise error

    def submit_many(
        self, address: Address, messages: Sequence[Packed], *, deadline: float, judge: Judge
    ) -> list[CFQueuesError | None]:
        """Publish many; block until each is settled.

        Returns:
            The outcome of each: None if it was accepted, else what `submit` would raise.
        """
        return self._serve(address, messages, deadline, judge, Kind.BULK)

    # -- a caller's way through ---------------------------------------------------------------

    def _serve(
        self,
        address: Address,
        messages: Sequence[Packed],
        deadline: float,
        judge: Judge,
        kind: Kind,
    ) -> list[CFQueuesError | None]:
        if not messages:
            return []
        caller = _Caller(self._clock.monotonic(), deadline, judge, self._clock.lock())
        try:
            rows = self._enter(caller, address, messages, kind)
            if rows is None:
                return [None]
            while caller.unsettled:
                now = self._clock.monotonic()
                if deadline <= now:
                    self._withdraw(caller, None)
                elif self._leader is caller:
                    self._try_to_lead(caller, now)
                else:
                    caller.sleep(deadline - now)
        except _Refused as refused:
            return [refused.error]
        finally:
            self._leave(caller)
        outcomes = (caller.outcomes[row] for row in rows)
        return [error and copy_of(error) for error in outcomes]

    def _enter(
        self, caller: _Caller, address: Address, messages: Sequence[Packed], kind: Kind
    ) -> list[int] | None:
        """Post at once if a permit is free, and return None; else stand in line."""
        straight = (
            kind is Kind.SINGLE
            and self._posting[address.name] < self._max_in_flight
            and self._carrier.resume_at <= self._clock.monotonic()
        )
        rows = self._insert(address, messages, caller, kind, straight=straight)
        if rows is not None:
            return rows
        error = self._straight(caller, address, messages[0])
        if error is None:
            return None
        uncertain = error.delivered == "unknown"
        try:
            return self._insert(address, messages, caller, kind, uncertain=uncertain)
        except (SpoolUnavailable, SpoolFull):
            raise _Refused(error) from error

    def _insert(
        self,
        address: Address,
        messages: Sequence[Packed],
        caller: _Caller,
        kind: Kind,
        *,
        straight: bool = False,
        uncertain: bool = False,
    ) -> list[int] | None:
        with self._lock:
            self._entering += 1
        rows = None
        try:
            rows = self._intake.enter(
                kind,
                address,
                messages,
                deadline=caller.deadline,
                repeats=self._retry_uncertain,
                uncertain=uncertain,
                straight=straight,
            )
        finally:
            with self._lock:
                self._entering -= 1
                self._register(caller, rows or [])
        return rows

    def _straight(self, caller: _Caller, address: Address, packed: Packed) -> CFQueuesError | None:
        """Post one message alone; return why it is to be posted again."""
        metrics.waited(0.0)
        with self._lock:
            self._posting[address.name] += 1
        try:
            self._carrier.direct(address, packed, caller.deadline)
        except CFQueuesError as error:
            uncertain = error.delivered == "unknown"
            if caller.judge(error) is not Verdict.NOT_NOW or (
                uncertain and not self._retry_uncertain
            ):
                raise _Refused(error) from error
            metrics.retried(error)
            return error
        finally:
            self._landed(address.name)
        return None

    # -- the leader's work --------------------------------------------------------------------

    def _try_to_lead(self, caller: _Caller, now: float) -> None:
        try:
            self._lead(caller, now)
        except (SpoolUnavailable, SpoolFull) as error:
            # The messages are in the file, and others may reach it.  Each caller has its deadline.
            self._carrier.trouble = error
            caller.sleep(min(FILE_TROUBLE_SECONDS, caller.deadline - now))

    def _lead(self, caller: _Caller, now: float) -> None:
        """Look once for news and permits; post, or sleep until there can be some."""
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._claims.sweep()
        if not self._still_waits(caller):
            return
        hurried = caller.deadline - now < HURRY_SECONDS
        claim = self._carrier.claim(without=self._busy(caller), only_mine=hurried)
        if isinstance(claim, Claim):
            self._quiet_looks = 0
            metrics.waited(self._clock.monotonic() - caller.waits_since)
            self._carry(caller, claim)
            caller.waits_since = self._clock.monotonic()
        # Once more: whoever was faster may have taken ours along, and its answer comes long before
        # the next permit.
        elif self._still_waits(caller):
            self._sleep(caller, claim)

    def _still_waits(self, caller: _Caller) -> bool:
        """Tell the callers what is known; return whether any message of theirs is not yet taken."""
        found, waits = self._intake.outcomes()
        if found:
            self._quiet_looks = 0
            self._settle(found)
            return False
        if not waits:
            self._quiet_looks += 1
            patient = self._quiet_looks > 20
            look = LONGEST_LOOK_SECONDS if patient else LOOK_SECONDS
            caller.sleep(min(look, caller.deadline - self._clock.monotonic()))
        return waits

    def _sleep(self, caller: _Caller, wait: Wait) -> None:
        if wait.why is not None and wait.until is not None:
            self._give_up_before(wait.until, wait.why)
            if not caller.unsettled:
                return
        now = self._clock.monotonic()
        # Without a time of its own the wait is for a request of this process, which wakes us.
        until = now + LONGEST_LOOK_SECONDS if wait.until is None else wait.until
        if self._carrier.trouble is not None:
            until = min(until, now + LONGEST_LOOK_SECONDS)  # others may get through meanwhile
        until += rng.uniform(0, JITTER_SECONDS)
        caller.sleep(min(until, caller.deadline, now + SWEEP_SECONDS) - now)

    def _carry(self, caller: _Caller, claim: Claim) -> None:
        with self._lock:
            caller.posts = True
            self._posting[claim.address.name] += 1
            self._step_down(caller)
        try:
            settled = self._carrier.carry(claim, deadline=caller.deadline, judge=self._judge_of)
        finally:
            caller.posts = False
            self._landed(claim.address.name)
        self._settle(settled)

    def _judge_of(self, row: int) -> Judge:
        caller = self._by_row.get(row)
        return caller.judge if caller else _never

    def _busy(self, caller: _Caller) -> list[str]:
        """Queues to which this process posts as much as it may."""
        most = self._max_in_flight
        if len(caller.unsettled) > 1:
            most = max(most, BULK_IN_FLIGHT)
        with self._lock:
            return [name for name, count in self._posting.items() if count >= most]

    def _landed(self, name: str) -> None:
        with self._lock:
            self._posting[name] -= 1
            if not self._posting[name]:
                del self._posting[name]
            self._appoint()
            if self._leader is not None:
                self._leader.call()

    def _settle(self, outcomes: dict[int, CFQueuesError | None]) -> None:
        with self._lock:
            for row, error in outcomes.items():
                caller = self._by_row.pop(row, None)
                if caller is not None:
                    caller.settle(row, error)
                elif self._entering:
                    self._early[row] = error

    # -- giving up ----------------------------------------------------------------------------

    def _give_up_before(self, until: float, why: CFQueuesError) -> None:
        """Tell those whose deadline comes before the end of a stop: waiting is in vain."""
        with self._lock:
            late = [caller for caller in self._callers if caller.deadline <= until]
        for caller in late:
            self._withdraw(caller, why, taken=False)

    def _withdraw(self, caller: _Caller, why: CFQueuesError | None, *, taken: bool = True) -> None:
        """Settle what *caller* waits for in vain: what nobody has taken surely did not arrive."""
        why = why or self._carrier.trouble
        rows = list(caller.unsettled)
        try:
            fates = self._intake.withdraw(rows, taken=taken)
        except (SpoolUnavailable, SpoolFull):
            fates = dict.fromkeys(rows, State.CLAIMED)
        self._settle(
            {
                row: _timeout(fate, why) if isinstance(fate, State) else fate
                for row, fate in fates.items()
            }
        )

    def _leave(self, caller: _Caller) -> None:
        """Leave nothing behind: an interrupt or a killed greenlet may have ended *caller*."""
        if caller.unsettled:
            self._withdraw(
                caller, ConnectionFailed("the thread that was publishing was interrupted")
            )
        with self._lock:
            self._callers.pop(caller, None)
            self._step_down(caller)

    # -- below, the caller of each method holds _lock -----------------------------------------

    def _register(self, caller: _Caller, rows: Sequence[int]) -> None:
        if rows:
            self._callers[caller] = None
            caller.unsettled.update(rows)
            self._by_row.update(dict.fromkeys(rows, caller))
        for row in [row for row in rows if row in self._early]:
            del self._by_row[row]
            caller.settle(row, self._early.pop(row))
        if not self._entering:
            self._early.clear()
        self._appoint()

    def _step_down(self, caller: _Caller) -> None:
        if self._leader is caller:
            self._leader = None
        self._appoint()

    def _appoint(self) -> None:
        """Give the lead, if it is free, to the first who waits."""
        if self._leader is None:
            for caller in self._callers:
                if caller.unsettled and not caller.posts:
                    self._leader = caller
                    caller.call()
                    return


class _Refused(Exception):
    """The straight way ended with an answer for the caller."""

    def __init__(self, error: CFQueuesError) -> None:
        super().__init__()
        self.error = error


class _Caller:
    """A thread that waits for its messages.  The lock of its line guards it."""

    __slots__ = ("deadline", "judge", "outcomes", "posts", "unsettled", "waits_since", "wake")

    def __init__(self, now: float, deadline: float, judge: Judge, wake: Lock) -> None:
        self.waits_since = now
        self.deadline = deadline
        self.judge = judge
        self.unsettled: set[int] = set()
        self.outcomes: dict[int, CFQueuesError | None] = {}
        self.posts = False
        self.wake = wake  # locked while there is no news
        wake.acquire()

    def call(self) -> None:
        """Wake it: it is settled, leads, or may look again."""
        if self.wake.locked():
            self.wake.release()

    def sleep(self, seconds: float) -> None:
        """Block for so long, or until `call`."""
        if seconds > 0:
            self.wake.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def settle(self, row: int, error: CFQueuesError | None) -> None:
        self.unsettled.discard(row)
        self.outcomes[row] = error
        if not self.unsettled:
            self.call()


def _never(_: CFQueuesError) -> Verdict:
    return Verdict.NOT_NOW


def _timeout(state: State, why: CFQueuesError | None) -> PublishTimeout:
    sent = state is State.CLAIMED
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
