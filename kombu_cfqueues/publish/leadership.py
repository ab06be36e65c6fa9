"""Which caller of a process leads.  The caller of each method holds the group commit's lock.

An exception may end a leader between any two instructions.  So a leader states when it will act
next, and the next caller that looks replaces a leader that is overdue.
"""

from __future__ import annotations

from typing import Final

from .callers import Caller
from .in_flight import InFlight
from .sender import Sender
from .try_times import TryTimes

LEADER_LEASE_SECONDS: Final = 1.0
"""A leader that is overdue by this much is considered dead and is replaced.  It must be longer than
one look at a busy room (`group_commit.ROOM_TIMEOUT_SECONDS`); callers wait this long for a dead
leader, so it is a small part of a publish timeout."""

DEADLINE_TOLERANCE_SECONDS: Final = 1.0
"""Callers whose deadlines differ by at most this much may post for each other.  A message may lose
this much of its time, because the earlier deadline ends the request; the default publish timeout is
30 times as long."""


class Leadership:
    """The callers of a group commit in the order of their arrival, and the one that leads.

    Args:
        sender: Knows the maximum length of a request.
        times: Says when a request for a caller may leave.
        in_flight: Says to which queues this process may not post now.
    """

    def __init__(self, sender: Sender, times: TryTimes, in_flight: InFlight) -> None:
        self._sender = sender
        self._times = times
        self._in_flight = in_flight
        self.callers: dict[Caller, None] = {}
        self.leader: Caller | None = None

    def join(self, caller: Caller, now: float) -> None:
        """Add *caller*; make it the leader, or wake the leader, if that is useful."""
        self.callers[caller] = None
        self.appoint(now)
        leader = self.leader
        if leader is None or leader is caller or self.is_blocked(caller, now):
            return
        resumes_earlier = leader.paused_until > self._times.resumes_at(caller)
        has_more_time = (
            leader.deadline + DEADLINE_TOLERANCE_SECONDS < caller.deadline
            and leader.deadline - now < self._sender.post_seconds
        )
        is_asleep = leader.acts_by > now
        if is_asleep and (resumes_earlier or has_more_time):
            self.appoint(now, caller)
        elif leader.idle:
            leader.wake()

    def leave(self, caller: Caller, now: float) -> None:
        """Remove *caller*; choose another leader if it was the leader."""
        self.callers.pop(caller, None)
        self.step_down(caller, now)

    def step_down(self, caller: Caller, now: float) -> None:
        """Choose another leader if *caller* is the leader, or if the leader is dead."""
        if self.leader is caller:
            self.leader = None
        self.appoint(now)

    def appoint(self, now: float, caller: Caller | None = None) -> None:
        """Make *caller* the leader; without one, replace a missing or dead leader."""
        leader = self.leader
        if caller is None:
            if leader is not None:
                if leader.acts_by + LEADER_LEASE_SECONDS > now:
                    return
                self.callers.pop(leader, None)
            caller = self._best(now)
        self.leader = caller
        if caller is not None:
            caller.acts_by = now
            caller.wake()

    def is_blocked(self, caller: Caller, now: float) -> bool:
        """Whether this process has all its requests to the queue of *caller* in flight."""
        return caller.address.name in self._in_flight.full_queues(caller.kind, now)

    def _best(self, now: float) -> Caller | None:
        """Choose the first caller whose deadline leaves enough time for a full request.

        If no caller has that much time, choose the first whose deadline is close to the latest,
        because the leader's deadline ends the request for all messages in it.
        """
        free = [c for c in self.callers if c.unsettled and not c.posts]
        if len(free) > 1:
            free = self._able(free, now)
        if len(free) < 2:
            return free[0] if free else None
        full_time = now + self._sender.post_seconds
        best = next((c for c in free if c.deadline >= full_time), None)
        if best is None:
            enough = max(c.deadline for c in free) - DEADLINE_TOLERANCE_SECONDS
            best = next(c for c in free if c.deadline >= enough)
        return best

    def _able(self, free: list[Caller], now: float) -> list[Caller]:
        """Return the callers of *free* that may post now; if none may, those that may later."""
        dead = {c for c in free if c.deadline + LEADER_LEASE_SECONDS < now}
        for caller in dead:
            del self.callers[caller]  # its thread ended without calling `leave`
        free = [c for c in free if c not in dead]
        free = [c for c in free if not c.is_late] or free
        full = {kind: self._in_flight.full_queues(kind, now) for kind in {c.kind for c in free}}
        return [c for c in free if c.address.name not in full[c.kind]] or free
