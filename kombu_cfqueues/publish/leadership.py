"""Which caller of a process leads.  The caller of each method holds the group commit's lock.

An exception may end a leader between any two instructions.  So a leader says until when it will
have acted again, and one that is overdue is replaced by whichever caller comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .callers import Caller
from .sender import Sender
from .try_times import TryTimes

LEASE_SECONDS: Final = 1.0
"""A leader that is overdue by this much is taken for dead, and replaced."""

ALIKE_SECONDS: Final = 1.0
"""Callers whose deadlines differ by less may share a request, whichever of them posts it."""


class Leadership:
    """The callers of a group commit, the first first, and the one of them that leads.

    Args:
        sender: Knows how long a request takes at most.
        times: Say when a request for a caller may leave.
        is_busy: Whether this process posts as much as it may to the queue of a caller.
    """

    def __init__(
        self, sender: Sender, times: TryTimes, is_busy: Callable[[Caller, float], bool]
    ) -> None:
        self._sender = sender
        self._times = times
        self._is_busy = is_busy
        self.callers: dict[Caller, None] = {}
        self.leader: Caller | None = None

    def join(self, caller: Caller, now: float) -> None:
        """Let *caller* wait with the others; let the leader know of it, or let it lead."""
        self.callers[caller] = None
        self.appoint(now)
        leader = self.leader
        if leader is None or leader is caller or self._is_busy(caller, now):
            return
        in_a_hurry = leader.paused_until > self._times.resumes_at(caller)
        more_patient = (
            leader.deadline + ALIKE_SECONDS < caller.deadline
            and leader.deadline - now < self._sender.post_seconds
        )
        if leader.acts_by > now and (in_a_hurry or more_patient):  # else it is not asleep
            self.appoint(now, caller)
        elif leader.idle:
            leader.call()

    def leave(self, caller: Caller, now: float) -> None:
        """Let *caller* wait no more."""
        self.callers.pop(caller, None)
        self.step_down(caller, now)

    def step_down(self, caller: Caller, now: float) -> None:
        """Take the lead from *caller*, if it has it."""
        if self.leader is caller:
            self.leader = None
        self.appoint(now)

    def appoint(self, now: float, caller: Caller | None = None) -> None:
        """Give the lead to *caller*; or, if nobody has it or who has it is dead, to the best."""
        leader = self.leader
        if caller is None:
            if leader is not None:
                if leader.acts_by + LEASE_SECONDS > now:
                    return
                self.callers.pop(leader, None)
            caller = self._best(now)
        self.leader = caller
        if caller is not None:
            caller.acts_by = now
            caller.call()

    def _best(self, now: float) -> Caller | None:
        """Choose the first caller that has about as much time as any, or as a request takes.

        A request that carries others must not be shorter than they allow.
        """
        for caller in [c for c in self.callers if c.deadline + LEASE_SECONDS < now]:
            del self.callers[caller]  # its thread ended without a word
        free = [c for c in self.callers if c.unsettled and not c.posts]
        free = [c for c in free if not c.is_late] or free
        free = [c for c in free if not self._is_busy(c, now)] or free
        if not free:
            return None
        longest = max(c.deadline for c in free)
        enough = min(now + self._sender.post_seconds, longest - ALIKE_SECONDS)
        return next(c for c in free if c.deadline >= enough)
